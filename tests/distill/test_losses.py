"""Each loss beside its formula written as loops, and its gradient beside finite differences."""

import math

import pytest
import torch

from vistill.distill.losses import bag_of_words, cross_entropy, self_critical, sequence_log_probability
from vistill.models.tokens import PAD, UNK


def _texts() -> tuple["torch.Tensor", "torch.Tensor"]:
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 5, 9, dtype=torch.float64)
    targets = torch.randint(4, 9, (2, 3, 5))
    targets[0, 0, 3:] = PAD
    targets[1, 2, 1] = UNK
    return logits, targets


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_is_its_formula(smoothing: float) -> None:
    logits, targets = _texts()
    total, count = 0.0, 0
    for b in range(2):
        for c in range(3):
            for t in range(5):
                target = int(targets[b, c, t])
                if target in (PAD, UNK):
                    continue
                row = logits[b, c, t].tolist()
                log_z = math.log(sum(map(math.exp, row)))
                spread = sum(log_z - x for x in row) / len(row)
                total += (1 - smoothing) * (log_z - row[target]) + smoothing * spread
                count += 1
    assert cross_entropy(logits, targets, smoothing).item() == pytest.approx(total / count, abs=1e-10)


def test_padding_and_unknown_words_get_no_gradient() -> None:
    logits, targets = _texts()
    logits.requires_grad_()
    cross_entropy(logits, targets, 0.1).backward()
    silent = (targets == PAD) | (targets == UNK)
    assert logits.grad[silent].abs().max() == 0
    assert logits.grad[~silent].abs().amax(-1).min() > 0


def test_self_critical_is_its_formula() -> None:
    logits, samples = _texts()
    rewards = torch.rand(2, 3, dtype=torch.float64)
    total, tokens = 0.0, 0
    for b in range(2):
        for c in range(3):
            others = [float(rewards[b, k]) for k in range(3) if k != c]
            advantage = float(rewards[b, c]) - sum(others) / 2
            for t in range(5):
                if samples[b, c, t] != PAD:
                    log_p = torch.log_softmax(logits[b, c, t], -1)[samples[b, c, t]]
                    total -= advantage * float(log_p)
                    tokens += 1
    assert self_critical(logits, samples, rewards).item() == pytest.approx(total / tokens, abs=1e-10)


def test_self_critical_raises_what_earned_more() -> None:
    logits, samples = _texts()
    logits.requires_grad_()
    rewards = torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.5, 0.5]], dtype=torch.float64)
    self_critical(logits, samples, rewards).backward()
    better = sequence_log_probability(logits - logits.grad, samples) - sequence_log_probability(
        logits, samples
    )
    assert better[0, 0] > 0
    assert (better[0, 1:] < 0).all()
    assert torch.allclose(better[1], torch.zeros(3, dtype=torch.float64))


def test_bag_of_words_is_its_formula() -> None:
    torch.manual_seed(1)
    logits, targets = torch.randn(2, 6, dtype=torch.float64), torch.rand(2, 6, dtype=torch.float64)
    p = torch.sigmoid(logits)
    expected = -(targets * p.log() + (1 - targets) * (1 - p).log()).sum() / 2
    assert bag_of_words(logits, targets).item() == pytest.approx(expected.item(), abs=1e-10)


@pytest.mark.parametrize("name", ["cross_entropy", "self_critical", "bag_of_words"])
def test_gradients(name: str) -> None:
    logits, targets = _texts()
    logits.requires_grad_()
    functions = {
        "cross_entropy": lambda x: cross_entropy(x, targets, 0.1),
        "self_critical": lambda x: self_critical(
            x, targets, torch.tensor([[0.1, 0.7, 0.4], [0.9, 0.0, 0.2]]).double()
        ),
        "bag_of_words": lambda x: bag_of_words(x.flatten(1), torch.full((2, 135), 0.3).double()),
    }
    assert torch.autograd.gradcheck(functions[name], (logits,))
