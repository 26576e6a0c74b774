"""Losses on pairs of images and texts beside their formulas written as loops."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.distill.formulas import random
from torch import Tensor

from vistill.distill.losses_dual import (
    contrastive,
    contrastive_relational,
    feature_distillation,
    image_text_matching,
    interactive_contrastive,
    similarities,
    soft_contrastive,
    soft_targets,
)
from vistill.errors import ConfigError

T = 0.3


def _four(width: int = 4) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images and texts of a student, images and texts of a teacher: [3, 4] each."""
    return random(3, 4), random(3, 4, seed=1), random(3, width, seed=2), random(3, width, seed=3)


def _cosine(a: Tensor, b: Tensor) -> float:
    x, y = a.tolist(), b.tolist()
    dot = sum(p * q for p, q in zip(x, y, strict=True))
    return dot / math.sqrt(sum(p * p for p in x) * sum(q * q for q in y))


def _logits(a: Tensor, b: Tensor, temperature: float = T) -> list[list[float]]:
    return [[_cosine(x, y) / temperature for y in b] for x in a]


def _shares(row: list[float]) -> list[float]:
    total = sum(map(math.exp, row))
    return [math.exp(x) / total for x in row]


def _nce(a: Tensor, b: Tensor) -> float:
    rows = _logits(a, b)
    return sum(-math.log(_shares(row)[k]) for k, row in enumerate(rows)) / len(rows)


def test_contrastive_is_its_formula() -> None:
    image, text, *_ = _four()
    expected = (_nce(image, text) + _nce(text, image)) / 2
    assert contrastive(image, text, T).item() == pytest.approx(expected, abs=1e-12)
    assert contrastive(text, image, T).item() == pytest.approx(expected, abs=1e-12)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), order=st.permutations(range(5)), scale=st.floats(0.1, 10))
def test_contrastive_sees_neither_order_nor_length(seed: int, order: list[int], scale: float) -> None:
    image, text = random(5, 3, seed=seed), random(5, 3, seed=seed + 1)
    plain = contrastive(image, text, T).item()
    assert contrastive(scale * image[order], text[order] / scale, T).item() == pytest.approx(plain)
    assert contrastive(image, text, 1e6).item() == pytest.approx(math.log(5), abs=1e-4)


def test_a_learnt_temperature_gets_its_gradient() -> None:
    image, text, *_ = _four()
    log_scale = torch.tensor(1.2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: contrastive(image, text, torch.exp(-x)), (log_scale,))


def test_feature_distillation_is_its_formula() -> None:
    si, stx, ti, tt = _four()
    total = 0.0
    for student, teacher in ((si, ti), (stx, tt)):
        for a, b in zip(student.numpy(), teacher.numpy(), strict=True):
            total += float(((a / np.linalg.norm(a) - b / np.linalg.norm(b)) ** 2).sum()) / 4 / 3
    assert feature_distillation(si, stx, ti, tt).item() == pytest.approx(total, abs=1e-12)
    assert feature_distillation(2 * ti, 3 * tt, ti, tt).item() == pytest.approx(0, abs=1e-12)


def test_interactive_contrastive_is_its_formula() -> None:
    si, stx, ti, tt = _four()
    expected = (_nce(si, tt) + _nce(stx, ti)) / 2
    assert interactive_contrastive(si, stx, ti, tt, T).item() == pytest.approx(expected, abs=1e-12)
    with pytest.raises(ConfigError, match=r"interactive_contrastive: student \[3, 4\] and teacher \[3, 6\]"):
        interactive_contrastive(*_four(6), T)


@pytest.mark.parametrize("own", [None, 0.7])
def test_contrastive_relational_is_its_formula(own: float | None) -> None:
    si, stx, ti, tt = _four(6)
    total = 0.0
    for students, teachers in (((si, stx), (ti, tt)), ((stx, si), (tt, ti))):
        for q_row, p_row in zip(_logits(*students), _logits(*teachers, own or T), strict=True):
            total += sum(p * math.log(p / q) for p, q in zip(_shares(p_row), _shares(q_row), strict=True))
    loss = contrastive_relational(si, stx, ti, tt, T, own)
    assert loss.item() == pytest.approx(total / 3 / 2, abs=1e-12)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_contrastive_relational_is_zero_for_a_turned_teacher(seed: int) -> None:
    image, text = random(4, 3, seed=seed), random(4, 3, seed=seed + 1)
    turn = torch.linalg.qr(random(3, 3, seed=seed + 2)).Q
    assert contrastive_relational(image, text, image @ turn, text @ turn, T).item() == pytest.approx(
        0, abs=1e-12
    )
    assert contrastive_relational(image, text, text, text.flip(0), T).item() > 1e-6


