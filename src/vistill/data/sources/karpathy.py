"""Karpathy's `dataset_*.json`, the layout that Flickr8k/30k, COCO, RSICD, UCM and Sydney captions come in.

Karpathy and Fei-Fei, "Deep visual-semantic alignments for generating image descriptions" (CVPR 2015).

    {"dataset": "rsicd", "images": [{"filename", "filepath"?, "cocoid"?, "split", "sentences": [{"raw"}]}]}

`restval` is the part of COCO's validation pictures that Karpathy's split adds to the training pictures. Some
of these data sets repeat captions inside a picture (RSICD does): build with `unique_captions` to keep one.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vistill.data.records import Annotation, Dropped, Entry, Item, normalise_split, split_order
from vistill.data.sources.common import lost, only_file, picture_path, read_json, require_file, require_folder
from vistill.errors import ConfigError, DataError

RESTVAL = ("train", "extra", "drop")


def read(root: Path, annotations: str = "", images: str = "", restval: str = "train") -> Iterator[Item]:
    """Yield the pictures of a Karpathy file, evaluated splits first.

    annotations: the file, relative to `root`; by default the only `dataset*.json` there. images: the folder
    of the pictures, relative to `root`; by default `images` if there is one, else `root`. restval: where the
    pictures of that split go. A picture's key is its COCO id if it has one, else its file name.
    Raises ConfigError for another `restval` and DataError for missing or malformed files.
    """
    if restval not in RESTVAL:
        raise ConfigError(f"restval must be one of {', '.join(RESTVAL)}, not {restval!r}")
    if annotations:
        path = require_file(root / annotations, "a Karpathy file")
    else:
        path = only_file(root.glob("dataset*.json"), root, "dataset*.json")
    folder = root / images if images else root / "images" if (root / "images").is_dir() else root
    require_folder(folder, f"the pictures of {path.name}")
    data = read_json(path)
    if not isinstance(data, dict) or not isinstance(data.get("images"), list):
        raise DataError(f"{path}: is not a Karpathy file; expected an object with a list of images")
    yield Annotation(path)
    source = str(data.get("dataset") or "karpathy")
    entries: list[Entry] = []
    for number, row in enumerate(data["images"]):
        where = f"{path.name}:images[{number}]"
        yield from _bad_sentences(row, where)
        item = _picture(row, where, folder, restval, source)
        if isinstance(item, Dropped):
            yield item
        else:
            entries.append(item)
    yield from sorted(entries, key=lambda entry: split_order(entry.split))


def _picture(row: Any, where: str, folder: Path, restval: str, source: str) -> Entry | Dropped:
    if not isinstance(row, dict) or not isinstance(row.get("filename"), str):
        return Dropped(where, "bad_row", f"is {str(row)[:80]}")
    captions = _captions(row.get("sentences"))
    if captions is None:
        return Dropped(
            row["filename"], "bad_row", f"{where}: its sentences are {str(row.get('sentences'))[:80]}"
        )
    name = f"{row['filepath']}/{row['filename']}" if row.get("filepath") else row["filename"]
    key = str(row["cocoid"]) if row.get("cocoid") is not None else name
    given = str(row.get("split") or "")
    if given == "restval":
        if restval == "drop":
            return Dropped(key, "skipped_split", "split restval")
        split = restval
    else:
        split = normalise_split(given, where)
    found = picture_path(folder, name, key)
    if isinstance(found, Dropped):
        return lost(found, split, len(captions))
    return Entry(key, found, captions, split, source)


def _captions(sentences: Any) -> tuple[str, ...] | None:
    """Return the captions of the sentences that are some; None if there is no list of them."""
    if not isinstance(sentences, list):
        return None
    return tuple(text for text in map(_text, sentences) if text is not None)


def _text(sentence: Any) -> str | None:
    """Return the raw sentence, or its joined tokens where there is no raw one; None if it is malformed."""
    if not isinstance(sentence, dict):
        return None
    raw, tokens = sentence.get("raw"), sentence.get("tokens")
    if raw is None and isinstance(tokens, list):
        return " ".join(map(str, tokens))
    return raw if isinstance(raw, str) else None


def _bad_sentences(row: Any, where: str) -> Iterator[Dropped]:
    """Yield the sentences of a picture that are none; its others stay."""
    sentences = row.get("sentences") if isinstance(row, dict) else None
    for number, sentence in enumerate(sentences if isinstance(sentences, list) else []):
        if _text(sentence) is None:
            yield Dropped(f"{where}.sentences[{number}]", "bad_row", f"is {str(sentence)[:80]}")
