"""What is in a cache, and whether it is right: every byte of it, its rows, and a sample asked again."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vistill.data.dataset import open_split
from vistill.distill.answers import Answer, Teacher, Text
from vistill.distill.cache import (
    DAMAGED,
    MANIFEST,
    Problem,
    ShardRange,
    cache_id,
    config_of,
    damaged,
    data_facts,
    differences,
    layout_of,
    open_shard,
    problems_of,
    ranges,
    read_manifest,
    shard_files,
)
from vistill.distill.cache_run import ask, locate, size_of
from vistill.distill.cache_shards import Layout
from vistill.errors import DataError

Floats = NDArray[np.float32]


def summary(folder: Path) -> dict[str, Any]:
    """The manifest of a finished or unfinished cache, and what is there of it, as JSON values.

    Adds records, shards, missing_shards, bytes, and problems: the records without an answer.
    """
    manifest, files = read_manifest(folder), shard_files(folder)
    parts = ranges(manifest)
    there = [part for part in parts if part.stem in files]
    layout, cache = layout_of(manifest), cache_id(manifest)
    problems = [
        problem
        for part in there
        for problem in problems_of(open_shard(files[part.stem][0], part, layout, cache), part)
    ]
    return {
        **manifest,
        "records": sum(map(size_of, there)),
        "shards": len(there),
        "missing_shards": len(parts) - len(there),
        "bytes": sum(path.stat().st_size for paths in files.values() for path in paths),
        "problems": [asdict(problem) for problem in problems],
    }


def verify(
    folder: Path, teacher: Teacher | None, data: Path | None, sample: int = 16, seed: int = 0
) -> list[Problem]:
    """Everything that is wrong with a cache; an empty list if nothing is.

    Each shard must be there once, have the bytes its name promises and hold the keys of its rows (with
    `data`). With `teacher` and `data`, `sample` records drawn by `seed` are asked again and compared within
    rounding. Raises DataError only if there is no cache.
    """
    manifest = read_manifest(folder)
    kept: dict[str, Any] = {}
    found: dict[str, Any] = {}
    if data is not None:
        kept["data"], found["data"] = manifest["data"], data_facts(data, manifest["data"])
    if teacher is not None:
        kept["teacher"], found["teacher"] = manifest["teacher"], asdict(teacher.identity)
    different = [Problem(MANIFEST, text) for text in differences(kept, found)]
    if different:
        return different  # what follows would compare unlike things
    whole, broken = _read_all(folder, manifest, data)
    if teacher is not None and data is not None and whole:
        broken += _ask_again(folder, manifest, teacher, data, whole, sample, seed)
    return broken


def _read_all(
    folder: Path, manifest: dict[str, Any], data: Path | None
) -> tuple[list[ShardRange], list[Problem]]:
    """Read every byte of every shard: the ranges that are whole, and the problems."""
    files, layout, cache = shard_files(folder), layout_of(manifest), cache_id(manifest)
    keys = {split: open_split(data, split)["key"][:] for split in manifest["data"]} if data else {}
    whole, problems = [], []
    for part in ranges(manifest):
        paths = files.pop(part.stem, [])
        if not paths:
            problems.append(Problem(part.stem, "the shard is missing; `vistill teach run` makes it"))
        if len(paths) > 1:
            names = ", ".join(path.name for path in paths)
            problems.append(Problem(part.stem, f"the shard is there more than once: {names}"))
        for path in paths:
            wrong = _wrong_with(path, part, layout, cache, keys.get(part.split))
            problems += [Problem(path.name, wrong)] if wrong else []
            whole += [] if wrong or len(paths) > 1 else [part]
    problems += [
        Problem(path.name, "is no shard of this cache; remove it")
        for paths in files.values()
        for path in paths
    ]
    return whole, problems


def _wrong_with(path: Path, part: ShardRange, layout: Layout, cache: str, keys: list[str] | None) -> str:
    if damaged(path):
        return DAMAGED
    try:
        shard = open_shard(path, part, layout, cache)
    except DataError as error:
        return str(error)
    for row, ours in enumerate(shard.keys, part.first):
        if keys is not None and ours != keys[row]:
            return f"row {row} is of picture {ours!r}, the data set has {keys[row]!r} there"
    return ""


def _ask_again(
    folder: Path,
    manifest: dict[str, Any],
    teacher: Teacher,
    data: Path,
    whole: Sequence[ShardRange],
    sample: int,
    seed: int,
) -> list[Problem]:
    config, files = config_of(manifest), shard_files(folder)
    layout, cache = layout_of(manifest), cache_id(manifest)
    total = sum(map(size_of, whole))
    chosen = np.sort(np.random.default_rng(seed).choice(total, min(sample, total), replace=False))
    located = locate(whole, chosen)
    problems = []
    records = ask(teacher, data, config, [place for _, place in located])
    for (part, place), record in zip(located, records, strict=True):
        shard = open_shard(files[part.stem][0], part, layout, cache)
        row = place[1] - part.first
        if row in shard.problems or record.answer is None:
            same = shard.problems.get(row, "") == record.problem
            wrong = "" if same else f"was {shard.problems.get(row)!r} and is {record.problem!r}"
        else:
            wrong = compare(shard.answer(row), record.answer)
        if wrong:
            where = f"{part.split}/{record.key}/view {part.view}"
            problems.append(Problem(where, f"asked again, the teacher answers otherwise: {wrong}"))
    return problems


def compare(kept: Answer, fresh: Answer) -> str:
    """What differs beyond what fp16 or int8 rounding and another batch explain; empty if nothing does."""
    if kept.captions != fresh.captions:
        return f"captions were {list(kept.captions)} and are {list(fresh.captions)}"
    for name, before, after in (
        ("gold", kept.gold, fresh.gold),
        ("generated", kept.generated, fresh.generated),
    ):
        if len(before) != len(after):
            return f"{len(before)} {name} texts were kept, {len(after)} come now"
        for number, (old, new) in enumerate(zip(before, after, strict=True)):
            wrong = _compare_text(old, new)
            if wrong:
                return f"{name} text {number}: {wrong}"
    for name, ours, theirs in (
        ("hidden", kept.hidden, fresh.hidden),
        ("embedding", kept.embedding, fresh.embedding),
    ):
        wrong = _compare_states(ours, theirs)
        if wrong:
            return f"{name}: {wrong}"
    return ""


def _compare_text(kept: Text, fresh: Text) -> str:
    if not np.array_equal(kept.ids, fresh.ids):
        return f"ids were {kept.ids.tolist()} and are {fresh.ids.tolist()}"
    if kept.top_ids is None or kept.top_logp is None or fresh.top_ids is None or fresh.top_logp is None:
        return "" if kept.top_ids is fresh.top_ids is None else "log-probabilities on one side only"
    for position in range(len(kept.top_ids)):
        old = dict(zip(kept.top_ids[position].tolist(), kept.top_logp[position].tolist(), strict=True))
        new = dict(zip(fresh.top_ids[position].tolist(), fresh.top_logp[position].tolist(), strict=True))
        for token in {**old, **new}:
            # A token on one side only is as likely as the last of the other side, or there is an error.
            before, after = old.get(token, min(old.values())), new.get(token, min(new.values()))
            before, after = max(before, -65504.0), max(after, -65504.0)  # the lowest that is kept
            if not abs(before - after) <= 0.01 + 0.002 * abs(after):
                return f"log p of token {token} at {position} was {before:.4f} and is {after:.4f}"
    return ""


def _compare_states(kept: Floats | None, fresh: Floats | None) -> str:
    if kept is None or fresh is None:
        return "" if kept is fresh else "is there on one side only"
    if kept.shape != fresh.shape:
        return f"shape was {list(kept.shape)} and is {list(fresh.shape)}"
    room = 0.02 * np.abs(fresh).max(axis=-1, keepdims=True) + 1e-6  # two and a half steps of int8
    apart = np.abs(kept - fresh)
    return f"values are up to {apart.max():.4g} apart" if not (apart <= room).all() else ""
