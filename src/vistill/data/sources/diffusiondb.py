"""DiffusionDB: pictures made by Stable Diffusion with the prompts they were made from.

Wang et al., "DiffusionDB: A Large-Scale Prompt Gallery Dataset for Text-to-Image Generative Models" (arXiv
2210.14896), github.com/poloclub/diffusiondb.

    ROOT/**/part-000001.zip     UUID.png (or UUID.webp) and part-000001.json, or
    ROOT/**/part-000001/        the same, unpacked
    {"UUID.png": {"p": prompt, "se": seed, "c": guidance, "st": steps, "sa": sampler}, ...}
    ROOT/metadata.parquet       image_name, prompt, part_id, ...: read for the parts that have no JSON
                                (or metadata-large.parquet)

A part is read from its folder if there is one, else from its zip, whose pictures are read where they lie.
The official zips compress them once more; they are inflated one at a time.
Links to folders are not followed unless they have the name of a part: each is reported as dropped, as is a
folder that cannot be listed and a second part of a number.

One prompt often made several pictures: the split is drawn by sha256(seed, prompt), so they share a split.
"""

import os
import re
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from vistill.data.records import Annotation, Dropped, Entry, Item
from vistill.data.sources.common import (
    PICTURE_SUFFIXES,
    drawn_split,
    no_archive,
    parse_json,
    picture_path,
    read_json,
    require_fractions,
    told_dropped,
    walk_folders,
)
from vistill.errors import DataError

LICENCE = "CC0 1.0"
TABLES = ("metadata.parquet", "metadata-large.parquet")

_PART = re.compile(r"part-(\d{6})")
_MOST_JSON = 64 * 2**20  # bytes; the JSON of 1,000 prompts has half a megabyte
_MOST_PICTURE = 256 * 2**20  # bytes unpacked; real ones have about one megabyte
_MOST_MEMBERS = 100_000  # of a zip; real parts have 1,001
_LOCAL_HEADER = 30  # bytes before a member's name in a zip

Prompts = dict[str, Any]  # what a part's JSON holds: {picture: {"p": prompt}}


def read(root: Path, dev_fraction: float = 0.0, test_fraction: float = 0.0, seed: int = 0) -> Iterator[Item]:
    """Yield the pictures of all parts below `root`, part after part in the order of their numbers.

    dev_fraction, test_fraction: expected parts of the prompts. Raises ConfigError for fractions outside 0..1
    and DataError when there is no part or a table is not DiffusionDB's.
    """
    require_fractions(dev_fraction, test_fraction)
    parts, dropped = _parts(root)
    if not parts:
        raise DataError(
            f"{root}: holds no part-000001.zip and no folder of such a name{told_dropped(dropped)}"
        )
    yield from dropped
    tables = [root / name for name in TABLES if (root / name).is_file()]
    for table in tables:
        yield Annotation(table)
    for number, path in parts.items():
        for item in (
            _read_zip(path, number, tables) if path.suffix == ".zip" else _read_folder(path, number, tables)
        ):
            yield _with_split(item, dev_fraction, test_fraction, seed) if isinstance(item, Entry) else item


def _parts(root: Path) -> tuple[dict[int, Path], list[Dropped]]:
    """{number: folder or zip} of every part, the folder where there are both, and what is not read.

    A link to a folder is taken if it has the name of a part.
    """
    folders: list[Path] = []
    zips: list[Path] = []
    dropped: list[Dropped] = []
    for item in walk_folders(root):
        if not isinstance(item, Dropped):
            folder, names = item
            folders.append(folder)
            zips += [folder / name for name in names if name.endswith(".zip")]
        elif item.reason == "linked_folder" and _PART.fullmatch(Path(item.key).name):
            folders.append(root / item.key)
        else:
            dropped.append(item)
    unpacked, again = _numbered(root, folders)
    zipped, more = _numbered(root, zips)
    return dict(sorted((zipped | unpacked).items())), dropped + again + more


def _numbered(root: Path, paths: list[Path]) -> tuple[dict[int, Path], list[Dropped]]:
    """{number: path} of those with the name of a part, and those that repeat a number."""
    found: dict[int, Path] = {}
    again: list[Dropped] = []
    for path in sorted(paths):
        match = _PART.fullmatch(path.name.removesuffix(".zip"))
        if match and found.setdefault(int(match[1]), path) != path:
            first = found[int(match[1])].relative_to(root).as_posix()
            detail = f"another {path.name} than {first}, which is read; none of its pictures is used"
            again.append(Dropped(path.relative_to(root).as_posix(), "duplicate_key", detail))
    return found, again


def _read_folder(folder: Path, number: int, tables: list[Path]) -> Iterator[Item]:
    annotations = folder / f"{folder.name}.json"
    prompts: Any = None
    if os.path.isfile(annotations):
        yield Annotation(annotations)
        prompts = read_json(annotations)
    else:
        prompts = _table_prompts(tables, number)
    for name, prompt in _prompts(prompts, annotations.name):
        if isinstance(prompt, Dropped):
            yield prompt
            continue
        found = picture_path(folder, name, name)
        if isinstance(found, Dropped):
            yield found
        else:
            yield Entry(name, found, (prompt,), "", "diffusiondb", licence=LICENCE)