@pytest.mark.parametrize("several", [False, True])
def test_soft_contrastive_with_a_queue_is_its_formula(several: bool) -> None:
    """Momentum distillation of ALBEF: B = 3 of the batch and 2 of the queue behind it."""
    image, _, momentum_image, momentum_text = _four()
    bank, alpha = torch.cat([momentum_text, random(2, 4, seed=9)]), 0.4
    positives = torch.eye(3, 5).bool()
    positives[0, 4] = several
    total = 0.0
    for k in range(3):
        q = _shares(_logits(image, bank)[k])
        p = _shares(_logits(momentum_image, bank)[k])
        for m in range(5):
            right = float(positives[k, m]) / float(positives[k].sum())
            total -= (alpha * p[m] + (1 - alpha) * right) * math.log(q[m]) / 3
    targets = soft_targets(similarities(momentum_image, bank, T), alpha, positives if several else None)
    assert targets.sum(1).tolist() == pytest.approx([1, 1, 1])
    loss = soft_contrastive(similarities(image, bank, T), targets)
    assert loss.item() == pytest.approx(total, abs=1e-12)


def test_soft_contrastive_without_softness_is_contrastive() -> None:
    image, text, *_ = _four()
    logits = similarities(image, text, T)
    both = soft_contrastive(logits, soft_targets(logits, 0.0)) + soft_contrastive(
        logits.T, soft_targets(logits.T, 0.0)
    )
    assert both.item() / 2 == pytest.approx(contrastive(image, text, T).item())
    with pytest.raises(ConfigError, match="differ in shape"):
        soft_contrastive(logits, torch.eye(3, 5))


def test_image_text_matching_is_its_formula() -> None:
    logits, matched = random(6, 2), torch.tensor([1, 1, 0, 0, 0, 0]).bool()
    expected = [-math.log(_shares(row)[int(yes)]) for row, yes in zip(logits.tolist(), matched, strict=True)]
    assert image_text_matching(logits, matched).item() == pytest.approx(sum(expected) / 6, abs=1e-12)


TEACHER = _four()[2:]
BANK = random(5, 4, seed=9)
OF_STUDENT: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "contrastive": lambda image, text: contrastive(image, text, T),
    "feature_distillation": lambda image, text: feature_distillation(image, text, *TEACHER),
    "interactive_contrastive": lambda image, text: interactive_contrastive(image, text, *TEACHER, T),
    "contrastive_relational": lambda image, text: contrastive_relational(image, text, *TEACHER, T),
    "soft_contrastive": lambda image, text: (
        soft_contrastive(similarities(image, BANK, T), soft_targets(similarities(TEACHER[0], BANK, T), 0.4))
        + text.square().sum()
    ),
    "image_text_matching": lambda image, text: image_text_matching(
        image @ text.T[:, :2], torch.tensor([True, False, True])
    ),
}


@pytest.mark.parametrize("name", OF_STUDENT)
def test_gradients(name: str) -> None:
    image, text = (x.clone().requires_grad_() for x in _four()[:2])
    assert torch.autograd.gradcheck(OF_STUDENT[name], (image, text))


def test_no_gradient_reaches_a_teacher() -> None:
    student, teacher = _four()[:2], [x.clone().requires_grad_() for x in TEACHER]
    student = tuple(x.clone().requires_grad_() for x in student)
    scale = torch.tensor(T, dtype=torch.float64, requires_grad=True)
    loss = feature_distillation(*student, *teacher) + interactive_contrastive(*student, *teacher, scale)
    loss = loss + contrastive_relational(*student, *teacher, scale)
    logits = similarities(student[0], teacher[1].detach(), scale)
    (loss + soft_contrastive(logits, soft_targets(similarities(*teacher, scale), 0.4))).backward()
    assert not soft_targets(similarities(*teacher, scale), 0.4).requires_grad
    assert all(x.grad is None for x in teacher)
    assert all(x.grad is not None for x in (*student, scale))
