"""DiffusionDB in its real layout: folders, zips and the metadata table, with what can be wrong in them."""

import errno
import json
import os
import struct
import zipfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vistill.data.build import BuildConfig, build
from vistill.data.dataset import open_split
from vistill.data.records import Dropped, Entry, Item
from vistill.data.sources import diffusiondb
from vistill.errors import ConfigError, DataError


def _name(number: int, suffix: str = "png") -> str:
    return f"{number:08x}-26ea-4303-bbe1-b095853f5360.{suffix}"


def _row(prompt: str) -> dict[str, Any]:
    return {"p": prompt, "se": 38753269, "c": 12.0, "st": 50, "sa": "k_lms"}


def _members(part: int, photo: Any, suffix: str = "png", count: int = 3) -> dict[str, bytes]:
    """The files of one part, with a prompt for each picture."""
    numbers = range(100 * part, 100 * part + count)
    files = {_name(n, suffix): photo(n, format="WEBP" if suffix == "webp" else "PNG") for n in numbers}
    prompts = {_name(n, suffix): _row(f"geodesic landscape {n}, tadao ando, 4 k, ") for n in numbers}
    return {**files, f"part-{part:06}.json": json.dumps(prompts).encode()}


def _zip(path: Path, files: dict[str, bytes], compress: int = zipfile.ZIP_STORED) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", compress) as archive:
        archive.writestr("./", b"")  # as shutil.make_archive does
        for name, data in files.items():
            packed = zipfile.ZIP_DEFLATED if name.endswith(".json") else compress
            archive.writestr(name, data, packed)
    return path


def _folder(path: Path, files: dict[str, bytes]) -> Path:
    path.mkdir(parents=True)
    for name, data in files.items():
        (path / name).write_bytes(data)
    return path


def _table(path: Path, rows: list[tuple[str, str, int]]) -> Path:
    names, prompts, parts = zip(*rows, strict=True)
    columns = {"image_name": names, "prompt": prompts, "part_id": pa.array(parts, pa.uint16())}
    pq.write_table(pa.table({name: pa.array(values) for name, values in columns.items()}), path)
    return path


def _entries(items: list[Item]) -> dict[str, Entry]:
    return {item.key: item for item in items if isinstance(item, Entry)}


def _dropped(items: list[Item]) -> list[tuple[str, str]]:
    return sorted((item.key, item.reason) for item in items if isinstance(item, Dropped))


def test_zips_and_folders_build_one_data_set(tmp_path: Path, photo: Any) -> None:
    root = tmp_path / "db"
    zipped, unpacked = _members(2, photo, "webp"), _members(1, photo)
    _zip(root / "images" / "part-000002.zip", zipped)
    _folder(root / "images" / "part-000001", unpacked)
    report = build("diffusiondb", root, tmp_path / "built", BuildConfig(near_duplicates=None))
    assert report["dropped"]["counts"] == {}
    table = open_split(tmp_path / "built", "train")
    assert list(table["key"]) == [_name(n) for n in (100, 101, 102)] + [
        _name(n, "webp") for n in (200, 201, 202)
    ]
    for row in table:
        assert row["image"] == {**zipped, **unpacked}[row["key"]], "the bytes as they lay in the part"
        number = int(row["key"][:8], 16)
        assert row["captions"] == [f"geodesic landscape {number}, tadao ando, 4 k,"]
        assert row["licence"] == "CC0 1.0"


