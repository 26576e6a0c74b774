"""Objectives: what one training step asks of the model, as named losses with weights.

An objective is a function of (model, batch) that returns `{name: loss}`; the total is
`sum(weight[name] * scale[name] * loss)`. To add a term: a function in losses.py, its weight here, a test.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor, nn

from vistill.data.collate import Batch
from vistill.data.text import normalise, pad
from vistill.distill.join import Answers, Taught, join
from vistill.distill.losses import (
    bag_of_words,
    cross_entropy,
    embedding_regression,
    hidden_cosine,
    hidden_l1,
    hidden_mse,
    pool_to,
    self_critical,
    top_k_kl,
    weighted_total,
)
from vistill.errors import ConfigError
from vistill.metrics.cider import CiderD
from vistill.models.captioner import TorchStepper
from vistill.models.language import KeyValue
from vistill.models.loading import AnyCaptioner
from vistill.models.tokens import BOS, EOS, PAD, SPECIAL
from vistill.runtime.decode import GenerationConfig, generate

LOSSES = (
    "cross_entropy",
    "bag_of_words",
    "self_critical",
    "teacher_cross_entropy",
    "top_k_kl",
    "hidden_cosine",
    "hidden_mse",
    "hidden_l1",
    "embedding",
)
NEEDS = {
    "teacher_cross_entropy": "captions",
    "top_k_kl": "top_k",
    "hidden_cosine": "hidden",
    "hidden_mse": "hidden",
    "hidden_l1": "hidden",
    "embedding": "embedding",
}
"""The answers that a loss needs of a teacher."""


@dataclass(frozen=True)
class ObjectiveConfig:
    """Weights of the losses (0 leaves one out) and their settings."""

    cross_entropy: float = 1.0
    """Weight of the cross-entropy on the gold captions."""
    bag_of_words: float = 0.0
    """Weight of predicting the words of all captions from the mean of the memory."""
    self_critical: float = 0.0
    """Weight of self-critical sequence training on CIDEr-D."""
    teacher_cross_entropy: float = 0.0
    """Weight of the cross-entropy on the teacher's captions (sequence-level distillation)."""
    top_k_kl: float = 0.0
    """Weight of the KL to the teacher's kept log-probabilities, on its captions and on the gold ones."""
    hidden_cosine: float = 0.0
    """Weight of the cosine of the memory, projected, with the teacher's encoder states."""
    hidden_mse: float = 0.0
    """Weight of the squared distance of the memory, projected, to the teacher's encoder states."""
    hidden_l1: float = 0.0
    """Weight of the absolute distance of the memory, projected, to the teacher's encoder states."""
    embedding: float = 0.0
    """Weight of the cosine of the mean memory, projected, with the teacher's embedding of the picture."""
    scales: dict[str, float] = field(default_factory=dict)
    """{name of a loss: factor} that brings losses to one size before they are weighted; 1 if not named."""
    kl_temperature: float = 1.0
    """Temperature at which distributions are compared with the teacher's."""
    label_smoothing: float = 0.1
    """Share of each cross-entropy target that is spread over the vocabulary."""
    samples: int = 5
    """Captions sampled a picture for the self-critical loss."""
    temperature: float = 1.0
    """Temperature of these samples."""
    longest: int = 20
    """Longest sample in tokens; a longer one is cut and earns what it has."""

    def __post_init__(self) -> None:
        if all(self.weights()[name] == 0 for name in LOSSES):
            raise ConfigError("objective: every weight is 0, so there is nothing to learn")
        if min(self.weights().values()) < 0:
            raise ConfigError("objective: weights must not be negative")
        if unknown := sorted(self.scales.keys() - set(LOSSES)):
            raise ConfigError(f"objective.scales: {', '.join(unknown)}: the losses are {', '.join(LOSSES)}")
        if self.kl_temperature <= 0:
            raise ConfigError(f"objective.kl_temperature={self.kl_temperature}: must be above 0")
        if not 0 <= self.label_smoothing < 1:
            raise ConfigError(f"objective.label_smoothing={self.label_smoothing}: must be in [0, 1)")
        if self.self_critical and self.samples < 2:
            raise ConfigError(
                f"objective.samples={self.samples}: the leave-one-out baseline needs at least 2"
            )

    def weights(self) -> dict[str, float]:
        """{name of the loss: weight}."""
        return {name: float(getattr(self, name)) for name in LOSSES}

    def wants(self) -> frozenset[str]:
        """The answers that these losses need of a teacher: of captions, top_k, hidden, embedding."""
        return frozenset(NEEDS[name] for name, weight in self.weights().items() if weight and name in NEEDS)


