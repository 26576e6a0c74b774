"""Flickr30k in each layout that it is passed around in, with the dirt that the real files have."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest

from vistill.data.build import BuildConfig, build
from vistill.data.dataset import open_split
from vistill.data.records import Annotation, Dropped, Entry, Item
from vistill.data.sources import flickr30k
from vistill.errors import ConfigError, DataError

NAMES = [f"100{number}.jpg" for number in range(10)]
SPLITS = ["train"] * 6 + ["val"] * 2 + ["test"] * 2
CAPTIONS = {name: [f'A "dog" number {n} , near photo {name} .' for n in range(5)] for name in NAMES}


@pytest.fixture
def root(tmp_path: Path, photo: Any) -> Path:
    photos = tmp_path / "flickr30k" / "flickr30k-images"
    photos.mkdir(parents=True)
    for number, name in enumerate(NAMES):
        (photos / name).write_bytes(photo(number))
    return photos.parent


def _entries(items: list[Item]) -> dict[str, Entry]:
    return {item.key: item for item in items if isinstance(item, Entry)}


def _dropped(items: list[Item]) -> list[tuple[str, str]]:
    return sorted((item.key, item.reason) for item in items if isinstance(item, Dropped))


def _hub(root: Path, extra: str = "") -> Path:
    """The hub's CSV: lists as JSON in a quoted field, whose quotes are doubled."""
    file = io.StringIO()
    writer = csv.writer(file)
    writer.writerow(["raw", "sentids", "split", "filename", "img_id"])
    for number, (name, split) in enumerate(zip(NAMES, SPLITS, strict=True)):
        writer.writerow([json.dumps(CAPTIONS[name]), json.dumps([0, 1, 2, 3, 4]), split, name, number])
    path = root / flickr30k.HUB
    path.write_text(file.getvalue() + extra, "utf-8")
    return path


def _karpathy(root: Path) -> Path:
    images = [
        {
            "filename": name,
            "split": split,
            "imgid": n,
            "sentences": [{"raw": text} for text in CAPTIONS[name]],
        }
        for n, (name, split) in enumerate(zip(NAMES, SPLITS, strict=True))
    ]
    path = root / flickr30k.KARPATHY
    path.write_text(json.dumps({"dataset": "flickr30k", "images": images}))
    return path


def _tokens(root: Path, extra: str = "") -> Path:
    lines = [f"{name}#{n}\t{text}" for name in NAMES for n, text in enumerate(CAPTIONS[name])]
    path = root / flickr30k.TOKENS
    path.write_text("\n".join(lines) + "\n" + extra, "utf-8")
    return path


def _table(root: Path, extra: str = "") -> Path:
    lines = [f"{name}| {n}| {text}" for name in NAMES for n, text in enumerate(CAPTIONS[name])]
    path = root / flickr30k.TABLE
    path.write_text("\n".join(["image_name| comment_number| comment", *lines]) + "\n" + extra, "utf-8")
    return path


def _lists(root: Path) -> None:
    """Lists as they go with the original: ids without .jpg."""
    for split in ("train", "val", "test"):
        names = [name.removesuffix(".jpg") for name, of in zip(NAMES, SPLITS, strict=True) if of == split]
        (root / f"{split}.txt").write_text("\n".join(names) + "\n")


@pytest.mark.parametrize("write", [_hub, _karpathy, _tokens, _table])
def test_every_layout_gives_the_same_data_set(root: Path, tmp_path: Path, write: Any) -> None:
    write(root)
    if write in (_tokens, _table):
        _lists(root)
    items = list(flickr30k.read(root))
    entries = _entries(items)
    assert _dropped(items) == []
    assert [entry.split for entry in entries.values()] == ["test"] * 2 + ["dev"] * 2 + ["train"] * 6
    assert {entry.source for entry in entries.values()} == {"flickr30k"}
    assert "research" in entries["1000.jpg"].licence
    build("flickr30k", root, tmp_path / "out")
    table = open_split(tmp_path / "out", "dev")
    assert table["key"][:] == ["1006.jpg", "1007.jpg"]
    assert table["captions"][:] == [CAPTIONS["1006.jpg"], CAPTIONS["1007.jpg"]]


