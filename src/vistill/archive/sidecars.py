"""Captions as text files beside pictures, photo.jpg -> photo.txt, as data-set and LoRA tools read them."""

import os
from pathlib import Path

from vistill.files import renamed_file

SIDECAR_KINDS = ("txt",)


def sidecar_path(picture: str, kind: str = "txt") -> Path:
    """photo.jpg -> photo.txt. Pictures that differ in their suffix alone share one."""
    return Path(os.path.splitext(picture)[0] + "." + kind)


def write_sidecar(path: Path, text: str) -> None:
    """Write one line of text, UTF-8, whole or not at all. Raises OSError.

    A reader, or a run after a crash, finds the old file or the new one, never a part of it.
    """
    # a short name: the picture's may be as long as names can be
    with renamed_file(path.with_name(f".vistill-{os.getpid()}.tmp"), path) as file:
        file.write(text.encode("utf-8", "backslashreplace") + b"\n")
