"""Formulas as loops over numpy arrays, and random tensors in float64, for the tests of losses."""

import math

import numpy as np
import torch
from torch import Tensor


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def kl(p: np.ndarray, q: np.ndarray) -> float:
    return sum(a * (math.log(a) - math.log(b)) for a, b in zip(p.ravel(), q.ravel(), strict=True) if a > 0)


def random(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def top(teacher: Tensor, k: int) -> tuple[Tensor, Tensor]:
    logp, ids = teacher.log_softmax(-1).topk(k)
    return ids, logp
