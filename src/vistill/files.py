"""Files that are whole or not there: written under a temporary name, made durable, renamed."""

import glob
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any


@contextmanager
def atomic_file(path: Path) -> Iterator[IO[bytes]]:
    """Open a temporary neighbour of `path` for writing, to be synced and renamed; an error leaves nothing."""
    with renamed_file(path.with_name(path.name + ".tmp"), path) as file:
        yield file
    sync_folder(path.parent)


@contextmanager
def renamed_file(temporary: Path, path: Path) -> Iterator[IO[bytes]]:
    """As `atomic_file`, under a temporary name of one's own; the folder is not synced.

    An OSError names `path`, also where the system names no file, as on a full disk.
    """
    try:
        temporary.unlink(missing_ok=True)  # of a killed process
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        if isinstance(error, OSError) and error.filename in (None, str(temporary)):
            error.filename, error.filename2 = str(path), None
        with suppress(OSError):  # what went wrong is on its way already
            temporary.unlink(missing_ok=True)
        raise


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """A temporary folder that takes the place of `folder` at the end; an error leaves nothing behind.

    What a killed process left goes first, and an older folder comes back that it had taken away already.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    old = folder.with_name(f".{folder.name}.replaced")
    if old.exists() and not folder.exists():
        old.rename(folder)
    for left in folder.parent.glob(f".{glob.escape(folder.name)}.writing-*"):
        with _only_writer(left) as dead:
            if dead:
                shutil.rmtree(left)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.writing-", dir=folder.parent))
    writing = ExitStack()
    writing.enter_context(_only_writer(temporary))
    try:
        yield temporary
        for path in temporary.rglob("*"):
            if path.is_file():
                path.chmod(0o644)  # safetensors leaves its files to their owner alone
                sync_file(path)
        temporary.chmod(0o755)
        shutil.rmtree(old, ignore_errors=True)
        if folder.exists():
            folder.rename(old)
        temporary.rename(folder)
        sync_folder(folder.parent)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        writing.close()
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def _only_writer(folder: Path) -> Iterator[bool]:
    """Lock a folder, and tell whether no other process holds it; the system drops the lock of a killed one.

    Where there is no flock (Windows), another one is taken to hold it.
    """
    if sys.platform == "win32":
        yield False
        return
    import fcntl

    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield True
    except BlockingIOError:
        yield False
    finally:
        os.close(descriptor)


def best_of(folder: Path) -> Path:
    """`folder/best` where `folder` is that of a run (which has a config.json of its own), else `folder`."""
    best = folder / "best"
    return best if (best / "config.json").is_file() else folder


def best_of_each(places: str) -> str:
    """`best_of` for a place, or for several joined with `+`; names of the hub stay as they are."""
    if "+" in places and not Path(places).exists():
        return "+".join(best_of_each(part.strip()) for part in places.split("+"))
    return str(best_of(Path(places))) if Path(places).is_dir() else places


def sync_file(path: Path) -> None:
    """Make what a file holds durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` durable, where the system lets a folder be synced."""
    if os.name == "posix":
        sync_file(folder)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8; lone surrogates, as of file names, become escapes."""
    with atomic_file(path) as file:
        file.write(text.encode("utf-8", "backslashreplace"))


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON; lone surrogates become JSON escapes."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")
