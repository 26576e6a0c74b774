"""From a built data set to the loaders of one run: what every task shares, and the data of captioning."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
from datasets import Dataset as Table
from datasets import concatenate_datasets
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch.utils.data import DataLoader

from vistill.data.collate import (
    CaptionRows,
    EpochBatches,
    Item,
    PixelSource,
    ResumableLoader,
    Rows,
    collate,
    kept_pixels,
    online_pixels,
    replayed_pixels,
)
from vistill.data.dataset import open_split
from vistill.data.text import TokenizerConfig, train_tokenizer
from vistill.data.views import build_views
from vistill.errors import ConfigError
from vistill.models.vision import VisionTower
from vistill.runtime.image import AugmentSpec, Preprocess


@dataclass(frozen=True)
class DataConfig:
    """Which data set, and how it is shown."""

    path: str = "built/flickr8k"
    """Folder that `vistill data build` wrote; questions may come from several, as `a+b`."""
    train_split: str = "train"
    """Split to learn from, or several as `train+extra`; those without captions need a teacher's."""
    dev_split: str = "dev"
    """Split to make choices on."""
    num_samples: int = 0
    """Train on so many pictures; 0 takes all."""
    sample_seed: int = 0
    """Seed that draws them; -1 takes the first ones."""
    dev_samples: int = 0
    """Validate on the first so many pictures; 0 takes all."""
    batch_size: int = 32
    """Pictures a step."""
    captions: int = 5
    """Captions of a picture shown in one step; its features are computed once for all."""
    views: int = 0
    """Views of each picture, the first one clean; kept as features of the frozen stages. 0 draws anew."""
    views_seed: int = 0
    """Seed that draws these views, which the runs of several `trainer.seed` share; a teacher's cache of
    several views holds its own."""
    cache: str = ""
    """Folder for the kept features; empty is PATH-views, beside the data set."""
    teacher: str = ""
    """Folder of a teacher cache, as `vistill teach run` writes it, that the objective learns from."""
    leave_out_unanswered: bool = False
    """Leave out pictures of which this cache holds no answer (a server refused them, or they cannot be read);
    a run that needs their answers refuses to start else."""
    workers: int = 0
    """Processes that decode pictures."""
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    augment: AugmentSpec = field(default_factory=AugmentSpec)

    def __post_init__(self) -> None:
        for name in ("batch_size", "captions"):
            if getattr(self, name) < 1:
                raise ConfigError(f"datamodule.{name}={getattr(self, name)}: must be at least 1")
        for name in ("num_samples", "dev_samples", "views", "workers"):
            if getattr(self, name) < 0:
                raise ConfigError(f"datamodule.{name}={getattr(self, name)}: must not be negative")
        if self.sample_seed < -1:
            raise ConfigError(f"datamodule.sample_seed={self.sample_seed}: use a seed, or -1 for the first")

    def drawn(self, rows: int) -> list[int]:
        """The rows, of so many, that `num_samples` takes, in order."""
        count = min(self.num_samples or rows, rows)
        if count == rows or self.sample_seed < 0:
            return list(range(count))
        draw = np.random.default_rng(self.sample_seed)
        return sorted(draw.permutation(rows)[:count].tolist())  # more samples hold the fewer

    def train_splits(self) -> list[str]:
        """The splits that `train_split` names."""
        return self.train_split.split("+")

    def folders(self) -> list[Path]:
        """The folders that `path` names; none if it is empty."""
        whole = [self.path] if self.path else []
        return [Path(name) for name in (whole if Path(self.path).exists() else self.path.split("+"))]


class DrawnRows:
    """Some rows of others; an item keeps its own row's number."""

    def __init__(self, rows: Rows, numbers: Sequence[int]) -> None:
        self.rows = rows
        self.numbers = numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: tuple[int, int]) -> tuple[Item, NDArray[Any]]:
        return self.rows[index[0], self.numbers[index[1]]]


