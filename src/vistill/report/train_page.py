"""The page about a training run: verdict, curves, dev captions then and now, settings."""

import re
from collections.abc import Mapping, Sequence
from html import escape
from itertools import accumulate, pairwise
from typing import Any

from vistill.errors import ImageError
from vistill.report.charts import Line, legend, line_chart
from vistill.report.page import Panel, document, render_details, render_panel, table
from vistill.report.pictures import data_uri
from vistill.report.train import (
    LOSS,
    MAIN,
    REWARD,
    Curve,
    Histogram,
    Run,
    Sample,
    Verdict,
    finite,
    scores,
    without_folders,
)
from vistill.report.train import warnings as broken

COLOURS = 8  # classes c0 to c7 of the page's CSS
POINTS = 300  # of a line; more are averaged
SMOOTH = 20  # points from which on a line is smoothed: the mean of a twentieth of them to either side
SCALE_100 = ("dev/BLEU-4", "dev/ROUGE-L", "dev/BLEU-1")
RATES = "lr-"


def build_page(run: Run, verdict: Verdict) -> str:
    """The page as HTML text."""
    steps = last_step(run.curves)
    trainer = run.settings["trainer"]
    subtitle = (
        f"logged up to step {steps:,}, {trainer.get('max_epochs')} epochs planned, seed {trainer.get('seed')}"
    )
    figures = [(n, f["first"], f["best"], f["last"]) for n, f in scores(run.curves, run.main).items()]
    main = run.curves.get(run.main)
    first = "before training" if main and main.steps[0] == 0 else "first validation"
    sections = [(name, title, made) for name, title, made in sections_of(run.curves, run.main) if made]
    if weights := [histogram_chart(part, found) for part, found in run.weights.items()]:
        sections.append(("weights", "Weights that learn", weights))
    links = [("verdict", "Verdict"), *((name, title) for name, title, _ in sections)]
    links += [("samples", "Samples")] if run.samples else []
    notes = "".join(f"<li>{escape(note)}</li>" for note in broken(run.curves))
    parts = [
        f'<h2 id="verdict">Verdict: {escape(verdict.kind)}</h2><p>{escape(verdict.text)}</p>',
        f"<ul>{notes}</ul>" if notes else "",
        f'<div class="panel">{table(("dev", first, "best", "last"), figures)}</div>' if figures else "",
    ]
    for name, title, panels in sections:
        shown = "".join(render_panel(panel) for panel in panels)
        parts.append(f'<h2 id="{name}">{escape(title)}</h2><div class="panels">{shown}</div>')
    if run.samples:
        cards = "".join(sample_card(sample) for sample in run.samples)
        parts.append(
            '<h2 id="samples">Samples</h2><p class="soft">Dev pictures with what was said at the first'
        )
        parts[-1] += f' and the last validation, and what people say.</p><div class="cards">{cards}</div>'
    parts.append(render_details("Settings", without_folders(run.settings)))
    told = ("reached", "data", "git", "environment")
    origin: dict[str, Any] = {name: run.best[name] for name in told if name in run.best}
    if origin:
        rows = render_details("Where best/ comes from", origin).replace('id="details"', 'id="origin"')
        parts.append(rows)
    return document(f"Run {run.settings.get('name') or run.folder.name}", subtitle, links, parts)


def sections_of(curves: Mapping[str, Curve], metric: str = MAIN) -> list[tuple[str, str, list[Panel]]]:
    """(anchor, title, charts): every curve stands in one of them, except `epoch`, which counts only.

    metric: the dev score by which best/ was chosen.
    """
    shown = {name: finite(curve) for name, curve in curves.items() if name != "epoch"}
    shown = {name: curve for name, curve in shown.items() if curve.steps}
    dev = [name for name in shown if name.startswith("dev/")]
    gradients = [name for name in shown if "grad" in name]
    train = [name for name in shown if name.startswith("train/") and name not in gradients]
    rates = [name for name in shown if name.startswith(RATES)]
    rest = [name for name in shown if name not in {*dev, *gradients, *train, *rates}]
    train.sort(key=lambda name: (name not in (LOSS, REWARD), name))
    main = shown.get(metric)
    best = main.steps[max(range(len(main.values)), key=lambda i: main.values[i])] if main else None
    last = last_step(curves)

    def panel(title: str, names: Sequence[str], mark: float | None = None) -> list[Panel]:
        return [chart(title, [shown[name] for name in names], last, mark)] if names else []

    return [
        (
            "dev",
            "Dev scores",
            [made for title, names in dev_groups(dev, metric) for made in panel(title, names, best)],
        ),
        ("losses", "Training", [made for name in train for made in panel(short(name), [name], best)]),
        ("rates", "Learning rates", panel("Learning rates", rates)),
        ("gradients", "Gradient norms", panel("Gradient norms", gradients, best)),
        ("rest", "Others", [made for name in rest for made in panel(name, [name])]),
    ]


