"""ROCO in its published layout, the pictures under each name that they may have."""

from pathlib import Path
from typing import Any

import pytest

from vistill.data.build import build
from vistill.data.dataset import open_split
from vistill.data.records import Annotation, Dropped, Entry, Item
from vistill.data.sources import roco
from vistill.errors import ConfigError, DataError


def _link(paper: str, name: str) -> str:
    return (
        f"wget -r ftp://ftp.ncbi.nlm.nih.gov/pub/pmc/oa_package/1e/ed/{paper}.tar.gz -P /path/to/Dir\t{name}"
    )


def _write(folder: Path, numbers: range, photo: Any) -> Path:
    """Three pictures a folder: named as the script fetches them, only linked, and called by their id."""
    (folder / "images").mkdir(parents=True)
    captions, licences, links = [], ["ROCO_ID,PMC_ID,CC"], []
    for number in numbers:
        key, paper, name = f"ROCO_{number:05}", f"PMC{number}", f"fig-1.{number:03}.jpg"
        captions.append(f"{key}\t Axial scan number {number}, with a finding (arrow).")
        links.append(f"{key}\t{_link(paper, name)}")
        if number % 3 != 1:
            licences.append(f"{key},{paper}_{name},{'CC BY-NC' if number % 3 else 'NO-CC CODE'}")
        file = f"{key}.jpg" if number % 3 == 2 else f"{paper}_{name}"
        (folder / "images" / file).write_bytes(photo(number))
    (folder / "captions.txt").write_text("\n".join(captions) + "\n", "utf-8")
    (folder / "licences.txt").write_text("\n".join(licences) + "\n", "utf-8")
    (folder / "dlinks.txt").write_text("\n".join(links) + "\n", "utf-8")
    return folder


@pytest.fixture
def root(tmp_path: Path, photo: Any) -> Path:
    data = tmp_path / "roco" / "data"
    for place, split in enumerate(("train", "validation", "test")):
        _write(data / split / "radiology", range(9 * place, 9 * place + 3), photo)
        _write(data / split / "non-radiology", range(9 * place + 3, 9 * place + 6), photo)
    return data.parent


def _entries(items: list[Item]) -> dict[str, Entry]:
    return {item.key: item for item in items if isinstance(item, Entry)}


def _dropped(items: list[Item]) -> list[tuple[str, str]]:
    return sorted((item.key, item.reason) for item in items if isinstance(item, Dropped))


def test_a_build(root: Path, tmp_path: Path) -> None:
    report = build("roco", root, tmp_path / "out")
    assert report["dropped"]["counts"] == {}
    assert {name: split["pictures"] for name, split in report["splits"].items()} == {
        "train": 3,
        "dev": 3,
        "test": 3,
    }
    table = open_split(tmp_path / "out", "train")
    assert table["key"][:] == ["ROCO_00000", "ROCO_00001", "ROCO_00002"]
    assert table["captions"][0] == ["Axial scan number 0, with a finding (arrow)."]
    assert table["licence"][:] == ["NO-CC CODE (PMC0)", "", "CC BY-NC (PMC2)"]


def test_subsets_order_and_what_is_hashed(root: Path) -> None:
    items = list(roco.read(root, subset="all"))
    assert [entry.split for entry in _entries(items).values()] == ["test"] * 6 + ["dev"] * 6 + ["train"] * 6
    files = [item.path.name for item in items if isinstance(item, Annotation)]
    assert files == ["captions.txt", "licences.txt", "dlinks.txt"] * 6
    others = _entries(list(roco.read(root, subset="non-radiology")))
    assert set(others) == {f"ROCO_{number:05}" for start in (3, 12, 21) for number in range(start, start + 3)}


def test_the_other_places_of_the_split_folders(root: Path) -> None:
    (root / "data").rename(root / "all_data")
    assert len(_entries(list(roco.read(root)))) == 9
    assert len(_entries(list(roco.read(root / "all_data")))) == 9


def test_without_licences_and_links_a_picture_is_called_by_its_id(root: Path) -> None:
    folder = root / "data" / "train" / "radiology"
    (folder / "licences.txt").unlink()
    (folder / "dlinks.txt").unlink()
    items = list(roco.read(root))
    found = [key for key, entry in _entries(items).items() if entry.split == "train"]
    assert found == ["ROCO_00002"]
    assert _dropped(items) == [("ROCO_00000", "missing_picture"), ("ROCO_00001", "missing_picture")]


def test_dirt(root: Path) -> None:
    folder = root / "data" / "test" / "radiology"
    with (folder / "captions.txt").open("ab") as file:
        file.write(b"no tab\r\nROCO_00018\t caf\xe9\r\nROCO_77777\t A ghost.\r\nROCO_66666\t Outside.\r\n")
    with (folder / "licences.txt").open("a") as file:
        file.write(
            "ROCO_55555,PMC1_a.jpg,CC BY\nROCO_00018,too,many,fields\nROCO_66666,../../../x.jpg,CC BY\n"
        )
    with (folder / "dlinks.txt").open("a") as file:
        file.write("ROCO_00018\tno link\n")
    items = list(roco.read(root))
    assert len(_entries(items)) == 9
    assert _dropped(items) == [
        ("ROCO_55555", "no_caption"),
        ("ROCO_66666", "unsafe_path"),
        ("ROCO_77777", "missing_picture"),
        ("captions.txt:4", "bad_row"),
        ("captions.txt:5", "not_utf8"),
        ("dlinks.txt:4", "bad_row"),
        ("licences.txt:5", "bad_row"),
    ]


def test_errors_say_what_is_missing(root: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="subset must be one of radiology, non-radiology, all, not 'ct'"):
        list(roco.read(root, subset="ct"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"expected data/train/radiology/ or data/train/non-radiology/"):
        list(roco.read(tmp_path / "empty", subset="all"))
    folder = root / "data" / "test" / "radiology"
    (folder / "licences.txt").write_text("id,file\nROCO_00018,x\n")
    with pytest.raises(DataError, match=r"has columns id, file; expected ROCO_ID, PMC_ID, CC"):
        list(roco.read(root))
    (folder / "images").rename(folder / "pictures")
    with pytest.raises(DataError, match=r"images: no such folder; expected the pictures of ROCO"):
        list(roco.read(root))
