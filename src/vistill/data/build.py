"""Build a data set from a source.

A build takes five steps, each made of whole files in `.NAME.building` beside the target folder: plan (what
the source has), scan (open each picture once), duplicates (across splits), shards (Arrow, per split), report.
A killed build runs the same steps again and skips the files that exist. The last act renames a folder, so the
target is either absent or complete. Equal sources and arguments give equal bytes.
"""

import hashlib
import importlib.metadata
import inspect
import itertools
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vistill.data import scan, store
from vistill.data.cleaning import Cleaning, require_rules
from vistill.data.pictures import read_picture
from vistill.data.report import Row, make_report, rows
from vistill.data.sources import SOURCES
from vistill.errors import ConfigError, DataError, ImageError
from vistill.files import sync_folder, write_json

FORMAT = 1

Progress = Callable[[str, int, int], None]  # (step, done, total)


@dataclass(frozen=True)
class BuildConfig:
    """How a data set is built, whatever its source.

    near_duplicates: bits of 64 by which the hashes of near duplicates may differ (their thumbnails must
    correlate too, see `vistill.data.duplicates`); None looks for equal pictures only. shard_size: pictures in
    one Arrow file. licence: replaces the source's.
    clean: names of `vistill.data.cleaning.RULES`, which change captions before anything else looks at them.
    num_samples: pictures to keep, drawn by sample_seed before any is opened; None keeps all.
    options: keyword arguments of the source's reader.
    """

    min_caption_chars: int = 2
    unique_captions: bool = False
    allow_uncaptioned: bool = False
    near_duplicates: int | None = 8
    shard_size: int = 1000
    licence: str | None = None
    # None where nothing is asked, so that a data set built before these existed is still known by its words.
    clean: tuple[str, ...] | None = None
    num_samples: int | None = None
    sample_seed: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.min_caption_chars < 0:
            raise ConfigError(f"min_caption_chars must be 0 or more, not {self.min_caption_chars}")
        if self.shard_size < 1:
            raise ConfigError(f"shard_size must be 1 or more, not {self.shard_size}")
        if self.near_duplicates is not None and not 0 <= self.near_duplicates <= 16:
            raise ConfigError(f"near_duplicates must be 0 to 16 bits, not {self.near_duplicates}")
        require_rules(self.clean or ())
        if self.num_samples is not None and self.num_samples < 1:
            raise ConfigError(f"num_samples must be 1 or more, not {self.num_samples}")
        if self.sample_seed is not None and self.num_samples is None:
            raise ConfigError("sample_seed does nothing without num_samples")


