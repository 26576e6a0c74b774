"""Caption files: cut anywhere, they go on as if nothing had happened; foreign files are left alone."""

import csv
import json
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vistill.archive import outputs
from vistill.archive.outputs import Row, open_output
from vistill.errors import ConfigError, DataError

text = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=12)
# What the system makes of names that are not UTF-8: surrogate escapes.
path_text = (
    st.binary(min_size=1, max_size=12)
    .filter(lambda b: 0 not in b)
    .map(lambda b: "/p/" + os.fsdecode(b) + ".jpg")
)


def write_all(path: Path, rows: list[Row], ranked: bool = False) -> None:
    output = open_output(path, ranked)
    for row in rows:
        if not output.has(row.path):
            output.write([row])
    output.finish()


def read_json(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def rows_of(paths: list[str], captions: list[str], ranked: bool) -> list[Row]:
    unique = {os.path.abspath(p): p for p in paths}.values()
    pairs = zip(unique, captions, strict=False)
    return [Row(p, c, ((c, -0.5), ("other", -1.25)) if ranked else ()) for p, c in pairs]


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
@settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    paths=st.lists(path_text, min_size=1, max_size=6),
    captions=st.lists(text, min_size=6, max_size=6),
    ranked=st.booleans(),
    cut=st.floats(0, 1),
    zeros=st.integers(0, 5),
)
def test_cut_anywhere_and_run_again_gives_the_same_file(
    tmp_path: Path, suffix: str, paths: list[str], captions: list[str], ranked: bool, cut: float, zeros: int
) -> None:
    rows = rows_of(paths, captions, ranked)
    whole = tmp_path / f"whole{suffix}"
    torn = tmp_path / f"torn{suffix}"
    whole.unlink(missing_ok=True)
    write_all(whole, rows, ranked)
    data = whole.read_bytes()
    kept = int(cut * len(data))
    torn.write_bytes(data[:kept] + bytes(zeros))  # a file system may leave zeros behind a crash
    write_all(torn, rows, ranked)
    assert torn.read_bytes() == data


def test_every_cut_of_one_file(tmp_path: Path) -> None:
    rows = [Row("/a.jpg", 'says "hi",\nthen'), Row("/b,\n\r.jpg", "b"), Row("/\udcff.jpg", "é")]
    for suffix in (".jsonl", ".csv"):
        whole = tmp_path / f"whole{suffix}"
        write_all(whole, rows)
        data = whole.read_bytes()
        for cut in range(len(data) + 1):
            torn = tmp_path / f"torn{suffix}"
            torn.write_bytes(data[:cut])
            write_all(torn, rows)
            assert torn.read_bytes() == data, cut


def test_json_lines_hold_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    write_all(path, [Row("/é.jpg", "x", (("x", -1.0), ("y", -2.0)))], ranked=True)
    assert "é" in path.read_text("utf-8")
    captions = [{"text": "x", "score": -1.0}, {"text": "y", "score": -2.0}]
    assert read_json(path) == [{"path": "/é.jpg", "caption": "x", "captions": captions}]
    path = tmp_path / "d.jsonl"
    write_all(path, [Row(os.fsdecode(b"/\xff.jpg"), "z")])
    assert os.fsencode(read_json(path)[0]["path"]) == b"/\xff.jpg"  # type: ignore[arg-type]


@pytest.mark.parametrize(("ranked", "there"), [(True, "without"), (False, "with")])
def test_rows_with_and_without_several_captions_are_not_mixed(
    tmp_path: Path, ranked: bool, there: str
) -> None:
    path = tmp_path / "c.jsonl"
    (old,) = rows_of(["/a.jpg"], ["x"], not ranked)
    write_all(path, [old], not ranked)
    before = path.read_bytes()
    with pytest.raises(DataError, match=f"has rows {there} `captions`.*choose another file or --overwrite"):
        open_output(path, ranked)
    assert path.read_bytes() == before


@pytest.mark.parametrize("end", ["finish", "close"])
@pytest.mark.parametrize("name", ["c.jsonl", "c.csv", "c.parquet"])
def test_a_run_without_a_row_changes_nothing(tmp_path: Path, name: str, end: str) -> None:
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow", reason="pyarrow comes with vistill[parquet]")
    path = tmp_path / name
    getattr(open_output(path, False), end)()
    assert os.listdir(tmp_path) == ([name] if end == "finish" else [])  # an empty file
    write_all(path, [Row("/a.jpg", "x")])
    before = path.read_bytes()
    for overwrite in (False, True):
        getattr(open_output(path, False, overwrite), end)()
        assert path.read_bytes() == before
        assert os.listdir(tmp_path) == [name]


