"""What a build found, from its plan and scan: rows, duplicates, and the report that names each loss."""

import base64
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vistill.data import scan, store
from vistill.data.cleaning import LONG_WORDS, count_words
from vistill.data.duplicates import THUMBNAIL, Pair, find_pairs, removals
from vistill.data.records import SPLITS, Dropped, Sample, count_reasons

NAMED_LONG = 10  # long captions that a report names


@dataclass(frozen=True)
class Row:
    """One entry of the plan joined with what the scan found of it."""

    entry: dict[str, Any]
    found: dict[str, Any]

    def sample(self, image: bytes, licence: str | None) -> Sample:
        """Return the stored sample; `licence` replaces the source's unless it is None."""
        return Sample(
            key=self.entry["key"],
            image=image,
            width=self.found["width"],
            height=self.found["height"],
            captions=tuple(self.entry["captions"]),
            question=self.entry["question"],
            answers=tuple(self.entry["answers"]),
            split=self.entry["split"],
            source=self.entry["source"],
            licence=self.entry["licence"] if licence is None else licence,
        )


def rows(work: Path) -> Iterator[Row]:
    """Yield every entry of the plan in folder `work` that could be decoded."""
    for entry, found in zip(scan.plan_entries(work), scan.scan_rows(work), strict=True):
        if "dropped" not in found:
            yield Row(entry, found)


def make_report(
    work: Path, state: Mapping[str, Any], near_duplicates: int | None, licence: str | None
) -> tuple[dict[str, Any], set[int]]:
    """Return the report and the numbers of the rows that are duplicates to leave out."""
    pictures: list[_Rows] = []
    pairs = _pairs(work, pictures, near_duplicates)
    keys, splits = [picture.keys[0] for picture in pictures], [picture.split for picture in pictures]
    duplicates = removals(pairs, splits)
    removed = {number for picture in duplicates for number in pictures[picture].numbers}
    dropped = list(scan.dropped_rows(store.read_json_lines(work / "plan.jsonl")))
    dropped += scan.dropped_rows(scan.scan_rows(work))
    for picture, pair in sorted(duplicates.items()):
        dropped += [_removed(key, picture, pair, keys, splits) for key in pictures[picture].keys]
    counts = _split_counts(work, removed, licence)
    report = {
        **{name: state[name] for name in ("format", "source", "arguments", "annotations", "versions")},
        "fingerprint": store.joint_fingerprint(counts),
        "splits": counts,
        "sampled": state["sampled"],
        "cleaned": state["cleaned"],
        "long_captions": _long_captions(work, removed),
        "dropped": {"counts": count_reasons(dropped), "items": [asdict(item) for item in dropped]},
        "duplicates": [_pair_row(pair, keys, splits, duplicates) for pair in pairs],
    }
    return report, removed


@dataclass(frozen=True)
class _Rows:
    """The rows of one picture in one split: their numbers and keys. Only questions share a picture."""

    split: str
    numbers: list[int] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)


def _pairs(work: Path, pictures: list[_Rows], near_duplicates: int | None) -> list[Pair]:
    """Fill `pictures` from the rows; return the pairs of equal and nearly equal ones among them."""
    places: dict[tuple[Any, ...], _Rows] = {}
    sha256: list[str] = []
    pixels: list[str] = []
    hashes: list[int] = []
    thumbnails = bytearray()
    for number, row in enumerate(rows(work)):
        split = row.entry["split"]
        place = (split, *scan.picture_of(row.entry))
        known = place in places
        of = places.setdefault(place, _Rows(split))
        of.numbers.append(number)
        of.keys.append(row.entry["key"])
        if known:
            continue
        pictures.append(of)
        sha256.append(row.found["sha256"])
        pixels.append(row.found["pixels"])
        hashes.append(row.found["dhash"])
        thumbnails += base64.b64decode(row.found["thumbnail"])
    small = np.frombuffer(bytes(thumbnails), dtype=np.uint8).reshape(len(pictures), THUMBNAIL**2)
    splits = [picture.split for picture in pictures]
    return find_pairs(sha256, pixels, np.array(hashes, np.uint64), small, splits, near_duplicates)


def _removed(key: str, picture: int, pair: Pair, keys: Sequence[str], splits: Sequence[str]) -> Dropped:
    other = pair.first if picture == pair.second else pair.second
    if pair.kind == "near":
        how = f"{pair.distance} bits from, correlation {pair.correlation} with"
    else:
        how = f"same {pair.kind} as"
    detail = f"{how} {keys[other]!r} in {splits[other]}; removed from {splits[picture]}"
    return Dropped(key, "near_duplicate" if pair.kind == "near" else "duplicate", detail)


def _pair_row(
    pair: Pair, keys: Sequence[str], splits: Sequence[str], removed: Mapping[int, Pair]
) -> dict[str, Any]:
    both = (pair.first, pair.second)
    return {
        "keys": [keys[row] for row in both],
        "splits": [splits[row] for row in both],
        "kind": pair.kind,
        "distance": pair.distance,
        "correlation": pair.correlation,
        "removed": [keys[row] for row in both if row in removed],
    }


def _long_captions(work: Path, removed: set[int]) -> dict[str, Any]:
    """Return how many kept captions have more than LONG_WORDS words, by split, and the longest of them."""
    counts: dict[str, int] = {}
    longest: list[tuple[int, str, str]] = []
    for number, row in enumerate(rows(work)):
        lengths = [] if number in removed else map(count_words, row.entry["captions"])
        for words in lengths:
            if words > LONG_WORDS:
                split = row.entry["split"]
                counts[split] = counts.get(split, 0) + 1
                longest.append((-words, row.entry["key"], split))
        if len(longest) > 100 * NAMED_LONG:
            longest = sorted(longest)[:NAMED_LONG]
    return {
        "words": LONG_WORDS,
        "captions": {split: counts[split] for split in SPLITS if split in counts},
        "longest": [
            {"key": key, "split": split, "words": -minus}
            for minus, key, split in sorted(longest)[:NAMED_LONG]
        ],
    }


def _split_counts(work: Path, removed: set[int], licence: str | None) -> dict[str, dict[str, Any]]:
    """Return counts and content fingerprint of each split that has pictures, in the order of SPLITS.

    A picture with several rows (questions) counts once in `pictures` and `bytes`.

    The fingerprint is a SHA-256 over the rows, each picture as its own SHA-256: equal content, equal value.
    """
    counts: dict[str, dict[str, Any]] = {}
    digests = {name: hashlib.sha256() for name in SPLITS}
    seen: set[tuple[Any, ...]] = set()
    for number, row in enumerate(rows(work)):
        if number in removed:
            continue
        name = row.entry["split"]
        count = counts.setdefault(name, {"pictures": 0, "rows": 0, "captions": 0, "questions": 0, "bytes": 0})
        place = (name, *scan.picture_of(row.entry))
        if place not in seen:
            seen.add(place)
            count["pictures"] += 1
            count["bytes"] += row.found["bytes"]
        count["rows"] += 1
        count["captions"] += len(row.entry["captions"])
        count["questions"] += bool(row.entry["question"])
        digests[name].update(store.print_row(row.sample(b"", licence), row.found["sha256"]))
    return {
        name: {**counts[name], "fingerprint": digests[name].hexdigest()} for name in SPLITS if name in counts
    }
