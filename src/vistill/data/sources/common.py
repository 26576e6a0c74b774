"""What the readers share: files with their usual dirt, names that must stay in their folder, drawn splits."""

import csv
import hashlib
import itertools
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from vistill.archive.walk import SUFFIXES
from vistill.data.records import Dropped, normalise_split
from vistill.errors import ConfigError, DataError

PICTURE_SUFFIXES = SUFFIXES  # one table: `vistill caption` on a folder and a build see the same pictures


def require_file(path: Path, what: str) -> Path:
    """Return `path`; raises DataError saying that `what` was expected there."""
    if not path.is_file():
        raise DataError(f"{path}: no such file; expected {what}")
    return path


def require_folder(path: Path, what: str) -> Path:
    """Return `path`; raises DataError saying that `what` was expected there."""
    if not path.is_dir():
        raise DataError(f"{path}: no such folder; expected {what}")
    return path


def only_file(found: Iterable[Path], root: Path, what: str) -> Path:
    """Return the one file that was found; raises DataError saying that one `what` was expected in `root`."""
    files = sorted(found)
    if len(files) != 1:
        names = ", ".join(path.name for path in files) or "none"
        raise DataError(f"{root}: expected one {what}, found {names}; name the file with annotations")
    return files[0]


def require_fractions(dev_fraction: float, test_fraction: float) -> None:
    """Raise ConfigError unless both are 0 or more and at most 1 together."""
    if min(dev_fraction, test_fraction) < 0 or dev_fraction + test_fraction > 1:
        raise ConfigError(
            f"dev_fraction {dev_fraction} and test_fraction {test_fraction} must add up to 0..1"
        )


def drawn_split(group: str, dev_fraction: float, test_fraction: float, seed: int) -> str:
    """Return the split of a group of pictures (or of one), drawn by sha256(seed, group) alone.

    The fractions are expected ones, and no group depends on the others: for sources too large to hold.
    """
    place = int.from_bytes(lot(group, seed)[:8], "big") / 2**64
    return "dev" if place < dev_fraction else "test" if place < dev_fraction + test_fraction else "train"


def drawn_splits(
    groups: Iterable[str], dev_fraction: float, test_fraction: float, seed: int
) -> dict[str, str]:
    """Return {group: split}: of the groups sorted by sha256(seed, group), the first part goes to dev, the
    next to test, the rest to train. The fractions are met to one group; the order of `groups` has no effect.
    """
    order = sorted(set(groups), key=lambda group: lot(group, seed))
    dev = round(dev_fraction * len(order))
    test = dev + round(test_fraction * len(order))
    return {
        group: "dev" if number < dev else "test" if number < test else "train"
        for number, group in enumerate(order)
    }


def lot(group: str, seed: int) -> bytes:
    """Return the 32 bytes by which a name is drawn: the same in every run, unlike for every seed."""
    return hashlib.sha256(f"{seed}:{group}".encode("utf-8", "surrogatepass")).digest()


def folder_split(name: str) -> str:
    """Return the split that a folder or file is named after, or ""."""
    try:
        return normalise_split(name, "") if name else ""
    except DataError:
        return ""


def walk_folders(root: Path, hidden: bool = True) -> Iterator[tuple[Path, list[str]] | Dropped]:
    """Yield `root` and every folder below it, in the order of names, each with the sorted names of its files.

    A folder that cannot be listed and a link to a folder come as `Dropped`. Links are not followed: they may
    form loops, or hold pictures of this tree again under other keys. hidden: enter hidden folders too.
    """
    errors: list[OSError] = []
    for parent, folders, files in os.walk(root, onerror=errors.append):
        yield from _unlisted(root, errors)
        here = Path(parent)
        if not hidden:
            folders[:] = [name for name in folders if not name.startswith((".", "__MACOSX"))]
        folders.sort()
        for path in (here / name for name in folders):
            if path.is_symlink():
                key = path.relative_to(root).as_posix()
                yield Dropped(key, "linked_folder", "a link to a folder, which is not entered")
        yield here, sorted(files)
    yield from _unlisted(root, errors)


def files_below(root: Path, suffix: str) -> tuple[list[Path], list[Dropped]]:
    """Return the files below `root` with this suffix, sorted, and what `walk_folders` reports."""
    found: list[Path] = []
    dropped: list[Dropped] = []
    for item in walk_folders(root):
        if isinstance(item, Dropped):
            dropped.append(item)
        else:
            folder, names = item
            found += [folder / name for name in names if name.endswith(suffix)]
    return sorted(found), dropped


def no_archive(path: Path) -> Dropped | None:
    """Return why a path cannot be an archive: it is a pipe, which may take for ever to open, or not there."""
    if os.path.isfile(path):  # not Path.is_file, which raises in a folder that may only be listed
        return None
    return Dropped(path.name, "broken_archive", "is no file, or lies in a folder that may not be entered")


def told_dropped(dropped: Iterable[Dropped]) -> str:
    """Return the first few folders that were not entered, for an error that nothing was found: "; ..."."""
    return "".join(f"; {item.key}: {item.detail}" for item in itertools.islice(dropped, 3))


def _unlisted(root: Path, errors: list[OSError]) -> Iterator[Dropped]:
    """Yield the folders that could not be listed, and empty `errors`."""
    for error in errors:
        key = Path(error.filename).relative_to(root).as_posix()
        yield Dropped(key, "unreadable_folder", f"cannot be listed: {error.strerror}; its pictures are lost")
    errors.clear()


