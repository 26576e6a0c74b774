"""The readers, on tiny data sets in their real formats with the dirt that real ones have."""

import errno
import io
import json
import os
import shutil
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vistill.archive.walk import SUFFIXES
from vistill.data.records import Annotation, Dropped, Entry, Item
from vistill.data.sources import (
    SOURCES,
    coco,
    conceptual_captions,
    flickr8k,
    folder,
    karpathy,
    parquet,
    webdataset,
)
from vistill.data.sources.common import csv_rows
from vistill.errors import ConfigError, DataError


def _entries(items: list[Item]) -> dict[str, Entry]:
    return {item.key: item for item in items if isinstance(item, Entry)}


def _dropped(items: list[Item]) -> list[tuple[str, str]]:
    return sorted((item.key, item.reason) for item in items if isinstance(item, Dropped))


def _write(path: Path, data: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def test_every_source_is_in_the_table() -> None:
    files = {path.stem for path in Path(flickr8k.__file__).parent.glob("*.py")} - {"__init__", "common"}
    assert set(SOURCES) == files


# Flickr8k


def test_flickr8k(flickr: Path) -> None:
    items = list(flickr8k.read(flickr))
    entries = _entries(items)
    splits = {
        split: sum(entry.split == split for entry in entries.values()) for split in ("train", "dev", "extra")
    }
    assert splits == {"train": 8, "dev": 2, "extra": 2}
    assert entries["0_abc.jpg"].captions[4] == "A dog number 4 runs past photo 0 ."
    assert _dropped(items) == [
        ("2258277193_586949ec62.jpg.1", "stray_key"),
        ("missing.jpg", "missing_picture"),
    ]
    assert [item.path.name for item in items if isinstance(item, Annotation)] == [
        "Flickr8k.token.txt",
        "Flickr_8k.devImages.txt",
        "Flickr_8k.trainImages.txt",
    ]


def test_flickr8k_text_with_bom_crlf_bad_bytes_and_bad_lines(flickr: Path) -> None:
    tokens = flickr / "Flickr8k_text" / "Flickr8k.token.txt"
    text = tokens.read_bytes().replace(b"\n", b"\r\n")
    bad = b"0_abc.jpg#5\tcaf\xe9\r\nno tab here\r\n\r\n../../etc/passwd#0\tA secret file .\r\n"
    tokens.write_bytes(b"\xef\xbb\xbf" + text + bad)
    train = flickr / "Flickr8k_text" / "Flickr_8k.trainImages.txt"
    train.write_bytes(train.read_bytes().replace(b"\n", b"\r\n") + b"8_abc.jpg\r\nnever_seen.jpg")
    items = list(flickr8k.read(flickr))
    entries = _entries(items)
    assert len(entries) == 12
    assert len(entries["0_abc.jpg"].captions) == 5
    assert not any("\r" in caption for entry in entries.values() for caption in entry.captions)
    assert entries["8_abc.jpg"].split == "dev", "listed in dev and train: what is evaluated stays evaluated"
    lines = 5 * 14
    assert _dropped(items) == sorted(
        [
            ("2258277193_586949ec62.jpg.1", "stray_key"),
            ("missing.jpg", "missing_picture"),
            (f"Flickr8k.token.txt:{lines + 1}", "not_utf8"),
            (f"Flickr8k.token.txt:{lines + 2}", "bad_row"),
            ("../../etc/passwd", "unsafe_path"),
            ("8_abc.jpg", "conflicting_split"),
            ("never_seen.jpg", "no_caption"),
        ]
    )


@pytest.mark.parametrize(
    ("gone", "expected"),
    [
        ("Flickr8k_text/Flickr8k.token.txt", "the Flickr8k token file"),
        ("Flicker8k_Dataset", "the Flickr8k photos"),
    ],
)
def test_flickr8k_says_what_is_missing(flickr: Path, gone: str, expected: str) -> None:
    (flickr / gone).rename(flickr / "elsewhere")
    with pytest.raises(DataError, match=expected) as caught:
        list(flickr8k.read(flickr))
    assert str(flickr / gone) in str(caught.value)


def test_flickr8k_without_any_split_file(flickr: Path) -> None:
    for path in flickr.glob("Flickr8k_text/*Images.txt"):
        path.unlink()
    with pytest.raises(
        DataError, match=r"trainImages.txt: no such file; expected the list of training photos"
    ):
        list(flickr8k.read(flickr))


# Folder


def test_folder_with_text_files_and_split_folders(tmp_path: Path, photo) -> None:
    for name in (
        "train/a.jpg",
        "train/deep/b.PNG",
        "val/c.jpg",
        "loose.jpg",
        "uncaptioned.jpg",
        ".hidden/h.jpg",
    ):
        _write(tmp_path / name, photo(len(name)))
    _write(tmp_path / "train/a.txt", b"\xef\xbb\xbfA first caption\r\nA second caption\r\n\r\n")
    _write(tmp_path / "train/deep/b.txt", "One caption")
    _write(tmp_path / "val/c.txt", b"Good line\ncaf\xe9")
    _write(tmp_path / "loose.txt", "Loose")
    _write(tmp_path / "orphan.txt", "Whose am I?")
    items = list(folder.read(tmp_path))
    entries = _entries(items)
    assert {key: entry.split for key, entry in entries.items()} == {
        "val/c.jpg": "dev",
        "loose.jpg": "train",
        "train/a.jpg": "train",
        "train/deep/b.PNG": "train",
        "uncaptioned.jpg": "train",
    }
    assert entries["train/a.jpg"].captions == ("A first caption", "A second caption")
    assert entries["val/c.jpg"].captions == ("Good line",)
    assert entries["uncaptioned.jpg"].captions == ()
    assert _dropped(items) == [("orphan.txt", "missing_picture"), ("val/c.jpg", "not_utf8")]
    assert next(iter(entries)) == "val/c.jpg", "evaluated splits come first"


def test_folder_names_folders_that_it_does_not_enter(tmp_path: Path, photo, monkeypatch) -> None:
    for name in ("a.jpg", "locked/b.jpg", "sub/c.jpg", "sub/locked/d.jpg"):
        _write(tmp_path / "root" / name, photo(len(name)))
    _write(tmp_path / "elsewhere" / "e.jpg", photo(1))
    (tmp_path / "root" / "sub" / "linked").symlink_to(tmp_path / "elsewhere")
    _refuse_locked(monkeypatch)
    items = list(folder.read(tmp_path / "root"))
    assert set(_entries(items)) == {"a.jpg", "sub/c.jpg"}
    assert _dropped(items) == [
        ("locked", "unreadable_folder"),
        ("sub/linked", "linked_folder"),
        ("sub/locked", "unreadable_folder"),
    ]
    (tmp_path / "root" / "a.jpg").unlink()
    (tmp_path / "root" / "sub" / "c.jpg").unlink()
    with pytest.raises(DataError, match=r"holds no picture .*; locked: cannot be listed: Permission denied"):
        list(folder.read(tmp_path / "root"))


def test_conceptual_captions_names_folders_that_it_does_not_enter(tmp_path: Path, monkeypatch) -> None:
    _write(tmp_path / "train.tsv", "a dog\thttp://example.org/1.jpg\n")
    for name in ("locked", "there"):
        (tmp_path / "pictures" / name).mkdir(parents=True)
    (tmp_path / "pictures" / "linked").symlink_to(tmp_path / "pictures" / "there")
    _refuse_locked(monkeypatch)
    assert _dropped(list(conceptual_captions.read(tmp_path)))[-2:] == [
        ("linked", "linked_folder"),
        ("locked", "unreadable_folder"),
    ]


@pytest.mark.parametrize("reader", [webdataset, parquet])
def test_archives_name_folders_that_they_do_not_enter(tmp_path: Path, photo, monkeypatch, reader) -> None:
    root, suffix = tmp_path / "root", {webdataset: "tar", parquet: "parquet"}[reader]
    for name in ("1", "locked/2", "sub/3", "sub/locked/4", f"named.{suffix}/5"):
        path = root / f"{name}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        if reader is webdataset:
            _tar(path, _sample(photo, path.stem))
        else:
            pq.write_table(pa.table({"image": [photo(1)], "text": ["one"], "key": [path.stem]}), path)
    (tmp_path / "elsewhere").mkdir()
    (root / "sub" / "linked").symlink_to(tmp_path / "elsewhere")
    (root / f"dangling.{suffix}").symlink_to("nowhere")
    os.mkfifo(root / f"pipe.{suffix}")
    _refuse_locked(monkeypatch)
    items = list(reader.read(root))
    assert sorted(_entries(items)) == ["1", "3", "5"]
    assert _dropped(items) == [
        (f"dangling.{suffix}", "broken_archive"),
        ("locked", "unreadable_folder"),
        (f"pipe.{suffix}", "broken_archive"),
        ("sub/linked", "linked_folder"),
        ("sub/locked", "unreadable_folder"),
    ]
    with pytest.raises(DataError, match=rf"no .{suffix} file.*; .: cannot be listed: Permission denied"):
        list(reader.read(root / "locked"))


def _refuse_locked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no folder called `locked` be listed; permissions would not stop a test that runs as root."""
    listed = os.scandir

    def scandir(path):
        if os.path.basename(path) == "locked":
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return listed(path)

    monkeypatch.setattr(os, "scandir", scandir)


def test_folder_takes_every_suffix_that_captioning_takes(tmp_path: Path) -> None:
    for suffix in SUFFIXES:
        _write(tmp_path / f"a{suffix}", b"")
    assert set(_entries(list(folder.read(tmp_path)))) == {f"a{suffix}" for suffix in SUFFIXES}
    assert {".mpo", ".apng", ".dib", ".pnm", ".jpx", ".jxl"} <= SUFFIXES


@pytest.mark.parametrize(
    "text",
    ["A dog\n".encode("utf-16"), "A dog\n".encode("utf-16-be"), "A dog".encode("utf-16-le")],
    ids=["with a mark", "big endian", "little endian"],
)
def test_folder_drops_a_utf16_text_file_alone(tmp_path: Path, photo, text: bytes) -> None:
    for name in ("a", "b"):
        _write(tmp_path / f"{name}.jpg", photo(1))
    _write(tmp_path / "a.txt", text)
    _write(tmp_path / "b.txt", "A cat")
    items = list(folder.read(tmp_path))
    assert {key: entry.captions for key, entry in _entries(items).items()} == {
        "a.jpg": (),
        "b.jpg": ("A cat",),
    }
    assert set(_dropped(items)) == {("a.jpg", "not_utf8")}


def test_folder_drops_a_text_file_that_leads_nowhere_alone(tmp_path: Path, photo) -> None:
    _write(tmp_path / "a.jpg", photo(1))
    (tmp_path / "a.txt").symlink_to(tmp_path / "gone")
    assert _dropped(list(folder.read(tmp_path))) == [("a.jpg", "bad_row")]


def test_json_that_is_nested_too_deeply(tmp_path: Path, photo) -> None:
    deep = "[" * 200_000
    _write(tmp_path / "a.jpg", photo(1))
    _write(tmp_path / "metadata.jsonl", f'{deep}\n{{"file_name": "a.jpg", "text": "A dog"}}\n')
    items = list(folder.read(tmp_path))
    assert _entries(items)["a.jpg"].captions == ("A dog",)
    assert _dropped(items) == [("metadata.jsonl:1", "bad_row")]
    _write(tmp_path / "dataset_deep.json", deep)
    (tmp_path / "images").mkdir()
    with pytest.raises(DataError, match=r"dataset_deep.json: is not JSON: it is nested too deeply"):
        list(karpathy.read(tmp_path))


def test_folder_with_jsonl(tmp_path: Path, photo) -> None:
    for name in ("a.jpg", "b.jpg", "sub/c.jpg"):
        _write(tmp_path / name, photo(len(name)))
    rows = [
        {"file_name": "a.jpg", "text": "A one", "split": "validation"},
        {"file_name": "a.jpg", "text": "A two", "split": "train"},
        {"image": "b.jpg", "captions": ["B one", "B two"], "split": "train"},
        {"file_name": "sub/c.jpg", "caption": "C"},
        {"file_name": "gone.jpg", "text": "Gone"},
        {"file_name": "../outside.jpg", "text": "Out"},
        {"file_name": "/etc/passwd", "text": "Out"},
        {"file_name": "C:\\Windows\\x.jpg", "text": "Out"},
        {"file_name": "sub\\..\\..\\x.jpg", "text": "Out"},
        {"file_name": 7, "text": "Number"},
        {"file_name": "b.jpg", "captions": ["fine", 3]},
        ["no", "object"],
    ]
    lines = [json.dumps(row) for row in rows] + ["{broken"]
    _write(tmp_path / "metadata.jsonl", b"\xef\xbb\xbf" + "\r\n".join(lines).encode() + b"\r\n{\xff}\r\n")
    _write(tmp_path.parent / "outside.jpg", photo(1))
    items = list(folder.read(tmp_path))
    entries = _entries(items)
    assert entries["a.jpg"].captions == ("A one", "A two")
    assert entries["a.jpg"].split == "dev"
    assert entries["b.jpg"].captions == ("B one", "B two")
    assert entries["sub/c.jpg"].captions == ("C",)
    assert _dropped(items) == sorted(
        [
            ("a.jpg", "conflicting_split"),
            ("gone.jpg", "missing_picture"),
            ("../outside.jpg", "unsafe_path"),
            ("/etc/passwd", "unsafe_path"),
            ("C:\\Windows\\x.jpg", "unsafe_path"),
            ("sub\\..\\..\\x.jpg", "unsafe_path"),
            ("metadata.jsonl:10", "bad_row"),
            ("metadata.jsonl:11", "bad_row"),
            ("metadata.jsonl:12", "bad_row"),
            ("metadata.jsonl:13", "bad_row"),
            ("metadata.jsonl:14", "not_utf8"),
        ]
    )


def test_folder_with_csv(tmp_path: Path, photo) -> None:
    for name in ("a.jpg", "b.jpg"):
        _write(tmp_path / "train" / name, photo(len(name)))
    _write(
        tmp_path / "train" / "metadata.csv",
        b'\xef\xbb\xbfFile_Name,Text\r\na.jpg,"A dog, and ""two""\nlines"\r\n'
        b"a.jpg,caf\xe9\r\nb.jpg,one,two\r\nb.jpg,B\r\n",
    )
    items = list(folder.read(tmp_path))
    entries = _entries(items)
    assert entries["train/a.jpg"].captions == ('A dog, and "two"\nlines',)
    assert entries["train/b.jpg"].captions == ("B",)
    assert {entry.split for entry in entries.values()} == {"train"}
    assert _dropped(items) == [("metadata.csv:4", "not_utf8"), ("metadata.csv:5", "bad_row")]


def test_folder_draws_splits_by_picture_with_a_seed(tmp_path: Path, photo) -> None:
    rows = []
    for number in range(20):
        _write(tmp_path / f"{number}.jpg", photo(number))
        rows += [json.dumps({"file_name": f"{number}.jpg", "text": f"caption {n} of it"}) for n in range(3)]
    _write(tmp_path / "metadata.jsonl", "\n".join(rows))

    def splits(**options) -> dict[str, str]:
        return {key: entry.split for key, entry in _entries(list(folder.read(tmp_path, **options))).items()}

    drawn = splits(dev_fraction=0.2, test_fraction=0.1)
    assert sorted(drawn.values()).count("dev") == 4
    assert sorted(drawn.values()).count("test") == 2
    assert drawn == splits(dev_fraction=0.2, test_fraction=0.1)
    assert drawn != splits(dev_fraction=0.2, test_fraction=0.1, seed=1)
    (tmp_path / "metadata.jsonl").write_text("\n".join(reversed(rows)))
    assert drawn == splits(dev_fraction=0.2, test_fraction=0.1), "the order of rows must not matter"


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"metadata.csv": "picture,text\na.jpg,x\n"}, "has columns picture, text; expected one of file_name"),
        (
            {"metadata.csv": "file_name,label\na.jpg,x\n"},
            "has columns file_name, label; expected one of captions",
        ),
        (
            {"metadata.csv": "file_name,text,split\na.jpg,x,holdout\n"},
            "metadata.csv:2: unknown split 'holdout'",
        ),
        ({"metadata.csv": "a", "metadata.jsonl": "{}"}, "keep one of them"),
        ({"metadata.jsonl": b"\xff\xfe{\x00}\x00"}, "is UTF-16; convert it to UTF-8"),
    ],
)
def test_folder_refuses_metadata_it_cannot_use(tmp_path: Path, photo, metadata, message: str) -> None:
    _write(tmp_path / "a.jpg", photo(1))
    for name, content in metadata.items():
        _write(tmp_path / name, content)
    with pytest.raises(DataError, match=message):
        list(folder.read(tmp_path))


def test_folder_without_pictures_and_with_a_wrong_fraction(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no picture"):
        list(folder.read(tmp_path))
    with pytest.raises(ConfigError, match=r"dev_fraction 0.7 and test_fraction 0.7"):
        list(folder.read(tmp_path, dev_fraction=0.7, test_fraction=0.7))


# COCO


def _coco(root: Path, photo, name: str, first: int, count: int) -> dict:
    data = {
        "licenses": [{"id": 4, "name": "Attribution License", "url": "http://example.org/by/2.0/"}],
        "images": [
            {"id": first + n, "file_name": f"COCO_{first + n:012d}.jpg", "license": 4} for n in range(count)
        ],
        "annotations": [
            {"id": 10 * n + c, "image_id": first + n, "caption": f"Caption {c} of {first + n}."}
            for c in range(2)
            for n in range(count)
        ],
    }
    for row in data["images"]:
        _write(root / name / row["file_name"], photo(row["id"]))
    return data


def test_coco_standard_files(tmp_path: Path, photo) -> None:
    _write(
        tmp_path / "annotations/captions_train2014.json",
        json.dumps(_coco(tmp_path, photo, "train2014", 1, 3)),
    )
    val = _coco(tmp_path, photo, "val2014", 11, 2)
    val["annotations"] += [
        {"id": 99, "image_id": 777, "caption": "Stray"},
        {"id": 98, "image_id": 11},
        {"id": 97, "image_id": True, "caption": "Odd"},
    ]
    val["images"] += [
        {"id": 50, "file_name": "gone.jpg"},
        {"id": 51, "file_name": "../train2014/COCO_000000000001.jpg"},
        {"id": 52},
    ]
    _write(tmp_path / "annotations/captions_val2014.json", b"\xef\xbb\xbf" + json.dumps(val).encode())
    items = list(SOURCES["coco"](tmp_path))
    entries = _entries(items)
    assert list(entries) == ["11", "12", "1", "2", "3"]
    assert entries["11"].captions == ("Caption 0 of 11.", "Caption 1 of 11.")
    assert entries["11"].split == "dev"
    assert entries["1"].split == "train"
    assert entries["1"].licence == "Attribution License http://example.org/by/2.0/"
    assert _dropped(items) == sorted(
        [
            ("777", "stray_key"),
            ("captions_val2014.json:annotations[5]", "bad_row"),
            ("captions_val2014.json:annotations[6]", "bad_row"),
            ("50", "missing_picture"),
            ("51", "unsafe_path"),
            ("captions_val2014.json:images[4]", "bad_row"),
        ]
    )


def test_coco_parts_of_our_own(tmp_path: Path, photo) -> None:
    _write(tmp_path / "a.json", json.dumps(_coco(tmp_path, photo, "pics", 1, 2)))
    _write(tmp_path / "b.json", json.dumps(_coco(tmp_path, photo, "more", 1, 2)))
    parts = ["train:a.json:pics", "test:b.json:more"]
    entries = [item for item in coco.read(tmp_path, parts) if isinstance(item, Entry)]
    assert [(entry.key, entry.split) for entry in entries] == [
        ("1", "test"),
        ("2", "test"),
        ("1", "train"),
        ("2", "train"),
    ]
    by_name = [
        item.key for item in coco.read(tmp_path, parts[:1], keys="file_name") if isinstance(item, Entry)
    ]
    assert by_name == ["COCO_000000000001.jpg", "COCO_000000000002.jpg"]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({}, DataError, "holds none of annotations/captions_val2017.json"),
        ({"parts": ["train:a.json"]}, ConfigError, "part 'train:a.json' is not SPLIT:ANNOTATIONS:PICTURES"),
        ({"parts": ["holdout:a.json:pics"]}, DataError, "unknown split 'holdout'"),
        ({"parts": ["train:b.json:pics"]}, DataError, "b.json: no such file; expected COCO captions"),
        ({"parts": ["train:list.json:pics"]}, DataError, "list.json: is not a COCO file"),
        ({"parts": ["train:broken.json:pics"]}, DataError, "broken.json: is not JSON"),
        ({"parts": ["train:latin.json:pics"]}, DataError, "latin.json: is not UTF-8"),
        ({"parts": ["train:list.json:nowhere"]}, DataError, "nowhere: no such folder"),
        ({"keys": "name"}, ConfigError, "keys must be one of id, file_name, not 'name'"),
    ],
)
def test_coco_errors(tmp_path: Path, options: dict, error: type, message: str) -> None:
    (tmp_path / "pics").mkdir()
    _write(tmp_path / "list.json", "[1]")
    _write(tmp_path / "broken.json", "{")
    _write(tmp_path / "latin.json", '{"a": "é"}'.encode("latin-1"))
    with pytest.raises(error, match=message):
        list(coco.read(tmp_path, **options))


# Karpathy


def _karpathy(root: Path, photo) -> dict:
    rows = []
    for number, split in enumerate(["train", "val", "test", "restval", "restval"]):
        _write(root / "val2014" / f"{number}.jpg", photo(number))
        sentences = [{"raw": f"Photo {number}.", "tokens": ["photo", str(number)]}, {"tokens": ["no", "raw"]}]
        rows.append(
            {
                "filename": f"{number}.jpg",
                "filepath": "val2014",
                "cocoid": 100 + number,
                "split": split,
                "sentences": sentences,
            }
        )
    return {"dataset": "coco", "images": rows}


@pytest.mark.parametrize(
    ("restval", "splits"),
    [
        ("train", {"100": "train", "101": "dev", "102": "test", "103": "train", "104": "train"}),
        ("extra", {"100": "train", "101": "dev", "102": "test", "103": "extra", "104": "extra"}),
        ("drop", {"100": "train", "101": "dev", "102": "test"}),
    ],
)
def test_karpathy_restval(tmp_path: Path, photo, restval: str, splits: dict[str, str]) -> None:
    _write(tmp_path / "dataset_coco.json", json.dumps(_karpathy(tmp_path, photo)))
    items = list(karpathy.read(tmp_path, restval=restval))
    entries = _entries(items)
    assert {key: entry.split for key, entry in entries.items()} == splits
    assert entries["100"].captions == ("Photo 0.", "no raw")
    assert entries["100"].source == "coco"
    assert len(_dropped(items)) == (2 if restval == "drop" else 0)


def test_karpathy_dirt(tmp_path: Path, photo) -> None:
    data = _karpathy(tmp_path, photo)
    data["images"] += [
        {"filename": "gone.jpg", "split": "train", "sentences": []},
        {"filename": "../secret.jpg", "split": "train", "sentences": []},
        {"filename": "0.jpg", "filepath": "..", "split": "train", "sentences": []},
        {"filename": "0.jpg", "split": "train", "sentences": "none"},
        {"split": "train"},
        {"filename": "x" * 300 + ".jpg", "split": "train", "sentences": []},
    ]
    _write(tmp_path / "x.json", json.dumps(data))
    items = list(karpathy.read(tmp_path, annotations="x.json", images="."))
    assert len(_entries(items)) == 5
    assert [reason for _, reason in _dropped(items)].count("unsafe_path") == 2
    assert ("gone.jpg", "missing_picture") in _dropped(items)
    assert ("0.jpg", "bad_row") in _dropped(items)
    assert ("x.json:images[9]", "bad_row") in _dropped(items)
    assert ("x" * 300 + ".jpg", "bad_row") in _dropped(items)


def test_karpathy_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"expected one dataset\*.json, found none"):
        list(karpathy.read(tmp_path))
    with pytest.raises(ConfigError, match="restval must be one of train, extra, drop, not 'keep'"):
        list(karpathy.read(tmp_path, restval="keep"))
    _write(
        tmp_path / "dataset.json",
        json.dumps({"images": [{"filename": "a.jpg", "split": "odd", "sentences": []}]}),
    )
    with pytest.raises(DataError, match=r"dataset.json:images\[0\]: unknown split 'odd'"):
        list(karpathy.read(tmp_path))


# WebDataset


def _tar(path: Path, members: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def _sample(photo, key: str, caption: str | None = "A caption") -> dict[str, bytes]:
    members = {f"{key}.jpg": photo(int(key)), f"{key}.json": json.dumps({"caption": "of json"}).encode()}
    return members if caption is None else {**members, f"{key}.txt": caption.encode()}


def test_webdataset_of_img2dataset(tmp_path: Path, photo) -> None:
    samples = {**_sample(photo, "000000000"), **_sample(photo, "000000001", None)}
    samples |= {"000000002.txt": b"no picture", "000000003.jpg": photo(3), "000000003.txt": b"caf\xe9"}
    samples |= {"000000004.jpg": photo(4), "000000004.json": b'{"caption": 5}', "000000005.png": photo(5)}
    _tar(tmp_path / "00000.tar", samples)
    _tar(tmp_path / "val" / "00000.tar", _sample(photo, "000000900"))
    (tmp_path / "00000_stats.json").write_text("{}")
    items = list(webdataset.read(tmp_path))
    entries = _entries(items)
    assert {key: entry.captions for key, entry in entries.items()} == {
        "000000900": ("A caption",),
        "000000000": ("A caption",),
        "000000001": ("of json",),
        "000000003": (),
        "000000004": (),
        "000000005": (),
    }
    assert [entry.split for entry in entries.values()] == ["dev"] + ["train"] * 5
    assert _dropped(items) == [
        ("000000002", "missing_picture"),
        ("000000003", "not_utf8"),
        ("000000004", "bad_row"),
    ]
    offset, length = entries["000000001"].span
    assert (tmp_path / "00000.tar").read_bytes()[offset : offset + length] == photo(1)


def test_webdataset_tar_that_ends_too_early(tmp_path: Path, photo) -> None:
    path = _tar(tmp_path / "a.tar", {**_sample(photo, "1"), **_sample(photo, "2")})
    entries = _entries(list(webdataset.read(tmp_path)))
    path.write_bytes(path.read_bytes()[: entries["2"].span[0] + 100])
    _write(tmp_path / "b.tar", b"<html>404</html>" * 100)
    items = list(webdataset.read(tmp_path))
    assert list(_entries(items)) == ["1"]
    assert _dropped(items) == [
        ("2", "broken_archive"),
        ("a.tar", "broken_archive"),
        ("b.tar", "broken_archive"),
    ]


def test_webdataset_draws_each_picture_by_its_key(tmp_path: Path, photo) -> None:
    samples = {name: data for n in range(200) for name, data in {f"{n}.jpg": b"x", f"{n}.txt": b"ab"}.items()}
    _tar(tmp_path / "a.tar", samples)
    splits = {key: entry.split for key, entry in _entries(list(webdataset.read(tmp_path, 0.2, 0.1))).items()}
    counts = [list(splits.values()).count(name) for name in ("train", "dev", "test")]
    assert counts[0] in range(120, 160)
    assert counts[1] in range(25, 56)
    assert counts[2] in range(8, 33)
    _tar(tmp_path / "a.tar", dict(list(samples.items())[:100]))
    fewer = {key: entry.split for key, entry in _entries(list(webdataset.read(tmp_path, 0.2, 0.1))).items()}
    assert len(fewer) == 50
    assert fewer.items() <= splits.items(), "a picture's split does not depend on the others"
    with pytest.raises(DataError, match=r"holds no .tar file"):
        list(webdataset.read(_write(tmp_path / "empty" / "x.txt", "").parent))


# Parquet


def test_parquet_of_datasets_and_of_others(tmp_path: Path, photo) -> None:
    images = [{"bytes": photo(n), "path": f"{n}.jpg"} for n in range(3)]
    hugging = pa.table(
        {"image": images, "text": ["one dog", "two dogs", "three dogs"], "license": ["CC0"] * 3}
    )
    pq.write_table(hugging, tmp_path / "validation-00000-of-00001.parquet", row_group_size=2)
    (tmp_path / "train").mkdir()
    ours = pa.table(
        {
            "bild": [photo(7), photo(8)],
            "key": ["a", None],
            "captions": [["x y", "z"], None],
            "split": [None, "test"],
            "question": ["why?", None],
            "answers": [["so", "because"], None],
        }
    )
    pq.write_table(ours, tmp_path / "train" / "part.parquet")
    with pytest.raises(DataError, match=r"part.parquet: has columns bild, key, .*; expected image or jpg or"):
        list(parquet.read(tmp_path))
    (tmp_path / "validation-00000-of-00001.parquet").rename(tmp_path / "kept")
    entries = _entries(list(parquet.read(tmp_path, ["image=bild"])))
    assert [(e.key, e.captions, e.split, e.question, e.answers) for e in entries.values()] == [
        ("a", ("x y", "z"), "train", "why?", ("so", "because")),
        ("part:0:1", (), "test", "", ()),
    ]
    shutil.rmtree(tmp_path / "train")
    (tmp_path / "kept").rename(tmp_path / "validation-00000-of-00001.parquet")
    entries = _entries(list(parquet.read(tmp_path)))
    assert [entry.cell for entry in entries.values()] == [(0, 0, "image"), (0, 1, "image"), (1, 0, "image")]
    assert {entry.split for entry in entries.values()} == {"dev"}
    assert next(iter(entries.values())).licence == "CC0"


@pytest.mark.parametrize(
    ("columns", "error", "message"),
    [
        (["image"], ConfigError, "column 'image' is not OURS=THEIRS"),
        (["picture=image"], ConfigError, "with OURS one of image, captions, key"),
        (["captions=prompt"], DataError, "has columns image; expected prompt for captions"),
    ],
)
def test_parquet_errors(tmp_path: Path, columns: list[str], error: type, message: str) -> None:
    pq.write_table(pa.table({"image": [b"x"]}), tmp_path / "a.parquet")
    with pytest.raises(error, match=message):
        list(parquet.read(tmp_path, columns))
    (tmp_path / "a.parquet").write_bytes(b"no parquet at all")
    with pytest.raises(DataError, match=r"a.parquet: is not a Parquet file"):
        list(parquet.read(tmp_path))


# Real data


@pytest.mark.data
def test_real_flickr8k_annotations(data_root: Path) -> None:
    items = list(flickr8k.read(data_root / "flickr8k"))
    entries = _entries(items)
    splits = [entry.split for entry in entries.values()]
    assert (splits.count("train"), splits.count("dev"), splits.count("extra")) == (5999, 1000, 91)
    assert {len(entry.captions) for entry in entries.values()} == {5}
    assert _dropped(items) == [
        ("2258277193_586949ec62.jpg.1", "stray_key"),
        ("3050606344_af711c726c.jpg", "missing_picture"),
    ]


@pytest.mark.data
def test_real_rsicd_annotations(data_root: Path) -> None:
    items = list(karpathy.read(data_root / "rsicd"))
    entries = _entries(items)
    splits = [entry.split for entry in entries.values()]
    assert (splits.count("train"), splits.count("dev")) == (1200, 300)
    assert _dropped(items) == []
    repeated = sum(len(entry.captions) - len(set(entry.captions)) for entry in entries.values())
    assert repeated > 4000


def test_coco_odd_licences_cost_their_pictures_nothing(tmp_path: Path, photo) -> None:
    _write(tmp_path / "a.jpg", photo(1))
    _write(tmp_path / "b.jpg", photo(2))
    data = {
        "licenses": [{"id": [1], "name": "odd"}, {"id": 2, "name": "CC BY"}, "none"],
        "images": [
            {"id": 1, "file_name": "a.jpg", "license": {"a": 1}},
            {"id": 2, "file_name": "b.jpg", "license": 2},
        ],
        "annotations": [{"image_id": 1, "caption": "a dog"}, {"image_id": 2, "caption": "a cat"}],
    }
    _write(tmp_path / "c.json", json.dumps(data))
    items = list(SOURCES["coco"](tmp_path, parts=["train:c.json:."]))
    assert [(e.key, e.licence) for e in items if isinstance(e, Entry)] == [("1", ""), ("2", "CC BY")]


def test_karpathy_a_bad_sentence_costs_itself_alone(tmp_path: Path, photo) -> None:
    _write(tmp_path / "a.jpg", photo(1))
    sentences = [{"raw": "a cat"}, {"tokens": ["a", "kitty"]}, None, {"raw": 7}, {"tokens": "odd"}]
    image = {"filename": "a.jpg", "split": "train", "sentences": sentences}
    _write(tmp_path / "dataset.json", json.dumps({"images": [image]}))
    items = list(karpathy.read(tmp_path))
    assert [e.captions for e in items if isinstance(e, Entry)] == [("a cat", "a kitty")]
    dropped = [item.key for item in items if isinstance(item, Dropped)]
    assert dropped == [f"dataset.json:images[0].sentences[{n}]" for n in (2, 3, 4)]


def test_csv_an_open_quote_does_not_eat_what_follows(tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    path.write_text('file,text\na.jpg,"a\ntwo-line caption"\nb.jpg,"a cat\nc.jpg,a red temple\nd.jpg,a cup\n')
    with pytest.raises(DataError, match=r"m\.csv:4: a quote is opened here and never closed"):
        list(csv_rows(path))
    path.write_text('file,text\na.jpg,"a\ntwo-line caption"\nb.jpg,a 5" disk\n"c.jpg","a ""quoted"" word"\n')
    assert [row["text"] for row in csv_rows(path)] == [
        "a\ntwo-line caption", 'a 5" disk', 'a "quoted" word'
    ]  # fmt: skip
