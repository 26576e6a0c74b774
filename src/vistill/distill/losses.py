"""Losses, each a pure function with its shapes and its source. Padding never counts.

    text     cross_entropy (gold captions, or those of a teacher), kl_divergence, top_k_kl,
             sequence_log_probability, self_critical, bag_of_words
    states   hidden_mse, hidden_l1, hidden_cosine; pool_to for towers with other patches
    heads    attention_kl, value_relation
    vectors  embedding_regression, soft_cross_entropy; kl_divergence without targets
    sum      weighted_total
    pairs    of images and texts: losses_dual.py

Learning from a teacher's captions (sequence-level distillation, Kim & Rush 2016) is `cross_entropy` on their
tokens. No gradient reaches a teacher; half precision is raised to float32. Where nothing counts, a loss that
takes a mask or targets of a teacher is 0.
"""

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from vistill.errors import ConfigError
from vistill.models.tokens import PAD, UNK

BLOCKED = -1e8  # a logit below is of a token that the model itself never says


def cross_entropy(logits: Tensor, targets: Tensor, smoothing: float = 0.0) -> Tensor:
    """Cross-entropy with label smoothing, averaged over the tokens that count -> scalar.

    logits [..., V] float; targets [...] int64, where `<pad>` and `<unk>` do not count: a model should not
    learn to say "unknown". Smoothing spreads that share of a target evenly over V (Szegedy et al. 2016, §7),
    but for tokens that the model itself blocks.
    """
    targets = targets.masked_fill(targets == UNK, PAD).flatten()
    logp = logits.flatten(0, -2).log_softmax(-1)
    total = (1 - smoothing) * F.nll_loss(logp, targets, ignore_index=PAD, reduction="sum")
    if smoothing:
        can = logits.flatten(0, -2)[0] > BLOCKED
        even = (logp if can.all() else logp[:, can]).mean(-1)
        total = total - smoothing * even[targets != PAD].sum()
    return total / (targets != PAD).sum().clamp_min(1)  # 0 of a batch without captions, not NaN


def sequence_log_probability(logits: Tensor, targets: Tensor) -> Tensor:
    """log p of each text: logits [..., T, V], targets [..., T] -> [...], summed over tokens but padding."""
    picked = torch.log_softmax(logits, dim=-1).gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    return (picked * (targets != PAD)).sum(-1)


def self_critical(logits: Tensor, samples: Tensor, rewards: Tensor) -> Tensor:
    """Policy gradient on sampled captions with a leave-one-out baseline -> scalar.

    logits [B, C, T, V] and samples [B, C, T] of C >= 2 samples a picture; rewards [B, C]. The advantage of a
    sample is its reward minus the mean of the others'; the loss is averaged over tokens. Self-critical
    sequence training: Rennie et al. 2017, eq. 7; the baseline: Luo 2020, "A Better Variant of Self-Critical
    Sequence Training", eq. 4.
    """
    count = rewards.shape[1]
    baseline = (rewards.sum(1, keepdim=True) - rewards) / (count - 1)
    log_p = sequence_log_probability(logits, samples)
    tokens = (samples != PAD).sum()
    return -((rewards - baseline) * log_p).sum() / tokens


def bag_of_words(logits: Tensor, targets: Tensor) -> Tensor:
    """Which words do a picture's captions hold? Binary cross-entropy -> scalar.

    logits [B, V]; targets [B, V] in 0..1 (the share of a picture's captions with that word). Summed over
    words, averaged over pictures (attribute prediction: Wu et al. 2016, "What value do explicit high level
    concepts have", eq. 2).
    """
    return F.binary_cross_entropy_with_logits(logits, targets, reduction="sum") / max(1, len(logits))


def kl_divergence(
    student: Tensor, teacher: Tensor, targets: Tensor | None = None, temperature: float = 1.0
) -> Tensor:
    """KL(teacher || student) of two softmaxes at a temperature T, times T^2 -> scalar.

    Logits student and teacher [..., V]; targets [...] int64, where `<pad>` does not count (None: all count).
    Averaged over what counts. T^2 keeps the size of the gradients when T changes: Hinton et al. 2015,
    "Distilling the Knowledge in a Neural Network", section 2.
    """
    student, teacher = paired("kl_divergence", student, teacher)
    if targets is not None:
        student, teacher = student[targets != PAD], teacher[targets != PAD]
    log_q = torch.log_softmax(student / temperature, dim=-1)
    p = torch.softmax(teacher / temperature, dim=-1)
    return temperature**2 * _mean(F.kl_div(log_q, p, reduction="none").sum(-1))


