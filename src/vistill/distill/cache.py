"""The teacher cache: what a teacher said of every view of every picture, asked once and read while training.

Folder: `manifest.json` (who was asked what, about which pictures) and shards of a fixed number of records,
`SPLIT-vVIEW-FIRST-END.HASH.arrow`, where HASH begins the file's sha256. A shard appears under its name only
when complete, so the files that are there are the whole journal of a run. View 0 is the clean picture; view v
is drawn by `view_seed(seed, key, v)`, so training shows exactly the picture that the teacher saw.

Asking is in cache_run.py, proving in cache_verify.py, the columns of a shard in cache_shards.py.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image
from rich.console import Console
from rich.progress import track

from vistill.data.dataset import open_split, read_report
from vistill.data.views import draw_view
from vistill.distill.answers import Answer, Ask, TeacherIdentity
from vistill.distill.cache_shards import HIDDEN_DTYPES, Layout, Shard
from vistill.errors import ConfigError, DataError
from vistill.provenance import git_revision
from vistill.runtime.decode import GenerationConfig
from vistill.runtime.image import AugmentSpec

FORMAT = 1
MANIFEST = "manifest.json"
DAMAGED = "the bytes are not those that were written; remove it and run `vistill teach run` again"
"""What is said of a shard that is `damaged`."""
_SHARD = re.compile(r"(?P<stem>.+-v\d{2,}-\d{7,}-\d{7,})\.(?P<hash>[0-9a-f]{16})\.arrow")
_IN_PASSING = ("code", "teacher.name", "teacher.details")


@dataclass(frozen=True)
class CacheConfig:
    """What a cache holds. Raises ConfigError, naming the key, for a value out of range."""

    splits: tuple[str, ...] = ("train",)
    """Splits of the data set."""
    views: int = 1
    """Views of each picture: the clean one and views - 1 augmented ones."""
    seed: int = 0
    """Seed of the augmented views."""
    augment: AugmentSpec = field(default_factory=AugmentSpec)
    """How far they go from the clean picture."""
    ask: Ask = field(default_factory=Ask)
    """What the teacher is asked."""
    hidden_dtype: str = "float16"
    """How hidden states are kept: float16, or int8 with a scale for each patch."""
    shard_records: int = 512
    """Records in one file: the work lost when a run is killed, held in memory until written."""
    batch_size: int = 16
    """Pictures that the teacher sees at once; not part of what the cache is."""

    def __post_init__(self) -> None:
        if not self.splits or len(set(self.splits)) != len(self.splits):
            raise ConfigError(f"splits={','.join(self.splits)!r}: name each split once, and at least one")
        for name in ("views", "shard_records", "batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)}: must be at least 1")
        if self.hidden_dtype not in HIDDEN_DTYPES:
            raise ConfigError(f"hidden_dtype={self.hidden_dtype!r}: use {' or '.join(HIDDEN_DTYPES)}")


@dataclass(frozen=True)
class ShardRange:
    """Rows first..end - 1 of a split in one view: what one file holds."""

    split: str
    view: int
    first: int
    end: int

    @property
    def stem(self) -> str:
        """The file's name before its hash."""
        return f"{self.split}-v{self.view:02d}-{self.first:07d}-{self.end:07d}"


@dataclass(frozen=True)
class Problem:
    """Something wrong, and where: a file, or split/key/view of a record."""

    where: str
    reason: str


