"""The Arrow folder and the atomic files."""

import tempfile
from pathlib import Path

import datasets
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vistill.data import store
from vistill.data.records import Sample
from vistill.errors import DataError


def test_schema_is_exactly_the_documented_one() -> None:
    assert list(store.FEATURES) == [
        "key",
        "image",
        "width",
        "height",
        "captions",
        "question",
        "answers",
        "split",
        "source",
        "licence",
    ]
    assert tuple(Sample.__dataclass_fields__) == store.COLUMNS


def test_hugging_face_opens_what_is_written(tmp_path: Path) -> None:
    samples = [
        Sample(f"k{n}", bytes([n]) * n, n, 2 * n, ("a b", "ü"), "why?", ("yes", "no"), "dev", "src", "free")
        for n in range(150)  # more than one record batch
    ]
    store.write_shard(tmp_path / "data-00000-of-00001.arrow", samples)
    store.write_split_metadata(tmp_path, ["data-00000-of-00001.arrow"], "0123456789abcdef99")
    table = datasets.load_from_disk(str(tmp_path))
    assert table.features == store.FEATURES
    assert len(table) == 150
    assert [
        Sample(**{**row, "captions": tuple(row["captions"]), "answers": tuple(row["answers"])})
        for row in table
    ] == (samples)
    assert table._fingerprint == datasets.load_from_disk(str(tmp_path))._fingerprint
    assert len(table.data.column("key").chunks) == 3


def test_big_pictures_close_a_record_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "BATCH_BYTES", 100)
    samples = [Sample(str(n), b"x" * 60, 1, 1, ("ab",)) for n in range(5)]
    store.write_shard(tmp_path / "data-00000-of-00001.arrow", samples)
    store.write_split_metadata(tmp_path, ["data-00000-of-00001.arrow"], "f" * 16)
    table = datasets.load_from_disk(str(tmp_path))
    assert [len(chunk) for chunk in table.data.column("key").chunks] == [1] * 5


def test_lone_surrogates_survive(tmp_path: Path) -> None:
    store.write_json_lines(tmp_path / "b.jsonl", [{"name": "x\udc80ü"}])
    assert list(store.read_json_lines(tmp_path / "b.jsonl")) == [{"name": "x\udc80ü"}]


def test_lock_is_exclusive_and_goes_away(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with store.locked(path, "taken"), pytest.raises(DataError, match="taken"), store.locked(path, "taken"):
        raise AssertionError("two holders")
    with store.locked(path, "taken"):
        pass
    assert not path.exists()


@pytest.mark.parametrize("opener", [store.read_report, store.split_names, store.open_dataset])
def test_a_folder_without_a_data_set_is_named(tmp_path: Path, opener) -> None:
    with pytest.raises(DataError, match=r"no such file; expected a folder that `vistill data build` made"):
        opener(tmp_path)


@settings(deadline=None)
@given(st.lists(st.sampled_from([b"", b"short", b"x" * 12, b"y" * 13, b"z" * 500]), max_size=200))
def test_rows_that_share_pictures_give_each_its_bytes(images: list[bytes]) -> None:
    with tempfile.TemporaryDirectory() as folder:  # hypothesis refuses tmp_path
        path = Path(folder) / "data.arrow"
        store.write_shard(
            path, (Sample(str(n), image, 1, 1, ()) for n, image in enumerate(images)), shared=True
        )
        with path.open("rb") as file:
            table = pa.ipc.open_stream(file).read_all()
    table.validate(full=True)
    assert table.column("image").to_pylist() == images
    assert table.slice(len(images) // 2).column("image").to_pylist() == images[len(images) // 2 :]
