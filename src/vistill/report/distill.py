"""Compare a teacher with students that were trained in different ways, several seeds each.

Every row is a system; of each of its training seeds there is the folder that `vistill evaluate` wrote. All
must have been evaluated on the same pictures and references. Scores are computed again from the captions:
BLEU of a resample needs more than a score a picture.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vistill.errors import ConfigError, DataError
from vistill.metrics.bootstrap import (
    Comparison,
    Drawn,
    Interval,
    compare_drawn,
    draw,
    intervals_drawn,
    share_drawn,
)
from vistill.metrics.caption import CaptionScores, score_captions
from vistill.metrics.diversity import diversity
from vistill.metrics.ptb import tokenize

SCORES = ("CIDEr", "BLEU-4", "ROUGE-L")
VARIETY = ("distinct_captions", "repetition")
MAIN = "CIDEr"
FORMAT = 1
ENOUGH_SEEDS = 3
SAME_SCORE = 0.01
"""How far a score computed again may lie from the one in metrics.json, of 100."""
OF_ONE_SYSTEM = (("model", "kind"), ("model", "parameters"), ("model", "preprocess"), ("generation",))
"""What the seeds of one system have in common."""


@dataclass(frozen=True)
class Evaluation:
    """A folder that `vistill evaluate` wrote."""

    folder: Path
    metrics: dict[str, Any]
    captions: dict[str, str]
    references: dict[str, list[str]]


@dataclass(frozen=True)
class System:
    """A row of the comparison: one evaluation for each training seed."""

    name: str
    seeds: tuple[Evaluation, ...]


@dataclass(frozen=True)
class Spread:
    """Mean over seeds and standard deviation between them (None for one seed)."""

    mean: float
    deviation: float | None


@dataclass(frozen=True)
class Line:
    """What is told about one system. Scores are on the scale that papers print, 0 to 100."""

    name: str
    role: str
    """teacher, baseline or student."""
    seeds: int
    parameters: int | None
    megabytes: float | None
    """Of weights or graphs and tokenizer, 10^6 bytes; mean over seeds."""
    milliseconds: float | None
    """From an encoded picture to its caption, one at a time: mean over seeds of the medians."""
    cpu_milliseconds: float | None
    """The same in processor time of all threads."""
    cpu_share: float | None
    """Of the teacher's processor time."""
    scores: dict[str, Spread]
    intervals: dict[str, Interval]
    """95%, over pictures and seeds."""
    variety: dict[str, Spread]
    against: dict[str, Comparison]
    """This less the baseline; empty for the baseline itself."""
    teacher_share: Interval | None
    """Of the teacher's CIDEr; None for the teacher itself and without one."""


@dataclass(frozen=True)
class Example:
    """One picture: what people say of it, and what each system (its first seed) says."""

    key: str
    references: list[str]
    captions: dict[str, str]


@dataclass(frozen=True)
class Report:
    """Everything on the page; `asdict` of it is report.json."""

    format: int
    baseline: str
    teacher: str
    """Empty if there is none."""
    data: dict[str, Any]
    """Name, split, counts and fingerprint of what all were evaluated on."""
    lines: list[Line]
    notes: list[str]
    examples: list[Example]
    origins: list[dict[str, Any]]
    """For each evaluation: system, folder, model, search, speed, environment."""


def parse_system(text: str) -> tuple[str, list[Path]]:
    """ "NAME=FOLDER,FOLDER" -> (NAME, folders); the last `=` divides. Raises ConfigError."""
    name, sign, folders = text.rpartition("=")
    paths = [Path(part.strip()) for part in folders.split(",") if part.strip()]
    if not (sign and name.strip() and paths):
        raise ConfigError(f"{text!r}: write NAME=FOLDER,FOLDER,... with a folder for each training seed")
    return name.strip(), paths


def read_system(text: str) -> System:
    """The system that NAME=FOLDER,FOLDER names. Raises ConfigError or DataError, see `read_evaluation`."""
    name, folders = parse_system(text)
    system = System(name, tuple(read_evaluation(folder) for folder in folders))
    _check_seeds(system)
    return system


def read_evaluation(folder: Path) -> Evaluation:
    """Read metrics.json and predictions.jsonl. DataError, naming the file, if they cannot be used."""
    metrics_file, lines_file = folder / "metrics.json", folder / "predictions.jsonl"
    for path in (metrics_file, lines_file):
        if not path.is_file():
            raise DataError(f"{path} is missing: give a folder that `vistill evaluate` wrote")
    try:
        metrics = json.loads(metrics_file.read_text("utf-8"))
        lines = [json.loads(line) for line in lines_file.read_text("utf-8").splitlines()]
        captions = {line["key"]: line["caption"] for line in lines}
        references = {line["key"]: line["references"] for line in lines}
        kind = (metrics["format"], metrics["task"])
        pictures, _ = metrics["data"]["pictures"], metrics["data"]["fingerprint"]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder}: no evaluation can be read from it: {error!r}") from error
    if kind != (FORMAT, "caption"):
        raise DataError(f"{metrics_file}: expected format {FORMAT}, task 'caption', found {kind}")
    if not len(captions) == len(lines) == pictures:
        raise DataError(
            f"{lines_file} holds {len(lines)} lines, {metrics_file.name} tells of {pictures} pictures"
        )
    return Evaluation(folder, metrics, captions, references)


