"""Objectives: what one training step asks of the model, as named losses with weights.

An objective is a function of (model, batch) that returns `{name: loss}`; the total is
`sum(weights[name] * loss)`. To add a term: a function in losses.py, its weight here, a test.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor

from vistill.data.collate import Batch
from vistill.data.text import normalise, pad
from vistill.distill.losses import bag_of_words, cross_entropy, self_critical
from vistill.errors import ConfigError
from vistill.metrics.cider import CiderD
from vistill.models.captioner import Captioner, TorchStepper
from vistill.models.tokens import BOS, EOS, SPECIAL
from vistill.runtime.decode import GenerationConfig, generate

LOSSES = ("cross_entropy", "bag_of_words", "self_critical")


@dataclass(frozen=True)
class ObjectiveConfig:
    """Weights of the losses (0 leaves one out) and their settings."""

    cross_entropy: float = 1.0
    """Weight of the cross-entropy on the gold captions."""
    bag_of_words: float = 0.0
    """Weight of predicting the words of all captions from the mean of the memory."""
    self_critical: float = 0.0
    """Weight of self-critical sequence training on CIDEr-D."""
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
        if not 0 <= self.label_smoothing < 1:
            raise ConfigError(f"objective.label_smoothing={self.label_smoothing}: must be in [0, 1)")
        if self.self_critical and self.samples < 2:
            raise ConfigError(
                f"objective.samples={self.samples}: the leave-one-out baseline needs at least 2"
            )

    def weights(self) -> dict[str, float]:
        """{name of the loss: weight}."""
        return {name: float(getattr(self, name)) for name in LOSSES}


@dataclass(frozen=True)
class CaptionObjective:
    """The losses of a captioner on one batch."""

    config: ObjectiveConfig
    tokenizer: Tokenizer
    references: Mapping[str, Sequence[str]]
    """Train captions by key: the reward's references and the bag of words."""
    reward: CiderD | None = field(init=False)

    def __post_init__(self) -> None:
        reward = None
        if self.config.self_critical:
            tokens = {
                key: [[*normalise(t).split(), SPECIAL[EOS]] for t in texts]
                for key, texts in self.references.items()
            }
            reward = CiderD(tokens)
        object.__setattr__(self, "reward", reward)

    def __call__(self, model: Captioner, batch: Batch) -> dict[str, Tensor]:
        """{name: unweighted loss} for the losses with a weight; adds `reward` (a figure, not a loss)."""
        features = model.tower(batch.pixels, batch.start)
        samples = self.sample(model, features.detach(), batch.keys) if self.config.self_critical else None
        memory = model.mapper(features)
        cross = model.decoder.cross_kv(memory)
        out = {}
        if self.config.cross_entropy:
            logits = model.decoder(batch.tokens[..., :-1], cross)
            out["cross_entropy"] = cross_entropy(logits, batch.tokens[..., 1:], self.config.label_smoothing)
        if self.config.bag_of_words:
            words = torch.nn.functional.linear(memory.mean(1), model.decoder.embed.weight)
            out["bag_of_words"] = bag_of_words(words + model.word_bias, self.word_shares(batch))
        if samples is not None:
            tokens, rewards = samples
            logits = model.decoder(tokens[..., :-1], cross)
            out["self_critical"] = self_critical(logits, tokens[..., 1:], rewards)
            out["reward"] = rewards.mean()
        return out

    def total(self, losses: Mapping[str, Tensor]) -> Tensor:
        """sum(weight * loss) over the named losses."""
        weights = self.config.weights()
        return torch.stack([weights[name] * loss for name, loss in losses.items() if name in weights]).sum()

    @torch.no_grad()
    def sample(self, model: Captioner, features: Tensor, keys: Sequence[str]) -> tuple[Tensor, Tensor]:
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

    def word_shares(self, batch: Batch) -> Tensor:
        """Share of each picture's captions in the batch that hold a token -> [B, V] float."""
        captions = batch.tokens.shape[1]
        held = torch.zeros(
            *batch.tokens.shape[:2], self.tokenizer.get_vocab_size(), device=batch.tokens.device
        )
        held.scatter_(2, batch.tokens, 1.0)
        held[..., : len(SPECIAL)] = 0
        return held.sum(1) / captions
