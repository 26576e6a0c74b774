"""Each loss beside its formula written as loops, and its gradient beside finite differences."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.distill.formulas import kl, random, softmax, top
from torch import Tensor

from vistill.distill.losses import (
    bag_of_words,
    cross_entropy,
    kl_divergence,
    self_critical,
    sequence_log_probability,
    top_k_kl,
)
from vistill.errors import ConfigError
from vistill.models.tokens import PAD, UNK


def _texts() -> tuple[Tensor, Tensor]:
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


def test_cross_entropy_of_nothing_is_nothing() -> None:
    logits, targets = _texts()
    assert cross_entropy(logits, torch.full_like(targets, PAD), 0.1).item() == 0


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


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_kl_divergence_is_its_formula(temperature: float) -> None:
    student, targets = _texts()
    teacher = random(*student.shape, seed=1)
    s, t = student.numpy() / temperature, teacher.numpy() / temperature
    rows = [kl(softmax(t[i]), softmax(s[i])) for i in np.ndindex(targets.shape) if targets[i] != PAD]
    assert len(rows) == 28
    expected = temperature**2 * sum(rows) / len(rows)
    assert kl_divergence(student, teacher, targets, temperature).item() == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize(("k", "temperature"), [(1, 1.0), (3, 1.0), (3, 2.0), (8, 0.7), (9, 2.0)])
def test_top_k_kl_is_its_formula(k: int, temperature: float) -> None:
    student, targets = _texts()
    teacher = random(*student.shape, seed=1, scale=2.0)
    top_ids, top_logp = top(teacher, k)
    V, rows = student.shape[-1], []
    for i in np.ndindex(targets.shape):
        if targets[i] == PAD:
            continue
        ids = top_ids[i].numpy()
        p = np.exp(top_logp[i].numpy())
        spread = np.full(V, (1 - p.sum()) / (V - k) if k < V else 0.0)  # the teacher as it is assumed to be
        spread[ids] = p
        p = np.maximum(spread, 0) ** (1 / temperature)
        p, q = p / p.sum(), softmax(student[i].numpy() / temperature)
        others = np.delete(np.arange(V), ids)
        merged = [np.append(x[ids], x[others].sum()) for x in (p, q)] if k < V else [p[ids], q[ids]]
        rows.append(kl(*merged))
    loss = top_k_kl(student, top_ids, top_logp, targets, temperature)
    assert loss.item() == pytest.approx(temperature**2 * sum(rows) / len(rows), abs=1e-9)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_top_k_kl_of_the_whole_vocabulary_is_the_kl(temperature: float) -> None:
    student, targets = _texts()
    teacher = random(*student.shape, seed=2)
    whole = top_k_kl(student, *top(teacher, 9), targets, temperature)
    assert whole.item() == pytest.approx(kl_divergence(student, teacher, targets, temperature).item())


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), k=st.integers(1, 6), scale=st.floats(0.1, 5))
def test_merging_tokens_only_loses(seed: int, k: int, scale: float) -> None:
    student, teacher = random(4, 7, seed=seed, scale=scale), random(4, 7, seed=seed + 1, scale=scale)
    targets = torch.full((4,), UNK)
    fewer, more = (top_k_kl(student, *top(teacher, n), targets).item() for n in (k, k + 1))
    assert -1e-12 <= fewer <= more + 1e-12
    assert more <= kl_divergence(student, teacher, targets).item() + 1e-12


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), shift=st.floats(-50, 50), temperature=st.floats(0.3, 5))
def test_kl_ignores_what_softmax_ignores(seed: int, shift: float, temperature: float) -> None:
    student, teacher = random(3, 6, seed=seed), random(3, 6, seed=seed + 1)
    plain = kl_divergence(student, teacher, None, temperature).item()
    assert plain > 0
    assert kl_divergence(student + shift, teacher - shift, None, temperature).item() == pytest.approx(plain)
    ids, logp = top(teacher, 2)
    kept = [top_k_kl(x, ids, logp, torch.ones(3), temperature).item() for x in (student, student + shift)]
    assert kept[0] == pytest.approx(kept[1])


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_top_k_kl_does_not_ask_for_what_the_student_blocks(temperature: float) -> None:
    """A public captioner never says its marks; rounding leaves them a little of the teacher's mass."""
    student = random(1, 6, scale=2.0)
    student[..., 4:] = -1e9
    ids, logp = top(student, 4)
    rounded = torch.nextafter(logp.half(), torch.tensor(-9.0).half())
    assert rounded.float().exp().sum() < 1
    assert abs(top_k_kl(student, ids, rounded, torch.ones(1), temperature).item()) < 1e-3