def compare_systems(
    students: Sequence[System],
    teacher: System | None = None,
    baseline: str = "",
    *,
    examples: int = 12,
    samples: int = 1000,
) -> Report:
    """Compare students with the one named `baseline` (the first, if empty), and with the teacher.

    Raises DataError if not all were evaluated on the same pictures, ConfigError for names that do not fit.
    """
    systems = [*([teacher] if teacher else []), *students]
    base = _choose_baseline(students, systems, baseline)
    check_same_data(evaluation for system in systems for evaluation in system.seeds)
    references = {
        key: [" ".join(tokenize(text)) for text in texts]
        for key, texts in systems[0].seeds[0].references.items()
    }
    drawn, lines = {}, []
    scored = {system.name: [_score(seed, references) for seed in system.seeds] for system in systems}
    for stream, system in enumerate(systems):
        drawn[system.name] = draw(scored[system.name], samples, stream=stream)
    for system in systems:
        role = "teacher" if system is teacher else "baseline" if system.name == base else "student"
        lines.append(_line(system, role, scored[system.name], drawn, base, teacher))
    data = systems[0].seeds[0].metrics["data"]
    return Report(
        format=FORMAT,
        baseline=base,
        teacher=teacher.name if teacher else "",
        data={name: data[name] for name in ("name", "split", "pictures", "references", "fingerprint")},
        lines=lines,
        notes=notes(systems),
        examples=_examples(systems, examples),
        origins=[_origin(system.name, seed) for system in systems for seed in system.seeds],
    )


def check_same_data(evaluations: Iterable[Evaluation]) -> None:
    """DataError, naming both folders, if two evaluations are of different pictures or references."""
    first: Evaluation | None = None
    for other in evaluations:
        first = first or other
        if other.metrics["data"]["fingerprint"] != first.metrics["data"]["fingerprint"]:
            raise DataError(
                f"{first.folder} and {other.folder} cannot be compared, they are of different pictures or "
                f"references: {_about(first)}; {_about(other)}"
            )


def notes(systems: Sequence[System]) -> list[str]:
    """What a reader has to know before comparing these systems."""
    found = []
    few = [system.name for system in systems if len(system.seeds) < ENOUGH_SEEDS]
    if few:
        found.append(
            f"Fewer than {ENOUGH_SEEDS} seeds: {', '.join(map(repr, few))}. With one seed an interval knows "
            "nothing of another training run; with two it knows little."
        )
    for system in systems:
        told = [_get(seed.metrics, ("model", "trained")) or [] for seed in system.seeds]
        trained = [tuple(member.get("seed") for member in members) for members in told]
        known = all(trained) and all(seed is not None for members in trained for seed in members)
        if known and len(set(trained)) < len(trained):
            numbers = "; ".join(", ".join(map(str, members)) for members in trained)
            found.append(f"{system.name!r}: evaluations of the same training seed ({numbers}).")
    for what, where in (("Search", "generation"), ("Environment", "environment")):
        differing = _differing([seed.metrics.get(where, {}) for system in systems for seed in system.seeds])
        if differing:
            found.append(f"{what} differs between evaluations: {'; '.join(differing)}.")
    timed = [_speed(seed) for system in systems for seed in system.seeds]
    if not all(timed):
        found.append("Some evaluations tell no time of one picture: evaluate again to have it.")
    kinds = {seed.metrics["model"]["kind"] for system in systems for seed in system.seeds}
    threads = {speed["threads"] for speed in timed if speed}
    if len(kinds) > 1 or len(threads) > 1:
        found.append(
            f"Times are of different runtimes or threads ({', '.join(sorted(kinds))}; "
            f"threads {', '.join(sorted(map(str, threads))) or 'unknown'})."
        )
    return found


def _choose_baseline(students: Sequence[System], systems: Sequence[System], baseline: str) -> str:
    names = [system.name for system in systems]
    if not students:
        raise ConfigError("there is no row to compare: give --row NAME=FOLDER,...")
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        raise ConfigError(f"two rows are called {doubled[0]!r}: give each its own name")
    if baseline and baseline not in names:
        raise ConfigError(f"baseline {baseline!r}: the rows are {', '.join(map(repr, names))}")
    return baseline or students[0].name


def _check_seeds(system: System) -> None:
    """DataError unless the seeds are different weights of one kind of model, searched in one way."""
    first = system.seeds[0]
    seen: dict[str, Evaluation] = {}
    for seed in system.seeds:
        weights = seed.metrics["model"]["sha256"]
        if weights in seen:
            raise DataError(
                f"{system.name!r}: {seen[weights].folder} and {seed.folder} are of the same weights, so they "
                "are no two seeds"
            )
        seen[weights] = seed
        for keys in OF_ONE_SYSTEM:
            ours, theirs = _get(first.metrics, keys), _get(seed.metrics, keys)
            if None not in (ours, theirs) and ours != theirs:
                raise DataError(
                    f"{system.name!r}: {first.folder} and {seed.folder} differ in {'.'.join(keys)}, so they "
                    "are no seeds of one system; give each a row"
                )