def top_k_kl(
    student: Tensor, top_ids: Tensor, top_logp: Tensor, targets: Tensor, temperature: float = 1.0
) -> Tensor:
    """KL(teacher || student) where only the teacher's K likeliest tokens are known, times T^2 -> scalar.

    Logits student [..., V]; top_ids [..., K] int64, different ones at each position that counts; top_logp
    [..., K] their log-probabilities at T = 1 over all of V; targets [...] int64: `<pad>` does not count.

    The other V - K tokens are one more outcome, with the mass that the teacher and the student leave to them:
    at T = 1 this is the KL of the two distributions after merging those tokens, so never more than the full
    one, and equal to it at K = V. At another T the teacher's rest is taken as spread evenly over its V - K
    tokens, each with (rest / (V - K))^(1/T) before normalising. Log-probabilities rounded to fp16 may sum to
    a little over 1; then the rest is 0, as where the student blocks all V - K tokens itself. ConfigError if K
    is not in 1..V.
    """
    V, K = student.shape[-1], top_ids.shape[-1]
    if not 0 < K <= V:
        raise ConfigError(f"top_k_kl: {K} kept tokens of a vocabulary of {V}: keep between 1 and {V}")
    student = _wide(student)
    top_logp = top_logp.detach().to(student)
    log_p, log_q = top_logp / temperature, student.gather(-1, top_ids) / temperature
    if K < V:
        # The only other tensor as large as the logits: a softmax over V is never needed.
        others = student.scatter(-1, top_ids, -math.inf).div_(temperature)
        unsaid = others.logsumexp(-1, keepdim=True)
        log_q = torch.cat([log_q, unsaid], dim=-1)
        rest = (1 - top_logp.exp().sum(-1, keepdim=True)).clamp_min(0)
        rest = rest.masked_fill(unsaid < BLOCKED / temperature, 0)  # else rounding would weigh a billion
        each = torch.log(rest / (V - K)) / temperature  # -inf where nothing is left: p is 0 there
        log_p = torch.cat([log_p, each + math.log(V - K)], dim=-1)
    rows = F.kl_div(log_q.log_softmax(-1), log_p.softmax(-1), reduction="none").sum(-1)
    return temperature**2 * _mean(rows, targets != PAD)


