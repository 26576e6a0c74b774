"""Pictures with their texts, and texts alone, for a dual encoder: each text is spelt once and has a number.

By its number a text's vectors are found, those of a teacher and those of a tower that does not learn.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from vistill.data.collate import Item, PixelSource, View, draw_captions, mirror_words, show_view
from vistill.data.texts import clean
from vistill.runtime.texts import encode_texts, text_marks

NO_TEXT = -1
SPELL_AT_ONCE = 4096


class SpeltTexts:
    """Texts, each once, with their token ids; a text's number is its place."""

    def __init__(self, tokenizer: Tokenizer, context: int) -> None:
        self.tokenizer = tokenizer
        self.context = context
        self.texts: list[str] = []
        self.ids: list[list[int]] = []
        self.number: dict[str, int] = {}

    def add(self, texts: Sequence[str]) -> list[int]:
        """The numbers of cleaned texts, new ones among them."""
        new = [text for text in dict.fromkeys(texts) if text not in self.number]
        end = text_marks(self.tokenizer)[1]
        for first in range(0, len(new), SPELL_AT_ONCE):
            rows = encode_texts(self.tokenizer, new[first : first + SPELL_AT_ONCE], self.context)
            for row in rows:  # 0 fills up behind the end mark, and is a letter of CLIP's before it
                self.ids.append(row[: np.flatnonzero(row == end)[-1] + 1].tolist())
        self.number.update({text: len(self.texts) + place for place, text in enumerate(new)})
        self.texts += new
        return [self.number[text] for text in texts]

    def lengths(self, numbers: Sequence[int]) -> NDArray[np.int64]:
        """Tokens of each text, marks included."""
        return np.array([len(self.ids[number]) for number in numbers], np.int64)


class PairRows:
    """Pictures with captions, as `collate.CaptionRows` shows them, but with the numbers of their texts.

    In training each picture shows one view and `captions` of its captions, drawn by (seed, epoch, row); with
    `captions=0` all of them, in order (validation).
    """

    def __init__(
        self,
        keys: Sequence[str],
        captions: Sequence[Sequence[str]],
        pixels: PixelSource,
        spelt: SpeltTexts,
        *,
        shown: int,
        seed: int,
    ) -> None:
        self.keys = list(keys)
        self.pixels = pixels
        self.spelt = spelt
        self.shown = shown
        self.seed = seed
        plain = [[clean(text) for text in texts] for texts in captions]
        mirrored = [[mirror_words(text) for text in texts] for texts in plain]
        self.of_row = (self._numbers(plain), self._numbers(mirrored))  # [mirrored][row][caption]

    def _numbers(self, captions: Sequence[Sequence[str]]) -> list[list[int]]:
        flat = iter(self.spelt.add([text for texts in captions for text in texts]))
        return [[next(flat) for _ in texts] for texts in captions]

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: tuple[int, int]) -> tuple[Item, NDArray[np.float32]]:
        row = index[1]
        view, draw = show_view(self.pixels, self.seed, index)
        numbers = self.of_row[view.mirrored][row]
        shown = draw_captions(draw, len(numbers), self.shown)
        ids = tuple(self.spelt.ids[numbers[i]] for i in shown)
        return Item(self.keys[row], row, view.number, view.mirrored, tuple(shown), ids), view.pixels

    def numbers(self, items: Sequence[Item]) -> NDArray[np.int64]:
        """Numbers of the texts that a batch shows, int64 [B, C]; NO_TEXT where a picture has fewer."""
        out = np.full((len(items), max(1, *(len(item.shown) for item in items))), NO_TEXT, np.int64)
        for place, item in zip(out, items, strict=True):
            of_row = self.of_row[item.mirrored][item.row]
            place[: len(item.shown)] = [of_row[i] for i in item.shown]
        return out


class TextRows:
    """Texts with nothing to see: a row is a text, its pixels are empty."""

    def __init__(self, numbers: Sequence[int], spelt: SpeltTexts) -> None:
        self.of_row = list(numbers)
        self.spelt = spelt

    def __len__(self) -> int:
        return len(self.of_row)

    def __getitem__(self, index: tuple[int, int]) -> tuple[Item, NDArray[np.float32]]:
        row = index[1]
        number = self.of_row[row]
        return Item(str(number), row, 0, False, (0,), (self.spelt.ids[number],)), np.zeros(0, np.float32)

    def numbers(self, items: Sequence[Item]) -> NDArray[np.int64]:
        """Numbers of the texts of a batch, int64 [B, 1]."""
        return np.array([[self.of_row[item.row]] for item in items], np.int64)


def unseen(row: int, seed: int) -> View:
    """A PixelSource for pictures that nobody looks at."""
    return View(np.zeros(0, np.float32), False, 0)
