"""Ask a teacher and fill a cache with the answers; estimate before what that costs.

`run` makes whole shards, each under a temporary name that is fsynced and renamed. A killed run goes on with
the first missing shard; several processes each take every ranks-th one. Asking again about records without
an answer makes a shard anew, beside the old one, which is removed then.
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from vistill.data.collate import mirror_words
from vistill.data.dataset import open_split
from vistill.data.store import locked
from vistill.distill.answers import Answer, Ask, Teacher, check_able
from vistill.distill.cache import (
    DAMAGED,
    MANIFEST,
    CacheConfig,
    Problem,
    ShardRange,
    about,
    cache_id,
    damaged,
    differences,
    digest,
    layout_for,
    layout_of,
    make_manifest,
    open_shard,
    problems_of,
    ranges,
    read_manifest,
    shard_files,
    view_of,
)
from vistill.distill.cache_shards import Record, Shard, check_shape, flatten, to_batch, write_batch
from vistill.errors import ConfigError, DataError, ImageError
from vistill.files import sync_file, sync_folder, write_json

Progress = Callable[[int, int], None]
"""(records done, records to do)."""
Place = tuple[str, int, int]
"""(split, row, view)."""


@runtime_checkable
class BlackBox(Teacher, Protocol):
    """A teacher behind a network: each caption is a request, which costs and may fail for one picture."""

    seconds_apart: float
    """Least seconds between two requests; 0 sets no limit."""

    def answer_each(
        self, images: Sequence[Image.Image], gold: Sequence[Sequence[str]], ask: Ask
    ) -> list[Answer | str]:
        """As `answer`, with the reason in the place of an answer that a picture cannot get."""
        ...


@dataclass(frozen=True)
class Plan:
    """What a run will cost, from `measured` records."""

    records: int
    captions: int
    """Gold captions, of every view."""
    shards: int
    bytes: int
    hours: float
    """Of one process on this machine."""
    bytes_per_record: float
    bytes_per_caption: float
    """All bytes over the gold captions; 0 if there are none."""
    seconds_per_record: float
    measured: int
    requests: int
    """Of the run to a black box, if none is sent twice; 0 for other teachers."""
    spent: int
    """Requests that measuring sent; their answers are not kept."""


@dataclass(frozen=True)
class Report:
    """What a run did."""

    made: int
    """Records asked for now."""
    kept: int
    """Records that were there."""
    missing: int
    """Records that other ranks have still to make."""
    bytes: int
    problems: tuple[Problem, ...]
    """Records without an answer, in the shards of this rank."""


def plan(teacher: Teacher, data: Path, config: CacheConfig, sample: int = 16) -> Plan:
    """Bytes and hours of a run, measured on about `sample` records spread over splits and views.

    A model is asked about one record more, to warm up; a black box, where that costs, is not.
    Raises ConfigError if the teacher cannot answer, DataError if there is no data or an answer
    cannot be kept.
    """
    check_able(teacher, config.ask)
    if sample < 1:
        raise ConfigError(f"sample={sample}: must be at least 1")
    manifest = make_manifest(teacher.identity, data, config)
    layout, parts = layout_for(teacher.identity, config), ranges(manifest)
    if not parts:
        raise DataError(f"{data}: splits {', '.join(config.splits)} hold no picture")
    total = sum(map(size_of, parts))
    spread = np.unique(np.linspace(0, total - 1, min(sample, total)).astype(int))
    places = [place for _, place in locate(parts, spread)]
    of_each, least = 0, 0.0  # requests and their seconds
    if isinstance(teacher, BlackBox):
        of_each, least = config.ask.captions, config.ask.captions * teacher.seconds_apart
    else:
        list(ask(teacher, data, config, places[:1]))  # the first answer pays for warming up
    start = time.perf_counter()
    records = list(ask(teacher, data, config, places))
    seconds = max(least, (time.perf_counter() - start) / len(records))
    batch = to_batch([flatten(record, layout) for record in records])
    sink = pa.BufferOutputStream()
    write_batch(sink, batch, about(parts[0], cache_id(manifest)))
    frame = sink.getvalue().size - batch.nbytes  # of every file: schema, footer, padding
    size = round(batch.nbytes / len(records) * total + frame * len(parts))
    golds = sum(len(texts) for split in config.splits for texts in open_split(data, split)["captions"])
    captions = golds * config.views
    return Plan(
        records=total,
        captions=captions,
        shards=len(parts),
        bytes=size,
        hours=seconds * total / 3600,
        bytes_per_record=size / total,
        bytes_per_caption=size / captions if captions else 0.0,
        seconds_per_record=seconds,
        measured=len(records),
        requests=of_each * total,
        spent=of_each * len(records),
    )


def run(
    folder: Path,
    teacher: Teacher,
    data: Path,
    config: CacheConfig,
    *,
    rank: int = 0,
    ranks: int = 1,
    retry: bool = False,
    progress: Progress = lambda done, total: None,
) -> Report:
    """Make the shards of this rank that are missing in `folder`.

    Equal arguments give equal bytes, however often the run was killed. A picture that cannot be decoded, or
    that a black box refuses, has its reason for an answer and is named in the report. retry: ask again about
    the records of this rank that have none. Raises ConfigError if the teacher cannot answer, and
    DataError, with the reason, if `folder` is the cache of another teacher, question or data set, or if the
    same rank runs already.
    """
    manifest = start(folder, teacher, data, config, rank=rank, ranks=ranks)
    mine = ranges(manifest)[rank::ranks]
    message = f"{folder}: rank {rank} of {ranks} is being run already; give each process its own rank"
    with locked(folder / f".rank-{rank}-of-{ranks}.lock", message):
        there = _settled(folder, manifest, mine)
        todo = [part for part in mine if part.stem not in there]
        work = [make_shard(folder, teacher, data, config, part, manifest) for part in todo]
        total, done = sum(map(size_of, todo)), 0
        for part in [part for part in mine if retry and part.stem in there]:
            shard = open_shard(there[part.stem], part, layout_of(manifest), cache_id(manifest))
            if shard.problems:
                work.append(_ask_again(folder, teacher, data, config, part, shard, manifest))
                total += len(shard.problems)
        progress(0, total)
        for advanced in chain.from_iterable(work):
            done += advanced
            progress(done, total)
    return report(folder, manifest, mine, made=total)


def start(
    folder: Path, teacher: Teacher, data: Path, config: CacheConfig, *, rank: int = 0, ranks: int = 1
) -> dict[str, Any]:
    """The manifest of the cache in `folder`, which is written if it is not there; refuses as `run` does."""
    if not 0 <= rank < ranks:
        raise ConfigError(f"rank={rank} of ranks={ranks}: must be 0 to ranks - 1")
    check_able(teacher, config.ask)
    ours = make_manifest(teacher.identity, data, config)
    path = folder / MANIFEST
    if not path.exists():
        if folder.is_file() or (folder.is_dir() and any(not _ours(item) for item in folder.iterdir())):
            raise DataError(f"{folder}: is no teacher cache and not empty; choose another folder")
        folder.mkdir(parents=True, exist_ok=True)
        # Ranks that start together write the same, each under a name of its own; the last one stays.
        own = folder / f".{MANIFEST}-{rank}-of-{ranks}"
        write_json(own, ours)
        os.replace(own, path)
        sync_folder(folder)
    manifest = read_manifest(folder)
    different = _other_prompt(manifest, ours) + differences(manifest, ours)
    if different:
        raise DataError(f"{folder}: is another cache: {'; '.join(different)}; choose another folder")
    return manifest


def make_shard(
    folder: Path,
    teacher: Teacher,
    data: Path,
    config: CacheConfig,
    part: ShardRange,
    manifest: dict[str, Any],
) -> Iterator[int]:
    """Ask for the records of one shard and write it; yields the number of records of each batch."""
    rows, layout = [], layout_of(manifest)
    places = [(part.split, row, part.view) for row in range(part.first, part.end)]
    for number, record in enumerate(ask(teacher, data, config, places), 1):
        rows.append(flatten(record, layout))
        if number % config.batch_size == 0 or number == len(places):
            yield (number - 1) % config.batch_size + 1
    if part.stem in shard_files(folder):
        raise DataError(f"{folder}: another process made {part.stem} too; run with other ranks than it does")
    _write(folder, part, rows, manifest)


def _ask_again(
    folder: Path,
    teacher: Teacher,
    data: Path,
    config: CacheConfig,
    part: ShardRange,
    shard: Shard,
    manifest: dict[str, Any],
) -> Iterator[int]:
    """Ask about the records of a shard that have no answer, and replace it if there is one now.

    Yields 1 for each. The new shard is there before the old one goes: `_settled` removes what a kill leaves.
    """
    if damaged(shard.path):  # a new hash would hide it
        raise DataError(f"{shard.path}: {DAMAGED}")
    rows, layout = [_row(shard, number) for number in range(len(shard))], layout_of(manifest)
    places = [(part.split, part.first + number, part.view) for number in shard.problems]
    answered = False
    for number, record in zip(shard.problems, ask(teacher, data, config, places), strict=True):
        if record.answer is not None:  # the old reason stays where there is but a new one
            rows[number], answered = flatten(record, layout), True
        yield 1
    if answered:
        _write(folder, part, rows, manifest)
        shard.path.unlink()
        sync_folder(folder)


def _row(shard: Shard, row: int) -> dict[str, Any]:
    """A record as `flatten` gave it, so that writing it again gives the same bytes."""
    out: dict[str, Any] = {}
    for name in shard.batch.schema.names:
        column = shard.batch.column(name)
        if name in shard.lists:
            out[name] = shard.flat(name, row)
        else:
            out[name] = column.to_numpy()[row] if pa.types.is_integer(column.type) else column[row].as_py()
    return out


def _write(folder: Path, part: ShardRange, rows: Sequence[dict[str, Any]], manifest: dict[str, Any]) -> None:
    """Write a whole shard under the name that ends in its hash."""
    temporary = folder / f"{part.stem}.tmp"
    with temporary.open("wb") as file:
        write_batch(file, to_batch(rows), about(part, cache_id(manifest)))
    sync_file(temporary)
    os.replace(temporary, folder / f"{part.stem}.{digest(temporary)}.arrow")
    sync_folder(folder)


def _settled(folder: Path, manifest: dict[str, Any], mine: Sequence[ShardRange]) -> dict[str, Path]:
    """The file of each range of `mine` that is there.

    Where asking again was killed before it removed the old shard there are two; the one that lacks fewer
    answers stays. Raises DataError if two differ in something else.
    """
    files, settled = shard_files(folder), {}
    layout, cache = layout_of(manifest), cache_id(manifest)
    for part in mine:
        paths = files.get(part.stem, [])
        if len(paths) > 1:
            lacking = {path: len(open_shard(path, part, layout, cache).problems) for path in paths}
            paths = sorted(paths, key=lambda path: lacking[path])
            if lacking[paths[0]] == lacking[paths[1]]:
                raise DataError(f"{paths[0]}: {paths[1].name} holds the same records; remove one of them")
            for path in paths[1:]:
                path.unlink()
            sync_folder(folder)
        if paths:
            settled[part.stem] = paths[0]
    return settled


def _other_prompt(manifest: dict[str, Any], ours: dict[str, Any]) -> list[str]:
    """The prompt in words, where the teacher was told another; what is compared is a hash that holds it."""
    before, now = (found["teacher"]["details"].get("prompt") for found in (manifest, ours))
    return [f"the prompt was {before!r} and is {now!r}"] if before and now and before != now else []


def report(folder: Path, manifest: dict[str, Any], mine: Sequence[ShardRange], made: int) -> Report:
    """What the shards `mine`, all of them there, and the folder hold after a run that made `made` records."""
    there, layout, cache = shard_files(folder), layout_of(manifest), cache_id(manifest)
    problems = []
    for part in mine:
        problems += problems_of(open_shard(there[part.stem][0], part, layout, cache), part)
    everything = ranges(manifest)
    return Report(
        made=made,
        kept=sum(size_of(part) for part in everything if part.stem in there) - made,
        missing=sum(size_of(part) for part in everything if part.stem not in there),
        bytes=sum(path.stat().st_size for paths in there.values() for path in paths),
        problems=tuple(problems),
    )


def ask(teacher: Teacher, data: Path, config: CacheConfig, places: Sequence[Place]) -> Iterator[Record]:
    """One record for each place, in order; the next batch is decoded while the teacher works on this one."""
    tables = {split: open_split(data, split) for split in {split for split, _, _ in places}}
    layout = layout_for(teacher.identity, config)

    def load(place: Place) -> tuple[str, Image.Image | None, bool, list[str], str]:
        split, number, view = place
        row = tables[split][number]
        try:
            image, mirrored = view_of(row["image"], row["key"], view, config)
        except ImageError as error:
            return row["key"], None, False, [], str(error)
        texts = [mirror_words(text) if mirrored else text for text in row["captions"]]
        return row["key"], image, mirrored, texts, ""

    batches = [places[n : n + config.batch_size] for n in range(0, len(places), config.batch_size)]
    with ThreadPoolExecutor(2) as pool:
        coming = [pool.submit(load, place) for place in batches[0]]
        for following in [*batches[1:], []]:
            loaded = [future.result() for future in coming]
            coming = [pool.submit(load, place) for place in following]
            good = [(image, texts) for _, image, _, texts, _ in loaded if image is not None]
            answers = iter(_answers(teacher, [i for i, _ in good], [t for _, t in good], config))
            for key, image, mirrored, texts, problem in loaded:
                found = problem if image is None else next(answers)
                if isinstance(found, str):
                    record = Record(key, mirrored, None, found)
                else:
                    record = Record(key, mirrored, found)
                check_shape(record, len(texts), layout)
                yield record


def _answers(
    teacher: Teacher, images: list[Image.Image], gold: list[list[str]], config: CacheConfig
) -> Sequence[Answer | str]:
    """An answer to each picture, or the reason of a black box why there is none."""
    if not images:
        return []
    asked = teacher.answer_each if isinstance(teacher, BlackBox) else teacher.answer
    answers = asked(images, gold, config.ask)
    if len(answers) != len(images):
        name = teacher.identity.name
        raise DataError(f"teacher {name!r} gave {len(answers)} answers to {len(images)} pictures")
    return answers


def locate(parts: Sequence[ShardRange], positions: NDArray[np.int64]) -> list[tuple[ShardRange, Place]]:
    """The range and place of the n-th record of all, for each n of `positions`."""
    starts = np.cumsum([0, *map(size_of, parts)])
    numbers = np.searchsorted(starts, positions, side="right") - 1
    return [
        (parts[n], (parts[n].split, parts[n].first + offset, parts[n].view))
        for n, offset in zip(numbers.tolist(), (positions - starts[numbers]).tolist(), strict=True)
    ]


def size_of(part: ShardRange) -> int:
    return part.end - part.first


def _ours(path: Path) -> bool:
    """Whether a run that was killed before it had a manifest left this."""
    return path.name.startswith((f".{MANIFEST}-", ".rank-"))
