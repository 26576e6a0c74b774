"""TSV files and their indices."""

import base64
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vistill.data.tsv import TsvFile, index_paths, line_offsets, write_tsv
from vistill.errors import DataError

ROWS = [("a", "1"), ("b", ""), ("ü", "3\x0b")]


def quiet(message: str) -> None:
    raise AssertionError(f"said {message}")


def test_write_and_read(tmp_path: Path) -> None:
    path = tmp_path / "out.tsv"
    assert write_tsv(path, ROWS) == 3
    lines, binary = index_paths(path)
    assert (lines.name, binary.name) == ("out.lineidx", "out.lineidx.8b")
    assert lines.read_text() == "0\n4\n7\n"
    assert np.frombuffer(binary.read_bytes(), "<i8").tolist() == [0, 4, 7]
    file = TsvFile(path, quiet)
    assert len(file) == 3
    assert [[field.decode() for field in file.fields(row)] for row in (2, 0, 1)] == [
        ["ü", "3\x0b"],
        ["a", "1"],
        ["b", ""],
    ]
    assert file.second(2) == ("ü", (10, 2))
    for row in (-1, 3):
        with pytest.raises(DataError, match=f"has no row {row}; it has 3"):
            file.fields(row)


@settings(deadline=None)
@given(
    st.lists(
        st.lists(st.text(st.characters(exclude_characters="\t\n\r", exclude_categories=["Cs"])), min_size=2)
    )
)
def test_what_is_written_is_read(rows: list[list[str]]) -> None:
    data = b"".join("\t".join(row).encode() + b"\n" for row in rows)
    offsets = line_offsets(data)
    wanted = np.cumsum([0, *(len("\t".join(row).encode()) + 1 for row in rows)])[:-1]
    assert offsets.tolist() == wanted.tolist()


@pytest.mark.parametrize("row", [(), ("",), ("a\tb",), ("a", "b\n"), ("a\r",)])
def test_rows_that_cannot_be_written(tmp_path: Path, row: tuple[str, ...]) -> None:
    with pytest.raises(DataError, match="row 1 is empty, or a field holds"):
        write_tsv(tmp_path / "out.tsv", [("fine",), row])
    assert not (tmp_path / "out.tsv").exists()


def test_a_missing_index_is_written(tmp_path: Path) -> None:
    path = tmp_path / "out.tsv"
    path.write_bytes(b"a\t1\r\nb\t2\r\nc\t3")
    said: list[str] = []
    file = TsvFile(path, said.append)
    assert [file.fields(row) for row in range(3)] == [[b"a", b"1"], [b"b", b"2"], [b"c", b"3"]]
    assert said == [f"{path} has no index; wrote one of 3 rows"]
    assert len(TsvFile(path, quiet)) == 3


@pytest.mark.parametrize("only", [0, 1])
def test_either_index_is_enough(tmp_path: Path, only: int) -> None:
    path = tmp_path / "out.tsv"
    write_tsv(path, ROWS)
    index_paths(path)[1 - only].unlink()
    assert TsvFile(path, quiet).fields(1) == [b"b", b""]


def test_a_stale_index_is_made_anew(tmp_path: Path) -> None:
    path = tmp_path / "out.tsv"
    write_tsv(path, ROWS)
    path.write_bytes(b"first\t1\nsecond\t2\n")
    said: list[str] = []
    later = path.stat().st_mtime_ns + 10**9
    os.utime(path, ns=(later, later))
    assert TsvFile(path, said.append).fields(1) == [b"second", b"2"]
    assert len(said) == 1
    assert "is newer than out.lineidx" in said[0]
    for index in index_paths(path):
        os.utime(index, ns=(later + 1, later + 1))

    path.write_bytes(b"first 1\t1\nsecond\t2\n")  # as new as its index by the clock
    os.utime(path, ns=(later, later))
    said.clear()
    assert TsvFile(path, said.append).fields(1) == [b"second", b"2"]
    assert "does not fit out.lineidx" in said[0]
    for index in index_paths(path):
        index.write_bytes(b"x")
    said.clear()
    assert TsvFile(path, said.append).fields(1) == [b"second", b"2"]
    assert "broken" in said[0]


def test_a_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "out.tsv"
    path.write_bytes(b"a\t1\n")

    def refuse(*args: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("vistill.data.tsv.write_index", refuse)
    said: list[str] = []
    assert TsvFile(path, said.append).fields(0) == [b"a", b"1"]
    assert "made one in memory (Permission denied: it could not be written)" in said[0]


def test_pictures_and_broken_base64(tmp_path: Path) -> None:
    path = tmp_path / "out.tsv"
    write_tsv(path, [("a", base64.b64encode(b"picture")), ("b", "not base64"), ("c",), ("d", "cGljdA")])
    file = TsvFile(path)
    assert file.picture(0) == b"picture"
    for row in (1, 3):
        with pytest.raises(DataError, match=rf"out\.tsv: row {row} is not base64"):
            file.picture(row)
    with pytest.raises(DataError, match=r"out\.tsv: row 2 is not key<TAB>base64"):
        file.picture(2)


def test_an_empty_file_and_none(tmp_path: Path) -> None:
    (tmp_path / "out.tsv").write_bytes(b"")
    assert len(TsvFile(tmp_path / "out.tsv")) == 0
    assert len(TsvFile(tmp_path / "out.tsv", quiet)) == 0
    with pytest.raises(DataError, match=r"none\.tsv: no such file"):
        TsvFile(tmp_path / "none.tsv")
