"""Flickr30k in the layouts that it is passed around in; the annotation file tells which.

Young, Lai, Hodosh and Hockenmaier, "From image descriptions to visual denotations" (TACL 2014); splits of
Karpathy and Fei-Fei (CVPR 2015).

    ROOT/flickr_annotations_30k.csv   the hub: raw (a JSON list of captions), split, filename and others
    ROOT/dataset_flickr30k.json       Karpathy's file
    ROOT/results_20130124.token       the original: name.jpg#0<TAB>caption; no splits
    ROOT/results.csv                  name.jpg| 0| caption, with a header; no splits
    ROOT/flickr30k-images/*.jpg       (or flickr30k_images, images)

The first of these files that exists is read. Where a file has no splits, ROOT/train.txt, val.txt and test.txt
give them (a name a line, with or without .jpg); photos in none of them get `extra`. Without such lists splits
are drawn by photo.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from vistill.data.records import Annotation, Dropped, Entry, Item, normalise_split, split_order
from vistill.data.sources import karpathy
from vistill.data.sources.common import (
    csv_rows,
    drawn_splits,
    lost,
    parse_json,
    picture_path,
    read_lines,
    require_file,
    require_folder,
    require_fractions,
)
from vistill.data.sources.flickr8k import listed_splits, token_line
from vistill.errors import ConfigError, DataError

LICENCE = "Flickr30k terms: non-commercial research and education; photos belong to their authors"
HUB, KARPATHY, TOKENS, TABLE = (
    "flickr_annotations_30k.csv",
    "dataset_flickr30k.json",
    "results_20130124.token",
    "results.csv",
)
PHOTOS = ("flickr30k-images", "flickr30k_images", "images")
SPLIT_LISTS = (("test", ("test.txt",)), ("dev", ("val.txt", "dev.txt")), ("train", ("train.txt",)))

Line = tuple[str, str]  # a photo's name and one caption


def read(
    root: Path,
    annotations: str = "",
    images: str = "",
    dev_fraction: float = 0.0,
    test_fraction: float = 0.0,
    seed: int = 0,
) -> Iterator[Item]:
    """Yield the photos of Flickr30k, evaluated splits first.

    annotations, images: the file and the folder, relative to `root`, where they have other names or places.
    dev_fraction, test_fraction: parts of the photos that are drawn where neither the file nor lists have
    splits. Raises ConfigError for fractions outside 0..1, or where there is nothing to draw, and DataError
    for missing or malformed files.
    """
    require_fractions(dev_fraction, test_fraction)
    path = _annotations(root, annotations)
    photos = _photos(root, images)
    drawn = bool(dev_fraction or test_fraction)
    if path.suffix in (".json", ".csv") and path.name != TABLE:
        if drawn:
            raise ConfigError(f"{path.name} has splits of its own: leave out dev_fraction and test_fraction")
        items = _read_karpathy(path, photos) if path.suffix == ".json" else _read_hub(path, photos)
        yield from _ordered(items)
        return
    yield Annotation(path)
    captions: dict[str, list[str]] = {}
    for line in _lines(path, _table_line if path.name == TABLE else token_line):
        if isinstance(line, Dropped):
            yield line
        else:
            captions.setdefault(line[0], []).append(line[1])
    lists = [
        (split, root / name) for split, names in SPLIT_LISTS for name in names if (root / name).is_file()
    ]
    if lists and drawn:
        names = ", ".join(path.name for _, path in lists)
        raise ConfigError(f"{names} give the splits: leave out dev_fraction and test_fraction")
    if lists:
        splits = dict.fromkeys(captions, "extra")
        for item in listed_splits(lists, _listed_name):
            if not isinstance(item, tuple):
                yield item
            elif item[0] in splits:
                splits[item[0]] = item[1]
            else:
                yield Dropped(item[0], "no_caption", f"listed in split {item[1]}, absent from {path.name}")
    else:
        splits = drawn_splits(captions, dev_fraction, test_fraction, seed)
    yield from _ordered(_entry(photos, name, texts, splits[name]) for name, texts in captions.items())


def _annotations(root: Path, given: str) -> Path:
    if given:
        return require_file(root / given, "the captions of Flickr30k")
    names = (HUB, KARPATHY, TOKENS, TABLE)
    found = next((root / name for name in names if (root / name).is_file()), None)
    if found is None:
        raise DataError(f"{root}: holds none of {', '.join(names)}; name the file with annotations")
    return found


def _photos(root: Path, given: str) -> Path:
    names = (given,) if given else PHOTOS
    found = next((root / name for name in names if (root / name).is_dir()), root / names[0])
    return require_folder(found, "the photos of Flickr30k (or name their folder with images)")


def _ordered(items: Iterator[Item]) -> Iterator[Item]:
    """Yield everything but entries as it comes, then the entries, evaluated splits first."""
    entries: list[Entry] = []
    for item in items:
        if isinstance(item, Entry):
            entries.append(item)
        else:
            yield item
    yield from sorted(entries, key=lambda entry: split_order(entry.split))


def _entry(photos: Path, name: str, captions: list[str], split: str) -> Entry | Dropped:
    found = picture_path(photos, name, name)
    if isinstance(found, Dropped):
        return lost(found, split, len(captions))
    return Entry(name, found, tuple(captions), split, "flickr30k", licence=LICENCE)


def _read_karpathy(path: Path, photos: Path) -> Iterator[Item]:
    for item in karpathy.read(path.parent, path.name, str(photos.resolve())):
        yield replace(item, source="flickr30k", licence=LICENCE) if isinstance(item, Entry) else item


def _read_hub(path: Path, photos: Path) -> Iterator[Item]:
    yield Annotation(path)
    for row in csv_rows(path, columns=("raw", "split", "filename")):
        if isinstance(row, Dropped):
            yield row
            continue
        captions = _json_texts(row["raw"])
        if captions is None:
            yield Dropped(row["filename"], "bad_row", f"{row['#']}: raw is {row['raw'][:80]!r}, no JSON list")
        else:
            yield _entry(photos, row["filename"], captions, normalise_split(row["split"], row["#"]))


def _json_texts(value: str) -> list[str] | None:
    try:
        texts = parse_json(value)
    except ValueError:
        return None
    return texts if isinstance(texts, list) and all(isinstance(text, str) for text in texts) else None


def _lines(path: Path, parse: Callable[[str], Line | None]) -> Iterator[Line | Dropped]:
    for number, line in read_lines(path):
        if isinstance(line, Dropped):
            yield line
        elif number == 1 and line.replace(" ", "").startswith("image_name|"):
            continue  # the header of results.csv
        else:
            where = f"{path.name}:{number}"
            yield parse(line) or Dropped(where, "bad_row", f"{line[:80]!r} is not a photo's name and caption")


def _table_line(line: str) -> Line | None:
    """The published file has one line with its second bar missing (`2199200615.jpg| 4   A dog runs ...`)."""
    name, bar, rest = line.partition("|")
    number, bar2, caption = rest.partition("|")
    return (name.strip(), caption) if bar and bar2 and name.strip() and number.strip().isdecimal() else None


def _listed_name(line: str) -> str:
    return line.strip() if line.strip().endswith(".jpg") else f"{line.strip()}.jpg"
