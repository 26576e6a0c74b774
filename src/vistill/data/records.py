"""What a data set is made of: the records that sources yield and the one schema that is stored.

A source (`vistill.data.sources`) only reads annotations: it yields an `Entry` for each picture, a `Dropped`
for each thing it cannot use and an `Annotation` for each file it read. `vistill.data.dataset.build` opens
the pictures and turns entries into rows of the schema, which are `Sample`s.
"""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from vistill.errors import DataError

SPLITS = ("train", "dev", "test", "extra")

# Splits that are scored. A reader yields them first, so that of a key listed twice they keep the picture.
EVALUATED = ("test", "dev")

_SPLIT_NAMES = {
    **dict.fromkeys(("train", "training", "trn"), "train"),
    **dict.fromkeys(("dev", "val", "valid", "validation", "development"), "dev"),
    **dict.fromkeys(("test", "testing", "tst"), "test"),
    **dict.fromkeys(("extra", "unassigned", "none", ""), "extra"),
}


@dataclass(frozen=True)
class Sample:
    """One stored picture with its text; the fields are the columns of a built data set, in this order.

    `image` is the file's bytes as they lay on disk; `width` and `height` are of the upright picture.
    """

    key: str
    image: bytes
    width: int
    height: int
    captions: tuple[str, ...]
    question: str = ""
    answers: tuple[str, ...] = ()
    split: str = "train"
    source: str = ""
    licence: str = ""


@dataclass(frozen=True)
class Entry:
    """One picture as a source found it: nothing is opened yet, `path` exists.

    The picture is the whole file, or `span` (offset, length) of it (a member of a tar or zip), or `cell` (row
    group, row in it, column) of it (Parquet). With `inflated` the span is a raw deflate stream (a compressed
    member of a zip) of a picture of that many bytes; with `base64_row` it is base64 in that row of a TSV.
    Entries with the same place are questions about one picture: a source gives them one after another.
    """

    key: str
    path: Path
    captions: tuple[str, ...]
    split: str
    source: str
    question: str = ""
    answers: tuple[str, ...] = ()
    licence: str = ""
    span: tuple[int, int] | None = None
    cell: tuple[int, int, str] | None = None
    inflated: int | None = None
    base64_row: int | None = None


@dataclass(frozen=True)
class Dropped:
    """Something that is not in the built data set: `key` names it, `reason` is one of `REASONS` or
    `image_` + one of `vistill.runtime.image.REASONS`, `detail` is the sentence for a person."""

    key: str
    reason: str
    detail: str


@dataclass(frozen=True)
class Annotation:
    """An annotation file that a source has read; its hash goes into the report."""

    path: Path


Item = Entry | Dropped | Annotation

REASONS: dict[str, str] = {
    "stray_key": "an annotation whose key is not the name of a picture",
    "missing_picture": "an annotation or a split names a picture that is not in the folder",
    "unsafe_path": "a picture's name is absolute or leads out of its folder",
    "unreadable_folder": "a folder that cannot be listed; its pictures are lost",
    "linked_folder": "a link to a folder, which is not entered",
    "broken_archive": "an archive that ends too early, is no archive or cannot be opened",
    "bad_row": "an annotation row or line that cannot be read",
    "not_utf8": "text or a file name that is not UTF-8",
    "duplicate_key": "a second picture with a key that was already used; the first is kept",
    "conflicting_split": "a picture listed in two splits; it goes to test before dev before train",
    "skipped_split": "a picture of a split that an option excludes",
    "skipped_subset": "a picture that is not of the subset that an option asks for",
    "no_caption": "a picture without any caption left",
    "no_answer": "a question without text, without an answer, or without the annotation that others have",
    "caption_empty": "a caption without any visible character",
    "caption_too_short": "a caption with fewer letters and digits than `min_caption_chars`",
    "caption_repeated": "a caption that repeats another of the same picture (only with `unique_captions`)",
    "duplicate": "the same picture lies in a split that is evaluated",
    "near_duplicate": "a nearly equal picture lies in a split that is evaluated",
}


def normalise_split(name: str, where: str) -> str:
    """Return train, dev, test or extra for a split name of any common spelling.

    Raises DataError naming `where` (file or folder) for any other word.
    """
    try:
        return _SPLIT_NAMES[name.strip().lower()]
    except KeyError:
        known = ", ".join(sorted(n for n in _SPLIT_NAMES if n))
        raise DataError(f"{where}: unknown split {name!r}; known are {known}") from None


def split_order(split: str) -> int:
    """Return the place of a split when those that are evaluated come first; an unknown one comes last."""
    order = (*EVALUATED, *(name for name in SPLITS if name not in EVALUATED))
    return order.index(split) if split in order else len(order)


def clean_captions(
    key: str, captions: Sequence[str], *, min_chars: int = 2, unique: bool = False
) -> tuple[tuple[str, ...], list[Dropped]]:
    """Return the usable captions of a picture and what was dropped of them.

    White space (line ends too) becomes single blanks and control characters go; nothing else is changed. A
    caption needs `min_chars` letters or digits. With `unique`, of captions equal but for case one stays.
    """
    kept: list[str] = []
    dropped: list[Dropped] = []
    seen: set[str] = set()
    for number, raw in enumerate(captions):
        text = tidy(raw)
        letters = sum(char.isalnum() for char in text)
        if not text:
            dropped.append(Dropped(key, "caption_empty", f"caption {number} is empty"))
        elif letters < min_chars:
            detail = f"caption {number} is {text!r}: {letters} letters or digits, fewer than {min_chars}"
            dropped.append(Dropped(key, "caption_too_short", detail))
        elif unique and text.casefold() in seen:
            dropped.append(Dropped(key, "caption_repeated", f"caption {number} repeats {text!r}"))
        else:
            seen.add(text.casefold())
            kept.append(text)
    return tuple(kept), dropped


def tidy(text: str) -> str:
    """Return `text` on one line, single blanks, without control characters or surrogates."""
    line = " ".join(text.split())
    if line.isascii() and line.isprintable():
        return line
    return re.sub(" +", " ", "".join(c for c in line if unicodedata.category(c) not in ("Cc", "Cs"))).strip()


def count_reasons(dropped: Iterable[Dropped]) -> dict[str, int]:
    """Return {reason: how many}, most frequent first."""
    counts: dict[str, int] = {}
    for item in dropped:
        counts[item.reason] = counts.get(item.reason, 0) + 1
    return dict(sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])))
