"""The data of answering: pictures with their questions, from one built data set or several."""

from collections.abc import Iterator
from pathlib import Path

from tokenizers import Tokenizer

from vistill.data.asked import AskedPictures, answer_tokenizer, open_asked, unique_keys
from vistill.data.collate import PixelSource, View, kept_pixels, locate, online_pixels, replayed_pixels
from vistill.data.question_rows import QuestionRows
from vistill.data.views import build_views
from vistill.metrics.vqa_baselines import Asked
from vistill.models.vision import VisionTower
from vistill.runtime.image import Preprocess
from vistill.train.datamodule import DataConfig, RowsData


class AnswerData(RowsData):
    """Loaders over the pictures of the train and dev splits that have questions."""

    def __init__(self, config: DataConfig, seed: int, epochs: int = 1) -> None:
        super().__init__(config, seed, epochs)
        splits = config.train_splits()
        self.train = [open_asked(folder, split) for folder in config.folders() for split in splits]
        self.dev = [open_asked(folder, config.dev_split) for folder in config.folders()]
        unique_keys(self.dev)

    def tokenizer(self, start: Tokenizer | None = None) -> Tokenizer:
        """Of the train questions, answers and captions; with `start`, its ids and then new words."""
        return answer_tokenizer(self._texts(), self.config.tokenizer, start)

    def _texts(self) -> Iterator[str]:
        for part in self.train:
            for asked in (one for picture in part.asked for one in picture):
                yield asked.question
                yield from asked.answers
            for captions in part.table["captions"]:
                yield from captions

    def questions(self) -> dict[str, Asked]:
        """{key: question} of the dev pictures that are scored."""
        keys, asked = _joined(self.dev, self.config.dev_samples)
        return {
            key: one
            for names, ones in zip(keys, asked, strict=True)
            for key, one in zip(names, ones, strict=True)
        }

    def dev_keys(self) -> list[list[str]]:
        """The keys of the questions of each row of dev."""
        return _joined(self.dev, self.config.dev_samples)[0]

    def prepare(
        self,
        tokenizer: Tokenizer,
        tower: VisionTower,
        preprocess: Preprocess,
        *,
        frozen: int,
        longest: int,
        longest_answer: int,
    ) -> None:
        """Set how pictures become input: kept features of the frozen stages, or pixels decoded each time."""
        config = self.config
        self.start = frozen if config.views else 0
        if self.start:
            self._keep_features(tower, preprocess, frozen)

        def rows(parts: list[AskedPictures], pixels: PixelSource, count: int, questions: int) -> QuestionRows:
            keys = [key for part in parts for key in part.table["key"]]
            asked = _joined(parts, count)[1]
            return QuestionRows(
                keys[: len(asked)],
                asked,
                pixels,
                tokenizer,
                questions=questions,
                longest=longest,
                longest_answer=longest_answer,
                seed=self.seed,
            )

        train = joined_pixels(self.train, [self._pixels(part, preprocess, True) for part in self.train])
        dev = joined_pixels(self.dev, [self._pixels(part, preprocess, False) for part in self.dev])
        self.train_rows = rows(self.train, train, 0, config.captions)
        self.dev_rows = rows(self.dev, dev, config.dev_samples, 0)

    def _cache(self, folder: Path) -> Path:
        """Where the features of a data set's pictures are kept."""
        if not self.config.cache:
            return Path(f"{folder}-views")
        cache = Path(self.config.cache)
        return cache / folder.name if len(self.config.folders()) > 1 else cache

    def _keep_features(self, tower: VisionTower, preprocess: Preprocess, frozen: int) -> None:
        for folder in self.config.folders():
            train = {part.split: part.table for part in self.train if part.folder == folder}
            dev = {part.split: part.table for part in self.dev if part.folder == folder}
            build_views(
                self._cache(folder),
                folder,
                tower,
                preprocess,
                self.config.augment,
                stages=frozen,
                views={**dict.fromkeys(train, self.config.views), **dict.fromkeys(dev, 1)},
                seed=self.config.views_seed,
                tables={**train, **dev},
            )

    def _pixels(self, part: AskedPictures, preprocess: Preprocess, training: bool) -> PixelSource:
        config, table = self.config, part.table
        if self.start:
            views = config.views if training else 1
            return kept_pixels(self._cache(part.folder), [part.split], views)
        if training and config.views:
            return replayed_pixels(table, preprocess, config.augment, config.views, config.views_seed)
        return online_pixels(table, preprocess, config.augment if training else None)


def joined_pixels(parts: list[AskedPictures], sources: list[PixelSource]) -> PixelSource:
    """One source over the pictures of several splits that follow each other."""
    sizes = [len(part.table) for part in parts]

    def load(row: int, seed: int) -> View:
        part, at = locate(sizes, row)
        return sources[part](at, seed)

    return load


def _joined(parts: list[AskedPictures], count: int) -> tuple[list[list[str]], list[list[Asked]]]:
    """Keys and questions of the first `count` pictures; 0: all."""
    keys = [names for part in parts for names in part.keys]
    asked = [ones for part in parts for ones in part.asked]
    return (keys[:count], asked[:count]) if count else (keys, asked)