def _read_zip(path: Path, number: int, tables: list[Path]) -> Iterator[Item]:
    if problem := no_archive(path):
        yield problem
        return
    try:
        with zipfile.ZipFile(path) as archive:
            yield from _read_members(path, archive, number, tables)
    except (zipfile.BadZipFile, OSError) as error:
        yield Dropped(path.name, "broken_archive", f"{error}; none of its other pictures is used")


def _read_members(path: Path, archive: zipfile.ZipFile, number: int, tables: list[Path]) -> Iterator[Item]:
    members = {info.filename.removeprefix("./"): info for info in archive.infolist() if not info.is_dir()}
    if len(members) > _MOST_MEMBERS:
        yield Dropped(path.name, "broken_archive", f"{len(members)} members are no part of DiffusionDB")
        return
    json_member = members.get(f"{path.stem}.json")
    prompts = _zipped_json(path, archive, json_member) if json_member else _table_prompts(tables, number)
    if isinstance(prompts, Dropped):
        yield prompts
        return
    for name, prompt in _prompts(prompts, f"{path.name}:{path.stem}.json"):
        if isinstance(prompt, Dropped):
            yield prompt
        elif name not in members:
            yield Dropped(name, "missing_picture", f"{name!r} is not in {path.name}")
        else:
            span = _span(path, members[name])
            if isinstance(span, Dropped):
                yield span
            else:
                stored = members[name].compress_type == zipfile.ZIP_STORED
                inflated = None if stored else members[name].file_size
                yield Entry(
                    name, path, (prompt,), "", "diffusiondb", licence=LICENCE, span=span, inflated=inflated
                )


def _zipped_json(path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Any:
    """The value of a zip's JSON, never more than `_MOST_JSON` bytes of it, or why there is none."""
    try:
        with archive.open(member) as file:  # counted, for the size that a zip states may be a lie
            raw = file.read(_MOST_JSON + 1)
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError) as error:
        return Dropped(
            path.name, "broken_archive", f"{member.filename}: {error}; none of its pictures is used"
        )
    if len(raw) > _MOST_JSON:
        return Dropped(path.name, "broken_archive", f"{member.filename} is larger than {_MOST_JSON} bytes")
    try:
        return parse_json(raw.decode("utf-8-sig"))
    except ValueError as error:
        return Dropped(path.name, "bad_row", f"{member.filename} is not JSON: {error}")


def _table_prompts(tables: list[Path], number: int) -> Prompts:
    """The prompts of a part from the metadata tables, as its JSON would have them; raises DataError."""
    found: Prompts = {}
    for path in tables:
        try:
            rows = pq.read_table(path, columns=["image_name", "prompt"], filters=[("part_id", "=", number)])
            names, prompts = (rows.column(name).to_pylist() for name in ("image_name", "prompt"))
        except (pa.ArrowException, KeyError) as error:
            raise DataError(f"{path}: is no metadata table of DiffusionDB: {error}") from error
        found |= {str(name): {"p": prompt} for name, prompt in zip(names, prompts, strict=True)}
    return found


def _prompts(table: Any, where: str) -> Iterator[tuple[str, str | Dropped]]:
    """Yield (picture, prompt), or (picture, why it cannot be used), of a part's JSON."""
    if not isinstance(table, dict):
        yield where, Dropped(where, "bad_row", "is no object of pictures and prompts")
        return
    if not table:
        yield (
            where,
            Dropped(where, "no_caption", "neither this file nor a metadata table has prompts of this part"),
        )
    for name, row in table.items():
        if not isinstance(row, dict) or not isinstance(row.get("p"), str):
            yield (
                name,
                Dropped(name, "bad_row", f"{where}: is {str(row)[:80]}, not an object with a prompt p"),
            )
        elif "/" in name or "\\" in name or name.startswith("."):
            yield name, Dropped(name, "unsafe_path", f"{where}: {name!r} leads out of its part")
        elif Path(name).suffix.lower() not in PICTURE_SUFFIXES:
            yield name, Dropped(name, "stray_key", f"{where}: {name!r} names no picture")
        else:
            yield name, row["p"]


def _span(path: Path, member: zipfile.ZipInfo) -> tuple[int, int] | Dropped:
    """(offset, length) of a member's bytes in the zip, or why they are of no use."""
    name = member.filename
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or member.flag_bits & 1:
        how = "encrypted" if member.flag_bits & 1 else "compressed in an unusual way"
        return Dropped(name, "broken_archive", f"{path.name}: {name} is {how}")
    if member.file_size > _MOST_PICTURE:
        return Dropped(name, "broken_archive", f"{path.name}: {name} is larger than {_MOST_PICTURE} bytes")
    with path.open("rb") as file:
        file.seek(member.header_offset)
        header = file.read(_LOCAL_HEADER)
    if len(header) < _LOCAL_HEADER or header[:4] != b"PK\x03\x04":
        return Dropped(name, "broken_archive", f"{path.name}: {name} does not begin where the zip says")
    lengths = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
    offset = (
        member.header_offset + _LOCAL_HEADER + lengths
    )  # the name and the extra field of the local header
    if offset + member.compress_size > path.stat().st_size:
        return Dropped(name, "broken_archive", f"{path.name} ends inside of {name}")
    return offset, member.compress_size


def _with_split(entry: Entry, dev_fraction: float, test_fraction: float, seed: int) -> Entry:
    prompt = " ".join(entry.captions[0].split()).casefold()
    return replace(entry, split=drawn_split(prompt, dev_fraction, test_fraction, seed))
