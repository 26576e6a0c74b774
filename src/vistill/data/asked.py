"""Questions of a built data set, picture by picture, and their tokenizer.

A row of the data set is a question; a picture that several rows share is one row here, with all its
questions: its features are kept once and its tower runs once.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from datasets import Dataset as Table
from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers

from vistill.data.dataset import open_split
from vistill.data.text import TokenizerConfig, by_id, train_tokenizer, with_words
from vistill.errors import ConfigError, DataError
from vistill.metrics.vqa_baselines import PEOPLE, Asked
from vistill.runtime.prompts import ASK

# Words, parts of contractions as the Penn treebank splits them, and the comma between answers; else nothing.
_TOKEN = r"\w+?(?=n't\b)|n't\b|'(?:s|re|ve|ll|d|m)\b|\w+(?:[-.]\w+)*|,"


@dataclass(frozen=True)
class AskedPictures:
    """A split: `table` has one row for each distinct picture, `keys` and `asked` its questions."""

    folder: Path
    split: str
    table: Table
    keys: list[list[str]]
    asked: list[list[Asked]]

    @property
    def questions(self) -> list[Asked]:
        """Those of all pictures."""
        return [one for asked in self.asked for one in asked]


def open_asked(folder: Path, split: str) -> AskedPictures:
    """The questions with answers of a split, by picture. Raises DataError if there is none.

    A question whose source is `vqa_rad:closed` is of the type closed.
    """
    table = open_split(folder, split)
    pairs = list(zip(table["question"][:], table["answers"][:], strict=True))
    types = [source.partition(":")[2] for source in table["source"][:]]
    told = [bool(question and answers) for question, answers in pairs]
    if not any(told):
        raise DataError(f"{folder}: split {split} has no questions with answers")
    # a question of DAQUAR has one answer, perhaps in parts; one of VQA v2 has those of ten people
    people = all(len(answers) >= PEOPLE for (_, answers), has in zip(pairs, told, strict=True) if has)
    keys = table["key"][:]
    places = [[row for row in rows if told[row]] for rows in rows_by_picture(table)]
    places = [rows for rows in places if rows]
    return AskedPictures(
        folder,
        split,
        table.select([rows[0] for rows in places]),
        [[keys[row] for row in rows] for rows in places],
        [[Asked(pairs[row][0], tuple(pairs[row][1]), people, types[row]) for row in rows] for rows in places],
    )


def first_pictures(part: AskedPictures, count: int) -> AskedPictures:
    """The first `count` pictures with all their questions; 0: all."""
    if not count:
        return part
    table = part.table.select(range(min(count, len(part.table))))
    return replace(part, table=table, keys=part.keys[:count], asked=part.asked[:count])


def rows_by_picture(table: Table) -> list[list[int]]:
    """The rows of each distinct picture of a whole split, in order; pictures are told by their bytes."""
    found: dict[bytes, list[int]] = {}
    row = 0
    for chunk in table.data.column("image").chunks:
        for value in chunk:
            digest = hashlib.blake2b(value.as_buffer(), digest_size=16).digest()
            found.setdefault(digest, []).append(row)
            row += 1
    return list(found.values())


def answer_tokenizer(
    texts: Iterable[str], config: TokenizerConfig, start: Tokenizer | None = None
) -> Tokenizer:
    """A tokenizer of questions and answers as people write them.

    Trained on `texts`, or `start` (that of a captioner) with its ids as they are, `<ask>` and, if it keeps
    whole words, the words of `texts` that are frequent enough appended.
    """
    normaliser = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Lowercase(), normalizers.Replace("\u2019", "'")]
    )
    parts = pre_tokenizers.Split(Regex(_TOKEN), "removed", invert=True)

    def plain(text: str) -> str:
        return " ".join(part for part, _ in parts.pre_tokenize_str(normaliser.normalize_str(text)))

    own = train_tokenizer((plain(text) for text in texts), config, ready=True)
    tokenizer = with_words(start or own, [*by_id(own), ASK])
    tokenizer.normalizer = normaliser
    tokenizer.pre_tokenizer = parts
    tokenizer.add_special_tokens([ASK])
    return tokenizer


def unique_keys(parts: Sequence[AskedPictures]) -> None:
    """Raise ConfigError if two questions of these splits have one key: answers could not be told apart."""
    keys = [key for part in parts for keys in part.keys for key in keys]
    if len(set(keys)) < len(keys):
        folders = " and ".join(sorted({str(part.folder) for part in parts}))
        raise ConfigError(f"{folders} have questions with the same key: score them one by one")