def _score(evaluation: Evaluation, references: Mapping[str, Sequence[str]]) -> CaptionScores:
    """Scores of the captions; DataError if they are not those that metrics.json tells."""
    if evaluation.captions.keys() != references.keys():
        raise DataError(
            f"{evaluation.folder}: the pictures of predictions.jsonl are not those that metrics.json tells "
            "of: evaluate again"
        )
    captions = {key: " ".join(tokenize(evaluation.captions[key])) for key in references}
    scores = score_captions(captions, references, tokenized=True)
    for name in SCORES:
        told = evaluation.metrics["scores"][name]["value"]
        if abs(told - 100 * scores.corpus[name]) > SAME_SCORE:
            raise DataError(
                f"{evaluation.folder}: predictions.jsonl has {name} {100 * scores.corpus[name]:.2f}, "
                f"metrics.json tells {told:.2f}: they do not belong together, evaluate again"
            )
    return scores


def _line(
    system: System,
    role: str,
    scored: Sequence[CaptionScores],
    drawn: Mapping[str, Drawn],
    baseline: str,
    teacher: System | None,
) -> Line:
    ours = drawn[system.name]
    varied = [
        asdict(diversity([tokenize(caption) for caption in seed.captions.values()])) for seed in system.seeds
    ]
    compared = {} if system.name == baseline else compare_drawn(drawn[baseline], ours)
    share = share_drawn(drawn[teacher.name], ours, MAIN) if teacher and system is not teacher else None
    cpu = _mean_time(system, "cpu_ms")
    theirs = _mean_time(teacher, "cpu_ms") if teacher else None
    sizes = [seed.metrics["model"].get("bytes") for seed in system.seeds]
    spans = intervals_drawn(ours)
    return Line(
        name=system.name,
        role=role,
        seeds=len(system.seeds),
        parameters=system.seeds[0].metrics["model"].get("parameters"),
        megabytes=None if None in sizes else float(np.mean(sizes)) / 1e6,
        milliseconds=_mean_time(system, "median_ms"),
        cpu_milliseconds=cpu,
        cpu_share=cpu / theirs if cpu and theirs else None,
        scores={name: spread([100 * one.corpus[name] for one in scored]) for name in SCORES},
        intervals={name: _times_100(spans[name]) for name in SCORES},
        variety={name: spread([one[name] for one in varied]) for name in VARIETY},
        against={
            name: Comparison(_times_100(compared[name].difference), compared[name].p)
            for name in SCORES
            if name in compared
        },
        teacher_share=share,
    )


def spread(values: Sequence[float]) -> Spread:
    """Mean and standard deviation (n - 1) of one value a seed."""
    return Spread(float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None)


def _times_100(interval: Interval) -> Interval:
    return Interval(100 * interval.value, 100 * interval.low, 100 * interval.high)


def _mean_time(system: System, name: str) -> float | None:
    times = [(_speed(seed) or {}).get(name) for seed in system.seeds]
    known = [float(time) for time in times if time is not None]
    return float(np.mean(known)) if len(known) == len(times) else None


def _speed(evaluation: Evaluation) -> dict[str, Any] | None:
    found: dict[str, Any] | None = evaluation.metrics.get("speed")
    return found


def _examples(systems: Sequence[System], count: int) -> list[Example]:
    """Some pictures drawn with a fixed seed, the same for every report on these data."""
    first = systems[0].seeds[0]
    keys = list(first.captions)
    chosen = np.sort(np.random.default_rng(0).permutation(len(keys))[:count])
    return [
        Example(
            keys[i],
            first.references[keys[i]],
            {system.name: system.seeds[0].captions[keys[i]] for system in systems},
        )
        for i in chosen
    ]


def _origin(system: str, seed: Evaluation) -> dict[str, Any]:
    metrics = seed.metrics
    names = ("generation", "speed", "created", "vistill", "git", "environment")
    model = {name: value for name, value in metrics["model"].items() if name != "preprocess"}
    return {
        "system": system,
        "folder": seed.folder.resolve().name,
        "model": model,
        **{name: metrics.get(name) for name in names},
    }


def _differing(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """["num_beams 3, 5"]: what differs between settings, with its values."""
    found = []
    for name in sorted({name for one in settings for name in one}):
        values = list(dict.fromkeys(str(one.get(name, "none")) for one in settings))
        if len(values) > 1:
            found.append(f"{name} {', '.join(values)}")
    return found


def _get(values: Mapping[str, Any], keys: Sequence[str]) -> Any:
    found: Any = values
    for key in keys:
        found = found.get(key) if isinstance(found, Mapping) else None
    return found


def _about(evaluation: Evaluation) -> str:
    data = evaluation.metrics["data"]
    return (
        f"{data['name']} {data['split']}, {data['pictures']} pictures, fingerprint {data['fingerprint'][:12]}"
    )
