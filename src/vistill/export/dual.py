"""A dual encoder -> an embedder bundle: vision.onnx, text.onnx, the tokenizer."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer

from vistill.errors import BundleError
from vistill.export.common import (
    ExportConfig,
    Report,
    check_pictures,
    described,
    name_of,
    publish,
    quantized,
    refuse_consensus,
    refuse_existing,
    refuse_for,
    working_folder,
)
from vistill.export.onnx import export_image, export_text
from vistill.export.parity import Picture
from vistill.files import best_of
from vistill.metrics.retrieval import retrieval_scores
from vistill.models import clip, dual
from vistill.models.folder import config_of
from vistill.models.loading import AnyDual, dual_provenance, load_dual_model, require_learned
from vistill.runtime.bundle import EMBEDDER, FILES, Manifest
from vistill.runtime.sessions import EmbeddingSession
from vistill.runtime.texts import encode_texts, text_marks

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]

MAX_ERROR = 1e-4  # of a number of an fp32 embedding, whose length is 1
BATCH = 16


@dataclass(frozen=True)
class DualParity:
    """How near the bundle's embeddings are to the checkpoint's. R@10 is the mean of both ways, 0 to 100.

    It is None where captions are missing.
    """

    pictures: int
    texts: int
    image_cosine: float
    """Mean over the pictures."""
    image_cosine_least: float
    text_cosine: float
    """Mean over the texts."""
    text_cosine_least: float
    r10_checkpoint: float | None = None
    r10_bundle: float | None = None

    @property
    def r10_drop(self) -> float:
        """Points of R@10 lost; 0 where it was not measured."""
        if self.r10_checkpoint is None or self.r10_bundle is None:
            return 0.0
        return self.r10_checkpoint - self.r10_bundle


def is_dual(folder: Path) -> bool:
    """Whether the folder's config.json is of a dual encoder, vistill's or CLIP of `transformers`."""
    raw = config_of(folder)
    return raw.get("kind") == dual.KIND or raw.get("model_type") == clip.KIND


def export_dual(
    checkpoint: Path,
    out: Path,
    config: ExportConfig,
    *,
    name: str = "",
    licence: str = "unknown",
    replace_existing: bool = False,
    report: Report = lambda stage, done, total: None,
) -> Manifest:
    """Write the bundle `out`; nothing appears there unless every check has passed.

    Without `config.data` the check runs on random pictures and texts and cannot measure R@10. Raises
    BundleError if the checkpoint is broken, if `out` exists (and `replace_existing` is not set), or, with the
    figures, if the bundle is further from the checkpoint than the tolerances.
    """
    refuse_existing(out, replace_existing)
    refuse_consensus(config, "a dual encoder")
    checkpoint = best_of(checkpoint)
    model, tokenizer, spec = load_dual_model(checkpoint)
    require_learned(checkpoint, "image", "text")
    provenance = dual_provenance(checkpoint)
    pictures = check_pictures(config, spec)
    begin, end = text_marks(tokenizer)
    others = {mark: tokenizer.token_to_id(f"<{mark}>") for mark in ("pad", "unk")}
    with working_folder(out, replace_existing) as scratch:
        files = {role: scratch / file for role, file in FILES[EMBEDDER].items()}
        tokens = _tokens(model, tokenizer, pictures)
        report("graphs", 0, 2)
        export_image(model, spec.size, files["vision"])
        report("graphs", 1, 2)
        export_text(model, torch.from_numpy(_noise(model, tokenizer, 3)), files["text"])
        report("graphs", 2, 2)
        tokenizer.save(str(files["tokenizer"]))
        few = np.stack([picture.load() for picture in pictures[:2]])
        _refuse_error(embedding_error(model, files["vision"], files["text"], few, tokens[:8]))
        if config.precision == "int8":
            files |= quantized(files, ["text"], config, spec, report)
        parity = compare_dual(
            model,
            files["vision"],
            files["text"],
            pictures,
            tokens,
            config.threads,
            lambda done: report("check", done, len(pictures)),
        )
        _refuse(parity, config)
        manifest = Manifest(
            name=name or name_of(checkpoint, provenance),
            preprocess=spec,
            generation=None,
            special_tokens={"bos": begin, "eos": end} | {k: v for k, v in others.items() if v is not None},
            context=model.context,
            licence=licence,
            **described(checkpoint, model, provenance, parity, config),
            kind=EMBEDDER,
            width=model.config.width,
            logit_scale=round(model.scale().item(), 4),
        )
        return publish(manifest, files, scratch, out)


@torch.inference_mode()
def embedding_error(
    model: AnyDual, vision: Path, text: Path, pixels: Floats, tokens: Sequence[Ints]
) -> float:
    """Largest difference of a number of an embedding, of pixels [B, 3, H, W] and of texts, each alone."""
    eyes, words = _sessions(vision, text, 1)
    worst = np.abs(eyes.run(pixels) - model.encode_image(torch.from_numpy(pixels)).numpy()).max()
    for row in tokens:
        exact = model.encode_text(torch.from_numpy(row[None])).numpy()
        worst = max(worst, np.abs(words.run(row[None]) - exact).max())
    return float(worst)


@torch.inference_mode()
def compare_dual(
    model: AnyDual,
    vision: Path,
    text: Path,
    pictures: Sequence[Picture],
    tokens: Sequence[Ints],
    threads: int | None = None,
    progress: Callable[[int], object] = lambda done: None,
) -> DualParity:
    """Embed every picture and text with both and compare.

    tokens: a row of ids for each caption of each picture, in their order, or any texts if there are none;
    then R@10 is left out. `progress` is told the number of pictures done.
    """
    eyes, words = _sessions(vision, text, threads)
    images: tuple[list[Floats], list[Floats]] = [], []
    for first in range(0, len(pictures), BATCH):
        pixels = np.stack([picture.load() for picture in pictures[first : first + BATCH]])
        images[0].append(model.encode_image(torch.from_numpy(pixels)).numpy())
        images[1].append(eyes.run(pixels))
        progress(min(first + BATCH, len(pictures)))
    texts: tuple[list[Floats], list[Floats]] = [], []
    for first in range(0, len(tokens), BATCH):
        batch = _padded(tokens[first : first + BATCH])
        texts[0].append(model.encode_text(torch.from_numpy(batch)).numpy())
        texts[1].append(words.run(batch))
    ours, theirs = (np.concatenate(each) for each in images)
    our_texts, their_texts = (np.concatenate(each) for each in texts)
    near, near_texts = (ours * theirs).sum(axis=1), (our_texts * their_texts).sum(axis=1)
    owner = np.repeat(np.arange(len(pictures)), [len(picture.captions) for picture in pictures])
    parity = DualParity(
        len(pictures),
        len(tokens),
        float(near.mean()),
        float(near.min()),
        float(near_texts.mean()),
        float(near_texts.min()),
    )
    if not len(owner):
        return parity
    before = retrieval_scores(ours, our_texts, owner).mean_r10
    after = retrieval_scores(theirs, their_texts, owner).mean_r10
    return replace(parity, r10_checkpoint=100 * before, r10_bundle=100 * after)


def _sessions(vision: Path, text: Path, threads: int | None) -> tuple[EmbeddingSession, EmbeddingSession]:
    return (
        EmbeddingSession(vision.read_bytes(), "pixels", threads, str(vision)),
        EmbeddingSession(text.read_bytes(), "tokens", threads, str(text)),
    )


def _tokens(model: AnyDual, tokenizer: Tokenizer, pictures: Sequence[Picture]) -> list[Ints]:
    """A row of ids for each caption; for random texts where there are none."""
    texts = [text for picture in pictures for text in picture.captions]
    rows = encode_texts(tokenizer, texts, model.context) if texts else _noise(model, tokenizer, 32)
    return [row[: np.flatnonzero(row)[-1] + 1] for row in rows]


def _noise(model: AnyDual, tokenizer: Tokenizer, count: int) -> Ints:
    """Texts of random tokens between their marks, from empty to as long as the model reads: [count, T]."""
    begin, end = text_marks(tokenizer)
    rng = np.random.default_rng(0)
    longest = model.context - 2
    lengths = np.linspace(longest, 0, count).astype(int)
    ids = np.setdiff1d(np.arange(1, tokenizer.get_vocab_size()), [begin, end])
    return _padded([np.array([begin, *rng.choice(ids, length), end]) for length in lengths])


def _padded(rows: Sequence[Ints]) -> Ints:
    """Rows of ids as one array [B, T], filled with 0 on the right."""
    out = np.zeros((len(rows), max(map(len, rows))), np.int64)
    for place, row in zip(out, rows, strict=True):
        place[: len(row)] = row
    return out


def _refuse_error(error: float) -> None:
    if not error <= MAX_ERROR:
        raise BundleError(
            f"export refused: numbers of the fp32 graphs' embeddings are up to {error:.2g} from the "
            f"checkpoint's, more than {MAX_ERROR:g}; nothing was written"
        )


def _refuse(parity: DualParity, config: ExportConfig) -> None:
    reasons = []
    for side in ("image", "text"):
        cosine = getattr(parity, f"{side}_cosine")
        if not cosine >= config.min_cosine:
            reasons.append(f"the mean {side} cosine {cosine:.4f} is below {config.min_cosine:g}")
    if parity.r10_drop > config.max_r10_drop:
        reasons.append(
            f"R@10 fell by {parity.r10_drop:.2f} (checkpoint {parity.r10_checkpoint:.2f}, bundle "
            f"{parity.r10_bundle:.2f}), more than {config.max_r10_drop:g}"
        )
    refuse_for(reasons, f"{parity.pictures} pictures")
