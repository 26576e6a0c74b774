"""A CSV, TSV or JSON lines file of one's own."""

import json
from pathlib import Path
from typing import Any

import pytest

from vistill.data.build import BuildConfig, build
from vistill.data.dataset import open_split
from vistill.data.records import Dropped, Entry, Item
from vistill.data.sources import table
from vistill.errors import ConfigError, DataError


@pytest.fixture
def root(tmp_path: Path, photo: Any) -> Path:
    photos = tmp_path / "mine" / "photos"
    photos.mkdir(parents=True)
    for number in range(8):
        (photos / f"{number}.jpg").write_bytes(photo(number))
    return photos.parent


def _entries(items: list[Item]) -> dict[str, Entry]:
    return {item.key: item for item in items if isinstance(item, Entry)}


def _dropped(items: list[Item]) -> list[tuple[str, str]]:
    return sorted((item.key, item.reason) for item in items if isinstance(item, Dropped))


CSV = (
    "\ufeffImage,Caption,Split\r\n"
    'photos/0.jpg,"A dog, and a ""cat""",train\r\n'
    "photos/0.jpg,A second caption,train\r\n"
    "./photos/1.jpg,Another dog,VAL\r\n"
    "photos/2.jpg,No split yet,\r\n"
    "\r\n"
)


def test_a_csv_builds(root: Path, tmp_path: Path) -> None:
    (root / "captions.csv").write_text(CSV, "utf-8")
    (root / "notes.txt").write_text("not a table")
    report = build("table", root, tmp_path / "out")
    assert report["dropped"]["counts"] == {}
    train = open_split(tmp_path / "out", "train")
    assert train["key"][:] == ["photos/0.jpg", "photos/2.jpg"], "pictures that are not named stay out"
    assert train["captions"][0] == ['A dog, and a "cat"', "A second caption"]
    assert open_split(tmp_path / "out", "dev")["key"][:] == ["photos/1.jpg"]


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl"])
def test_semicolons_tabs_and_json_lines_say_the_same(root: Path, name: str) -> None:
    rows = [("0.jpg", "A dog, here", "test"), ("1.jpg", "A cat", ""), ("0.jpg", "Again", "")]
    if name == "a.jsonl":
        keys = ("file_name", "text", "split")
        lines = [json.dumps(dict(zip(keys, row, strict=True))) for row in rows]
        lines.append(json.dumps({"image": "2.jpg", "captions": ["One", "Two"]}))
    else:
        sign = ";" if name == "a.csv" else "\t"
        lines = [sign.join(row) for row in (("filename", "text", "split"), *rows)]
        lines += [f"2.jpg{sign}One{sign}", f"2.jpg{sign}Two{sign}"]
    (root / name).write_text("\n".join(lines), "utf-8")
    entries = _entries(list(table.read(root, images="photos")))
    assert {key: (entry.captions, entry.split) for key, entry in entries.items()} == {
        "0.jpg": (("A dog, here", "Again"), "test"),
        "1.jpg": (("A cat",), "train"),
        "2.jpg": (("One", "Two"), "train"),
    }


def test_splits_are_drawn_by_picture_with_a_seed(root: Path) -> None:
    rows = [f"{number}.jpg,caption {n} of it" for number in range(8) for n in range(3)]
    (root / "a.csv").write_text("\n".join(["image,caption", *rows]))

    def splits(**options: Any) -> dict[str, str]:
        found = _entries(list(table.read(root, images="photos", **options)))
        assert {len(entry.captions) for entry in found.values()} == {3}
        return {key: entry.split for key, entry in found.items()}

    drawn = splits(dev_fraction=0.25, test_fraction=0.25)
    assert sorted(drawn.values()) == ["dev"] * 2 + ["test"] * 2 + ["train"] * 4
    assert drawn != splits(dev_fraction=0.25, test_fraction=0.25, seed=3)
    (root / "a.csv").write_text("\n".join(["image,caption", *reversed(rows)]))
    assert drawn == splits(dev_fraction=0.25, test_fraction=0.25), "the order of rows must not matter"


def test_dirt(root: Path) -> None:
    bad = (
        b"image,caption,split\n0.jpg,good,train\n0.jpg,also,test\ngone.jpg,x,\n../../secret.jpg,x,\n"
        b"/etc/passwd,x,\n,no name,\n1.jpg,caf\xe9,\n1.jpg,too,many,fields\n1.jpg,,train\n"
    )
    (root / "a.csv").write_bytes(bad)
    items = list(table.read(root, images="photos"))
    entries = _entries(items)
    assert (entries["0.jpg"].captions, entries["0.jpg"].split) == (("good", "also"), "test")
    assert entries["1.jpg"].captions == (), "a picture without a caption is left to the build"
    assert _dropped(items) == sorted(
        [
            ("0.jpg", "conflicting_split"),
            ("gone.jpg", "missing_picture"),
            ("../../secret.jpg", "unsafe_path"),
            ("/etc/passwd", "unsafe_path"),
            ("a.csv:7", "bad_row"),
            ("a.csv:8", "not_utf8"),
            ("a.csv:9", "bad_row"),
        ]
    )


@pytest.mark.parametrize(
    ("files", "options", "error", "message"),
    [
        ({}, {}, DataError, r"expected one .csv, .tsv, .jsonl file, found none"),
        (
            {"a.csv": "", "b.jsonl": ""},
            {},
            DataError,
            r"found a.csv, b.jsonl; name the file with annotations",
        ),
        (
            {"a.csv": "picture,text\nx,y\n"},
            {},
            DataError,
            "has columns picture, text; expected one of file_name",
        ),
        (
            {"a.csv": "image,label\nx,y\n"},
            {},
            DataError,
            "has columns image, label; expected one of captions",
        ),
        (
            {"a.csv": "image,text,split\n0.jpg,y,hold\n"},
            {"images": "photos"},
            DataError,
            "unknown split 'hold'",
        ),
        ({"a.csv": "\ufeffimage".encode("utf-16")}, {}, DataError, "is UTF-16; convert it to UTF-8"),
        ({"a.csv": "image,text\n"}, {"images": "nowhere"}, DataError, "nowhere: no such folder"),
        ({"a.csv": "image,text\n"}, {"dev_fraction": -1.0}, ConfigError, "dev_fraction -1.0"),
    ],
)
def test_errors(root: Path, files: Any, options: Any, error: type, message: str) -> None:
    for name, text in files.items():
        (root / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(error, match=message):
        list(table.read(root, **options))


def test_sample_and_cleaning_reach_a_table(root: Path, tmp_path: Path) -> None:
    rows = [f"{number}.jpg,a dog 's toy number {number} ." for number in range(8)]
    (root / "a.csv").write_text("\n".join(["image,caption", *rows]))
    config = BuildConfig(num_samples=5, clean=("spacing",), options={"images": "photos"})
    report = build("table", root, tmp_path / "out", config)
    assert report["splits"]["train"]["pictures"] == 5
    assert report["cleaned"]["spacing"]["captions"] == 8, "counted before the draw"
    for row in open_split(tmp_path / "out", "train"):
        assert row["captions"] == [f"a dog's toy number {row['key'][0]}."]