def dev_groups(names: Sequence[str], metric: str) -> list[tuple[str, list[str]]]:
    """(title, dev scores that share a chart), the one that counts first."""
    rest = [n for n in names if n != metric and (n in SCALE_100 or not n.startswith("dev/BLEU"))]
    groups = {
        short(metric): [metric] if metric in names else [],
        "Other scores": [name for name in SCALE_100 if name in rest],
        "Recall": [name for name in rest if re.search(r"_r\d+$", name)],
        "Variety": [name for name in rest if re.search(r"repetition|distinct", name)],
    }
    placed = {name for found in groups.values() for name in found}
    left = [name for name in rest if name not in placed]
    if metric == "dev/mean_of_kinds":
        groups["Kinds of question"], left = left, []
    return [*groups.items(), *((short(name), [name]) for name in left)]


def histogram_chart(part: str, found: Sequence[Histogram]) -> Panel:
    """How the learning weights of a part lie at the first and at the last validation."""
    lines = []
    for css, one in zip(("c5", "c0"), (*found[:1], *found[1:][-1:]), strict=False):
        middles = [(a + b) / 2 for a, b in pairwise(one.edges)]
        counted = sum(one.counts) or 1
        widths = [b - a for a, b in pairwise(one.edges)]
        dense = [count / counted / (width or 1) for count, width in zip(one.counts, widths, strict=True)]
        lines.append(Line(f"step {one.step:,}", css, middles, dense))
    return Panel(part, legend(lines) + line_chart(lines, x="weight", y="density"))


def last_step(curves: Mapping[str, Curve]) -> int:
    """The last step of any curve."""
    return max((curve.steps[-1] for curve in curves.values() if curve.steps), default=0)


def chart(title: str, curves: Sequence[Curve], last: int, mark: float | None = None) -> Panel:
    """Curves over steps 0 to `last`; equal ones share a line, long ones are thinned and smoothed."""
    named: dict[tuple[tuple[int, ...], tuple[float, ...]], list[str]] = {}
    for curve in curves:
        named.setdefault((curve.steps, curve.values), []).append(short(curve.name))
    lines: list[Line] = []
    for number, ((steps, values), names) in enumerate(named.items()):
        css, name = f"c{number % COLOURS}", ", ".join(names)
        xs, ys = thin(steps, values)
        if len(values) >= SMOOTH and not title.startswith("Learning"):
            lines.append(Line(f"{name}, as logged", css, xs, ys, faint=True))
            xs, ys = thin(steps, smooth(values))
        lines.append(Line(name, css, xs, ys))
    body = line_chart(lines, x="step", y=title, mark=mark, span=(0, max(last, 1)))
    told = [line for line in lines if not line.faint]
    return Panel(title, (legend(told) if len(told) > 1 else "") + body, ends(told))


def ends(lines: Sequence[Line]) -> str:
    """First and last value of a single line."""
    if len(lines) != 1 or len(lines[0].ys) < 2:
        return ""
    return f"{lines[0].ys[0]:.4g} at first, {lines[0].ys[-1]:.4g} at last."


def smooth(values: Sequence[float]) -> list[float]:
    """The mean of each point and a twentieth of all points to either side, as far as there are any."""
    reach = len(values) // SMOOTH
    sums = [0.0, *accumulate(values)]
    ends = [(max(0, i - reach), min(len(values), i + reach + 1)) for i in range(len(values))]
    return [(sums[end] - sums[start]) / (end - start) for start, end in ends]


def thin(steps: Sequence[int], values: Sequence[float]) -> tuple[list[float], list[float]]:
    """At most `POINTS` points: neighbours are averaged."""
    size = -(-len(steps) // POINTS)
    if size <= 1:
        return [float(step) for step in steps], list(values)
    parts = [slice(i, i + size) for i in range(0, len(steps), size)]
    means = [(sum(steps[p]) / len(steps[p]), sum(values[p]) / len(values[p])) for p in parts]
    return [x for x, _ in means], [y for _, y in means]


def short(name: str) -> str:
    """A curve's name without what all of its kind have in common."""
    return name.partition("/")[2] or name


def sample_card(sample: Sample) -> str:
    """A dev picture with its first and last captions and a reference."""
    try:
        picture = data_uri(sample.picture) if sample.picture else ""
    except ImageError:
        picture = ""  # the card says that there is no picture
    shown = (
        f'<img loading="lazy" src="{escape(picture)}" alt="{escape(sample.key)}">'
        if picture
        else '<div class="none">no picture</div>'
    )
    chosen = dict.fromkeys([sample.captions[0], sample.captions[-1]]) if sample.captions else {}
    said = "".join(
        f"<dt>{_when(step)}</dt><dd>{escape(text) or '<i>(no words)</i>'}</dd>" for step, text in chosen
    )
    return (
        f'<figure class="card">{shown}<figcaption><dl>{said}</dl><ul><li>{escape(sample.reference)}</li></ul>'
        f'<p class="file">{escape(sample.key)}</p></figcaption></figure>'
    )


def _when(step: int) -> str:
    return f"step {step:,}" if step else "before training"
