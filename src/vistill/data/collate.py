"""From a built data set to batches: which view and which captions of a picture an epoch shows."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from datasets import Dataset as Table
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from vistill.data.text import encode, pad
from vistill.data.views import Views, draw_view
from vistill.models.tokens import PAD
from vistill.runtime.image import AugmentSpec, Preprocess, augment, read_image, to_array

_SIDE = re.compile(r"\b(left|right)\b", re.IGNORECASE)


@dataclass(frozen=True)
class Batch:
    """What a training or validation step sees.

    keys: B names; pixels: float32 [B, 3, H, W], or the output [B, ...] of the first `start` stages of the
    tower; tokens: int64 [B, C, T], `<bos> ... <eos>` and padding; C captions a picture. `items` says what was
    shown: the row, view and captions of each picture, by which a teacher's answers are found. prompt: int64
    [B, C], how many tokens of each text are given and not to be learned; None for captions.
    """

    keys: tuple[str, ...]
    pixels: Tensor
    start: int
    tokens: Tensor
    items: tuple["Item", ...] = ()
    prompt: Tensor | None = None

    @property
    def targets(self) -> Tensor:
        """int64 [B, C, T - 1]: the token to learn at each position but the last; prompts are padding."""
        following = self.tokens[..., 1:]
        if self.prompt is None:
            return following
        place = torch.arange(1, self.tokens.shape[-1], device=self.tokens.device)
        return following.masked_fill(place < self.prompt.unsqueeze(-1), PAD)

    def to(self, device: torch.device, **kwargs: Any) -> "Batch":
        """The batch with its tensors on `device`."""
        prompt = None if self.prompt is None else self.prompt.to(device, **kwargs)
        pixels, tokens = self.pixels.to(device, **kwargs), self.tokens.to(device, **kwargs)
        return replace(self, pixels=pixels, tokens=tokens, prompt=prompt)


FRESH = -1  # a view drawn anew, which nothing is kept of


@dataclass(frozen=True)
class View:
    """One view of a picture: pixels or kept features, whether it is mirrored, its number or FRESH."""

    pixels: NDArray[Any]
    mirrored: bool
    number: int


@dataclass(frozen=True)
class Item:
    """A picture as one step shows it: row and view in the split, and which of its captions, as token ids.

    prompts: how many ids of each text are a question; empty for captions.
    """

    key: str
    row: int
    view: int
    mirrored: bool
    shown: tuple[int, ...]
    texts: tuple[list[int], ...]
    prompts: tuple[int, ...] = ()


PixelSource = Callable[[int, int], View]
"""(row, seed of the draw) -> one view."""


class Rows(Protocol):
    """What a loader goes through: item (epoch, row) is the same however and whenever it is asked for."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: tuple[int, int]) -> tuple[Item, NDArray[Any]]: ...


def show_view(pixels: PixelSource, seed: int, index: tuple[int, int]) -> tuple[View, np.random.Generator]:
    """The view that item (epoch, row) shows, and the generator that draws all else of that item."""
    draw = np.random.default_rng((seed, *index))
    return pixels(index[1], int(draw.integers(2**31))), draw


def draw_captions(draw: np.random.Generator, there: int, wanted: int) -> list[int]:
    """The numbers of `wanted` captions, none again before all others were drawn; 0: all, in order."""
    if not wanted or not there:
        return list(range(there))
    rounds = -(-wanted // there)
    return [int(i) for _ in range(rounds) for i in draw.permutation(there)][:wanted]


class CaptionRows(Dataset[tuple[Item, NDArray[Any]]]):
    """Pictures with captions; item (epoch, row) is the same however and whenever it is asked for.

    In training each picture shows one view and `captions` of its captions, drawn by (seed, epoch, row); with
    `captions=0` all of them, in order (validation). A picture without captions shows none.
    """

    def __init__(
        self,
        table: Table,
        pixels: PixelSource,
        tokenizer: Tokenizer,
        *,
        captions: int,
        longest: int,
        seed: int,
    ) -> None:
        self.keys: list[str] = list(table["key"])
        self.texts: list[list[str]] = [list(c) for c in table["captions"]]
        self.pixels = pixels
        self.tokenizer = tokenizer
        self.captions = captions
        self.longest = longest
        self.seed = seed

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: tuple[int, int]) -> tuple[Item, NDArray[Any]]:
        row = index[1]
        view, draw = show_view(self.pixels, self.seed, index)
        shown = draw_captions(draw, len(self.texts[row]), self.captions)
        texts = [self.texts[row][i] for i in shown]
        if view.mirrored:
            texts = [mirror_words(text) for text in texts]
        ids = tuple(encode(self.tokenizer, text, self.longest) for text in texts)
        return Item(self.keys[row], row, view.number, view.mirrored, tuple(shown), ids), view.pixels


def online_pixels(table: Table, preprocess: Preprocess, spec: AugmentSpec | None) -> PixelSource:
    """Decode, augment (if `spec` is given) and prepare a picture each time it is asked for."""

    def load(row: int, seed: int) -> View:
        image, mirrored = read_image(table[row]["image"]), False
        if spec is not None:
            image, mirrored = augment(image, spec, seed)
        return View(to_array(image, preprocess), mirrored, 0 if spec is None else FRESH)

    return load


def replayed_pixels(
    table: Table, preprocess: Preprocess, spec: AugmentSpec, views: int, seed: int
) -> PixelSource:
    """Decode and prepare one of the `views` views that `kept_pixels` has; view 0 is the clean one."""

    def load(row: int, draw: int) -> View:
        sample, number = table[row], draw % views
        image, mirrored = draw_view(sample["image"], sample["key"], number, spec, seed)
        return View(to_array(image, preprocess), mirrored, number)

    return load


