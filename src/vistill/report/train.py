"""What a run of `vistill train` left: curves, samples and settings, and a verdict on over-fitting.

The rule of the verdict, over the dev score S by which best/ was chosen (CIDEr of captions, the mean over
kinds of questions, recall) at each validation and the curves of training steps:

    S fell       its last value lies more than 2% below its best
    L falls      the mean train loss of the last validation interval lies more than 1% below that of the
                 interval that ends at the best validation
    R rises      the same for the reward of self-critical training, upwards

    S fell, best at step 0      no gain: never above the model that it started from
    S fell, R rises             reward hacking: the captions please the reward and not the references
    S fell, L falls (no R)      over-fitting
    S fell, neither             fell: the model got worse in training too; a rate too high, not over-fitting
    the last S is the best and more than 2% above the one before     rising: it had not finished learning
    otherwise                   level
    fewer than two validations  unknown
"""

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from vistill.errors import DataError

MAIN = "dev/CIDEr"
MAINS = (MAIN, "dev/mean_of_kinds", "dev/r10", "dev/spearman")
"""Scores that best/ is chosen by, for runs that do not say which."""
LOSS, REWARD = "train/loss", "train/reward"
FALL = 0.02
"""Share of the best dev score by which a fall or a rise counts."""
TREND = 0.01
"""Share of a train curve by which its change counts."""
PATHS = ("out", "init_from", "language", "path", "cache", "teacher")
"""Settings that are paths: only their last part is shown."""


@dataclass(frozen=True)
class Curve:
    """One figure over the steps of training; steps rise."""

    name: str
    steps: tuple[int, ...]
    values: tuple[float, ...]


@dataclass(frozen=True)
class Sample:
    """Captions of one dev picture after validations, oldest first."""

    key: str
    reference: str
    captions: tuple[tuple[int, str], ...]
    """(step, caption)."""
    picture: bytes = b""
    """Encoded; empty if it was not logged."""


@dataclass(frozen=True)
class Histogram:
    """How many weights lie between the edges; there is one more edge than counts."""

    step: int
    edges: tuple[float, ...]
    counts: tuple[float, ...]


@dataclass(frozen=True)
class Run:
    """A run's folder as it was read."""

    folder: Path
    settings: dict[str, Any]
    curves: dict[str, Curve]
    samples: list[Sample] = field(default_factory=list)
    best: dict[str, Any] = field(default_factory=dict)
    """Provenance of best/, with `reached`; empty before the first validation."""
    weights: dict[str, list[Histogram]] = field(default_factory=dict)
    """{part of the model: its learning weights at each validation}."""

    @property
    def main(self) -> str:
        """The curve of the score by which best/ was chosen."""
        told = self.best.get("reached", {}).get("by", "")
        known = [name for name in MAINS if name in self.curves]
        return f"dev/{told}" if told else (known or [MAIN])[0]


@dataclass(frozen=True)
class Verdict:
    """Whether a run over-fitted; `kind` is one of the rule above, `text` says it with figures."""

    kind: str
    text: str