def read_lines(path: Path) -> Iterator[tuple[int, str | Dropped]]:
    """Yield (line number from 1, text) of a UTF-8 file; a line that is not UTF-8 comes as `Dropped`.

    A byte-order mark and CRLF line ends are removed, empty lines are skipped. Raises DataError for UTF-16.
    """
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            if number == 1:
                _refuse_utf16(raw, path)
                raw = raw.removeprefix(b"\xef\xbb\xbf")
            raw = raw.rstrip(b"\r\n")
            if not raw.strip():
                continue
            try:
                yield number, raw.decode("utf-8")
            except UnicodeDecodeError as error:
                detail = f"line {number} is not UTF-8: {error.reason} at byte {error.start}"
                yield number, Dropped(f"{path.name}:{number}", "not_utf8", detail)


def _refuse_utf16(start: bytes, path: Path) -> None:
    if start.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DataError(f"{path}: is UTF-16; convert it to UTF-8")


def parse_json(text: str) -> Any:
    """Return the value of a JSON text; raises ValueError, also for one that is nested too deeply."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def read_json(path: Path) -> Any:
    """Return the value of a UTF-8 JSON file (with or without byte-order mark); raises DataError naming it."""
    try:
        return parse_json(path.read_bytes().decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8 ({error.reason} at byte {error.start}); convert it") from error
    except ValueError as error:
        raise DataError(f"{path}: is not JSON: {error}") from error


def csv_rows(
    path: Path, delimiter: str = ",", columns: Sequence[str] = ()
) -> Iterator[dict[str, str] | Dropped]:
    """Yield the rows of a UTF-8 CSV file: {column in lower case: field}, and `FILE:LINE` under `#`.

    A row that is not UTF-8 or has another number of fields than the header comes as `Dropped`. Raises
    DataError where the file is no CSV, is UTF-16 or has a header without one of `columns`, in any case.
    """
    with path.open("rb") as raw:
        _refuse_utf16(raw.read(2), path)
    # Bytes that are not UTF-8 become surrogates, so that one bad field costs its row and not the file.
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        quotes, began = 0, 0

        def counted() -> Iterator[str]:
            nonlocal quotes
            for line in file:
                quotes += line.count('"')
                yield line

        reader = csv.reader(counted(), delimiter=delimiter)
        try:
            header = [name.strip().lower() for name in next(reader, [])]
            began, quotes = reader.line_num, 0
            if header and not {name.lower() for name in columns} <= set(header):
                raise DataError(f"{path}: has columns {', '.join(header)}; expected {', '.join(columns)}")
            for fields in reader:
                where, lines = f"{path.name}:{reader.line_num}", reader.line_num - began
                if quotes % 2 and lines > 1:  # it took all that follows
                    raise DataError(f"{path}:{began + 1}: a quote is opened here and never closed")
                began, quotes = reader.line_num, 0
                if not fields:  # an empty line
                    continue
                if any("\udc80" <= char <= "\udcff" for text in fields for char in text):
                    yield Dropped(where, "not_utf8", "the row is not UTF-8")
                elif len(fields) != len(header):
                    detail = (
                        f"{len(fields)} fields under {len(header)} columns: {delimiter.join(fields)[:80]!r}"
                    )
                    yield Dropped(where, "bad_row", detail)
                else:
                    yield {**dict(zip(header, fields, strict=True)), "#": where}
        except csv.Error as error:
            raise DataError(f"{path}:{reader.line_num}: is not CSV: {error}") from error


def json_rows(path: Path) -> Iterator[dict[str, Any] | Dropped]:
    """Yield the objects of a UTF-8 file of JSON lines, `FILE:LINE` under `#`; others come as `Dropped`."""
    for number, line in read_lines(path):
        where = f"{path.name}:{number}"
        if isinstance(line, Dropped):
            yield line
            continue
        try:
            row = parse_json(line)
        except ValueError as error:
            yield Dropped(where, "bad_row", f"is not JSON: {error}")
            continue
        if isinstance(row, dict):
            yield {**row, "#": where}
        else:
            yield Dropped(where, "bad_row", f"is {type(row).__name__}, not an object")


def is_id(value: Any) -> bool:
    """Whether a value of a JSON file is a number without fraction or a text."""
    return isinstance(value, int | str) and not isinstance(value, bool)


def picture_path(folder: Path, name: str, key: str) -> Path | Dropped:
    """Return the path of picture `name` in `folder`, or why it cannot be used.

    A name that is absolute or climbs out (`..`) is never touched on disk.
    """
    slashed = name.replace("\\", "/")
    pure = PurePosixPath(slashed)
    if not name.strip() or "\x00" in name:
        return Dropped(key, "bad_row", f"{name!r} is not a file name")
    if pure.is_absolute() or PureWindowsPath(name).drive or ".." in pure.parts:
        return Dropped(key, "unsafe_path", f"{name!r} leads out of its folder")
    path = folder / pure
    try:
        found = path.is_file()
    except OSError as error:  # a name longer than the file system allows
        return Dropped(key, "bad_row", f"{name[:80]!r} cannot be looked up: {error.strerror}")
    if not found:
        return Dropped(key, "missing_picture", f"{name!r} is not in {folder.name}/")
    return path


def first_picture(folder: Path, names: Iterable[str], key: str) -> Path | Dropped:
    """Return the path of the first of `names` that is there, or what is wrong with the first of them."""
    problem: Dropped | None = None
    for name in names:
        found = picture_path(folder, name, key)
        if isinstance(found, Path):
            return found
        problem = problem or found
    assert problem is not None  # `names` is never empty
    return problem


def lost(found: Dropped, split: str, count: int, what: str = "captions") -> Dropped:
    """Return why a picture cannot be used, with its split and how many texts go with it."""
    return replace(found, detail=f"{found.detail}; split {split}, {count} {what} lost")