def kept_pixels(folder: Path, splits: Sequence[str], views: int) -> PixelSource:
    """Kept features of a view: one of `views` by the seed, the clean one if there is only one.

    Rows go on from one split to the next.
    """
    cache = Views(folder)
    arrays = [[cache.features(split, view) for view in range(views)] for split in splits]
    flips = [[cache.flipped(split, view) for view in range(views)] for split in splits]
    sizes = [len(views_of[0]) for views_of in arrays]

    def load(row: int, seed: int) -> View:
        part, at = locate(sizes, row)
        number = seed % views
        return View(arrays[part][number][at], bool(flips[part][number][at]), number)

    return load


def locate(sizes: Sequence[int], row: int) -> tuple[int, int]:
    """(part, row in it) of row `row` of parts of these sizes that follow each other. Raises IndexError."""
    before = 0
    for part, size in enumerate(sizes):
        if row < before + size:
            return part, row - before
        before += size
    raise IndexError(f"row {row} after the last of {sum(sizes)}")


def mirror_words(text: str) -> str:
    """Swap the words `left` and `right`, for a text about a mirrored picture."""
    return _SIDE.sub(lambda found: "right" if found[0].lower() == "left" else "left", text)


def pad_texts(pictures: Sequence[Sequence[Sequence[int]]]) -> Tensor:
    """Ids of the texts of B pictures -> int64 [B, C, T], filled on the right; a missing text is padding."""
    most = max(1, *map(len, pictures))
    ids = [text for texts in pictures for text in [*texts, *[[PAD, PAD]] * (most - len(texts))]]
    return torch.tensor(pad(ids), dtype=torch.int64).view(len(pictures), most, -1)


def collate(rows: Sequence[tuple[Item, NDArray[Any]]], start: int) -> Batch:
    """Rows of one batch; pictures with fewer captions than others, or none, are filled with padding rows."""
    items = tuple(item for item, _ in rows)
    tokens = pad_texts([item.texts for item in items])
    pixels = torch.from_numpy(np.stack([pixels for _, pixels in rows])).float()
    prompt = None
    if any(item.prompts for item in items):
        prompt = torch.tensor(pad([item.prompts for item in items]), dtype=torch.int64)
    return Batch(tuple(item.key for item in items), pixels, start, tokens, items, prompt)


class EpochBatches(Sampler[list[tuple[int, int]]]):
    """All batches of a run, epoch after epoch, as lists of (epoch, row); this rank's share of them.

    The order of an epoch depends on (seed, epoch) alone, and the batches before `skip` can be left out. Of a
    shuffled epoch only full batches are given; with `lengths` [rows] each holds rows of like length.
    """

    def __init__(
        self,
        rows: int,
        batch_size: int,
        *,
        shuffle: bool,
        seed: int,
        epochs: int = 1,
        rank: int = 0,
        ranks: int = 1,
        lengths: NDArray[np.int64] | None = None,
    ) -> None:
        self.lengths = lengths
        self.rows, self.batch_size, self.shuffle, self.seed = rows, batch_size, shuffle, seed
        self.epochs, self.rank, self.ranks = epochs, rank, ranks
        share = rows // ranks if shuffle else len(range(rank, rows, ranks))
        self.per_epoch = share // batch_size if shuffle else -(-share // batch_size)
        self.skip = 0

    def __len__(self) -> int:
        return self.epochs * self.per_epoch

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for epoch in range(self.skip // max(1, self.per_epoch), self.epochs):
            order = np.arange(self.rows)
            if self.shuffle:
                draw = np.random.default_rng((self.seed, epoch))
                order = draw.permutation(self.rows)
                if self.lengths is not None:
                    order = _like_with_like(order, self.lengths, self.batch_size * self.ranks, draw)
            mine = order[self.rank :: self.ranks]
            for batch in range(max(0, self.skip - epoch * self.per_epoch), self.per_epoch):
                yield [
                    (epoch, int(row)) for row in mine[batch * self.batch_size : (batch + 1) * self.batch_size]
                ]


POOL = 50
"""Batches whose rows are sorted by length together: more waste less padding, fewer mix better."""


def _like_with_like(
    order: NDArray[np.int64], lengths: NDArray[np.int64], size: int, draw: np.random.Generator
) -> NDArray[np.int64]:
    """`order` with rows of like length in one batch of `size`; which batch comes when is drawn again."""
    full = len(order) // size * size
    pools = np.split(order[:full], range(POOL * size, full, POOL * size))
    batches = np.concatenate([pool[np.argsort(lengths[pool], kind="stable")] for pool in pools])
    mixed = batches.reshape(-1, size)[draw.permutation(full // size)].reshape(-1)
    return np.concatenate([mixed, order[full:]])


class ResumableLoader(DataLoader[tuple[Item, NDArray[Any]]]):
    """A DataLoader whose state is the number of batches given out: a stopped run goes on with the next one.

    The whole run is one pass over it. Lightning restores a position inside a pass exactly, but has to guess
    at the borders between passes.
    """

    def __init__(self, rows: Rows, batches: EpochBatches, *, start: int, workers: int) -> None:
        super().__init__(
            rows,  # type: ignore[arg-type]  # it asks for no more than a Dataset's two calls
            batch_sampler=batches,
            collate_fn=partial(collate, start=start),
            num_workers=workers,
            generator=torch.Generator().manual_seed(0),
        )
        self.batches = batches
        self.given = 0

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        self.batches.skip = self.given
        for batch in super().__iter__():
            self.given += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """What `load_state_dict` needs to go on after the last batch given out."""
        return {"given": self.given}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on where the loader of `state_dict` was."""
        self.given = state["given"]