def test_overwriting_leaves_the_rows_of_a_killed_run_until_it_has_its_own(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="pyarrow comes with vistill[parquet]")
    path = tmp_path / "c.parquet"
    killed = open_output(path, False)
    killed.write([Row("/a.jpg", "x")])
    killed.close()
    open_output(path, False, overwrite=True).finish()
    write_all(path, [Row("/b.jpg", "y")])
    assert [row["path"] for row in parquet_rows(path)] == ["/a.jpg", "/b.jpg"]


def test_the_empty_journal_of_a_killed_run_goes(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="pyarrow comes with vistill[parquet]")
    (tmp_path / "c.parquet.journal.jsonl").touch()
    for _ in range(2):  # without an older file and with one
        open_output(tmp_path / "c.parquet", False).finish()
        assert os.listdir(tmp_path) == ["c.parquet"]
        (tmp_path / "c.parquet.journal.jsonl").touch()


def test_csv_holds_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "c.csv"
    rows = [Row('/a "b".jpg', "x, y"), Row("/line\nbreak.jpg", "z\r\nz"), Row("/é.jpg", " z ")]
    write_all(path, rows)
    with path.open(encoding="utf-8", newline="") as file:
        assert list(csv.reader(file)) == [["path", "caption"], *([r.path, r.caption] for r in rows)]


def test_csv_saved_by_another_program_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "c.csv"
    path.write_bytes(b'path,caption\r\n"/a.jpg",x\r\n')
    write_all(path, [Row("/a.jpg", "again"), Row("/b.jpg", "y")])
    assert path.read_bytes() == b'path,caption\r\n"/a.jpg",x\r\n/b.jpg,y\n'


def test_relative_and_absolute_names_are_one_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_all(tmp_path / "c.jsonl", [Row("a.jpg", "x")])
    output = open_output(tmp_path / "c.jsonl", False)
    assert output.has("./a.jpg")
    assert output.has(str(tmp_path / "a.jpg"))
    assert not output.has("b/a.jpg")
    output.close()


def test_lines_of_failures_count_as_not_done(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    path.write_text('{"path": "/a.jpg", "error": "missing", "detail": "x"}\n')
    write_all(path, [Row("/a.jpg", "x")])
    assert len(read_json(path)) == 2


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("c.jsonl", b'{"a": 1}\n'),
        ("c.jsonl", b"[1]\n"),
        ("c.jsonl", b"3\n"),
        ("c.jsonl", b'{"caption": "x"}\n'),
        ("c.jsonl", b"hello\n"),
        ("c.jsonl", b"hello"),
        ("c.jsonl", b'{"a": 1}'),
        ("c.csv", b"a,b\n1,2\n"),
        ("c.csv", b"path,caption,captions\n"),
        ("c.csv", b"a,b"),
        ("c.csv", b'a,"b\nc'),
    ],
)
def test_foreign_files_are_refused_and_left_alone(tmp_path: Path, name: str, data: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(DataError, match=name):
        open_output(path, False)
    assert path.read_bytes() == data
    output = open_output(path, False, overwrite=True)  # and the refused file was not left locked
    output.write([Row("/a.jpg", "x")])
    output.finish()
    assert b"/a.jpg" in path.read_bytes()
    assert data not in path.read_bytes()


@pytest.mark.parametrize("name", ["c.jsonl", "c.csv", "c.parquet"])
def test_two_runs_at_once_are_refused(tmp_path: Path, name: str) -> None:
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow", reason="pyarrow comes with vistill[parquet]")
    first = open_output(tmp_path / name, False)
    with pytest.raises(DataError, match="another run"):
        open_output(tmp_path / name, False)
    first.close()
    open_output(tmp_path / name, False).close()


@pytest.mark.parametrize("name", ["c.txt", "c", "c.json"])
def test_other_suffixes_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=r"\.jsonl, \.csv, \.parquet"):
        open_output(tmp_path / name, False)


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot write"):
        open_output(tmp_path / "absent" / "c.jsonl", False)
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(DataError, match="cannot write"):
        open_output(tmp_path / "folder.csv", False)


def test_a_full_disk_is_told_and_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "c.jsonl"
    output = open_output(path, False)
    output.write([Row("/a.jpg", "x")])

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(DataError, match=r"No space left.*run again"):
            output.write([Row("/b.jpg", "y")])
    output.close()
    write_all(path, [Row("/a.jpg", "x"), Row("/b.jpg", "y")])
    assert [r["path"] for r in read_json(path)] == ["/a.jpg", "/b.jpg"]


