"""Files that are whole or not there: written under a temporary name, made durable, renamed."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
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
    """As `atomic_file`, under a temporary name of one's own; the folder is not synced."""
    temporary.unlink(missing_ok=True)  # of a killed process
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """A temporary folder that takes the place of `folder` at the end; an error leaves nothing behind."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        yield temporary
        for path in temporary.rglob("*"):
            if path.is_file():
                path.chmod(0o644)  # safetensors leaves its files to their owner alone
                sync_file(path)
        temporary.chmod(0o755)
        old = folder.with_name(f".{folder.name}-old")
        shutil.rmtree(old, ignore_errors=True)
        if folder.exists():
            folder.rename(old)
        temporary.rename(folder)
        sync_folder(folder.parent)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


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
