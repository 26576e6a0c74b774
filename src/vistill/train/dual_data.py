"""The data of a dual encoder: pictures with captions, or texts alone, and what a teacher said of them."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from datasets import Dataset as Table
from datasets import concatenate_datasets
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor

from vistill.data.collate import Item, PixelSource
from vistill.data.dataset import open_split, split_names
from vistill.data.pairs import PairRows, SpeltTexts, TextRows, unseen
from vistill.data.texts import clean, with_mirrored
from vistill.distill.cache import TeacherCache
from vistill.distill.join import kept_answers, open_cache
from vistill.distill.objective_dual import DualObjectiveConfig, Known
from vistill.distill.text_cache import TextCache
from vistill.errors import ConfigError
from vistill.models.clip import ClipDual
from vistill.models.loading import AnyDual
from vistill.runtime.image import Preprocess
from vistill.train.datamodule import DataConfig, RowsData, first, pixel_sources

HELD_OUT = 1000
"""Texts that are scored where there is no data set with a dev split."""


class DualData(RowsData):
    """Loaders over pictures with captions or, where the text tower learns alone, over texts of a cache."""

    train_table: Table
    dev_table: Table
    dev_texts: list[str]
    """Texts that are scored [m]."""
    owner: NDArray[np.int64] | None = None
    """The row [m] of each one's dev picture; None without pictures."""
    train_rows: PairRows | TextRows
    dev_rows: PairRows | TextRows

    def __init__(
        self, config: DataConfig, seed: int, epochs: int, towers: str, cache: TextCache | None
    ) -> None:
        super().__init__(config, seed, epochs)
        self.towers = towers
        self.cache = cache
        if config.path:
            folder = Path(config.path)
            splits = config.train_splits()
            self.train_table = concatenate_datasets([open_split(folder, split) for split in splits])
            self.dev_table = first(open_split(folder, config.dev_split), config.dev_samples)
            if not all(self.dev_table["captions"]):
                raise ConfigError(
                    f"{folder}: pictures of {config.dev_split} without captions cannot be scored"
                )
            self.dev_texts, self.owner = captions_of(self.dev_table)
        elif towers != "text" or cache is None:
            raise ConfigError(
                "datamodule.path is empty: only a text tower learns without pictures, from `texts`"
            )
        else:
            order = np.random.default_rng(seed).permutation(len(cache.texts))
            count = min(config.dev_samples or HELD_OUT, len(cache.texts) // 2)
            self.dev_texts = [cache.texts[i] for i in order[:count]]

    def prepare(
        self,
        model: AnyDual,
        tokenizer: Tokenizer,
        preprocess: Preprocess,
        *,
        frozen: int,
        pictures: bool,
        dev_pictures: bool,
    ) -> None:
        """Set the rows. `pictures`: the losses look at pictures; `dev_pictures`: scoring does."""
        config, seed = self.config, self.seed
        self.spelt = SpeltTexts(tokenizer, model.context)
        train: PixelSource = unseen
        dev: PixelSource = unseen
        if pictures or dev_pictures:
            tables = self.train_table, self.dev_table
            if frozen and isinstance(model, ClipDual):
                raise ConfigError("datamodule.views: a CLIP tower is not cut into stages, leave views at 0")
            tower = None if isinstance(model, ClipDual) else model.image.tower
            self.start, train, dev = pixel_sources(config, tables, tower, preprocess, frozen=frozen)
        if config.path:
            keys, captions = self.dev_table["key"][:], self.dev_table["captions"][:]
            source = dev if dev_pictures else unseen
            self.dev_rows = PairRows(keys, captions, source, self.spelt, shown=0, seed=seed)
        if pictures:
            keys, captions = self.train_table["key"][:], self.train_table["captions"][:]
            self.train_rows = PairRows(keys, captions, train, self.spelt, shown=config.captions, seed=seed)
        else:
            self._set_texts()

    def _set_texts(self) -> None:
        """Rows of texts alone: the cache's, but for those of the pictures that are not trained on."""
        if self.cache is None:
            raise ConfigError(
                "texts is empty: the text tower learns alone from a cache of `vistill teach texts`"
            )
        self.things = "texts"
        held = self._captions_elsewhere() if self.config.path else set(self.dev_texts)
        shown = [text for text in self.cache.texts if text not in held]
        if not shown:
            raise ConfigError(f"{self.cache.folder}: every text of it belongs to pictures that are held back")
        self.train_rows = TextRows(self.spelt.add(shown), self.spelt)
        self.lengths = self.spelt.lengths(self.train_rows.of_row)
        if not self.config.path:
            self.dev_rows = TextRows(self.spelt.add(self.dev_texts), self.spelt)

    def _captions_elsewhere(self) -> set[str]:
        """Captions of every split that is not trained on, as written and mirrored."""
        folder = Path(self.config.path)
        others = [name for name in split_names(folder) if name not in self.config.train_splits()]
        tables = [open_split(folder, name)["captions"][:] for name in others]
        return {text for table in tables for texts in table for text in texts for text in with_mirrored(text)}

    def teacher_pictures(self) -> Tensor | None:
        """The picture teacher's vectors [n, E] of the dev split, None if its cache has none."""
        if not self.config.teacher:
            return None
        cache = TeacherCache.open(Path(self.config.teacher))
        if self.config.dev_split not in cache.splits:
            return None
        rows = range(len(self.dev_table))
        return _stacked([cache.read(self.config.dev_split, row).embedding for row in rows])

    def known(
        self,
        objective: DualObjectiveConfig,
        tokenizer: Tokenizer,
        own_text: Callable[[SpeltTexts], Tensor] | None,
    ) -> Known:
        """What the teacher, and a text tower that does not learn, say of the train rows."""
        needs, widths = objective.needs(), {}
        image, hidden, text = None, None, None
        if "text" in needs and self.cache is not None:
            text = torch.from_numpy(self.cache.vectors[self.cache.numbers(self.spelt.texts)])
            text = F.normalize(text.float(), dim=-1).half()
            widths["text"] = self.cache.width
        if needs & {"image", "hidden"} and self.config.teacher:
            image, hidden, found = self._cached_pictures(needs & {"image", "hidden"}, tokenizer)
            widths |= found
        elif "image" in needs and self.cache is not None:
            targets = self._targets(self.cache)
            image = lambda items: targets[[item.row for item in items]]  # noqa: E731
            widths["image"] = self.cache.width
        return Known(
            numbers=self.train_rows.numbers,
            image=image,
            hidden=hidden,
            text=text,
            own_text=None if own_text is None else own_text(self.spelt),
            widths=widths,
        )

    def _targets(self, cache: TextCache) -> Tensor:
        """The mean of the teacher's vectors of each picture's captions, unit norm: float32 [rows, E]."""
        assert isinstance(self.train_rows, PairRows)
        out = torch.zeros(len(self.train_rows), cache.width)
        for row, numbers in enumerate(self.train_rows.of_row[False]):
            if not numbers:
                raise ConfigError(
                    f"picture {self.train_rows.keys[row]!r} has no caption, so that the text teacher says "
                    "nothing of it: leave such pictures out, or set datamodule.teacher to a picture teacher's"
                )
            vectors = torch.from_numpy(cache.of([self.spelt.texts[number] for number in numbers]))
            out[row] = F.normalize(F.normalize(vectors, dim=-1).mean(0), dim=-1)
        return out

    def _cached_pictures(
        self, needs: frozenset[str], tokenizer: Tokenizer
    ) -> tuple[Callable[[Sequence[Item]], Tensor], Callable[[Sequence[Item]], Tensor], dict[str, int]]:
        """(embeddings, hidden states, widths) of the picture teacher's cache. Raises DataError."""
        config = self.config
        splits = config.train_splits()
        wants = {"image": "embedding", "hidden": "hidden"}
        cache = open_cache(
            Path(config.teacher),
            Path(config.path),
            splits,
            wants=[wants[need] for need in sorted(needs)],
            tokenizer=tokenizer,
            longest=0,
            views=config.views,
            seed=self.seed,
            augment=config.augment,
        )
        answers = kept_answers(cache, splits)

        def image(items: Sequence[Item]) -> Tensor:
            return F.normalize(_stacked([answer.embedding for answer in answers(items)]), dim=-1)

        def hidden(items: Sequence[Item]) -> Tensor:
            return _stacked([answer.hidden for answer in answers(items)])

        one = cache.read(splits[0], 0)
        found = {"image": one.embedding, "hidden": one.hidden}
        return image, hidden, {need: found[need].shape[-1] for need in needs}  # type: ignore[union-attr]


def captions_of(table: Table) -> tuple[list[str], NDArray[np.int64]]:
    """Cleaned captions [m] of a table's pictures in their order, and the row [m] of each one's picture."""
    captions = table["captions"][:]
    owner = [row for row, texts in enumerate(captions) for _ in texts]
    return [clean(text) for texts in captions for text in texts], np.array(owner, np.int64)


def _stacked(rows: Sequence[NDArray[np.float32] | None]) -> Tensor:
    return torch.from_numpy(np.stack([row for row in rows if row is not None]))
