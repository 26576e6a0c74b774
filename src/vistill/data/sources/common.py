"""What the readers share: text files with their usual dirt, and names that must stay in their folder."""

import json
from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from vistill.data.records import Dropped, normalise_split
from vistill.errors import ConfigError, DataError

PICTURE_SUFFIXES = frozenset(
    f".{name}"
    for name in "jpg jpeg jpe jfif png webp gif bmp tif tiff avif heic heif jp2 jxl ppm pgm".split()
)


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


def require_fractions(dev_fraction: float, test_fraction: float) -> None:
    """Raise ConfigError unless both are 0 or more and at most 1 together."""
    if min(dev_fraction, test_fraction) < 0 or dev_fraction + test_fraction > 1:
        raise ConfigError(
            f"dev_fraction {dev_fraction} and test_fraction {test_fraction} must add up to 0..1"
        )


def folder_split(name: str) -> str:
    """Return the split that a folder or file is named after, or ""."""
    try:
        return normalise_split(name, "") if name else ""
    except DataError:
        return ""


def read_lines(path: Path) -> Iterator[tuple[int, str | Dropped]]:
    """Yield (line number from 1, text) of a UTF-8 file; a line that is not UTF-8 comes as `Dropped`.

    A byte-order mark and CRLF line ends are removed, empty lines are skipped. Raises DataError for UTF-16.
    """
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            if number == 1:
                if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
                    raise DataError(f"{path}: is UTF-16; convert it to UTF-8")
                raw = raw.removeprefix(b"\xef\xbb\xbf")
            raw = raw.rstrip(b"\r\n")
            if not raw.strip():
                continue
            try:
                yield number, raw.decode("utf-8")
            except UnicodeDecodeError as error:
                detail = f"line {number} is not UTF-8: {error.reason} at byte {error.start}"
                yield number, Dropped(f"{path.name}:{number}", "not_utf8", detail)


def read_json(path: Path) -> Any:
    """Return the value of a UTF-8 JSON file (with or without byte-order mark); raises DataError naming it."""
    try:
        return json.loads(path.read_bytes().decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8 ({error.reason} at byte {error.start}); convert it") from error
    except json.JSONDecodeError as error:
        raise DataError(f"{path}: is not JSON: {error}") from error


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