def build(
    source: str,
    root: Path,
    out: Path,
    config: BuildConfig | None = None,
    *,
    force: bool = False,
    workers: int = 1,
    progress: Progress = lambda step, done, total: None,
) -> dict[str, Any]:
    """Build `out` from the data set `source` under `root`; return its report.

    A killed build is continued; a finished one of the same source and arguments is left as it is. Raises
    ConfigError for an unknown source or option and DataError when the root or an annotation file is missing,
    when an earlier build had other arguments or sources (it says which; `force` starts again), when another
    build of `out` runs, or when `out` is a folder that no build made.
    """
    config = config or BuildConfig()
    root, out = root.resolve(), out.resolve()
    items = _reader(source, config.options)(root, **config.options)
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; expected the root of the data set {source}")
    _check_target(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    work = out.with_name(f".{out.name}.building")
    with store.locked(out.with_name(f".{out.name}.lock"), f"another build of {out} is running"):
        if force:
            _discard(work)
        progress("plan", 0, 0)
        with _new_plan_folder(work):
            state = _new_plan(work, items, source, root, config)
            if (out / store.STATE).exists() and not force:
                _require_same(out, state, ("versions",), work)
                _discard(work)
                return store.read_report(out)
            _adopt_plan(work, state)
        scan.scan(work, root, workers, _counter(progress, "scan", sum(1 for _ in scan.plan_entries(work))))
        report, removed = make_report(work, state, config.near_duplicates, config.licence)
        if not report["splits"]:
            raise DataError(f"{root}: no picture is left; dropped were {report['dropped']['counts']}")
        total = sum(split["rows"] for split in report["splits"].values())
        _write_splits(work, root, config, report, removed, _counter(progress, "write", total))
        _publish(work, out, report, state)
    return report


def _reader(source: str, options: Mapping[str, Any]) -> Callable[..., Iterator[Any]]:
    if source not in SOURCES:
        raise ConfigError(f"unknown source {source!r}; known are {', '.join(SOURCES)}")
    known = [name for name in inspect.signature(SOURCES[source]).parameters if name != "root"]
    for name in options:
        if name not in known:
            raise ConfigError(f"source {source} has no option {name!r}; it has {', '.join(known) or 'none'}")
    return SOURCES[source]


def _check_target(out: Path) -> None:
    """Refuse to ever replace a folder that a build did not make."""
    if out.is_dir() and any(out.iterdir()) and not (out / store.STATE).is_file():
        raise DataError(
            f"{out}: is not empty and no data set was built there (no {store.STATE}); choose another folder"
        )
    if out.exists() and not out.is_dir():
        raise DataError(f"{out}: is a file; choose a folder")


def _counter(progress: Progress, step: str, total: int) -> Callable[[int], None]:
    done = 0

    def advance(more: int) -> None:
        nonlocal done
        done += more
        progress(step, done, total)

    return advance


def _discard(work: Path) -> None:
    """Delete the working folder; its state goes first, so that a kill in between leaves nothing to resume."""
    (work / store.STATE).unlink(missing_ok=True)
    if work.exists():
        shutil.rmtree(work)


@contextmanager
def _new_plan_folder(work: Path) -> Iterator[None]:
    """Give work/new for the time of planning; an unfinished build of before stays as it was."""
    new = work / "new"
    if new.exists():
        shutil.rmtree(new)
    new.mkdir(parents=True)
    try:
        yield
    finally:
        if new.exists():
            shutil.rmtree(new)
        if work.exists() and not (work / store.STATE).exists():
            shutil.rmtree(work)


def _new_plan(
    work: Path, items: Iterator[Any], source: str, root: Path, config: BuildConfig
) -> dict[str, Any]:
    """Write work/new/plan.jsonl and return the state that a resumed build must share."""
    path = work / "new" / "plan.jsonl"
    rules = scan.TextRules(config.min_caption_chars, config.unique_captions, config.allow_uncaptioned)
    cleaning = Cleaning(config.clean or ())
    annotations = scan.write_plan(items, path, root, rules, cleaning)
    sampled = None
    if config.num_samples is not None:
        sampled = scan.sample_plan(path, config.num_samples, config.sample_seed or 0)
    arguments = json.loads(json.dumps(asdict(config), default=str))
    return {
        "format": FORMAT,
        "source": source,
        "arguments": arguments,
        "annotations": annotations,
        "cleaned": cleaning.report() or None,
        "sampled": sampled,
        "plan": scan.file_hash(path)["sha256"],
        "versions": _versions(),
    }


# Parts of the state that follow from the source and the arguments: a difference is told by those.
_FOLLOWS = ("plan", "cleaned", "sampled")


def _versions() -> dict[str, str]:
    names = ("vistill", "pillow", "numpy", "pyarrow", "datasets")
    return {name: importlib.metadata.version(name) for name in names}


def _adopt_plan(work: Path, state: dict[str, Any]) -> None:
    """Take the new plan for a fresh build; for a resumed one make sure that it is the plan it began with."""
    if (work / store.STATE).exists():
        _require_same(work, state, (), work)
        return
    for leftover in ("scan", "built"):  # of a build that was killed while it was discarded
        if (work / leftover).exists():
            shutil.rmtree(work / leftover)
    os.replace(work / "new" / "plan.jsonl", work / "plan.jsonl")
    write_json(work / store.STATE, state)


def _require_same(folder: Path, state: dict[str, Any], ignore: tuple[str, ...], work: Path) -> None:
    """Raise DataError naming what differs between the state in `folder` and `state`."""
    old = json.loads((folder / store.STATE).read_text("utf-8"))
    differences = [
        line
        for name in state
        if name not in (*ignore, *_FOLLOWS)
        for line in _diff(name, old.get(name), state[name])
    ]
    if old["plan"] != state["plan"] and not differences:
        differences = [_plan_difference(folder / "plan.jsonl", work / "new" / "plan.jsonl")]
    if not differences:
        return
    what = "was built" if folder != work else "holds an unfinished build"
    raise DataError(
        f"{folder}: {what} from something else: {'; '.join(differences)}. "
        "Start again with --force, or choose another folder"
    )


def _diff(name: str, old: Any, new: Any) -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        keys = [*old, *(key for key in new if key not in old)]
        return [line for key in keys for line in _diff(f"{name}.{key}", old.get(key), new.get(key))]
    return [] if old == new else [f"{name} was {old!r} and is {new!r}"]


def _plan_difference(old: Path, new: Path) -> str:
    """Say which pictures were added, removed or changed, else which rows of what was dropped."""
    if not old.exists():
        return "pictures were added, removed or changed"
    for name, what in (("key", "picture"), ("dropped", "what was dropped as")):
        before, after = _row_hashes(old, name), _row_hashes(new, name)
        changed = [key for key in before if key in after and before[key] != after[key]]
        told = [
            *_told(what, [key for key in before if key not in after], "is gone"),
            *_told(what, [key for key in after if key not in before], "is new"),
            *_told(what, changed, f"changed ({_changed_names(old, new, name, changed)})"),
        ]
        if told:
            return "; ".join(told)
    return "the order of the pictures changed"


def _told(what: str, keys: list[str], word: str) -> list[str]:
    """Return one sentence that names the first of `keys` and counts the others, or none."""
    more = f", and {len(keys) - 1} more" if len(keys) > 1 else ""
    return [f"{what} {keys[0]!r} {word}{more}"] if keys else []


def _row_hashes(path: Path, name: str) -> dict[str, bytes]:
    """Return {key: hash} of the rows of a plan that have the column `name`; rows are too many to hold.

    A key may have been dropped several times, so each hash covers all rows of its key.
    """
    hashes: dict[str, bytes] = {}
    for row in store.read_json_lines(path):
        if name in row:
            key = row[name]
            hashes[key] = hashlib.sha256(hashes.get(key, b"") + json.dumps(row).encode()).digest()
    return hashes


def _changed_names(old: Path, new: Path, name: str, keys: list[str]) -> str:
    """Return the columns in which the two plans differ for the first of `keys`."""
    if not keys:
        return ""
    rows = [[row for row in store.read_json_lines(path) if row.get(name) == keys[0]] for path in (old, new)]
    columns = dict.fromkeys(column for found in rows for row in found for column in row)
    differ = [c for c in columns if [row.get(c) for row in rows[0]] != [row.get(c) for row in rows[1]]]
    return ", ".join(differ)


def _write_splits(
    work: Path,
    root: Path,
    config: BuildConfig,
    report: dict[str, Any],
    removed: set[int],
    advance: Callable[[int], None],
) -> None:
    """Write the Arrow files of every split into work/built, skipping those that exist."""
    shared = any(counts["rows"] > counts["pictures"] for counts in report["splits"].values())
    for split, counts in report["splits"].items():
        folder = work / "built" / split
        folder.mkdir(parents=True, exist_ok=True)
        left = (
            row
            for number, row in enumerate(rows(work))
            if number not in removed and row.entry["split"] == split
        )
        names = store.shard_names(counts["rows"], config.shard_size)
        for name in names:
            part = list(itertools.islice(left, config.shard_size))
            if not (folder / name).exists():
                samples = (row.sample(_bytes(row, root), config.licence) for row in part)
                store.write_shard(folder / name, samples, shared)
            advance(len(part))
        store.write_split_metadata(folder, names, counts["fingerprint"], shared)


def _bytes(row: Row, root: Path) -> bytes:
    try:
        data = read_picture(row.entry, root)
    except ImageError as error:  # it could be read when it was scanned
        raise DataError(
            f"{root / row.entry['path']}: cannot be read any more ({error.detail}); build again with --force"
        ) from error
    if hashlib.sha256(data).hexdigest() != row.found["sha256"]:
        raise DataError(
            f"{root / row.entry['path']}: changed while the data set was built; build again with --force"
        )
    return data


def _publish(work: Path, out: Path, report: dict[str, Any], state: dict[str, Any]) -> None:
    """Complete work/built and put it in the place of `out`."""
    built = work / "built"
    built.mkdir(exist_ok=True)
    write_json(built / "dataset_dict.json", {"splits": list(report["splits"])})
    write_json(built / store.REPORT, report)
    write_json(built / store.STATE, state)
    old = work / "replaced"
    if out.exists():
        os.replace(out, old)
    os.replace(built, out)
    sync_folder(out.parent)
    _discard(work)