def test_which_file_goes_first_and_what_is_hashed(root: Path) -> None:
    for write in (_table, _tokens, _karpathy, _hub):
        path = write(root)
        read = [item.path for item in flickr30k.read(root) if isinstance(item, Annotation)]
        assert read == [path]


def test_rows_that_cannot_be_read(root: Path, tmp_path: Path) -> None:
    extra = (
        'no json,[0],train,1000.jpg,1\n"[""a"", 3]",[0],train,1001.jpg,1\n"[""two fields""]",[0]\n'
        '"[""a ghost""]",[0],val,gone.jpg,1\n"[""a secret""]",[0],test,../../secret.jpg,1\n'
    )
    _hub(root, extra)
    assert _dropped(list(flickr30k.read(root))) == [
        ("../../secret.jpg", "unsafe_path"),
        ("1000.jpg", "bad_row"),
        ("1001.jpg", "bad_row"),
        (f"{flickr30k.HUB}:14", "bad_row"),
        ("gone.jpg", "missing_picture"),
    ]
    (root / flickr30k.HUB).unlink()
    _tokens(root, "no tab\n1000.jpg\tno hash\ngone.jpg#0\tA ghost .\n1000.jpg#5\tA sixth caption .\n")
    items = list(flickr30k.read(root))
    assert _dropped(items) == [
        ("gone.jpg", "missing_picture"),
        (f"{flickr30k.TOKENS}:51", "bad_row"),
        (f"{flickr30k.TOKENS}:52", "bad_row"),
    ]
    assert len(_entries(items)["1000.jpg"].captions) == 6
    (root / flickr30k.TOKENS).unlink()
    _table(root, "1000.jpg| 4   A dog runs across the grass .\n")  # as in the published file
    items = list(flickr30k.read(root))
    assert _dropped(items) == [(f"{flickr30k.TABLE}:52", "bad_row")]
    assert len(_entries(items)["1000.jpg"].captions) == 5


def test_lists_with_photos_that_are_odd(root: Path) -> None:
    _tokens(root)
    (root / "test.txt").write_text("1000.jpg\n1001\nghost\n")
    (root / "train.txt").write_text("1001\n1002\n")
    items = list(flickr30k.read(root))
    splits = {key: entry.split for key, entry in _entries(items).items()}
    assert splits == {
        "1000.jpg": "test",
        "1001.jpg": "test",
        "1002.jpg": "train",
        **dict.fromkeys(NAMES[3:], "extra"),
    }
    assert _dropped(items) == [("1001.jpg", "conflicting_split"), ("ghost.jpg", "no_caption")]


def test_splits_are_drawn_where_there_are_none(root: Path) -> None:
    _tokens(root)

    def splits(**options: Any) -> dict[str, str]:
        return {key: entry.split for key, entry in _entries(list(flickr30k.read(root, **options))).items()}

    drawn = splits(dev_fraction=0.2, test_fraction=0.3)
    assert sorted(drawn.values()) == ["dev"] * 2 + ["test"] * 3 + ["train"] * 5
    assert drawn != splits(dev_fraction=0.2, test_fraction=0.3, seed=1)
    assert set(splits().values()) == {"train"}
    _lists(root)
    with pytest.raises(ConfigError, match=r"test.txt, val.txt, train.txt give the splits: leave out dev_f"):
        list(flickr30k.read(root, dev_fraction=0.1))
    _hub(root)
    with pytest.raises(ConfigError, match=r"flickr_annotations_30k.csv has splits of its own"):
        list(flickr30k.read(root, dev_fraction=0.1))


def test_other_names_and_missing_things(root: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds none of flickr_annotations_30k.csv, dataset_flickr30k.json"):
        list(flickr30k.read(root))
    _tokens(root).rename(root / "captions.token")
    (root / "flickr30k-images").rename(root / "photos")
    with pytest.raises(
        DataError, match=r"flickr30k-images: no such folder; expected the photos of Flickr30k"
    ):
        list(flickr30k.read(root, annotations="captions.token"))
    report = build(
        "flickr30k",
        root,
        tmp_path / "out",
        BuildConfig(options={"annotations": "captions.token", "images": "photos"}),
    )
    assert report["splits"]["train"]["captions"] == 50
    (root / flickr30k.HUB).write_text("raw,filename\nx,y\n")
    with pytest.raises(DataError, match=r"has columns raw, filename; expected raw, split, filename"):
        list(flickr30k.read(root, images="photos"))