def test_folders_that_are_not_entered_are_named(tmp_path: Path, photo: Any, monkeypatch) -> None:
    root = tmp_path / "db"
    for part, place in ((1, "part-000001"), (2, "part-000002"), (4, "else/part-000004")):
        _folder(root / place, _members(part, photo))
    _folder(tmp_path / "outside" / "part-000003", _members(3, photo))
    (root / "part-000003").symlink_to(tmp_path / "outside" / "part-000003")
    (root / "linked").symlink_to(tmp_path / "outside")
    _zip(root / "large" / "part-000005.zip", _members(5, photo))
    _zip(root / "small" / "part-000005.zip", _members(6, photo))
    os.mkfifo(root / "part-000007.zip")
    listed = os.scandir

    def scandir(path: Any) -> Any:  # permissions would not stop a test that runs as root
        if os.path.basename(path) in ("part-000002", "else"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return listed(path)

    monkeypatch.setattr(os, "scandir", scandir)
    items = list(diffusiondb.read(root))
    assert sorted({int(key[:8], 16) // 100 for key in _entries(items)}) == [1, 3, 5]
    assert _dropped(items) == [
        ("else", "unreadable_folder"),
        ("linked", "linked_folder"),
        ("part-000002", "unreadable_folder"),
        ("part-000007.zip", "broken_archive"),
        ("small/part-000005.zip", "duplicate_key"),
    ]
    with pytest.raises(DataError, match=r"of such a name; .: cannot be listed: Permission denied"):
        list(diffusiondb.read(root / "else"))


def test_an_unpacked_part_goes_before_its_zip(tmp_path: Path, photo: Any) -> None:
    files = _members(1, photo)
    _zip(tmp_path / "part-000001.zip", files, zipfile.ZIP_DEFLATED)
    _folder(tmp_path / "part-000001", files)
    entries = _entries(list(diffusiondb.read(tmp_path)))
    assert len(entries) == 3
    assert all(entry.span is None for entry in entries.values())


def test_a_compressed_zip_is_read_without_unpacking(tmp_path: Path, photo: Any) -> None:
    files = _members(1, photo)
    files[_name(101)] += b" " * 5000  # so that compressing matters
    _zip(tmp_path / "db" / "part-000001.zip", files, zipfile.ZIP_DEFLATED)
    build("diffusiondb", tmp_path / "db", tmp_path / "built", BuildConfig(near_duplicates=None))
    table = open_split(tmp_path / "built", "train")
    assert {row["key"]: row["image"] for row in table} == {_name(n): files[_name(n)] for n in (100, 101, 102)}


@pytest.mark.parametrize("damage", ["size", "stream"])
def test_a_broken_stream_costs_its_picture_alone(tmp_path: Path, photo: Any, damage: str) -> None:
    files = _members(1, photo)
    files[_name(101)] += b" " * 1_000_000  # its size is told smaller than it is: a bomb
    path = _zip(tmp_path / "db" / "part-000001.zip", files, zipfile.ZIP_DEFLATED)
    raw = path.read_bytes()
    if damage == "size":
        raw = raw.replace(struct.pack("<I", len(files[_name(101)])), struct.pack("<I", 1000))
    else:
        start = raw.index(_name(101).encode()) + len(_name(101)) + 1
        raw = raw[:start] + b"\xff" * 8 + raw[start + 8 :]
    path.write_bytes(raw)
    report = build("diffusiondb", tmp_path / "db", tmp_path / "built", BuildConfig(near_duplicates=None))
    assert [(item["key"], item["reason"]) for item in report["dropped"]["items"]] == [
        (_name(101), "image_empty")
    ]
    assert report["splits"]["train"]["pictures"] == 2


def test_encrypted_and_huge_members_are_dropped(
    tmp_path: Path, photo: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    _zip(tmp_path / "part-000001.zip", _members(1, photo), zipfile.ZIP_LZMA)
    items = list(diffusiondb.read(tmp_path))
    assert _dropped(items) == [(_name(n), "broken_archive") for n in (100, 101, 102)]
    _zip(tmp_path / "part-000001.zip", _members(1, photo), zipfile.ZIP_DEFLATED)
    monkeypatch.setattr(diffusiondb, "_MOST_PICTURE", 100)
    assert _dropped(list(diffusiondb.read(tmp_path))) == [
        (_name(n), "broken_archive") for n in (100, 101, 102)
    ]


def test_prompts_of_the_table_where_a_part_has_no_json(tmp_path: Path, photo: Any) -> None:
    for part, store in ((1, _folder), (2, _zip)):
        files = _members(part, photo)
        del files[f"part-{part:06}.json"]
        store(tmp_path / f"part-{part:06}{'.zip' if store is _zip else ''}", files)
    _zip(tmp_path / "part-000003.zip", _members(3, photo))
    rows = [
        (_name(100), "one", 1),
        (_name(101), "two", 1),
        (_name(200), "three", 2),
        (_name(300), "not this", 3),
    ]
    _table(tmp_path / "metadata.parquet", rows)
    entries = _entries(list(diffusiondb.read(tmp_path)))
    found = {key: entry.captions[0] for key, entry in entries.items()}
    expected = {_name(100): "one", _name(101): "two", _name(200): "three"}
    assert {key: found[key] for key in expected} == expected
    assert found[_name(300)] == "geodesic landscape 300, tadao ando, 4 k, ", (
        "a part's own JSON is what counts"
    )
    assert len(found) == 6


def test_pictures_of_one_prompt_share_a_split(tmp_path: Path, photo: Any) -> None:
    prompts = {_name(n): _row(f"{' ' * (n % 2)}Prompt {n // 4}") for n in range(400)}
    files = dict.fromkeys(prompts, b"x")
    _folder(tmp_path / "part-000001", {**files, "part-000001.json": json.dumps(prompts).encode()})
    entries = _entries(list(diffusiondb.read(tmp_path, dev_fraction=0.3, test_fraction=0.2)))
    for n in range(400):
        assert entries[_name(n)].split == entries[_name(n // 4 * 4)].split
    counts = [sum(entry.split == split for entry in entries.values()) for split in ("train", "dev", "test")]
    assert 140 < counts[0] < 260
    assert 70 < counts[1] < 170
    assert 40 < counts[2] < 120
    assert {entry.split for entry in _entries(list(diffusiondb.read(tmp_path))).values()} == {"train"}
    with pytest.raises(ConfigError, match="dev_fraction"):
        list(diffusiondb.read(tmp_path, dev_fraction=2.0))


@pytest.mark.parametrize("store", ["folder", "zip"])
def test_what_is_dropped_and_why(tmp_path: Path, photo: Any, store: str) -> None:
    files = _members(1, photo)
    prompts = json.loads(files["part-000001.json"])
    prompts |= {
        _name(999): _row("nobody has it"),
        "../../etc/passwd.png": _row("a secret"),
        "a/b.png": _row("another folder"),
        "C:\\b.png": _row("another drive"),
        "notes.txt": _row("not a picture"),
        "row.png": ["no object"],
        "prompt.png": {"p": None},
    }
    files["part-000001.json"] = json.dumps(prompts).encode()
    _zip(tmp_path / "part-000001.zip", files) if store == "zip" else _folder(tmp_path / "part-000001", files)
    items = list(diffusiondb.read(tmp_path))
    assert len(_entries(items)) == 3
    assert _dropped(items) == sorted(
        [
            (_name(999), "missing_picture"),
            ("../../etc/passwd.png", "unsafe_path"),
            ("a/b.png", "unsafe_path"),
            ("C:\\b.png", "unsafe_path"),
            ("notes.txt", "stray_key"),
            ("row.png", "bad_row"),
            ("prompt.png", "bad_row"),
        ]
    )


def test_a_bomb_is_not_unpacked(tmp_path: Path, photo: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diffusiondb, "_MOST_JSON", 10_000)
    files = {**_members(1, photo), "part-000001.json": b'{"x": "' + b" " * 1_000_000 + b'"}'}
    path = _zip(tmp_path / "part-000001.zip", files)
    # the zip lies about the size: 5 bytes, in the local header and in the directory
    raw = path.read_bytes().replace(struct.pack("<I", 1_000_009), struct.pack("<I", 5))
    for data in (path.read_bytes(), raw):
        path.write_bytes(data)
        items = list(diffusiondb.read(tmp_path))
        assert _dropped(items) == [("part-000001.zip", "broken_archive")]
        assert not _entries(items)
    monkeypatch.setattr(diffusiondb, "_MOST_MEMBERS", 2)
    assert "4 members" in next(
        item.detail for item in diffusiondb.read(tmp_path) if isinstance(item, Dropped)
    )


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda raw: raw[: len(raw) // 2], "broken_archive"),  # no directory at the end
        (lambda raw: b"", "broken_archive"),
        (
            lambda raw: raw.replace(b"PK\x03\x04", b"PK\x07\x07"),
            "broken_archive",
        ),  # headers are not where it says
        (lambda raw: raw.replace(b"part-000001.json", b"part-000009.json"), None),  # no prompts at all
    ],
)
def test_a_damaged_zip_costs_itself_alone(
    tmp_path: Path, photo: Any, damage: Any, reason: str | None
) -> None:
    path = _zip(tmp_path / "part-000001.zip", _members(1, photo))
    path.write_bytes(damage(path.read_bytes()))
    _zip(tmp_path / "part-000002.zip", _members(2, photo))
    items = list(diffusiondb.read(tmp_path))
    assert list(_entries(items)) == [_name(n) for n in (200, 201, 202)]
    assert {why for _, why in _dropped(items)} == ({reason} if reason else {"no_caption"})


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    (tmp_path / "part-1.zip").write_bytes(b"")
    with pytest.raises(DataError, match=r"holds no part-000001\.zip"):
        list(diffusiondb.read(tmp_path))
    (tmp_path / "part-000001").mkdir()
    pq.write_table(pa.table({"other": [1]}), tmp_path / "metadata.parquet")
    with pytest.raises(DataError, match=r"metadata\.parquet: is no metadata table of DiffusionDB"):
        list(diffusiondb.read(tmp_path))
