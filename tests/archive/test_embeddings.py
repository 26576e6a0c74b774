"""Files of embeddings: cut anywhere, they go on as if nothing had happened; foreign files are left alone."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from vistill.archive.embeddings import SUFFIXES, Kind, Row, open_embeddings
from vistill.errors import ConfigError, DataError

PATHS, TEXTS = Kind("path", "a" * 64, 3), Kind("text", "a" * 64, 3)
ROWS = [
    Row(name, np.array([i / 3, -1e-7 * i, 1 / 7], np.float32))
    for i, name in enumerate(['/a "b",\n.jpg', "/é.jpg", "/日.jpg", "/d.jpg"])
]


def write(path: Path, rows: list[Row], kind: Kind = PATHS, overwrite: bool = False) -> None:
    output = open_embeddings(path, kind, overwrite)
    for row in rows:
        if not output.has(row.key):
            output.write([row])
    output.finish()


def read(path: Path, column: str = "path") -> dict[str, list[float]]:
    """A file as its users read it, without the code that wrote it."""
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as kept:
            assert kept["embeddings"].dtype == np.float32
            assert str(kept["model"]) == "a" * 64
            return dict(zip(kept[f"{column}s"].tolist(), kept["embeddings"].tolist(), strict=True))
    if path.suffix == ".parquet":
        table = pytest.importorskip("pyarrow.parquet").read_table(path)
        assert table.schema.metadata[b"vistill.model"] == b"a" * 64
        return dict(zip(table[column].to_pylist(), table["embedding"].to_pylist(), strict=True))
    rows = [json.loads(line) for line in path.read_bytes().splitlines()]
    assert {row["model"] for row in rows} <= {"a" * 12}
    return {row[column]: row["embedding"] for row in rows}


def expected(rows: list[Row]) -> dict[str, list[float]]:
    return {row.key: row.vector.tolist() for row in rows}


@pytest.fixture(params=SUFFIXES)
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    if request.param == ".parquet":
        pytest.importorskip("pyarrow", reason="Parquet needs pyarrow")
    return tmp_path / f"out{request.param}"


def test_files_hold_what_was_written_to_the_last_bit(path: Path) -> None:
    write(path, ROWS)
    found = read(path)
    assert list(found) == [row.key for row in ROWS]
    assert {k: np.float32(v).tolist() for k, v in found.items()} == expected(ROWS)
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_second_run_adds_what_is_missing(path: Path) -> None:
    write(path, ROWS[:2])
    write(path, ROWS)
    assert list(read(path)) == [row.key for row in ROWS]
    write(path, ROWS[:1], overwrite=True)
    assert list(read(path)) == [ROWS[0].key]


def test_a_killed_run_goes_on(path: Path) -> None:
    """Killed before `finish`, and with the last record torn."""
    write(path, ROWS[:1])
    output = open_embeddings(path, PATHS)
    output.write(ROWS[1:3])
    output.close()
    journal = path if path.suffix == ".jsonl" else path.with_name(path.name + ".journal.jsonl")
    journal.write_bytes(journal.read_bytes()[:-5])
    output = open_embeddings(path, PATHS)
    assert [output.has(row.key) for row in ROWS] == [True, True, False, False]
    output.close()
    write(path, ROWS)
    assert read(path).keys() == expected(ROWS).keys()


def test_killed_between_rename_and_the_end_doubles_nothing(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if path.suffix == ".jsonl":
        pytest.skip("there is no journal")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", lambda *_, **__: None)
        write(path, ROWS[:3])
    assert path.with_name(path.name + ".journal.jsonl").is_file()
    write(path, ROWS)
    assert list(read(path)) == [row.key for row in ROWS]


def test_texts_are_told_apart_as_they_are(path: Path) -> None:
    rows = [Row("a dog", ROWS[0].vector), Row("./a dog", ROWS[1].vector), Row("A dog", ROWS[2].vector)]
    write(path, rows, TEXTS)
    assert list(read(path, "text")) == ["a dog", "./a dog", "A dog"]


def test_nothing_gives_an_empty_file(path: Path) -> None:
    write(path, [])
    assert read(path) == {}


def test_names_that_are_not_utf8(path: Path) -> None:
    row = Row(os.fsdecode(b"/\xff.jpg"), ROWS[0].vector)
    write(path, [row])
    write(path, [row])
    assert len(read(path)) == 1


def test_another_model_or_other_rows_are_refused(path: Path) -> None:
    write(path, ROWS)
    before = path.read_bytes()
    with pytest.raises(DataError, match=r"holds embeddings of the model 'a{12}', this one is 'b{12}'"):
        write(path, ROWS, Kind("path", "b" * 64, 3))
    with pytest.raises(DataError, match="embedding"):
        write(path, ROWS, TEXTS)
    assert path.read_bytes() == before
    path.write_bytes(b"rubbish\nmore\n")
    with pytest.raises(DataError, match="choose another file"):
        write(path, ROWS)
    assert path.read_bytes() == b"rubbish\nmore\n"


def test_wrong_names(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"must end in \.parquet, \.npz, \.jsonl"):
        write(tmp_path / "out.csv", ROWS)
    with pytest.raises(DataError, match="cannot write"):
        write(tmp_path / "absent" / "out.npz", ROWS)