class RowsData(L.LightningDataModule):
    """Loaders over `train_rows`, as many as `num_samples` says, and `dev_rows`.

    A task's own data module sets them.
    """

    train_rows: Rows
    dev_rows: Rows
    things = "pictures"
    """What a row is, for people."""
    start = 0
    """Stages of the tower that have run over the pixels already."""
    left_out: frozenset[int] = frozenset()
    """Train rows that are not shown."""
    lengths: NDArray[np.int64] | None = None
    """Length of each train row in tokens, if batches are to hold rows of like length."""

    def __init__(self, config: DataConfig, seed: int, epochs: int = 1) -> None:
        super().__init__()
        self.config = config
        self.seed = seed
        self.epochs = epochs

    def batches_per_epoch(self, ranks: int) -> int:
        """Train batches of one epoch on each of `ranks` devices. ConfigError if there is not even one."""
        size, rows = self.config.batch_size, len(self.shown())
        if rows // ranks < size:
            raise ConfigError(
                f"datamodule.batch_size={size} on {ranks} devices: there are {rows} train {self.things}"
            )
        return rows // ranks // size

    def shown(self) -> list[int]:
        """The train rows of this run, in order."""
        return [row for row in self.config.drawn(len(self.train_rows)) if row not in self.left_out]

    def train_dataloader(self) -> ResumableLoader:
        trainer = self.trainer
        rank, ranks = (trainer.global_rank, trainer.world_size) if trainer else (0, 1)
        rows = DrawnRows(self.train_rows, self.shown())
        batches = EpochBatches(
            len(rows),
            self.config.batch_size,
            shuffle=True,
            seed=self.seed,
            epochs=self.epochs,
            rank=rank,
            ranks=ranks,
            lengths=None if self.lengths is None else self.lengths[rows.numbers],
        )
        return ResumableLoader(rows, batches, start=self.start, workers=self.config.workers)

    def val_dataloader(self) -> DataLoader[tuple[Item, NDArray[Any]]]:
        batches = EpochBatches(len(self.dev_rows), self.config.batch_size, shuffle=False, seed=self.seed)
        rows: Any = self.dev_rows  # a loader asks for no more than the two calls of Rows
        return DataLoader(rows, batch_sampler=batches, collate_fn=partial(collate, start=self.start))


class CaptionData(RowsData):
    """Loaders over the train and dev pictures that have captions."""

    def __init__(self, config: DataConfig, seed: int, epochs: int = 1) -> None:
        super().__init__(config, seed, epochs)
        folder = Path(config.path)
        self.train_splits = config.train_splits()
        self.train_table: Table = concatenate_datasets([open_split(folder, s) for s in self.train_splits])
        self.dev_table = open_split(folder, config.dev_split)
        uncaptioned = sum(not captions for captions in self.train_table["captions"])
        if uncaptioned and not config.teacher:
            raise ConfigError(
                f"{uncaptioned} pictures of {config.train_split} have no caption: leave them out, or set "
                "datamodule.teacher to a cache with captions of theirs"
            )
        if not all(self.dev_table["captions"]):
            raise ConfigError(f"{folder}: pictures of {config.dev_split} without captions cannot be scored")

    def train_tokenizer(self) -> Tokenizer:
        """A tokenizer over the captions of the pictures that are trained on."""
        table = self.train_table.select(self.config.drawn(len(self.train_table)))
        captions = (caption for captions in table["captions"] for caption in captions)
        return train_tokenizer(captions, self.config.tokenizer)

    def references(self, table: Table) -> Mapping[str, list[str]]:
        """{key: captions} of the pictures of a table that have some."""
        pairs = zip(table["key"], table["captions"], strict=True)
        return {key: captions for key, captions in pairs if captions}

    def prepare(
        self, tokenizer: Tokenizer, tower: VisionTower, preprocess: Preprocess, *, frozen: int, longest: int
    ) -> None:
        """Set how pictures become input: kept features of the frozen stages, or pixels decoded each time."""
        config, seed = self.config, self.seed
        tables = self.train_table, self.dev_table
        self.start, train, dev = pixel_sources(config, tables, tower, preprocess, frozen=frozen)
        self.train_rows = CaptionRows(
            self.train_table,
            train,
            tokenizer,
            captions=config.captions,
            longest=longest,
            seed=seed,
        )
        self.dev_rows = CaptionRows(
            first(self.dev_table, config.dev_samples), dev, tokenizer, captions=0, longest=longest, seed=seed
        )


def pixel_sources(
    config: DataConfig,
    tables: tuple[Table, Table],
    tower: VisionTower | None,
    preprocess: Preprocess,
    *,
    frozen: int,
) -> tuple[int, PixelSource, PixelSource]:
    """How the pictures of the (train, dev) tables become input: (stages that are run already, train, dev).

    That is kept features of the `frozen` stages, or pixels decoded each time. A tower without stages is None.
    """
    splits = config.train_splits()
    if config.views and frozen and tower is not None:
        folder = Path(config.cache or f"{config.path}-views")
        views = {**dict.fromkeys(splits, config.views), config.dev_split: 1}
        build_views(
            folder,
            Path(config.path),
            tower,
            preprocess,
            config.augment,
            stages=frozen,
            views=views,
            seed=config.views_seed,
        )
        return frozen, kept_pixels(folder, splits, config.views), kept_pixels(folder, [config.dev_split], 1)
    train = online_pixels(tables[0], preprocess, config.augment)
    if config.views:
        train = replayed_pixels(tables[0], preprocess, config.augment, config.views, config.views_seed)
    return 0, train, online_pixels(tables[1], preprocess, None)


def first(table: Table, count: int) -> Table:
    """The first `count` rows of a table; 0: all."""
    return table.select(range(min(count, len(table)))) if count else table