@dataclass(frozen=True)
class Teaching:
    """A teacher as an objective sees it: how to get its answers, and their sizes."""

    answers: Answers
    longest: int
    """Longest of its captions that a student learns, in tokens with marks."""
    hidden_width: int = 0
    """Width of its encoder states; 0 if there are none."""
    embedding_width: int = 0
    """Width of its embeddings; 0 if there are none."""


@dataclass(frozen=True)
class CaptionObjective:
    """The losses of a captioner on one batch."""

    config: ObjectiveConfig
    tokenizer: Tokenizer
    references: Mapping[str, Sequence[str]]
    """Train captions by key: the reward's references and the bag of words."""
    teaching: Teaching | None = None
    """The teacher, if a loss needs one."""
    width: int = 0
    """Width of the student's memory, to project it from; needed with hidden states and embeddings."""
    reward: CiderD | None = field(init=False)
    heads: nn.ModuleDict = field(init=False)
    """Projections into the teacher's widths, which learn with the student and are thrown away."""

    def __post_init__(self) -> None:
        if self.config.wants() and self.teaching is None:
            wanted = ", ".join(sorted(self.config.wants()))
            raise ConfigError(f"objective: these losses need a teacher's {wanted}: set datamodule.teacher")
        heads = nn.ModuleDict()
        if self.teaching is not None and "hidden" in self.config.wants():
            heads["hidden"] = nn.Linear(self.width, self.teaching.hidden_width)
        if self.teaching is not None and "embedding" in self.config.wants():
            heads["embedding"] = nn.Linear(self.width, self.teaching.embedding_width)
        object.__setattr__(self, "heads", heads)
        reward = None
        if self.config.self_critical:
            tokens = {
                key: [[*normalise(t).split(), SPECIAL[EOS]] for t in texts]
                for key, texts in self.references.items()
            }
            reward = CiderD(tokens)
        object.__setattr__(self, "reward", reward)

    def __call__(self, model: AnyCaptioner, batch: Batch) -> dict[str, Tensor]:
        """{name: unweighted loss} for the losses with a weight; adds `reward` (a figure, not a loss).

        Pictures without captions of their own learn from the teacher alone.
        """
        features = model.tower(batch.pixels, batch.start)
        told = (batch.tokens != PAD).flatten(1).any(1)  # pictures with captions of their own
        samples = None
        if self.config.self_critical and told.any():
            keys = [key for key, has in zip(batch.keys, told.tolist(), strict=True) if has]
            samples = self.sample(model, features.detach()[told], keys)
        memory = model.mapper(features)
        cross = model.decoder.cross_kv(memory)
        out, of_gold = {}, None
        if self.config.cross_entropy or self.config.top_k_kl:
            of_gold = model.decoder(asked(batch.tokens), cross)
        if self.config.cross_entropy:
            assert of_gold is not None
            out["cross_entropy"] = cross_entropy(of_gold, batch.targets, self.config.label_smoothing)
        if self.config.bag_of_words:
            words = nn.functional.linear(memory[told].mean(1), model.decoder.embed.weight)
            shares = word_shares(batch.targets, words.shape[-1])
            out["bag_of_words"] = bag_of_words(words + model.word_bias, shares[told])
        if samples is not None:
            tokens, rewards = samples
            logits = model.decoder(asked(tokens), [(key[told], value[told]) for key, value in cross])
            out["self_critical"] = self_critical(logits, tokens[..., 1:], rewards)
            out["reward"] = rewards.mean()
        elif self.config.self_critical:
            out["self_critical"] = 0.0 * memory.sum()  # no picture of the batch has captions to be scored by
        if self.teaching is not None and self.config.wants():
            answers = self.teaching.answers(batch.items)
            wants, longest = self.config.wants(), self.teaching.longest
            taught = join(batch, answers, self.tokenizer, wants=wants, longest=longest)
            # a memory with another length than the tower has patches speaks of the picture as a whole
            states = memory if memory.shape[1] == features.shape[1] else memory.mean(1, keepdim=True)
            out |= self.of_text(model, batch, cross, of_gold, taught) | self.of_states(states, taught)
        return out

    def of_text(
        self, model: AnyCaptioner, batch: Batch, cross: list[KeyValue], of_gold: Tensor | None, taught: Taught
    ) -> dict[str, Tensor]:
        """Losses on the teacher's texts and log-probabilities; of_gold: logits [B, C, T - 1, V] on gold."""
        config, out = self.config, {}
        pairs = []
        if taught.of_gold is not None and of_gold is not None:
            pairs.append((of_gold, taught.of_gold, batch.tokens))
        if taught.tokens is not None and (config.teacher_cross_entropy or taught.of_tokens is not None):
            logits = model.decoder(asked(taught.tokens), cross)
            if config.teacher_cross_entropy:
                out["teacher_cross_entropy"] = cross_entropy(logits, taught.tokens[..., 1:])
            if taught.of_tokens is not None:
                pairs.append((logits, taught.of_tokens, taught.tokens))
        if config.top_k_kl:
            kl = [
                top_k_kl(logits, kept.ids, kept.logp, tokens[..., 1:], config.kl_temperature)
                for logits, kept, tokens in pairs
            ]
            # no picture of the batch may have a text that was kept
            out["top_k_kl"] = torch.stack(kl).mean() if kl else 0.0 * cross[0][0].sum()
        return out

    def of_states(self, memory: Tensor, taught: Taught) -> dict[str, Tensor]:
        """Losses on the teacher's encoder states and embeddings; memory [B, N, D], N patches or one mean."""
        config, out = self.config, {}
        if taught.hidden is not None and "hidden" in self.heads:
            student, teacher = on_one_grid(self.heads["hidden"](memory), taught.hidden)
            if config.hidden_cosine:
                out["hidden_cosine"] = hidden_cosine(student, teacher)
            if config.hidden_mse:
                out["hidden_mse"] = hidden_mse(student, teacher)
            if config.hidden_l1:
                out["hidden_l1"] = hidden_l1(student, teacher)
        if taught.embedding is not None and "embedding" in self.heads:
            student = self.heads["embedding"](memory.mean(1))
            out["embedding"] = embedding_regression(student, taught.embedding)
        return out

    def total(self, losses: Mapping[str, Tensor]) -> Tensor:
        """sum(weight * scale * loss) over the named losses; figures beside them do not count."""
        weights = self.config.weights()
        named = {name: loss for name, loss in losses.items() if name in weights}
        return weighted_total(named, weights, self.config.scales)

    @torch.no_grad()
    def sample(self, model: AnyCaptioner, features: Tensor, keys: Sequence[str]) -> tuple[Tensor, Tensor]:
        """C sampled captions a picture and their CIDEr-D: tokens [B, C, T] with marks, rewards [B, C].

        features [B, N, D] of the tower; the captions are drawn without dropout.
        """
        assert self.reward is not None
        was_training = model.training
        model.eval()
        config = GenerationConfig(
            max_new_tokens=min(self.config.longest, model.config.decoder.context - 1),
            num_beams=1,
            do_sample=True,
            num_return=self.config.samples,
            temperature=self.config.temperature,
            seed=int(torch.randint(2**31, ()).item()),
        )
        stepper = TorchStepper(model, model.mapper(features))
        found = generate(stepper, len(keys), bos=BOS, eos=EOS, config=config)
        model.train(was_training)
        hypotheses = [hypothesis for picture in found for hypothesis in picture]
        ends = [[EOS] if len(h.tokens) < config.max_new_tokens else [] for h in hypotheses]
        rows = [[BOS, *h.tokens, *end] for h, end in zip(hypotheses, ends, strict=True)]
        texts = self.tokenizer.decode_batch([list(h.tokens) for h in hypotheses])
        words = [[*text.split(), *[SPECIAL[EOS]] * len(end)] for text, end in zip(texts, ends, strict=True)]
        of_each = [key for key in keys for _ in range(self.config.samples)]
        rewards: NDArray[np.float64] = self.reward.score(of_each, words)
        shape = (len(keys), self.config.samples)
        tokens = torch.tensor(pad(rows), device=features.device).view(*shape, -1)
        return tokens, torch.from_numpy(rewards).float().view(shape).to(features.device)


