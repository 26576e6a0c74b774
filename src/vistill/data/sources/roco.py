"""ROCO: radiology pictures of open-access papers with their captions.

Pelka, Koitka, Rückert, Nensa and Friedrich, "Radiology Objects in COntext (ROCO): A Multimodal Image
Dataset" (LABELS at MICCAI 2018), github.com/razorx89/roco-dataset.

    ROOT/data/train/radiology/captions.txt   ROCO_00020<TAB>caption
                              licences.txt   ROCO_ID,PMC_ID,CC: ROCO_00020,PMC3970251_name.003.jpg,CC BY
                              dlinks.txt     ROCO_00020<TAB>wget ... /PMC3970251.tar.gz ...<TAB>name.003.jpg
                              images/        PMC3970251_name.003.jpg, as the official script fetches them,
                                             or ROCO_00020.jpg
    ROOT/data/{train,validation,test}/{radiology,non-radiology}/...
    ROOT/all_data/... or ROOT/train/...      the same one folder up

A picture's name is that of licences.txt, else of dlinks.txt, else its id. Many pictures cannot be fetched any
more; they are counted as missing. The official splits are by picture: two of one paper may lie in different
splits.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from vistill.data.records import Annotation, Dropped, Entry, Item, split_order
from vistill.data.sources.common import (
    csv_rows,
    first_picture,
    folder_split,
    lost,
    read_lines,
    require_file,
    require_folder,
)
from vistill.errors import ConfigError, DataError

SUBSETS = ("radiology", "non-radiology", "all")
SPLIT_FOLDERS = ("train", "validation", "test")
ROOTS = ("data", "all_data", ".")

_ARCHIVE = re.compile(r"/(PMC\d+)\.tar\.gz")


def read(root: Path, subset: str = "radiology") -> Iterator[Item]:
    """Yield the pictures of all splits, evaluated ones first, in the order of the caption files.

    subset: of SUBSETS. Raises ConfigError for another one and DataError when no split has such a folder, or
    one lacks its captions or its pictures.
    """
    if subset not in SUBSETS:
        raise ConfigError(f"subset must be one of {', '.join(SUBSETS)}, not {subset!r}")
    kinds = SUBSETS[:2] if subset == "all" else (subset,)
    folders = _folders(root, kinds)
    if not folders:
        raise DataError(
            f"{root}: expected {' or '.join(f'data/train/{kind}/' for kind in kinds)} as ROCO has them"
        )
    for folder in folders:
        yield from _read_folder(folder, folder_split(folder.parent.name))


def _folders(root: Path, kinds: tuple[str, ...]) -> list[Path]:
    """Return the folders of the first place that has any, evaluated splits first."""
    for place in ROOTS:
        found = [root / place / split / kind for split in SPLIT_FOLDERS for kind in kinds]
        found = [path for path in found if path.is_dir()]
        if found:
            return sorted(found, key=lambda path: split_order(folder_split(path.parent.name)))
    return []


def _read_folder(folder: Path, split: str) -> Iterator[Item]:
    captions_file = require_file(folder / "captions.txt", "the captions of ROCO")
    images = require_folder(folder / "images", "the pictures of ROCO (fetched by its scripts/fetch.py)")
    yield Annotation(captions_file)
    captions: dict[str, list[str]] = {}
    for number, line in read_lines(captions_file):
        if isinstance(line, Dropped):
            yield line
            continue
        key, tab, caption = line.partition("\t")
        if tab and key.strip():
            captions.setdefault(key.strip(), []).append(caption)
        else:
            yield Dropped(f"{captions_file.name}:{number}", "bad_row", f"{line[:80]!r} is not id<TAB>caption")
    names: dict[str, list[str]] = {key: [] for key in captions}  # what a picture's file may be called
    licences: dict[str, str] = {}
    yield from _read_licences(folder / "licences.txt", names, licences)
    yield from _read_links(folder / "dlinks.txt", names)
    for key, texts in captions.items():
        found = first_picture(images, [*names[key], f"{key}.jpg"], key)
        if isinstance(found, Dropped):
            yield lost(found, split, len(texts))
        else:
            yield Entry(key, found, tuple(texts), split, "roco", licence=licences.get(key, ""))


def _read_licences(path: Path, names: dict[str, list[str]], licences: dict[str, str]) -> Iterator[Item]:
    """Add the file names and licences of the pictures in `names`; an absent file leaves both empty."""
    if not path.is_file():
        return
    yield Annotation(path)
    for row in csv_rows(path, columns=("ROCO_ID", "PMC_ID", "CC")):
        if isinstance(row, Dropped):
            yield row
            continue
        key, name = row["roco_id"].strip(), row["pmc_id"].strip()
        if key not in names:
            yield Dropped(key, "no_caption", f"{row['#']}: has a licence and no caption")
            continue
        names[key].append(name)
        licences[key] = f"{row['cc'].strip()} ({name.partition('_')[0]})"


def _read_links(path: Path, names: dict[str, list[str]]) -> Iterator[Item]:
    """Add the file names that the official script makes of a download link."""
    if not path.is_file():
        return
    yield Annotation(path)
    for number, line in read_lines(path):
        if isinstance(line, Dropped):
            yield line
            continue
        key, _, rest = line.partition("\t")
        link, tab, name = rest.rpartition("\t")
        archive = _ARCHIVE.search(link)
        if not (tab and archive):
            yield Dropped(f"{path.name}:{number}", "bad_row", f"{line[:80]!r} is not id, link and file name")
        elif key.strip() in names:
            names[key.strip()].append(f"{archive[1]}_{name.strip()}")
