"""COCO captions: `captions_*.json` files, each with its folder of pictures and its split.

Chen et al., "Microsoft COCO Captions" (arXiv 1504.00325).

    {"images": [{"id", "file_name", "license"}], "annotations": [{"image_id", "caption"}], "licenses": [...]}

The key of a picture is its id, which is what COCO result files call `image_id`.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from vistill.data.records import Annotation, Dropped, Entry, Item, normalise_split, split_order
from vistill.data.sources.common import is_id, lost, picture_path, read_json, require_file, require_folder
from vistill.errors import ConfigError, DataError

# (split, annotations, pictures) of the downloads of cocodataset.org, taken where they exist.
STANDARD_PARTS = tuple(
    (split, f"annotations/captions_{name}.json", name)
    for split, names in (("dev", ("val2017", "val2014")), ("train", ("train2017", "train2014")))
    for name in names
)
KEYS = ("id", "file_name")


def read(root: Path, parts: Sequence[str] = (), keys: str = "id") -> Iterator[Item]:
    """Yield the pictures of one or several COCO files, evaluated splits first.

    parts: SPLIT:ANNOTATIONS:PICTURES each, paths relative to `root`; without any, the standard files that
    exist. keys: "id", or "file_name" when the files number their pictures independently of each other.
    Raises ConfigError for a malformed part and DataError for missing or malformed files.
    """
    if keys not in KEYS:
        raise ConfigError(f"keys must be one of {', '.join(KEYS)}, not {keys!r}")
    for split, annotations, pictures in _parts(root, parts):
        require_file(annotations, "COCO captions")
        require_folder(pictures, f"the pictures of {annotations.name}")
        yield Annotation(annotations)
        yield from _read_file(annotations, pictures, split, keys)


def _parts(root: Path, parts: Sequence[str]) -> list[tuple[str, Path, Path]]:
    if not parts:
        found = [(split, root / file, root / folder) for split, file, folder in STANDARD_PARTS]
        found = [part for part in found if part[1].is_file()]
        if not found:
            names = ", ".join(file for _, file, _ in STANDARD_PARTS)
            raise DataError(f"{root}: holds none of {names}; name the files as SPLIT:ANNOTATIONS:PICTURES")
        return found
    named = []
    for part in parts:
        split, colon, rest = part.partition(":")
        annotations, colon2, pictures = rest.rpartition(":")
        if not (colon and colon2 and annotations and pictures):
            raise ConfigError(f"part {part!r} is not SPLIT:ANNOTATIONS:PICTURES")
        named.append((normalise_split(split, f"part {part!r}"), root / annotations, root / pictures))
    return sorted(named, key=lambda part: split_order(part[0]))


def _read_file(path: Path, folder: Path, split: str, keys: str) -> Iterator[Item]:
    data = read_json(path)
    if not isinstance(data, dict) or not isinstance(data.get("images"), list):
        raise DataError(f"{path}: is not a COCO file; expected an object with images and annotations")
    rows = data.get("licenses")
    licences = {
        row["id"]: _licence(row)
        for row in (rows if isinstance(rows, list) else [])
        if isinstance(row, dict) and is_id(row.get("id"))
    }
    captions: dict[Any, list[str]] = {}
    for number, row in enumerate(data.get("annotations") or []):
        if isinstance(row, dict) and isinstance(row.get("caption"), str) and is_id(row.get("image_id")):
            captions.setdefault(row["image_id"], []).append(row["caption"])
        else:
            yield Dropped(f"{path.name}:annotations[{number}]", "bad_row", f"is {str(row)[:80]}")
    for number, row in enumerate(data["images"]):
        if not (isinstance(row, dict) and is_id(row.get("id")) and isinstance(row.get("file_name"), str)):
            yield Dropped(f"{path.name}:images[{number}]", "bad_row", f"is {str(row)[:80]}")
            continue
        texts = captions.pop(row["id"], [])
        key = row["file_name"] if keys == "file_name" else str(row["id"])
        found = picture_path(folder, row["file_name"], key)
        if isinstance(found, Dropped):
            yield lost(found, split, len(texts))
        else:
            licence = licences.get(row["license"], "") if is_id(row.get("license")) else ""
            yield Entry(key, found, tuple(texts), split, "coco", licence=licence)
    for image_id, texts in captions.items():
        yield Dropped(
            str(image_id), "stray_key", f"{path.name}: {len(texts)} captions of an image not listed"
        )


def _licence(row: dict[str, Any]) -> str:
    return " ".join(str(row[name]) for name in ("name", "url") if row.get(name))
