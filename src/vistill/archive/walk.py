"""From what a person names (files, folders, globs, lists) to a stream of picture paths, always in one order.

Paths are `str` as the system gives them: a name that is not UTF-8 carries surrogate escapes (os.fsdecode),
and opens like any other.
"""

import glob
import os
from collections.abc import Callable, Iterable, Iterator
from typing import BinaryIO

# The one table of picture names, which the readers of data sets use too. Only for pictures found inside
# folders: a file named outright is read whatever it is called. HEIC is listed although it needs pillow-heif,
# and JPEG XL although nothing here decodes it, so that such photos are reported and not passed over.
# fmt: off
SUFFIXES = frozenset((
    ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".gif", ".webp", ".avif", ".heic", ".heif",
    ".tif", ".tiff", ".bmp", ".dib", ".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k", ".jpc", ".jpx",
    ".jxl",
))
# fmt: on

OnError = Callable[[str, OSError], None]


def expand(name: str, recursive: bool, on_error: OnError) -> Iterator[str]:
    """The pictures that one argument stands for.

    A folder stands for the pictures in it, and below it if `recursive`. A name that does not exist but holds
    *, ? or [ is a glob: ** crosses folders, folders that it matches are walked, and unless it names a suffix
    itself ("*.dat") only pictures by suffix are taken. Any other name stands for itself, existing or not, so
    that the reader can say what is wrong with it.
    """
    if os.path.isdir(name):
        yield from walk(name, recursive, on_error)
    elif not os.path.lexists(name) and glob.has_magic(name):
        names_a_suffix = os.path.splitext(name)[1] != ""
        for match in _folders_once(sorted(glob.iglob(name, recursive=True), key=os.fsencode)):
            if os.path.isdir(match):
                if "**" not in name:  # "**" lists what lies in the folders by itself
                    yield from walk(match, recursive, on_error)
            elif names_a_suffix or _named_as_picture(match):
                yield match
    else:
        yield name


def _folders_once(matches: Iterable[str]) -> Iterator[str]:
    """The matches, each folder under one name: ** follows a loop of links forty times."""
    names: dict[tuple[int, int], str] = {}  # of each folder the first
    first: dict[str, bool] = {}
    for match in matches:
        folder = os.path.dirname(match) or os.curdir
        if folder not in first:
            try:
                first[folder] = names.setdefault(_identity(folder), folder) == folder
            except OSError:  # it went away; the reader says so
                first[folder] = True
        if first[folder]:
            yield match


def walk(folder: str, recursive: bool, on_error: OnError) -> Iterator[str]:
    """Pictures in a folder by suffix, in the byte order of their names, each folder before the next name.

    Names that begin with a dot are left out. Links to folders are followed, but no folder is entered twice,
    so a loop of links ends. A folder that cannot be read goes to `on_error`.
    """
    entered: set[tuple[int, int]] = set()
    open_folders = [
        iter(_entries(folder, entered, on_error))
    ]  # a stack: the tree may be deeper than Python's
    while open_folders:
        entry = next(open_folders[-1], None)
        if entry is None:
            open_folders.pop()
        elif entry.name.startswith("."):
            continue
        elif _is_folder(entry):
            if recursive:
                open_folders.append(iter(_entries(entry.path, entered, on_error)))
        elif _named_as_picture(entry.name):
            yield entry.path


def _entries(folder: str, entered: set[tuple[int, int]], on_error: OnError) -> list["os.DirEntry[str]"]:
    """What lies in a folder, sorted; nothing if it was entered before or cannot be read."""
    try:
        identity = _identity(folder)
        if identity in entered:
            return []
        entered.add(identity)
        with os.scandir(folder) as listing:
            return sorted(listing, key=lambda entry: os.fsencode(entry.name))
    except OSError as error:
        on_error(folder, error)
        return []


def _identity(folder: str) -> tuple[int, int]:
    """What a folder is under every name. Raises OSError."""
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def _named_as_picture(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in SUFFIXES


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself: no folder; the reader names the fault if it ends in .jpg
        return False


def read_list(stream: BinaryIO) -> Iterator[str]:
    """Paths from a list, one a line or, if the first block holds a NUL, separated by NUL (`find -print0`).

    Empty lines are skipped; nothing is trimmed but a carriage return before the line's end. The list is read
    as it comes and never held whole.
    """
    pending = b""
    separator: bytes | None = None
    while block := _next_block(stream):
        if separator is None:
            separator = b"\0" if b"\0" in block else b"\n"
        *whole, pending = (pending + block).split(separator)
        yield from filter(None, map(_listed, whole))
    if last := _listed(pending):
        yield last


def _next_block(stream: BinaryIO) -> bytes:
    """What has arrived, without waiting for a full block."""
    read1 = getattr(stream, "read1", stream.read)
    block: bytes = read1(65536)
    return block


def _listed(line: bytes) -> str:
    return os.fsdecode(line.removesuffix(b"\r"))
