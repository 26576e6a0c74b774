"""The first two steps of a build: list what a source has (the plan), then open every picture once (the scan).

Both are files of JSON lines in the working folder. The plan holds entries and what the source dropped, in the
source's order; the scan holds, chunk by chunk of the plan, size and hashes of each picture or why it was
dropped. No picture is kept in memory beyond its turn.
"""

import base64
import hashlib
import heapq
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISREG
from typing import Any

from vistill.data.cleaning import Cleaning
from vistill.data.duplicates import difference_hash, thumbnail
from vistill.data.pictures import read_picture
from vistill.data.records import Annotation, Dropped, Entry, Item, clean_captions
from vistill.data.sources.common import lot
from vistill.data.store import read_json_lines, write_json_lines
from vistill.errors import ImageError
from vistill.runtime.image import DEFAULT_LIMITS, read_image

CHUNK = 256  # pictures that one scan file covers: what a killed build has to open again


@dataclass(frozen=True)
class TextRules:
    """Which captions and pictures are kept; see `vistill.data.build.BuildConfig`."""

    min_caption_chars: int = 2
    unique_captions: bool = False
    allow_uncaptioned: bool = False


@dataclass(frozen=True)
class Picture:
    """What the scan found of one entry: hashes in hexadecimal, `dhash` as a number, `thumbnail` in base64."""

    key: str
    width: int
    height: int
    bytes: int
    sha256: str
    pixels: str
    dhash: int
    thumbnail: str


def write_plan(
    items: Iterable[Item], path: Path, root: Path, rules: TextRules, cleaning: Cleaning
) -> dict[str, dict[str, Any]]:
    """Write the plan in one run over the source, no picture opened; return {annotation: sha256 and bytes}.

    Captions go through `cleaning`, which counts what it changes, before the text rules.
    """
    annotations: dict[str, dict[str, Any]] = {}

    def rows() -> Iterator[dict[str, Any]]:
        keys: set[str] = set()
        for item in items:
            if isinstance(item, Annotation):
                annotations[_name(item.path, root)] = file_hash(item.path)
            elif isinstance(item, Dropped):
                yield _dropped_row(item)
            elif item.key in keys:
                yield _dropped_row(Dropped(item.key, "duplicate_key", f"again for {_name(item.path, root)}"))
            elif not _encodable(item.key):
                yield _dropped_row(Dropped(repr(item.key), "not_utf8", "the file's name is not UTF-8"))
            else:
                keys.add(item.key)
                yield from _entry_rows(item, root, rules, cleaning)

    write_json_lines(path, rows())
    return annotations


def _entry_rows(entry: Entry, root: Path, rules: TextRules, cleaning: Cleaning) -> Iterator[dict[str, Any]]:
    texts = cleaning.clean(entry.key, entry.captions) if cleaning.rules else entry.captions
    captions, dropped = clean_captions(
        entry.key, texts, min_chars=rules.min_caption_chars, unique=rules.unique_captions
    )
    for item in dropped:
        yield _dropped_row(item)
    if not (captions or entry.question or rules.allow_uncaptioned):
        detail = f"none of its {len(entry.captions)} captions is left" if entry.captions else "it has none"
        yield _dropped_row(Dropped(entry.key, "no_caption", detail))
        return
    try:
        stat = entry.path.stat()
    except OSError as error:  # a link that leads nowhere, or a folder whose files may be listed only
        yield _dropped_row(Dropped(entry.key, "image_unreadable", f"cannot be looked up: {error.strerror}"))
        return
    if not S_ISREG(stat.st_mode):  # to open a pipe would wait for its writer
        yield _dropped_row(Dropped(entry.key, "image_not_a_file", "is a pipe, socket or device"))
        return
    place: dict[str, Any] = {"bytes": stat.st_size}
    if entry.span is not None:
        place = {"bytes": entry.span[1], "offset": entry.span[0]}
        if entry.inflated is not None:
            place["inflated"] = entry.inflated
        if entry.base64_row is not None:
            place["base64_row"] = entry.base64_row
    elif entry.cell is not None:
        place = {"cell": entry.cell}
    yield {
        "key": entry.key,
        "path": _name(entry.path, root),
        **place,
        "modified": stat.st_mtime_ns,
        "captions": captions,
        "question": entry.question,
        "answers": entry.answers,
        "split": entry.split,
        "source": entry.source,
        "licence": entry.licence,
    }


