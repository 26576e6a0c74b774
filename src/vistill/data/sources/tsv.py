"""GIT-style TSV: pictures in one file, their captions or questions in another, joined by key.

    images.tsv     key<TAB>base64 of the picture's file
    texts.tsv      key<TAB>[{"caption": "a dog"}]
                   key<TAB>[{"question_id": 7, "question": "how many?", "answers": [{"answer": "2"}]}]

`answers` may be texts too, or one `answer`, or be missing. A row of captions has the picture's key, a row of
questions the question id. The pictures are read out of the file where they lie.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from vistill.data.records import Annotation, Dropped, Entry, Item, normalise_split, split_order
from vistill.data.sources.common import is_id, lost, parse_json, read_lines, require_file
from vistill.data.tsv import TsvFile
from vistill.errors import ConfigError


def read(root: Path, parts: Sequence[str] = ()) -> Iterator[Item]:
    """Yield the pictures or questions of each part, evaluated splits first.

    parts: SPLIT:IMAGES:TEXTS each, paths relative to `root`. Raises ConfigError for a malformed part and
    DataError for missing files.
    """
    for split, images, texts in _parts(root, parts):
        require_file(images, "pictures as key<TAB>base64")
        yield Annotation(require_file(texts, "captions or questions as key<TAB>JSON list"))
        described: dict[str, list[dict[str, Any]]] = {}
        for number, line in read_lines(texts):
            if isinstance(line, Dropped):
                yield line
                continue
            key, found = _texts(line, f"{texts.name}:{number}")
            if isinstance(found, Dropped):
                yield found
            else:
                described.setdefault(key, []).extend(found)
        yield from _read_images(TsvFile(images), split, described)
        for key, rows in described.items():
            yield lost(Dropped(key, "missing_picture", f"not in {images.name}"), split, len(rows), "texts")


def _parts(root: Path, parts: Sequence[str]) -> list[tuple[str, Path, Path]]:
    found = []
    for part in parts:
        words = part.split(":")
        if len(words) != 3 or not all(words):
            raise ConfigError(f"part {part!r} is not SPLIT:IMAGES:TEXTS")
        found.append((normalise_split(words[0], f"part {part!r}"), root / words[1], root / words[2]))
    if not found:
        raise ConfigError("source tsv: name its files with part, SPLIT:IMAGES:TEXTS")
    return sorted(found, key=lambda part: split_order(part[0]))


def _texts(line: str, where: str) -> tuple[str, list[dict[str, Any]] | Dropped]:
    """(key, its captions or questions) of a row, or why it cannot be used."""
    key, tab, text = line.partition("\t")
    try:
        rows = parse_json(text) if tab else None
    except ValueError as error:
        return key, Dropped(where, "bad_row", f"{key!r}: is not JSON: {error}")
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        return key, Dropped(where, "bad_row", f"is {line[:80]!r}, not key<TAB>[objects]")
    return key, rows


def _read_images(file: TsvFile, split: str, described: dict[str, list[dict[str, Any]]]) -> Iterator[Item]:
    """Yield the rows of the picture file with their texts, which leave `described`."""
    seen: set[str] = set()
    for row in range(len(file)):
        where = f"{file.path.name}:{row + 1}"
        field = file.second(row)
        if field is None:
            yield Dropped(where, "bad_row", "is not key<TAB>base64")
            continue
        key, span = field
        if key in seen:
            yield Dropped(key, "duplicate_key", f"again in {where}")
            continue
        seen.add(key)
        texts = described.pop(key, [])
        captions = tuple(text["caption"] for text in texts if isinstance(text.get("caption"), str))
        if captions or not texts:
            yield Entry(key, file.path, captions, split, "tsv", span=span, base64_row=row)
        for text in texts:
            if isinstance(text.get("question"), str):
                yield _question(text, Entry(key, file.path, (), split, "tsv", span=span, base64_row=row))
            elif not isinstance(text.get("caption"), str):
                yield Dropped(key, "bad_row", f"{str(text)[:80]} is neither caption nor question")


def _question(text: dict[str, Any], picture: Entry) -> Entry | Dropped:
    number = text.get("question_id")
    if not is_id(number):
        return Dropped(
            picture.key, "bad_row", f"question_id {number!r} of {text['question'][:60]!r} is no id"
        )
    given: Any = text.get("answers", text.get("answer", []))
    given = given if isinstance(given, list) else [given]
    answers: list[Any] = [one.get("answer") if isinstance(one, dict) else one for one in given]
    if not all(isinstance(answer, str) for answer in answers):
        return Dropped(str(number), "bad_row", f"answers {str(given)[:80]} are not texts")
    return replace(picture, key=str(number), question=text["question"], answers=tuple(answers))
