"""What a name on the command line stands for: files, folders, globs, lists, in one order."""

import io
import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vistill.archive.walk import SUFFIXES, expand, read_list, walk


def no_errors(path: str, error: OSError) -> None:
    raise AssertionError(f"{path}: {error}")


def touch(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def found(root: Path, name: str, recursive: bool = True) -> list[str]:
    return [os.path.relpath(p, root) for p in expand(name, recursive, no_errors)]


def test_a_folder_is_walked_in_the_order_of_names(tmp_path: Path) -> None:
    touch(
        tmp_path,
        "b.JPG",
        "a.png",
        "c/z.webp",
        "c/a.gif",
        "c/b/1.tif",
        "d.heic",
        "notes.txt",
        "movie.mp4",
        "B.jpg",
    )
    assert found(tmp_path, str(tmp_path)) == [
        "B.jpg",
        "a.png",
        "b.JPG",
        "c/a.gif",
        "c/b/1.tif",
        "c/z.webp",
        "d.heic",
    ]
    assert found(tmp_path, str(tmp_path), recursive=False) == ["B.jpg", "a.png", "b.JPG", "d.heic"]


def test_dot_names_are_left_out(tmp_path: Path) -> None:
    touch(tmp_path, ".a.jpg", ".thumbs/a.jpg", "._b.jpg", "c.jpg")
    assert found(tmp_path, str(tmp_path)) == ["c.jpg"]
    assert found(tmp_path, str(tmp_path / ".a.jpg")) == [".a.jpg"]  # but not when named outright
    assert found(tmp_path, str(tmp_path / ".thumbs")) == [".thumbs/a.jpg"]


def test_loops_of_links_end(tmp_path: Path) -> None:
    touch(tmp_path, "a/b/x.jpg", "y.jpg")
    (tmp_path / "a/b/up").symlink_to(tmp_path)
    (tmp_path / "a/self").symlink_to(tmp_path / "a")
    (tmp_path / "knot.jpg").symlink_to(tmp_path / "knot.jpg")
    (tmp_path / "z.jpg").symlink_to(tmp_path / "y.jpg")
    assert found(tmp_path, str(tmp_path)) == ["a/b/x.jpg", "knot.jpg", "y.jpg", "z.jpg"]


def test_links_to_folders_elsewhere_are_followed(tmp_path: Path) -> None:
    touch(tmp_path, "elsewhere/x.jpg", "root/y.jpg")
    (tmp_path / "root/link").symlink_to(tmp_path / "elsewhere")
    assert found(tmp_path, str(tmp_path / "root")) == ["root/link/x.jpg", "root/y.jpg"]


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    raw = os.fsencode(tmp_path) + b"/caf\xe9\n.jpg"
    with open(raw, "wb"):
        pass
    (path,) = expand(str(tmp_path), True, no_errors)
    assert os.fsencode(path) == raw
    assert os.path.exists(path)


def test_a_tree_deeper_than_the_stack(tmp_path: Path) -> None:
    start = os.open(tmp_path, os.O_RDONLY)
    here = start
    for _ in range(1200):
        os.mkdir("d", dir_fd=here)
        below = os.open("d", os.O_RDONLY, dir_fd=here)
        if here != start:
            os.close(here)
        here = below
    os.close(here)
    os.close(start)
    touch(tmp_path, "e.jpg")
    try:
        assert found(tmp_path, str(tmp_path)) == ["e.jpg"]
    finally:  # pytest's own clean-up is recursive
        subprocess.run(["rm", "-rf", str(tmp_path / "d")], check=True)


def test_a_folder_that_cannot_be_read_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "a/x.jpg", "b/y.jpg", "c.jpg")
    scandir = os.scandir

    def refuse(path: str) -> object:
        if str(path).endswith("/a"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    told: list[str] = []
    paths = list(walk(str(tmp_path), True, lambda path, error: told.append(f"{path}: {error.strerror}")))
    assert paths == [str(tmp_path / "b/y.jpg"), str(tmp_path / "c.jpg")]
    assert told == [f"{tmp_path}/a: Permission denied"]


def test_globs(tmp_path: Path) -> None:
    touch(tmp_path, "1.jpg", "2.jpg", "a.txt", "raw.dat", "x/3.jpg", "x/y/4.jpg", "x/b.txt")
    assert found(tmp_path, f"{tmp_path}/*.jpg") == ["1.jpg", "2.jpg"]
    assert found(tmp_path, f"{tmp_path}/[2-9].jpg") == ["2.jpg"]
    assert found(tmp_path, f"{tmp_path}/*.dat") == ["raw.dat"]
    assert found(tmp_path, f"{tmp_path}/*") == ["1.jpg", "2.jpg", "x/3.jpg", "x/y/4.jpg"]
    assert found(tmp_path, f"{tmp_path}/**") == ["1.jpg", "2.jpg", "x/3.jpg", "x/y/4.jpg"]
    assert found(tmp_path, f"{tmp_path}/**/*.jpg") == ["1.jpg", "2.jpg", "x/3.jpg", "x/y/4.jpg"]
    (tmp_path / "x" / "loop").symlink_to(tmp_path)
    (tmp_path / "z").symlink_to(tmp_path / "x" / "y")
    once = sorted(os.path.realpath(tmp_path / path) for path in found(tmp_path, f"{tmp_path}/**"))
    assert once == [f"{tmp_path}/{path}" for path in ("1.jpg", "2.jpg", "x/3.jpg", "x/y/4.jpg")]
    assert found(tmp_path, f"{tmp_path}/*.gif") == []


def test_a_name_with_glob_signs_that_exists_is_that_file(tmp_path: Path) -> None:
    touch(tmp_path, "a[1].jpg", "a1.jpg")
    assert found(tmp_path, f"{tmp_path}/a[1].jpg") == ["a[1].jpg"]


def test_other_names_stand_for_themselves(tmp_path: Path) -> None:
    touch(tmp_path, "odd.name")
    assert found(tmp_path, str(tmp_path / "odd.name")) == ["odd.name"]
    assert found(tmp_path, str(tmp_path / "absent.jpg")) == ["absent.jpg"]


def test_suffixes_are_lower_case_with_a_dot() -> None:
    assert all(s.startswith(".") and s == s.lower() for s in SUFFIXES)


names = st.lists(
    st.binary(min_size=1, max_size=20).filter(lambda b: not set(b) & {0, 10} and not b.endswith(b"\r"))
)


@settings(deadline=None, derandomize=True, database=None)
@given(names, st.integers(1, 50), st.booleans())
def test_lists_come_back_name_by_name(wanted: list[bytes], block: int, ended: bool) -> None:
    class Slow(io.BytesIO):
        def read1(self, size: int | None = -1) -> bytes:
            return self.read(block)

    data = b"\n".join(wanted) + (b"\n" if ended else b"")
    assert [os.fsencode(p) for p in read_list(Slow(data))] == wanted
    assert [os.fsencode(p) for p in read_list(Slow(data.replace(b"\n", b"\r\n")))] == wanted


def test_lists_separated_by_nul_may_hold_line_breaks() -> None:
    assert list(read_list(io.BytesIO(b"a\nb.jpg\0c.jpg\0"))) == ["a\nb.jpg", "c.jpg"]