def sample_plan(path: Path, count: int, seed: int) -> dict[str, int]:
    """Keep `count` pictures of the plan with all their rows, and all that was dropped before.

    They are drawn by a hash of seed and first key: a larger sample of the same seed holds the smaller one,
    and splits keep about their shares. Returns {"pictures": how many there were, "kept": how many there are}.
    """
    keys: dict[tuple[Any, ...], str] = {}  # of each picture its first
    for row in read_json_lines(path):
        if "dropped" not in row:
            keys.setdefault(picture_of(row), row["key"])
    # The prefix makes this draw independent of that of the splits, which may have the same seed.
    chosen = set(heapq.nsmallest(count, keys, key=lambda picture: lot(f"sample:{keys[picture]}", seed)))
    kept = (row for row in read_json_lines(path) if "dropped" in row or picture_of(row) in chosen)
    write_json_lines(path, kept)
    return {"pictures": len(keys), "kept": len(chosen)}


def _dropped_row(item: Dropped) -> dict[str, Any]:
    return {"dropped": item.key, "reason": item.reason, "detail": item.detail}


def _name(path: Path, root: Path) -> str:
    """Return `path` relative to `root` where it lies below it."""
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)


def _encodable(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def file_hash(path: Path) -> dict[str, Any]:
    """Return {sha256, bytes} of a file."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"sha256": digest, "bytes": path.stat().st_size}


def scan(folder: Path, root: Path, workers: int, advance: Callable[[int], None]) -> None:
    """Open every picture of the plan that no scan file covers yet; `advance(n)` tells of n entries done."""
    (folder / "scan").mkdir(exist_ok=True)
    with ThreadPoolExecutor(workers) as pool:
        for number, chunk in enumerate(chunks(plan_entries(folder))):
            path = folder / "scan" / f"{number:06d}.jsonl"
            if not path.exists():
                rows = {picture_of(row): row for row in reversed(chunk)}  # of each picture its first row
                found = pool.map(lambda row: open_picture(row, root), rows.values())
                of = dict(zip(rows, found, strict=True))
                write_json_lines(path, (_for_row(of[picture_of(row)], row["key"]) for row in chunk))
            advance(len(chunk))


def picture_of(row: dict[str, Any]) -> tuple[Any, ...]:
    """Return what tells the picture of a row of the plan from others: several questions may share one."""
    return row["path"], row.get("offset"), *row.get("cell", ())


def _for_row(found: dict[str, Any], key: str) -> dict[str, Any]:
    """Return what was found of a picture as the row of the scan of one of its keys."""
    return {**found, "dropped" if "dropped" in found else "key": key}


def open_picture(row: dict[str, Any], root: Path) -> dict[str, Any]:
    """Read and fully decode one picture of the plan; return its row of the scan."""
    try:
        _check_size(row)
        data = read_picture(row, root)
        image = read_image(data)
    except ImageError as error:
        return _dropped_row(Dropped(row["key"], f"image_{error.reason}", f"{row['path']}: {error.detail}"))
    pixels = hashlib.sha256(f"{image.mode} {image.width}x{image.height} ".encode())
    pixels.update(image.tobytes())
    found = Picture(
        key=row["key"],
        width=image.width,
        height=image.height,
        bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        pixels=pixels.hexdigest(),
        dhash=difference_hash(image),
        thumbnail=base64.b64encode(thumbnail(image)).decode(),
    )
    return dict(vars(found))


def _check_size(row: dict[str, Any]) -> None:
    """Raise ImageError for a picture that would be refused once read; base64 is longer than its bytes."""
    size = row.get("inflated") or row.get("bytes", 0)
    if size > DEFAULT_LIMITS.max_bytes and "base64_row" not in row:
        raise ImageError("too_many_bytes", f"has {size:,} bytes, the limit is {DEFAULT_LIMITS.max_bytes:,}")


def chunks(rows: Iterable[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Yield lists of CHUNK rows, the last one shorter."""
    chunk: list[dict[str, Any]] = []
    for row in rows:
        chunk.append(row)
        if len(chunk) == CHUNK:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def plan_entries(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the entries of the plan in order."""
    return (row for row in read_json_lines(folder / "plan.jsonl") if "dropped" not in row)


def dropped_rows(rows: Iterable[dict[str, Any]]) -> Iterator[Dropped]:
    """Yield what rows of a plan or a scan say was dropped."""
    return (Dropped(row["dropped"], row["reason"], row["detail"]) for row in rows if "dropped" in row)


def scan_rows(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of the scan: one for each entry of the plan, in the same order."""
    for path in sorted((folder / "scan").glob("*.jsonl")):
        yield from read_json_lines(path)
