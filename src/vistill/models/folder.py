"""What the folders of trained models share: they appear whole or not at all, and say what they are."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vistill.errors import BundleError


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """A temporary folder that takes the place of `folder` at the end; an error leaves nothing behind."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                with file.open("rb") as opened:
                    os.fsync(opened.fileno())
        temporary.chmod(0o755)
        old = folder.with_name(f".{folder.name}-old")
        shutil.rmtree(old, ignore_errors=True)
        if folder.exists():
            folder.rename(old)
        temporary.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def read_config(folder: Path, kind: str, format: int) -> dict[str, Any]:
    """config.json of a folder, which must be of this kind and format. Raises BundleError, naming the file."""
    path = folder / "config.json"
    if not path.is_file():
        raise BundleError(f"{folder} is no vistill checkpoint: it has no config.json")
    try:
        raw: dict[str, Any] = json.loads(path.read_text())
    except ValueError as error:
        raise BundleError(f"{path} is not JSON: {error}") from error
    if raw.get("format") != format or raw.get("kind") != kind:
        found = f"format {raw.get('format')!r}, kind {raw.get('kind')!r}"
        raise BundleError(f"{path}: expected format {format}, kind {kind!r}, found {found}")
    return raw