def test_top_k_kl_of_rounded_probabilities_that_exceed_one() -> None:
    teacher = torch.tensor([[6.0, 5.5, -9.0, -9.0, -9.0, -9.0]])
    ids, logp = top(teacher, 2)
    rounded = torch.nextafter(logp.half(), torch.tensor(1.0).half())
    assert rounded.float().exp().sum() > 1
    student = torch.zeros(1, 6, requires_grad=True)
    for temperature in (1.0, 4.0):
        loss = top_k_kl(student, ids, rounded, torch.ones(1), temperature)
        p = softmax(rounded.double().numpy()[0] / temperature)  # the rest is 0, the kept sum to 1
        expected = temperature**2 * kl(p, np.full(2, 1 / 6))
        assert loss.item() == pytest.approx(expected, rel=1e-5)
        loss.backward()
        assert torch.isfinite(student.grad).all()


def test_top_k_kl_keeps_its_gradient_where_the_student_leaves_no_rest() -> None:
    """1 - (sum of the kept) is all rounding here; the gradient must still be exact: q - p, merged."""
    student = torch.tensor([[20.0, 19.0, 0.0, 1.0, 0.5]], requires_grad=True)
    ids, logp = torch.tensor([[0, 1]]), torch.tensor([[0.6, 0.3]]).log()
    top_k_kl(student, ids, logp, torch.ones(1)).backward()
    q = softmax(student.detach().double().numpy()[0])
    others = q[2:] / q[2:].sum()
    expected = q - np.concatenate([[0.6, 0.3], 0.1 * others])
    assert student.grad[0].tolist() == pytest.approx(expected.tolist(), abs=1e-6)


def test_top_k_kl_refuses_more_tokens_than_there_are() -> None:
    with pytest.raises(ConfigError, match="4 kept tokens of a vocabulary of 3"):
        top_k_kl(torch.zeros(1, 3), torch.zeros(1, 4, dtype=torch.long), torch.zeros(1, 4), torch.ones(1))


def test_what_a_teacher_says_at_padding_does_not_count() -> None:
    student, targets = _texts()
    teacher = random(*student.shape, seed=3)
    ids, logp = top(teacher, 3)
    pad = targets == PAD
    clean = [kl_divergence(student, teacher, targets), top_k_kl(student, ids, logp, targets)]
    teacher[pad], ids[pad], logp[pad] = 1e3, 0, 0.0
    student = student.clone()
    student[pad] = -7.0
    student.requires_grad_()
    dirty = [kl_divergence(student, teacher, targets), top_k_kl(student, ids, logp, targets)]
    assert torch.stack(clean).tolist() == pytest.approx(torch.stack(dirty).tolist(), abs=1e-12)
    torch.stack(dirty).sum().backward()
    assert student.grad[pad].abs().max() == 0
    assert student.grad[~pad].abs().amax(-1).min() > 0


def test_texts_of_padding_alone_give_a_loss_of_zero() -> None:
    student = torch.randn(2, 3, 5, requires_grad=True)
    targets = torch.full((2, 3), PAD)
    loss = kl_divergence(student, torch.randn(2, 3, 5), targets)
    loss = loss + top_k_kl(student, *top(torch.randn(2, 3, 5), 2), targets)
    loss.backward()
    assert loss.item() == 0
    assert student.grad.abs().max() == 0
