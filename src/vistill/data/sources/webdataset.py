"""Tars as img2dataset and other WebDataset writers make them: members of one name belong together.

    ROOT/**/00000.tar    KEY.jpg, KEY.txt (the caption), KEY.json ({"caption": ...}, where there is no txt)

The pictures are read out of the tars where they lie; nothing is unpacked. A tar in a folder named after a
split belongs to it; pictures of other tars are drawn by sha256(seed, key), so the split of a picture does not
depend on the others. Tars are not hashed for the report: that would read each twice.

Links to folders are not followed: each is reported as dropped, as is a folder that cannot be listed.
"""

import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vistill.data.records import Dropped, Entry, Item, split_order
from vistill.data.sources.common import (
    PICTURE_SUFFIXES,
    drawn_split,
    files_below,
    folder_split,
    no_archive,
    parse_json,
    require_fractions,
    told_dropped,
)
from vistill.errors import DataError


def read(root: Path, dev_fraction: float = 0.0, test_fraction: float = 0.0, seed: int = 0) -> Iterator[Item]:
    """Yield the pictures of all tars below `root`, evaluated splits first, tar after tar.

    dev_fraction, test_fraction: expected parts of the pictures without a split of their own. Raises
    ConfigError for fractions outside 0..1 and DataError when there is no tar.
    """
    require_fractions(dev_fraction, test_fraction)
    paths, dropped = files_below(root, ".tar")
    if not paths:
        told = f"(compressed ones must be unpacked to .tar first){told_dropped(dropped)}"
        raise DataError(f"{root}: holds no .tar file {told}")
    yield from dropped
    tars = [(_split(path, root), path) for path in paths]
    for split, path in sorted(tars, key=lambda tar: split_order(tar[0])):
        for key, members in samples(path):
            if isinstance(members, Dropped):
                yield members
            else:
                drawn = split or drawn_split(key, dev_fraction, test_fraction, seed)
                yield from _sample(path, key, members, drawn)


def _split(path: Path, root: Path) -> str:
    parts = path.relative_to(root).parts
    return folder_split(parts[0]) if len(parts) > 1 else ""


def samples(path: Path) -> Iterator[tuple[str, dict[str, tarfile.TarInfo] | Dropped]]:
    """Yield (key, {suffix: member}) of neighbouring members of one key; a broken tar ends with a Dropped."""
    key = ""
    members: dict[str, tarfile.TarInfo] = {}
    if problem := no_archive(path):
        yield path.name, problem
        return
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                if not member.isreg():
                    continue
                folder, slash, name = member.name.rpartition("/")
                stem, dot, suffix = name.partition(".")
                if members and folder + slash + stem != key:
                    yield key, members
                    members = {}
                key = folder + slash + stem
                members[dot + suffix.lower()] = member
    except (tarfile.TarError, OSError) as error:
        detail = f"{error}; what comes before it is used"
        yield path.name, Dropped(path.name, "broken_archive", detail)
    if members:
        yield key, members


def _sample(path: Path, key: str, members: dict[str, tarfile.TarInfo], split: str) -> Iterator[Item]:
    picture = next((member for suffix, member in members.items() if suffix in PICTURE_SUFFIXES), None)
    if picture is None:
        yield Dropped(key, "missing_picture", f"{path.name} holds {', '.join(members)} of it, no picture")
        return
    if picture.offset_data + picture.size > path.stat().st_size:
        yield Dropped(key, "broken_archive", f"{path.name} ends inside of {picture.name}")
        return
    captions: list[str] = []
    try:
        if ".txt" in members:
            captions.append(member_text(path, members[".txt"]))
        elif ".json" in members:
            captions += _json_captions(parse_json(member_text(path, members[".json"])))
    except UnicodeDecodeError as error:
        yield Dropped(
            key, "not_utf8", f"{path.name}: its text is not UTF-8 ({error.reason} at {error.start})"
        )
    except ValueError as error:
        yield Dropped(key, "bad_row", f"{path.name}: {error}")
    yield Entry(key, path, tuple(captions), split, "webdataset", span=(picture.offset_data, picture.size))


def member_text(path: Path, member: tarfile.TarInfo) -> str:
    """The text of a member. Raises UnicodeDecodeError if it is not UTF-8."""
    with path.open("rb") as file:
        file.seek(member.offset_data)
        return file.read(member.size).decode("utf-8-sig")


def _json_captions(data: Any) -> list[str]:
    """Return the captions of a sample's JSON; raises ValueError for another shape."""
    if not isinstance(data, dict):
        raise ValueError("its JSON is no object")
    value = data.get("captions") or data.get("caption") or []
    captions = [value] if isinstance(value, str) else value
    if not isinstance(captions, list) or not all(isinstance(caption, str) for caption in captions):
        raise ValueError(f"its captions are {str(value)[:80]}")
    return captions