@pytest.mark.parametrize("name", ["c.jsonl", "c.csv", "c.parquet"])
def test_a_file_that_may_not_grow_is_told_and_goes_on(tmp_path: Path, name: str) -> None:
    """A real refusal in the middle of a write; a buffer would fail once more when the file is closed."""
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow", reason="pyarrow comes with vistill[parquet]")
    rows = [Row(f"/{number}.jpg", "a dog") for number in range(4)]
    for room, left in ((0, []), (12, []), (60, [name + ".journal.jsonl" * name.endswith("parquet")])):
        output = open_output(tmp_path / name, False)
        with _room(room):
            with pytest.raises(DataError, match=r"cannot write .*too large; run again"):  # noqa: PT012
                for row in rows:
                    output.write([row])
            output.close()
        assert os.listdir(tmp_path) == left
    write_all(tmp_path / name, rows)
    assert all(open_output(tmp_path / name, False).has(row.path) for row in rows)


@contextmanager
def _room(size: int) -> Iterator[None]:
    """Let no file grow beyond `size` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("name", ["c.jsonl", "c.csv", "c.parquet"])
@pytest.mark.parametrize("overwrite", [True, False])
def test_what_has_no_end_is_refused(tmp_path: Path, name: str, overwrite: bool) -> None:
    path = tmp_path / name
    for make in (lambda: os.mkfifo(path), lambda: path.symlink_to("/dev/zero")):
        make()
        with pytest.raises(DataError, match=f"cannot write .*{name}: it is no file"):
            open_output(path, False, overwrite)
        assert os.listdir(tmp_path) == [name]
        path.unlink()


def test_parquet_without_pyarrow_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outputs.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'vistill\[parquet\]'"):
        open_output(tmp_path / "c.parquet", False)
    assert os.listdir(tmp_path) == []


def parquet_rows(path: Path) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = pytest.importorskip("pyarrow.parquet").read_table(path).to_pylist()
    return rows


def test_parquet_grows_run_by_run(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="pyarrow comes with vistill[parquet]")
    path = tmp_path / "c.parquet"
    odd = os.fsdecode(b"/\xff.jpg")
    write_all(path, [Row("/a.jpg", "x"), Row(odd, "odd")])
    write_all(path, [Row("/a.jpg", "again"), Row(odd, "again"), Row("/b.jpg", "y")])
    assert parquet_rows(path) == [
        {"path": "/a.jpg", "caption": "x"},
        {"path": "/\\udcff.jpg", "caption": "odd"},
        {"path": "/b.jpg", "caption": "y"},
    ]
    assert os.listdir(tmp_path) == ["c.parquet"]


def test_parquet_ranked(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="pyarrow comes with vistill[parquet]")
    path = tmp_path / "c.parquet"
    write_all(path, [Row("/a.jpg", "x", (("x", -1.0), ("y", -2.0)))], ranked=True)
    captions = [{"text": "x", "score": -1.0}, {"text": "y", "score": -2.0}]
    assert parquet_rows(path) == [{"path": "/a.jpg", "caption": "x", "captions": captions}]
    with pytest.raises(DataError, match="columns"):
        write_all(path, [Row("/b.jpg", "x")])
    assert len(parquet_rows(path)) == 1


@pytest.mark.parametrize("moment", ["before the rename", "after the rename", "between batches"])
def test_parquet_after_a_stop_at_the_worst_moments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    pytest.importorskip("pyarrow", reason="pyarrow comes with vistill[parquet]")
    path = tmp_path / "c.parquet"
    write_all(path, [Row("/0.jpg", "0")])
    output = open_output(path, False)
    output.write([Row("/a.jpg", "x")])

    class Killed(BaseException):
        pass

    replace = os.replace

    def stop(source: Path, target: Path) -> None:
        if moment == "after the rename":
            replace(source, target)
        raise Killed

    if moment == "between batches":
        output.close()
    else:
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", stop)
            with pytest.raises(Killed):
                output.finish()
        output.close()
    write_all(path, [Row("/0.jpg", "n"), Row("/a.jpg", "n"), Row("/b.jpg", "y")])
    assert [(r["path"], r["caption"]) for r in parquet_rows(path)] == [
        ("/0.jpg", "0"),
        ("/a.jpg", "x"),
        ("/b.jpg", "y"),
    ]
    assert os.listdir(tmp_path) == ["c.parquet"]


def test_a_foreign_parquet_file_is_refused(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow", reason="pyarrow comes with vistill[parquet]")
    import pyarrow.parquet as pq

    path = tmp_path / "c.parquet"
    pq.write_table(pa.table({"a": [1]}), path)
    with pytest.raises(DataError, match=r"c\.parquet"):
        open_output(path, False)
    path.write_bytes(b"not parquet at all")
    with pytest.raises(DataError, match=r"c\.parquet"):
        open_output(path, False)
    assert os.listdir(tmp_path) == ["c.parquet"]