def hidden_mse(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean squared difference of hidden states -> scalar.

    student (already projected to the teacher's width) and teacher [B, N, D] or [..., D]; mask [B, N] bool,
    True where a state counts (None: all). With a learned projection: TinyBERT, Jiao et al. 2020, "hidden
    states based distillation"; FitNets, Romero et al. 2015.
    """
    student, teacher = paired("hidden_mse", student, teacher)
    return _mean((student - teacher).square().mean(-1), mask)


def hidden_l1(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean absolute difference of hidden states -> scalar; shapes as `hidden_mse`."""
    student, teacher = paired("hidden_l1", student, teacher)
    return _mean((student - teacher).abs().mean(-1), mask)


def hidden_cosine(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
    """1 - cosine of each pair of hidden states, averaged -> scalar in 0..2; shapes as `hidden_mse`.

    The direction only, as the cosine loss of DistilBERT (Sanh et al. 2019).
    """
    student, teacher = paired("hidden_cosine", student, teacher)
    return _mean(1 - F.cosine_similarity(student, teacher, dim=-1), mask)


def pool_to(states: Tensor, n: int, class_token: bool = False) -> Tensor:
    """Average neighbouring patches, so that towers with different grids can be compared -> [B, n, D].

    states [B, N, D], row by row of the picture. If N and n are both squares the pooling is over the grid,
    else along the row of patches; windows are those of `adaptive_avg_pool`, so n may exceed N (patches are
    repeated). `class_token=True`: the first state belongs to no patch and is left out (N counts without it).
    """
    if class_token:
        states = states[:, 1:]
    N = states.shape[1]
    if n == N:
        return states
    rows = states.transpose(1, 2)
    side, new = math.isqrt(N), math.isqrt(n)
    if side**2 == N and new**2 == n:
        return F.adaptive_avg_pool2d(rows.unflatten(2, (side, side)), new).flatten(2).transpose(1, 2)
    return F.adaptive_avg_pool1d(rows, n).transpose(1, 2)


def attention_kl(
    student: Tensor, teacher: Tensor, mask: Tensor | None = None, temperature: float | None = None
) -> Tensor:
    """KL(teacher || student) of attention probabilities, averaged over heads and queries -> scalar.

    Probabilities student [B, h, T, S] and teacher [B, h2, T, S], of self- or cross-attention; mask [B, T]
    bool, True where a query counts (None: all). If h and h2 differ, the mean over the heads of each is
    compared. MiniLM, Wang et al. 2020, "self-attention distribution transfer".

    `temperature`: the probabilities are taken for logits, softmax(p / temperature), as the code of DLIP
    (Kuang et al. 2023) does with 0.05; a key that a mask has set to 0 is then no longer 0.
    """
    if student.shape[1] != teacher.shape[1]:
        student, teacher = student.mean(1, keepdim=True), teacher.mean(1, keepdim=True)
    student, teacher = paired("attention_kl", student, teacher)
    if temperature is None:
        log_q, p = student.clamp_min(torch.finfo(student.dtype).tiny).log(), teacher
    else:
        log_q, p = (student / temperature).log_softmax(-1), (teacher / temperature).softmax(-1)
    return _mean(F.kl_div(log_q, p, reduction="none").sum(-1).mean(1), mask)


def value_relation(
    student: Tensor, teacher: Tensor, relation_heads: int | None = None, mask: Tensor | None = None
) -> Tensor:
    """KL(teacher || student) of the relations between the values of attention -> scalar.

    student [B, h, S, d] and teacher [B, h2, S, d2]; mask [B, S] bool, True where a state counts, as query and
    as key (None: all). A relation is softmax(V V^T / sqrt(d)) in each head; averaged over heads and states.
    The widths may differ, the heads not: MiniLM, Wang et al. 2020, "self-attention value-relation
    transfer". With `relation_heads` the heads are joined and cut anew into that many, whatever
    h and h2 are: MiniLMv2, Wang et al. 2021; queries or keys can be given in place of values.
    ConfigError if the heads differ, or h * d cannot be cut.
    """
    if relation_heads is None and student.shape[1] != teacher.shape[1]:
        raise ConfigError(
            f"value_relation: {student.shape[1]} heads of the student, {teacher.shape[1]} of the teacher: "
            "set relation_heads to a number that divides both widths"
        )
    log_q = _relations(_wide(student), relation_heads, mask)
    p = _relations(_wide(teacher.detach()), relation_heads, mask).exp()
    log_q, p = paired("value_relation", log_q, p)
    return _mean(F.kl_div(log_q, p, reduction="none").sum(-1).mean(1), mask)


def _relations(values: Tensor, heads: int | None, mask: Tensor | None) -> Tensor:
    """log softmax(V V^T / sqrt(d)): [B, h, S, d] -> [B, R, S, S], padding keys at a log of about -1e38."""
    if heads is not None:
        width = values.shape[1] * values.shape[3]
        if heads < 1 or width % heads:
            raise ConfigError(f"value_relation: a width of {width} cannot be cut into {heads} relation heads")
        values = values.transpose(1, 2).flatten(2).unflatten(2, (heads, -1)).transpose(1, 2)
    scores = values @ values.transpose(-1, -2) / math.sqrt(values.shape[-1])
    if mask is not None:  # not -inf: 0 * -inf is not 0, and a picture without states would be NaN
        scores = scores.masked_fill(~mask[:, None, None, :], torch.finfo(scores.dtype).min / 4)
    return scores.log_softmax(-1)


def embedding_regression(student: Tensor, teacher: Tensor, kind: str = "cosine") -> Tensor:
    """Distance of embeddings [B, E], averaged over pictures -> scalar.

    kind: cosine (1 - cos; also DLIP's feature terms, whose margin never acts on matching pairs), mse or l1
    (mean over E). ConfigError for another.
    """
    kinds = {"cosine": hidden_cosine, "mse": hidden_mse, "l1": hidden_l1}
    if kind not in kinds:
        raise ConfigError(f"embedding_regression: kind={kind!r}: use {', '.join(kinds)}")
    return kinds[kind](student, teacher)


def soft_cross_entropy(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """Cross-entropy of two softmaxes, -sum softmax(teacher / T) log softmax(student / T) -> scalar.

    Logits, or embeddings taken for logits, student and teacher [..., E]; averaged over [...]. It differs from
    `kl_divergence` at T = 1 by the entropy of the teacher, so it is not 0 where the two agree.
    """
    student, teacher = paired("soft_cross_entropy", student, teacher)
    p, log_q = (teacher / temperature).softmax(-1), (student / temperature).log_softmax(-1)
    return -_mean((p * log_q).sum(-1))


def weighted_total(
    losses: Mapping[str, Tensor], weights: Mapping[str, float], scales: Mapping[str, float] | None = None
) -> Tensor:
    """sum(weight * scale * loss) over the named terms -> scalar.

    A scale that is not given is 1. Scales bring terms to one size, weights say how much each matters.
    ConfigError names a loss without a weight, a weight (but 0) without a loss, a scale without a weight.
    """
    scales = scales or {}
    _refuse("no weight is given for the loss", losses.keys() - weights.keys())
    _refuse("no such loss for the weight", {name for name, w in weights.items() if w} - losses.keys())
    _refuse("no such loss for the scale", scales.keys() - weights.keys())
    if not losses:
        raise ConfigError("weighted_total: there are no losses to add up")
    terms = [weights[name] * scales.get(name, 1.0) * loss for name, loss in losses.items()]
    return torch.stack(terms).sum()


def _refuse(problem: str, names: set[str]) -> None:
    if names:
        raise ConfigError(f"weighted_total: {problem} {', '.join(sorted(names))}")


def paired(term: str, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Both in one type of float32 or wider, the teacher without gradient; ConfigError if the shapes differ.

    Shapes are never broadcast: a teacher [B, 1, D] beside a student [B, N, D] is a mistake.
    """
    if student.shape != teacher.shape:
        raise ConfigError(
            f"{term}: student {list(student.shape)} and teacher {list(teacher.shape)} differ in shape: "
            "project the width, pool the patches (pool_to), and use one vocabulary"
        )
    student = _wide(student)
    return student, teacher.detach().to(student)


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _mean(values: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean of the values where mask (None: everywhere) is True, 0 if nowhere."""
    if mask is None:
        return values.sum() / max(values.numel(), 1)
    return torch.where(mask, values, 0).sum() / mask.sum().clamp_min(1)
