"""Losses, each a pure function with its shapes and its source. Padding never counts."""

import torch
import torch.nn.functional as F
from torch import Tensor

from vistill.models.tokens import PAD, UNK


def cross_entropy(logits: Tensor, targets: Tensor, smoothing: float = 0.0) -> Tensor:
    """Cross-entropy with label smoothing, averaged over the tokens that count -> scalar.

    logits [..., V] float; targets [...] int64, where `<pad>` and `<unk>` do not count: a model should not
    learn to say "unknown". Smoothing spreads that share of a target evenly over V (Szegedy et al. 2016, §7).
    """
    targets = targets.masked_fill(targets == UNK, PAD)
    return F.cross_entropy(
        logits.flatten(0, -2), targets.flatten(), ignore_index=PAD, label_smoothing=smoothing
    )


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
    return F.binary_cross_entropy_with_logits(logits, targets, reduction="sum") / logits.shape[0]
