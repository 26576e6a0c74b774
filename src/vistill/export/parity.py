"""How far an exported captioner is from its checkpoint: logits, tokens, CIDEr."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer

from vistill.metrics.caption import score_captions
from vistill.models.captioner import TorchStepper
from vistill.models.loading import AnyCaptioner
from vistill.models.tokens import BOS, EOS
from vistill.runtime.decode import GenerationConfig, Stepper, generate
from vistill.runtime.sessions import DecoderSession, VisionSession

Floats = NDArray[np.float32]
Start = Callable[[Floats], Stepper]  # pixels [B, 3, H, W] -> a stepper for them

BATCH = 16
FORBIDDEN = -1e8  # logits below are of tokens that are never generated


@dataclass(frozen=True)
class Picture:
    """A picture to compare on: how to get it preprocessed [3, H, W], and its reference captions."""

    key: str
    load: Callable[[], Floats]
    captions: tuple[str, ...]


@dataclass(frozen=True)
class Parity:
    """Figures of a comparison. CIDEr is on the scale 0 to 1000, and None where references are missing."""

    pictures: int
    token_agreement: float
    """Share of positions of the checkpoint's captions where both rank the same next token first."""
    same_captions: float
    """Share of pictures whose captions are equal."""
    cider_checkpoint: float | None = None
    cider_bundle: float | None = None

    @property
    def cider_drop(self) -> float:
        """Points of CIDEr lost; 0 where it was not measured."""
        if self.cider_checkpoint is None or self.cider_bundle is None:
            return 0.0
        return self.cider_checkpoint - self.cider_bundle


def figures(parity: Any) -> dict[str, Any]:
    """The fields of a dataclass of figures as JSON values, rounded."""
    return {k: round(v, 4) if isinstance(v, float) else v for k, v in asdict(parity).items()}


def torch_start(model: AnyCaptioner) -> Start:
    """Steppers of the checkpoint."""

    def start(pixels: Floats) -> Stepper:
        with torch.inference_mode():
            return TorchStepper(model, model.vision(torch.from_numpy(pixels)))

    return start


def onnx_start(vision: Path, decoder: Path, threads: int | None = None) -> Start:
    """Steppers of exported graphs."""
    eyes = VisionSession(vision.read_bytes(), threads, str(vision))
    tongue = DecoderSession(decoder.read_bytes(), threads, str(decoder))
    return lambda pixels: tongue.start(eyes.run(pixels))


def logit_error(ours: Start, theirs: Start, pixels: Floats, vocabulary: int, steps: int) -> float:
    """Largest difference of logits over `steps` positions of random texts, their rows reordered at each.

    In units of the standard deviation of a position's logits; forbidden tokens are left out.
    """
    rng = np.random.default_rng(0)
    steppers = ours(pixels), theirs(pixels)
    tokens = np.full((len(pixels), 1), BOS)
    worst = 0.0
    for _ in range(steps):
        one, other = (s.step(tokens) for s in steppers)
        allowed = (other > FORBIDDEN).all(axis=(0, 1))
        one, other = one[..., allowed], other[..., allowed]
        worst = max(worst, float((np.abs(one - other) / other.std(axis=2, keepdims=True)).max()))
        rows = rng.integers(0, tokens.shape[1], (len(pixels), int(rng.integers(1, 4))))
        for stepper in steppers:
            stepper.reorder(rows)
        tokens = rng.integers(EOS + 1, vocabulary, rows.shape)
    return worst


def compare(
    checkpoint: Start,
    bundle: Start,
    pictures: Sequence[Picture],
    tokenizer: Tokenizer,
    config: GenerationConfig,
    progress: Callable[[int], object] = lambda done: None,
) -> Parity:
    """Caption every picture with both and compare. CIDEr is left out unless all have reference captions.

    `progress` is told the number of pictures done.
    """
    positions = agreed = same = 0
    texts: tuple[dict[str, str], dict[str, str]] = ({}, {})
    for batch in _batches(pictures):
        pixels = np.stack([picture.load() for picture in batch])
        found = [_best(start(pixels), len(batch), config) for start in (checkpoint, bundle)]
        both = [likeliest(start(pixels), found[0], BOS) for start in (checkpoint, bundle)]
        for i, picture in enumerate(batch):
            length = len(found[0][i]) + 1  # the end mark is a token too
            positions += length
            agreed += int((both[0][i, :length] == both[1][i, :length]).sum())
            same += found[0][i] == found[1][i]
            for captions, tokens in zip(texts, found, strict=True):
                captions[picture.key] = tokenizer.decode(list(tokens[i]))
        progress(len(texts[0]))
    cider: tuple[float | None, float | None] = (None, None)
    if all(picture.captions for picture in pictures):
        references = {picture.key: picture.captions for picture in pictures}
        cider = _cider(texts[0], references), _cider(texts[1], references)
    return Parity(len(pictures), agreed / positions, same / len(pictures), *cider)


def _cider(candidates: dict[str, str], references: dict[str, tuple[str, ...]]) -> float:
    return 100 * score_captions(candidates, references).corpus["CIDEr"]


def _best(stepper: Stepper, count: int, config: GenerationConfig) -> list[tuple[int, ...]]:
    return [found[0].tokens for found in generate(stepper, count, bos=BOS, eos=EOS, config=config)]


def likeliest(stepper: Stepper, texts: Sequence[tuple[int, ...]], begin: int) -> NDArray[np.int64]:
    """The likeliest token at each position of given texts after the mark `begin`: [B, T + 1].

    Beyond the end of a text it is anything.
    """
    length = max(map(len, texts))
    given = np.full((len(texts), length + 1), EOS)
    given[:, 0] = begin
    for row, text in zip(given, texts, strict=True):
        row[1 : len(text) + 1] = text
    return np.stack(
        [stepper.step(given[:, t : t + 1])[:, 0].argmax(axis=1) for t in range(length + 1)], axis=1
    )


def _batches(pictures: Sequence[Picture]) -> Iterator[Sequence[Picture]]:
    for start in range(0, len(pictures), BATCH):
        yield pictures[start : start + BATCH]