def read_run(folder: Path) -> Run:
    """Read the folder of a run; nothing is written there, and it may still be training.

    Raises DataError if it is no such folder or nothing was logged.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise DataError(f"{folder} is no folder of a run: there is no config.json")
    settings = _read_json(path)
    if "trainer" not in settings:
        raise DataError(f"{path} is not that of a run of `vistill train`: give the folder above best/")
    logs = folder / "logs"
    if any(logs.glob("**/events.out.tfevents.*")):
        curves, samples, weights = read_events(logs)
    elif tables := sorted(logs.glob("**/metrics.csv"), key=lambda path: path.stat().st_mtime):
        curves = join_curves([read_csv(path) for path in tables])
        samples, weights = read_lines([path.parent for path in tables])
    else:
        raise DataError(f"{logs} holds neither TensorBoard events nor metrics.csv: train with a logger")
    if not curves:
        raise DataError(f"{logs}: nothing was logged yet")
    kept = [path for name in ("vistill.json", "config.json") if (path := folder / "best" / name).is_file()]
    best = _read_json(kept[0]).get("provenance", {}) if kept else {}
    return Run(folder, settings, curves, samples, best, weights)


def read_events(logs: Path) -> tuple[dict[str, Curve], list[Sample], dict[str, list[Histogram]]]:
    """Curves, samples and histograms of parts of a folder of TensorBoard events.

    Of a step logged twice the later one counts.
    """
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    everything = {"scalars": 0, "tensors": 0, "images": 1, "histograms": 0}
    board = EventAccumulator(str(logs), size_guidance=everything)
    board.Reload()
    tags = board.Tags()
    curves = {
        name: make_curve(name, [(event.step, event.value) for event in board.Scalars(name)])
        for name in tags["scalars"]
    }
    samples = []
    for tag in tags["tensors"]:
        name = tag.removesuffix("/text_summary")
        if name == tag or not name.startswith("dev/"):
            continue
        texts = {e.step: e.tensor_proto.string_val[0].decode("utf-8") for e in board.Tensors(tag)}
        picture = board.Images(name)[-1].encoded_image_string if name in tags["images"] else b""
        samples.append(_sample(name.removeprefix("dev/"), texts, picture))
    weights: dict[str, list[Histogram]] = {}
    for tag in tags["histograms"]:
        part = tag.removeprefix("weights/")
        if part == tag or "/" in part:
            continue
        found = {event.step: event.histogram_value for event in board.Histograms(tag)}
        weights[part] = [  # the first bucket ends where the weights begin
            Histogram(step, tuple(h.bucket_limit), tuple(h.bucket[1:])) for step, h in sorted(found.items())
        ]
    return curves, samples, weights


def read_lines(folders: Sequence[Path]) -> tuple[list[Sample], dict[str, list[Histogram]]]:
    """Samples and histograms beside the metrics.csv of a run's parts, oldest part first."""
    captions: dict[str, dict[int, str]] = {}
    last: dict[str, tuple[str, bytes]] = {}
    weights: dict[str, dict[int, Histogram]] = {}
    for folder in folders:
        for line in _json_lines(folder / "samples.jsonl"):
            captions.setdefault(line["key"], {})[line["step"]] = line["caption"]
            picture = folder / line["picture"]
            last[line["key"]] = line["reference"], picture.read_bytes() if picture.is_file() else b""
        for line in _json_lines(folder / "histograms.jsonl"):
            histogram = Histogram(line["step"], tuple(line["edges"]), tuple(line["counts"]))
            weights.setdefault(line["name"].removeprefix("weights/"), {})[histogram.step] = histogram
    samples = [
        Sample(key, last[key][0], tuple(sorted(texts.items())), last[key][1])
        for key, texts in captions.items()
    ]
    return samples, {name: [found[step] for step in sorted(found)] for name, found in weights.items()}


def join_curves(parts: Sequence[Mapping[str, Curve]]) -> dict[str, Curve]:
    """The curves of a run that was resumed, oldest part first."""
    points: dict[str, list[tuple[int, float]]] = {}
    for part in parts:
        for name, curve in part.items():
            points.setdefault(name, []).extend(zip(curve.steps, curve.values, strict=True))
    return {name: make_curve(name, found) for name, found in points.items()}


def read_csv(path: Path) -> dict[str, Curve]:
    """Curves of Lightning's metrics.csv. Raises DataError, naming the line, for what is no number."""
    points: dict[str, list[tuple[int, float]]] = {}
    with path.open(encoding="utf-8", newline="") as file:
        for number, row in enumerate(csv.DictReader(file), start=2):
            try:
                step = int(row.pop("step"))
                for name, value in row.items():
                    if value:
                        points.setdefault(name, []).append((step, float(value)))
            except (KeyError, ValueError, TypeError) as error:
                raise DataError(f"{path}, line {number}: cannot be read: {error!r}") from error
    return {name: make_curve(name, found) for name, found in points.items()}


def make_curve(name: str, points: Sequence[tuple[int, float]]) -> Curve:
    """Points by step; of two with one step the later one counts, as after a run was resumed."""
    kept = sorted(dict(points).items())
    return Curve(name, tuple(step for step, _ in kept), tuple(float(value) for _, value in kept))


