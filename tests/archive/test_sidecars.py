"""Sidecars: the right name, whole or absent, nothing left lying about."""

import os
from pathlib import Path

import pytest

from vistill.archive.sidecars import sidecar_path, write_sidecar


def test_the_name() -> None:
    assert sidecar_path("a/photo.jpg") == Path("a/photo.txt")
    assert sidecar_path("a/photo.of.me.JPEG") == Path("a/photo.of.me.txt")
    assert sidecar_path("a.b/photo") == Path("a.b/photo.txt")
    assert sidecar_path("a/.hidden.png") == Path("a/.hidden.txt")


def test_write_and_replace(tmp_path: Path) -> None:
    path = tmp_path / "photo.txt"
    write_sidecar(path, "a dog")
    assert path.read_bytes() == b"a dog\n"
    write_sidecar(path, "un été")
    assert path.read_text("utf-8") == "un été\n"
    assert path.stat().st_mode & 0o777 == 0o666 & ~current_umask()
    assert os.listdir(tmp_path) == ["photo.txt"]


def current_umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_a_failure_leaves_the_old_text_and_no_litter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "photo.txt"
    write_sidecar(path, "old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_sidecar(path, "new")
    assert path.read_text() == "old\n"
    assert os.listdir(tmp_path) == ["photo.txt"]


def test_the_litter_of_a_killed_run_is_no_hindrance(tmp_path: Path) -> None:
    (tmp_path / f".vistill-{os.getpid()}.tmp").write_text("half")
    write_sidecar(tmp_path / "photo.txt", "a dog")
    assert os.listdir(tmp_path) == ["photo.txt"]