def asked(tokens: Tensor) -> Tensor:
    """What a decoder reads to be asked for the rest: [B, C, T] with marks -> [B, C, T - 1], no end mark."""
    return tokens[..., :-1].masked_fill(tokens[..., 1:] == PAD, PAD)


def word_shares(tokens: Tensor, vocab_size: int) -> Tensor:
    """Share of a picture's captions that hold a token: tokens [B, C, T] with padding -> [B, V] float."""
    held = torch.zeros(*tokens.shape[:2], vocab_size, device=tokens.device)
    held.scatter_(2, tokens, 1.0)
    held[..., : len(SPECIAL)] = 0
    return held.sum(1) / (tokens != PAD).any(2).sum(1, keepdim=True).clamp_min(1)


def on_one_grid(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Both [B, n, D] with the fewer patches of the two; pooled teacher states [B, D] are one patch.

    Where the grids differ, a class token before a square of patches is left out.
    """
    teacher = teacher.unsqueeze(1) if teacher.dim() == 2 else teacher
    if student.shape[1] == teacher.shape[1]:
        return student, teacher
    student, teacher = (
        x[:, 1:] if math.isqrt(x.shape[1] - 1) ** 2 == x.shape[1] - 1 > 0 else x for x in (student, teacher)
    )
    n = min(student.shape[1], teacher.shape[1])
    return pool_to(student, n), pool_to(teacher, n)
