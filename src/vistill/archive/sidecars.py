"""Captions as text files beside pictures, photo.jpg -> photo.txt, as data-set and LoRA tools read them."""

import os
from pathlib import Path

SIDECAR_KINDS = ("txt",)


def sidecar_path(picture: str, kind: str = "txt") -> Path:
    """photo.jpg -> photo.txt. Pictures that differ in their suffix alone share one."""
    return Path(os.path.splitext(picture)[0] + "." + kind)


def write_sidecar(path: Path, text: str) -> None:
    """Write one line of text, UTF-8, whole or not at all. Raises OSError.

    A reader, or a run after a crash, finds the old file or the new one, never a part of it.
    """
    temporary = path.with_name(f".vistill-{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)  # of a killed process with the same number
    try:
        with open(temporary, "xb") as file:
            file.write(text.encode("utf-8", "backslashreplace") + b"\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
