"""JSON files with results and references: read, and looked into with errors that name the place."""

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vistill.errors import DataError

GZIP = b"\x1f\x8b"


def load_json(path: Path) -> Any:
    """The value of a JSON file, gzip or plain. Raises DataError naming file, line and column."""
    try:
        data = path.read_bytes()
        return json.loads(gzip.decompress(data) if data.startswith(GZIP) else data)
    except FileNotFoundError as error:
        raise DataError(f"{path}: there is no such file") from error
    except (OSError, EOFError, zlib.error) as error:  # the last two, and one without strerror: of gzip
        raise DataError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}: line {error.lineno}, column {error.colno}: broken JSON: {error.msg}"
        ) from error
    except (UnicodeDecodeError, RecursionError) as error:
        raise DataError(f"{path}: broken JSON: {error}") from error


def load_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """(place for an error, value) of each line of a JSONL file, or of a TSV file whose last field is JSON.

    Empty lines are left out. Raises DataError naming file and row.
    """
    if not path.is_file():
        raise DataError(f"{path}: there is no such file")
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            place = f"{path}: row {number}"
            try:
                yield place, json.loads(line.rstrip(b"\r\n").rpartition(b"\t")[2])
            except (ValueError, RecursionError) as error:
                raise DataError(f"{place}: the last field is no JSON object: {error}") from error


def id_of(entry: Any, key: str, place: str) -> int | str:
    """An id of an object: a whole number or a text. Raises DataError that begins with `place`."""
    value = _value(entry, key, place)
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise DataError(f"{place}: key {key!r} has to be a number without fraction or a text, not {value!r}")
    return value


def text_of(entry: Any, key: str, place: str) -> str:
    """A text of an object. Raises DataError that begins with `place`."""
    value = _value(entry, key, place)
    if not isinstance(value, str):
        raise DataError(f"{place}: key {key!r} has to be a text, not {value!r}")
    return value


def _value(entry: Any, key: str, place: str) -> Any:
    if not isinstance(entry, dict):
        raise DataError(f"{place}: has to be an object with the key {key!r}, not {str(entry)[:60]!r}")
    if key not in entry:
        raise DataError(f"{place}: key {key!r} is missing")
    return entry[key]