class TeacherCache:
    """Read access to a finished cache: `read(split, row, view)` slices memory-mapped files.

    Objects may be sent to other processes. Raises DataError if `folder` holds no cache, an unfinished one
    (the first missing shard is named) or a truncated shard.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self.manifest = read_manifest(self.folder)
        self.config = config_of(self.manifest)
        self.teacher = TeacherIdentity(**self.manifest["teacher"])
        self.layout = layout_of(self.manifest)
        self.splits: dict[str, int] = {
            name: facts["pictures"] for name, facts in self.manifest["data"].items()
        }
        self._id = cache_id(self.manifest)
        self._ranges = {(part.split, part.view, part.first): part for part in ranges(self.manifest)}
        self._files = self._complete(shard_files(self.folder))
        self._open: dict[tuple[str, int, int], Shard] = {}

    @classmethod
    def open(cls, folder: Path) -> "TeacherCache":
        """The cache in `folder`."""
        return cls(folder)

    def __len__(self) -> int:
        """Records: pictures of all splits times views."""
        return sum(self.splits.values()) * self.config.views

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}  # each process maps the files itself

    def read(self, split: str, row: int, view: int = 0) -> Answer:
        """The teacher's answer to a view of picture `row` of the split.

        Raises DataError if there is no such record, and with the reason if the teacher could not be asked.
        """
        shard, place = self._find(split, row, view)
        if place in shard.problems:
            raise DataError(f"{split} picture {shard.keys[place]!r} has no answer: {shard.problems[place]}")
        return shard.answer(place)

    def mirrored(self, split: str, row: int, view: int = 0) -> bool:
        """Whether the view shows the picture mirrored, so that its gold captions are mirrored too."""
        shard, place = self._find(split, row, view)
        return bool(shard.mirrored[place])

    def picture(self, image: bytes, key: str, view: int) -> tuple[Image.Image, bool]:
        """The view exactly as the teacher saw it, before its preprocessing, and whether it is mirrored."""
        return view_of(image, key, view, self.config)

    def problems(self, splits: Sequence[str] | None = None) -> list[Problem]:
        """The records without an answer, of all splits or of these; reads every shard's list of them."""
        parts = [part for part in self._ranges.values() if splits is None or part.split in splits]
        return [found for part in parts for found in problems_of(self._shard(part), part)]

    def check(
        self,
        *,
        data: Path | None = None,
        teacher: TeacherIdentity | None = None,
        preprocess: str | None = None,
        tokenizer: str | None = None,
        wants: Iterable[str] = (),
        views: int = 1,
        seed: int | None = None,
        augment: AugmentSpec | None = None,
    ) -> None:
        """DataError with every reason why this cache does not fit; None is not looked at.

        data: built data set that is trained on; its splits that the cache holds must be the same. teacher:
        who should have answered. preprocess, tokenizer: sha256 of the student's, where its losses compare
        states or token ids with the teacher's. wants: answers that are needed (captions, top_k, hidden,
        embedding). views, seed, augment: the views that training shows; seed and augment do not count
        if views is 1.
        """
        reasons = []
        if data is not None:
            reasons += differences({"data": self.manifest["data"]}, {"data": data_facts(data, self.splits)})
        if teacher is not None:
            reasons += differences({"teacher": self.manifest["teacher"]}, {"teacher": asdict(teacher)})
        if preprocess is not None and preprocess != self.teacher.preprocess:
            reasons.append(f"preprocessing was {self.teacher.preprocess!r} and is {preprocess!r}")
        if tokenizer is not None and tokenizer != self.teacher.tokenizer:
            reasons.append(
                f"the teacher's tokenizer is {self.teacher.tokenizer!r}, the student's {tokenizer!r}: "
                "ids and log-probabilities mean other words (the teacher's captions as text can be used; a "
                "student that starts from the teacher itself keeps its tokenizer with new_words=false)"
            )
        missing = sorted(set(wants) - self.config.ask.wants())
        if missing:
            reasons.append(f"it holds no {', '.join(missing)}")
        if views > self.config.views:
            reasons.append(f"it holds {self.config.views} views, {views} are needed")
        if views > 1:
            shown = {"views_seed": seed, "augment": augment and asdict(augment)}
            kept = {"views_seed": self.config.seed, "augment": self.manifest["augment"]}
            before = {f"datamodule.{name}": kept[name] for name in kept if shown[name] is not None}
            now = {f"datamodule.{name}": shown[name] for name in kept if shown[name] is not None}
            reasons += [f"of its views, {text} in training" for text in differences(before, now)]
        if reasons:
            raise DataError(f"{self.folder}: does not fit: {'; '.join(reasons)}")

    def unanswered(self, splits: Sequence[str]) -> frozenset[int]:
        """Rows of pictures that lack an answer to one of their views; they go on from split to split."""
        found, before = set(), 0
        for split in splits:
            parts = [part for part in self._ranges.values() if part.split == split]
            found |= {before + part.first + row for part in parts for row in self._shard(part).problems}
            before += self.splits[split]
        return frozenset(found)

    def check_bytes(self) -> None:
        """DataError, naming the files, if a shard has not the bytes that were written. Reads all of it."""
        files = track(
            list(self._files.values()), "teacher's answers", console=Console(stderr=True), transient=True
        )
        wrong = [path for path in files if damaged(path)]
        if wrong:
            more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
            raise DataError(f"{wrong[0]}{more}: {DAMAGED}")

    def shortest_cut(self, splits: Sequence[str]) -> int | None:
        """Tokens of the shortest gold caption of these splits that the teacher read cut; None if none was."""
        cuts = [self._shard(part).shortest_cut() for part in self._ranges.values() if part.split in splits]
        return min((cut for cut in cuts if cut is not None), default=None)

    def _find(self, split: str, row: int, view: int) -> tuple[Shard, int]:
        size = self.config.shard_records
        shard = self._open.get((split, view, row // size))
        if shard is None:
            part = self._ranges.get((split, view, row // size * size))
            if part is None:
                raise self._no_record(split, row, view)
            shard = self._open[(split, view, row // size)] = self._shard(part)
        if row % size >= len(shard):
            raise self._no_record(split, row, view)
        return shard, row % size

    def _no_record(self, split: str, row: int, view: int) -> DataError:
        have = ", ".join(f"{name} ({count} pictures)" for name, count in self.splits.items())
        return DataError(
            f"{self.folder}: has no record of {split!r} row {row} view {view}; "
            f"it holds {have} in {self.config.views} views"
        )

    def _shard(self, part: ShardRange) -> Shard:
        return open_shard(self._files[part.stem], part, self.layout, self._id)

    def _complete(self, files: Mapping[str, list[Path]]) -> dict[str, Path]:
        """The one file of each range."""
        missing = [part.stem for part in self._ranges.values() if part.stem not in files]
        if missing:
            raise DataError(
                f"{self.folder}: {len(missing)} of {len(self._ranges)} shards are missing, the first is "
                f"{missing[0]}; run `vistill teach run` again to complete it"
            )
        out = {}
        for part in self._ranges.values():
            first, *more = files[part.stem]
            if more:
                raise DataError(f"{first}: {more[0].name} holds the same records; remove one of them")
            with first.open("rb") as file:
                file.seek(max(0, first.stat().st_size - 6))
                if file.read() != b"ARROW1":
                    raise DataError(f"{first}: is truncated; remove it and run `vistill teach run` again")
            out[part.stem] = first
        return out


def view_of(image: bytes, key: str, view: int, config: CacheConfig) -> tuple[Image.Image, bool]:
    """View `view` of a picture, RGB and upright, and whether it is mirrored. Raises ImageError."""
    return draw_view(image, key, view, config.augment, config.seed)


def make_manifest(teacher: TeacherIdentity, data: Path, config: CacheConfig) -> dict[str, Any]:
    """All that a cache's numbers depend on, as JSON values."""
    manifest = {
        "format": FORMAT,
        "teacher": asdict(teacher),
        "ask": asdict(config.ask),
        "values": {
            "ids": layout_for(teacher, config).id_type.name,
            "top_logp": "float16",
            "hidden": config.hidden_dtype,
        },
        "views": config.views,
        "seed": config.seed,
        "augment": asdict(config.augment),
        "shard_records": config.shard_records,
        "data": data_facts(data, config.splits),
        "code": git_revision(),
    }
    plain: dict[str, Any] = json.loads(json.dumps(manifest))
    return plain


def data_facts(data: Path, splits: Iterable[str]) -> dict[str, dict[str, Any]]:
    """{split: number of pictures, fingerprint of its content, sha256 of its keys in order}."""
    facts: dict[str, dict[str, Any]] = {}
    for split in splits:
        keys = open_split(data, split)["key"][:]
        facts[split] = {
            "pictures": len(keys),
            "fingerprint": read_report(data)["splits"][split]["fingerprint"],
            "keys": hashlib.sha256("\n".join(keys).encode()).hexdigest(),
        }
    return facts


def read_manifest(folder: Path) -> dict[str, Any]:
    """manifest.json of a cache. Raises DataError if it is missing, broken or of another format."""
    path = Path(folder) / MANIFEST
    if not path.is_file():
        raise DataError(f"{path}: no such file; expected a folder that `vistill teach run` made")
    try:
        manifest: dict[str, Any] = json.loads(path.read_text("utf-8"))
        found = manifest["format"]
        if found == FORMAT:
            config_of(manifest), layout_of(manifest), ranges(manifest)
    except (ValueError, KeyError, TypeError, AttributeError, ConfigError) as error:
        raise DataError(f"{path}: is no manifest of a teacher cache ({error!r})") from error
    if found != FORMAT:
        raise DataError(f"{path}: has format {found}, this version reads {FORMAT}; make the cache again")
    return manifest


def config_of(manifest: Mapping[str, Any]) -> CacheConfig:
    """The settings that a manifest records."""
    ask = {**manifest["ask"], "generation": GenerationConfig(**manifest["ask"]["generation"])}
    spec: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in manifest["augment"].items()
    }
    return CacheConfig(
        splits=tuple(manifest["data"]),
        views=manifest["views"],
        seed=manifest["seed"],
        augment=AugmentSpec(**spec),
        ask=Ask(**ask),
        hidden_dtype=manifest["values"]["hidden"],
        shard_records=manifest["shard_records"],
    )


def layout_for(teacher: TeacherIdentity, config: CacheConfig) -> Layout:
    """The columns of this teacher's shards."""
    return Layout(config.ask, teacher.vocab_size, config.hidden_dtype)


def layout_of(manifest: Mapping[str, Any]) -> Layout:
    """The columns of a manifest's shards."""
    return layout_for(TeacherIdentity(**manifest["teacher"]), config_of(manifest))


def ranges(manifest: Mapping[str, Any]) -> list[ShardRange]:
    """Every shard of a cache, in the order in which they are made: clean views of all splits first."""
    size = manifest["shard_records"]
    return [
        ShardRange(split, view, first, min(first + size, facts["pictures"]))
        for view in range(manifest["views"])
        for split, facts in manifest["data"].items()
        for first in range(0, facts["pictures"], size)
    ]


def cache_id(manifest: Mapping[str, Any]) -> str:
    """Names what the cache is; each shard carries it. Revision of the code and details do not count."""
    counted = {path: value for path, value in _leaves(manifest).items() if not path.startswith(_IN_PASSING)}
    return hashlib.sha256(json.dumps(counted, sort_keys=True).encode()).hexdigest()


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """`a.b was 1 and is 2` for each value that differs and counts."""
    before, after = _leaves(old), _leaves(new)
    return [
        f"{path} was {before.get(path)!r} and is {after.get(path)!r}"
        for path in {**before, **after}
        if before.get(path) != after.get(path) and not path.startswith(_IN_PASSING)
    ]


def shard_files(folder: Path) -> dict[str, list[Path]]:
    """{stem of a range: its files}; more than one is a mistake that the caller names."""
    files: dict[str, list[Path]] = {}
    for name in sorted(os.listdir(folder)):
        match = _SHARD.fullmatch(name)
        if match:
            files.setdefault(match["stem"], []).append(Path(folder) / name)
    return files


def damaged(path: Path) -> bool:
    """Whether a shard has not the bytes that its name promises."""
    return digest(path) != path.name.split(".")[-2]


def digest(path: Path) -> str:
    """The 16 hex digits of the file's sha256 that a shard's name ends in."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def open_shard(path: Path, part: ShardRange, layout: Layout, cache: str) -> Shard:
    """The shard at `path`. Raises DataError if it is broken or holds something else than its name says."""
    shard = Shard(path, layout)
    expected = about(part, cache)
    if shard.about != expected or len(shard) != part.end - part.first:
        what = "; ".join(differences(expected, shard.about)) or f"it holds {len(shard)} records"
        raise DataError(f"{path}: is no shard of this cache: {what}; remove it and run `vistill teach run`")
    return shard


def about(part: ShardRange, cache: str) -> dict[str, Any]:
    """What a shard says of itself."""
    return {"cache": cache, **asdict(part)}


def problems_of(shard: Shard, part: ShardRange) -> list[Problem]:
    """The records of a shard that have no answer."""
    return [
        Problem(f"{part.split}/{shard.keys[row]}/view {part.view}", reason)
        for row, reason in shard.problems.items()
    ]


def _leaves(value: Any, path: str = "") -> dict[str, Any]:
    """{dotted path: value} of nested mappings; tuples as lists."""
    if isinstance(value, Mapping) and value:
        return {
            name: leaf
            for key, inner in value.items()
            for name, leaf in _leaves(inner, f"{path}.{key}" if path else str(key)).items()
        }
    return {path: list(value) if isinstance(value, tuple) else value}
