"""Distillation of hidden states, attention and embeddings, and what holds for every loss of a teacher."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.distill.formulas import kl, random, softmax, top
from torch import Tensor

from vistill.distill.losses import (
    attention_kl,
    embedding_regression,
    hidden_cosine,
    hidden_l1,
    hidden_mse,
    kl_divergence,
    pool_to,
    soft_cross_entropy,
    top_k_kl,
    value_relation,
    weighted_total,
)
from vistill.errors import ConfigError


@pytest.mark.parametrize("masked", [False, True])
def test_hidden_losses_are_their_formulas(masked: bool) -> None:
    student, teacher = random(2, 4, 3), random(2, 4, 3, seed=1)
    mask = torch.tensor([[1, 1, 0, 1], [1, 0, 0, 0]]).bool() if masked else None
    counted = [i for i in np.ndindex(2, 4) if mask is None or mask[i]]
    expected = {"mse": 0.0, "l1": 0.0, "cosine": 0.0}
    for i in counted:
        s, t = student[i].numpy(), teacher[i].numpy()
        expected["mse"] += sum((a - b) ** 2 for a, b in zip(s, t, strict=True)) / 3
        expected["l1"] += sum(abs(a - b) for a, b in zip(s, t, strict=True)) / 3
        expected["cosine"] += 1 - float(s @ t) / math.sqrt(float(s @ s) * float(t @ t))
    found = [loss(student, teacher, mask) for loss in (hidden_mse, hidden_l1, hidden_cosine)]
    wanted = [value / len(counted) for value in expected.values()]
    assert torch.stack(found).tolist() == pytest.approx(wanted, abs=1e-12)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), scale=st.floats(0.01, 100))
def test_hidden_cosine_sees_the_direction_only(seed: int, scale: float) -> None:
    student, teacher = random(2, 3, 4, seed=seed), random(2, 3, 4, seed=seed + 1)
    assert hidden_cosine(scale * student, teacher).item() == pytest.approx(
        hidden_cosine(student, teacher).item()
    )
    assert hidden_cosine(-student, student).item() == pytest.approx(2)


def test_pool_to_averages_squares_of_the_grid() -> None:
    states = torch.arange(16.0).view(1, 16, 1)
    # rows 0 1 2 3 / 4 5 6 7 / 8 9 10 11 / 12 13 14 15
    assert pool_to(states, 4).flatten().tolist() == [2.5, 4.5, 10.5, 12.5]
    assert pool_to(states, 2).flatten().tolist() == [3.5, 11.5]  # 2 is no square: along the row
    with_token = torch.cat([torch.full((1, 1, 1), 99.0), states], dim=1)
    assert torch.equal(pool_to(with_token, 4, class_token=True), pool_to(states, 4))
    assert torch.equal(pool_to(with_token, 16, class_token=True), states)
    assert pool_to(torch.randn(2, 49, 5), 16).shape == (2, 16, 5)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), side=st.sampled_from([1, 2, 3, 6]))
def test_pool_to_keeps_the_mean_when_windows_are_equal(seed: int, side: int) -> None:
    states = random(2, 36, 3, seed=seed)
    assert torch.allclose(pool_to(states, side**2).mean(1), states.mean(1))


@pytest.mark.parametrize(("heads", "temperature"), [(2, None), (3, None), (2, 0.05), (1, 0.5)])
def test_attention_kl_is_its_formula(heads: int, temperature: float | None) -> None:
    student, teacher = random(2, 2, 3, 4).softmax(-1), random(2, heads, 3, 4, seed=1).softmax(-1)
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]]).bool()
    s, t = student.numpy(), teacher.numpy()
    if heads != 2:
        s, t = s.mean(1, keepdims=True), t.mean(1, keepdims=True)
    if temperature:
        s, t = softmax(s / temperature), softmax(t / temperature)
    rows = [kl(t[b, h, q], s[b, h, q]) for b, h, q in np.ndindex(s.shape[:3]) if mask[b, q]]
    loss = attention_kl(student, teacher, mask, temperature)
    assert loss.item() == pytest.approx(sum(rows) / len(rows), abs=1e-10)


def test_attention_kl_survives_keys_that_a_mask_has_shut() -> None:
    logits = torch.randn(1, 2, 4, 4, requires_grad=True)
    shut = torch.ones(4, 4).triu(1).bool()
    student = logits.masked_fill(shut, -math.inf).softmax(-1)
    teacher = torch.randn(1, 2, 4, 4).masked_fill(shut, -math.inf).softmax(-1)
    loss = attention_kl(student, teacher)
    loss.backward()
    assert loss > 0
    # The gradient of a KL behind a softmax is q - p, over 2 heads x 4 queries.
    assert torch.allclose(logits.grad, (student - teacher).detach() / 8, atol=1e-6)


def _value_relation_by_hand(student: Tensor, teacher: Tensor, heads: int, mask: Tensor) -> float:
    rows = []
    for b in range(len(student)):
        kept = [i for i in range(mask.shape[1]) if mask[b, i]]
        for r in range(heads):
            relations = []
            for values in (teacher, student):
                h, _, d = values[b].shape
                joined = np.concatenate([values[b, a].numpy() for a in range(h)], axis=1)
                width = h * d // heads
                own = joined[kept, r * width : (r + 1) * width]
                relations.append(softmax(own @ own.T / math.sqrt(width)))
            rows.append([kl(p, q) for p, q in zip(*relations, strict=True)])
    return float(np.mean(np.concatenate(rows)))


@pytest.mark.parametrize(("heads", "teacher_heads", "relation_heads"), [(2, 2, None), (2, 3, 6), (2, 3, 1)])
def test_value_relation_is_its_formula(heads: int, teacher_heads: int, relation_heads: int | None) -> None:
    student, teacher = random(2, heads, 4, 6), random(2, teacher_heads, 4, 8, seed=1)
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 1]]).bool()
    loss = value_relation(student, teacher, relation_heads, mask)
    expected = _value_relation_by_hand(student, teacher, relation_heads or heads, mask)
    assert loss.item() == pytest.approx(expected, abs=1e-10)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_value_relation_does_not_see_a_rotation(seed: int) -> None:
    student, teacher = random(1, 2, 3, 4, seed=seed), random(1, 2, 3, 5, seed=seed + 1)
    turn = torch.linalg.qr(random(4, 4, seed=seed + 2)).Q
    plain = value_relation(student, teacher).item()
    assert value_relation(student @ turn, teacher).item() == pytest.approx(plain)
    assert value_relation(student @ turn, student).item() == pytest.approx(0, abs=1e-12)


def test_value_relation_of_padding_alone_is_zero_and_differs_heads_are_refused() -> None:
    student = torch.randn(2, 2, 3, 4, requires_grad=True)
    mask = torch.tensor([[1, 1, 0], [0, 0, 0]]).bool()
    loss = value_relation(student, torch.randn(2, 2, 3, 4), None, mask)
    loss.backward()
    assert loss > 0
    assert torch.isfinite(student.grad).all()
    assert student.grad[1].abs().max() == 0
    assert student.grad[0, :, 2].abs().max() == 0
    with pytest.raises(ConfigError, match="set relation_heads"):
        value_relation(student, torch.randn(2, 3, 3, 4))
    with pytest.raises(ConfigError, match="width of 8 cannot be cut into 3"):
        value_relation(student, torch.randn(2, 3, 3, 4), 3)


@pytest.mark.parametrize("kind", ["cosine", "mse", "l1"])
def test_embedding_regression_is_that_of_torch(kind: str) -> None:
    student, teacher = random(5, 4), random(5, 4, seed=1)
    expected = {
        "cosine": torch.nn.CosineEmbeddingLoss(margin=0.25)(student, teacher, torch.ones(5)),
        "mse": torch.nn.MSELoss()(student, teacher),
        "l1": torch.nn.L1Loss()(student, teacher),
    }
    assert embedding_regression(student, teacher, kind).item() == pytest.approx(expected[kind].item())
    with pytest.raises(ConfigError, match="kind='huber': use cosine, mse, l1"):
        embedding_regression(student, teacher, "huber")


def test_soft_cross_entropy_is_that_of_torch_and_kl_plus_entropy() -> None:
    student, teacher = random(5, 4), random(5, 4, seed=1)
    loss = soft_cross_entropy(student, teacher)
    assert loss.item() == pytest.approx(torch.nn.CrossEntropyLoss()(student, teacher.softmax(1)).item())
    p = teacher.softmax(-1)
    entropy = -(p * p.log()).sum(-1).mean()
    assert loss.item() == pytest.approx((kl_divergence(student, teacher) + entropy).item())


def test_weighted_total_is_its_sum() -> None:
    losses = {"l1": torch.tensor(2.0, requires_grad=True), "ce": torch.tensor(3.0), "kl": torch.tensor(5.0)}
    weights = {"l1": 0.6, "ce": 0.35, "kl": 0.05, "cosine": 0.0}
    total = weighted_total(losses, weights, {"kl": 10.0})
    assert total.item() == pytest.approx(0.6 * 2 + 0.35 * 3 + 0.05 * 10 * 5)
    total.backward()
    assert losses["l1"].grad.item() == pytest.approx(0.6)


@pytest.mark.parametrize(
    ("losses", "weights", "scales", "message"),
    [
        ({"kl": 1.0, "reward": 1.0}, {"kl": 1.0}, {}, "no weight is given for the loss reward"),
        ({"kl": 1.0}, {"kl": 1.0, "hiden": 0.5}, {}, "no such loss for the weight hiden"),
        ({"kl": 1.0}, {"kl": 1.0}, {"k1": 2.0}, "no such loss for the scale k1"),
        ({}, {"kl": 0.0}, {}, "no losses to add up"),
    ],
)
def test_weighted_total_names_what_it_does_not_know(
    losses: dict[str, float], weights: dict[str, float], scales: dict[str, float], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        weighted_total({name: torch.tensor(x) for name, x in losses.items()}, weights, scales)


MASK = torch.tensor([[True, True, False], [True, True, True]])
OF_PAIRS: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], tuple[int, ...]]] = {
    "kl_divergence": (lambda s, t: kl_divergence(s, t, MASK.long(), 2.0), (2, 3, 4)),
    "top_k_kl": (lambda s, t: top_k_kl(s, *top(t, 2), MASK.long(), 2.0), (2, 3, 4)),
    "top_k_kl of all": (lambda s, t: top_k_kl(s, *top(t, 4), MASK.long()), (2, 3, 4)),
    "hidden_mse": (lambda s, t: hidden_mse(s, t, MASK), (2, 3, 4)),
    "hidden_l1": (lambda s, t: hidden_l1(s, t, MASK), (2, 3, 4)),
    "hidden_cosine": (lambda s, t: hidden_cosine(s, t, MASK), (2, 3, 4)),
    "pool_to": (lambda s, t: hidden_mse(pool_to(s, 4), pool_to(t, 4)), (1, 9, 2)),
    "attention_kl": (lambda s, t: attention_kl(s.softmax(-1), t.softmax(-1), MASK), (2, 2, 3, 4)),
    "attention_kl, sharpened": (
        lambda s, t: attention_kl(s.softmax(-1), t.softmax(-1), MASK, 0.5),
        (2, 2, 3, 4),
    ),
    "value_relation": (lambda s, t: value_relation(s, t, None, MASK), (2, 2, 3, 4)),
    "value_relation, cut anew": (lambda s, t: value_relation(s, t, 4, MASK), (2, 2, 3, 4)),
    "soft_cross_entropy": (soft_cross_entropy, (3, 4)),
}


@pytest.mark.parametrize("name", OF_PAIRS)
def test_gradients_of_distillation(name: str) -> None:
    loss, shape = OF_PAIRS[name]
    student, teacher = random(*shape).requires_grad_(), random(*shape, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: loss(x, teacher.detach()), (student,))
    loss(student, teacher).backward()
    assert teacher.grad is None


@pytest.mark.parametrize("name", [name for name in OF_PAIRS if not name.startswith(("top_k", "soft"))])
def test_zero_where_the_student_is_the_teacher(name: str) -> None:
    loss, shape = OF_PAIRS[name]
    states = random(*shape)
    assert loss(states, states).item() == pytest.approx(0, abs=1e-12)
    assert loss(states, random(*shape, seed=1)).item() > 1e-3


def test_top_k_kl_is_zero_where_the_kept_agree() -> None:
    """At T = 1 how the student spreads its rest is its own affair."""
    teacher, targets = random(4, 6), torch.ones(4)
    ids, logp = top(teacher, 2)
    student = teacher.clone()
    others = torch.ones(4, 6, dtype=torch.bool).scatter(1, ids, False)
    student[others] = teacher[others].view(4, 4).logsumexp(1).sub(math.log(4)).repeat_interleave(4)
    assert top_k_kl(student, ids, logp, targets).item() == pytest.approx(0, abs=1e-12)
    assert kl_divergence(student, teacher, targets).item() > 1e-2


@pytest.mark.parametrize("name", OF_PAIRS)
def test_shapes_are_not_broadcast_and_half_precision_is_raised(name: str) -> None:
    loss, shape = OF_PAIRS[name]
    student, teacher = random(*shape), random(*shape, seed=1)
    found = loss(student.bfloat16(), teacher.bfloat16())
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(loss(student, teacher).item(), rel=0.1)
    if name.startswith(("kl", "hidden", "soft")):
        with pytest.raises(ConfigError, match="differ in shape"):
            loss(student, teacher[:1])