def judge(curves: Mapping[str, Curve], metric: str = MAIN) -> Verdict:
    """Apply the rule at the top of this file."""
    dev = finite(curves[metric]) if metric in curves else Curve(metric, (), ())
    if len(dev.steps) < 2:
        return Verdict("unknown", f"Validations with {metric}: {len(dev.steps)}, too few to see a turn.")
    place = max(range(len(dev.values)), key=lambda i: dev.values[i])  # the first of equals
    best, last = dev.values[place], dev.values[-1]
    at = f"best {best:.2f} at step {dev.steps[place]:,}, last {last:.2f} at step {dev.steps[-1]:,}"
    if best - last <= FALL * abs(best):
        if place == len(dev.values) - 1 and last - dev.values[-2] > FALL * abs(last):
            return Verdict(
                "rising", f"No over-fitting: {metric} still rose ({at}); longer training may help."
            )
        return Verdict("level", f"No over-fitting: {metric} levelled off ({at}).")
    if dev.steps[place] == 0:
        return Verdict(
            "no gain",
            f"No gain: {metric} was never above that of the model it started from ({at}), which best/ still "
            "is; try a lower rate, let less learn, or show more pictures.",
        )
    reward = change(curves.get(REWARD), dev, place)
    loss = change(curves.get(LOSS), dev, place)
    if reward is not None:
        if reward > TREND:
            return Verdict(
                "reward hacking",
                f"Reward hacking: {metric} fell ({at}) while the reward went on rising by "
                f"{100 * reward:.1f}%; keep best/, or weigh cross-entropy more.",
            )
    elif loss is not None and loss < -TREND:
        return Verdict(
            "over-fitting",
            f"Over-fitting: {metric} fell ({at}) while the train loss went on falling by "
            f"{-100 * loss:.1f}%; keep best/, train shorter, or regularise.",
        )
    told = [("reward", reward), ("train loss", loss if reward is None else None)]
    changes = ", ".join(
        f"the {name} changed by {100 * value:+.1f}%" for name, value in told if value is not None
    )
    return Verdict(
        "fell",
        f"{metric} fell ({at}), but training did not go on improving ({changes or 'its curve is missing'}): "
        "no over-fitting; look at the learning rate.",
    )


def change(curve: Curve | None, dev: Curve, best: int) -> float | None:
    """Relative change of a train curve from the validation interval that ends at number `best` to the last.

    None if an interval holds no point, or the best validation is the last.
    """
    if curve is None or best == len(dev.steps) - 1:
        return None
    gaps = [b - a for a, b in pairwise(dev.steps)]
    first = _mean_between(curve, dev.steps[best] - (gaps[best - 1] if best else gaps[0]), dev.steps[best])
    last = _mean_between(curve, dev.steps[-1] - gaps[-1], dev.steps[-1])
    if first is None or last is None or first == 0:
        return None
    return (last - first) / abs(first)


def warnings(curves: Mapping[str, Curve]) -> list[str]:
    """What else is wrong with the curves: figures that are no numbers."""
    return [
        f"{curve.name} is no finite number at {len(curve.steps) - len(finite(curve).steps)} of "
        f"{len(curve.steps)} points, first at step {_first_broken(curve):,}."
        for curve in curves.values()
        if len(finite(curve).steps) < len(curve.steps)
    ]


def scores(curves: Mapping[str, Curve], metric: str = MAIN) -> dict[str, dict[str, float]]:
    """{dev score: {first, best, last}}; best is where `metric` is highest, as best/ is kept."""
    dev = {name: finite(curve) for name, curve in curves.items() if name.startswith("dev/")}
    if metric not in dev or not dev[metric].steps:
        return {}
    main = dev[metric]
    best = main.steps[max(range(len(main.values)), key=lambda i: main.values[i])]
    return {
        name.removeprefix("dev/"): {"first": curve.values[0], "best": at[best], "last": curve.values[-1]}
        for name, curve in dev.items()
        if best in (at := dict(zip(curve.steps, curve.values, strict=True)))
    }


def finite(curve: Curve) -> Curve:
    """The curve without points that are no finite number."""
    kept = [(s, v) for s, v in zip(curve.steps, curve.values, strict=True) if math.isfinite(v)]
    return Curve(curve.name, tuple(s for s, _ in kept), tuple(v for _, v in kept))


def without_folders(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with the last part of each path alone: where a run lay is nobody's business."""
    shown: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            shown[name] = without_folders(value)
        else:
            shown[name] = Path(value).name if name in PATHS and isinstance(value, str) else value
    return shown


def _sample(key: str, texts: Mapping[int, str], picture: bytes) -> Sample:
    """Texts as the trainer logs them: the caption, an empty line, a reference between asterisks."""
    parts = [(step, *text.partition("\n\n*")) for step, text in sorted(texts.items())]
    reference = parts[-1][3].removesuffix("*") if parts else ""
    return Sample(key, reference, tuple((step, caption) for step, caption, _, _ in parts), picture)


def _mean_between(curve: Curve, after: float, until: float) -> float | None:
    found = [v for s, v in zip(curve.steps, curve.values, strict=True) if after < s <= until]
    found = [value for value in found if math.isfinite(value)]
    return sum(found) / len(found) if found else None


def _first_broken(curve: Curve) -> int:
    return next(s for s, v in zip(curve.steps, curve.values, strict=True) if not math.isfinite(v))


def _json_lines(path: Path) -> list[dict[str, Any]]:
    """Objects of a file of JSON lines; none if it is not there. A line that is being written is left out."""
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text("utf-8").split("\n")[:-1]]


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise DataError(f"{path} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise DataError(f"{path}: expected a JSON object, found {type(found).__name__}")
    return found
