"""The comparison of a teacher with its students as one HTML page and as Markdown, from the same cells."""

import re
from collections.abc import Mapping, Sequence
from html import escape

from vistill.metrics.bootstrap import Comparison, Interval
from vistill.report.distill import MAIN, SCORES, Example, Line, Report, Spread
from vistill.report.page import Figure, document, figure_table, flatten, render_details, table

NONE = "–"
HEAD = (
    "",
    "seeds",
    "parameters",
    "MB",
    "CPU ms / image",
    "of teacher's",
    "ms / image",
    *SCORES,
    "distinct",
    "repetition",
)
HOW = (
    "Scores: mean over seeds ± standard deviation between them. Distinct: different captions / captions. "
    "Repetition: share of captions that repeat a word or a word pair. From an encoded picture to its "
    "caption, one picture at a time, median: CPU ms in processor time of all threads, ms by the clock."
)
INTERVALS = (
    "95% intervals and p of a paired bootstrap: the pictures, the same ones for every row, and the seeds of "
    "each row are drawn again 1,000 times. p is two-sided and not corrected for many rows."
)
DRAWN = "Drawn at random with a fixed seed; captions of each row's first seed."


def title(report: Report) -> str:
    """What is compared on what."""
    what = f"{report.teacher} and its students" if report.teacher else "Students"
    return f"{what} on {report.data['name']}, {report.data['split']}"


def subtitle(report: Report) -> str:
    """Counts and fingerprint of the data."""
    data = report.data
    return (
        f"{data['pictures']:,} pictures, {data['references']:,} references, "
        f"fingerprint {data['fingerprint'][:16]}"
    )


def score_rows(report: Report) -> list[list[str]]:
    """A row of cells for each system, under `HEAD`."""
    return [
        [
            _name(line),
            str(line.seeds),
            NONE if line.parameters is None else f"{line.parameters / 1e6:,.2f} M",
            NONE if line.megabytes is None else f"{line.megabytes:,.1f}",
            NONE if line.cpu_milliseconds is None else f"{line.cpu_milliseconds:,.1f}",
            NONE if line.cpu_share is None else f"{100 * line.cpu_share:.0f}%",
            NONE if line.milliseconds is None else f"{line.milliseconds:,.1f}",
            *(_spread(line.scores[name], 2) for name in SCORES),
            _spread(line.variety["distinct_captions"], 3),
            _spread(line.variety["repetition"], 3),
        ]
        for line in report.lines
    ]


def difference_head(report: Report) -> list[str]:
    """Column names of `difference_rows`."""
    share = [f"of the teacher's {MAIN}"] if report.teacher else []
    return ["", *(cell for name in SCORES for cell in (name, "p")), *share]


def difference_rows(report: Report) -> list[list[str]]:
    """Differences of every other system to the baseline, and shares of the teacher's score."""
    found = []
    for line in report.lines:
        cells = [cell for name in SCORES for cell in _difference(line.against.get(name))]
        if report.teacher:
            cells.append(_share(line.teacher_share))
        found.append([_name(line), *cells])
    return found


def to_markdown(report: Report) -> str:
    """The page as Markdown: tables, notes, examples."""
    names = [line.name for line in report.lines]
    examples = [
        [example.key, *(example.captions[name] for name in names), " / ".join(example.references)]
        for example in report.examples
    ]
    parts = [
        f"# {_plain(title(report))}",
        f"{_plain(subtitle(report))}.",
        _markdown_table(HEAD, score_rows(report)),
        HOW,
        f"## Against {_plain(report.baseline)}",
        _markdown_table(difference_head(report), difference_rows(report)),
        INTERVALS,
        *(["\n".join(f"- {_plain(note)}" for note in report.notes)] if report.notes else []),
        *(
            ["## Examples", DRAWN, _markdown_table(["picture", *names, "people"], examples)]
            if examples
            else []
        ),
        "## How this was measured",
        _markdown_table(ORIGIN_HEAD, origin_rows(report)),
    ]
    return "\n\n".join(parts) + "\n"


def to_html(report: Report, pictures: Mapping[str, str]) -> str:
    """The page as HTML; `pictures` are `data:` URIs by key, and a picture may lack."""
    bars = [
        Figure(line.name, line.scores[MAIN].mean, line.intervals[MAIN].low, line.intervals[MAIN].high)
        for line in report.lines
    ]
    notes = "".join(f"<li>{escape(note)}</li>" for note in report.notes)
    cards = "".join(_card(example, pictures.get(example.key, "")) for example in report.examples)
    links = [("scores", "Scores"), ("against", f"Against {report.baseline}")]
    links += [("examples", "Examples")] if cards else []
    parts = [
        '<h2 id="scores">Scores</h2>',
        f'<p class="soft">{escape(HOW)}</p><div class="panel">{_html_table(HEAD, score_rows(report))}</div>',
        f"<h3>{MAIN} with 95% intervals over pictures and seeds</h3>",
        f'<div class="panel">{figure_table(bars)}</div>',
        f'<h2 id="against">Against {escape(report.baseline)}</h2><p class="soft">{escape(INTERVALS)}</p>',
        f'<div class="panel">{_html_table(difference_head(report), difference_rows(report))}</div>',
        f"<h3>To keep in mind</h3><ul>{notes}</ul>" if notes else "",
        f'<h2 id="examples">Examples</h2><p class="soft">{DRAWN}</p><div class="cards">{cards}</div>'
        if cards
        else "",
        render_details("How this was measured", {"data": report.data}),
        f'<div class="panel">{table(ORIGIN_HEAD, origin_rows(report))}</div>',
        *(
            f"<details><summary>{escape(str(origin['system']))}: {escape(str(origin['folder']))}</summary>"
            f'<div class="panel">{table(("", ""), flatten(origin))}</div></details>'
            for origin in report.origins
        ),
    ]
    return document(title(report), subtitle(report), links, parts)


ORIGIN_HEAD = (
    "row",
    "evaluation",
    "model",
    "sha256",
    "trained with seed",
    "steps",
    "losses",
    "taught by",
    "beams",
    "threads",
    "processor",
    "git",
)


def origin_rows(report: Report) -> list[list[str]]:
    """Where each evaluation comes from, in short."""
    found = []
    for origin in report.origins:
        trained = origin["model"].get("trained") or []
        seeds = [str(member.get("seed")) for member in trained]
        steps = [str(member["steps"]) for member in trained if member.get("steps") is not None]
        losses = [
            " + ".join(f"{weight:g} {name}" for name, weight in member["losses"].items())
            for member in trained
            if member.get("losses")
        ]
        teachers = [
            f"{member['teacher']['name']} ({member['teacher']['weights'][:12]})"
            for member in trained
            if member.get("teacher")
        ]
        found.append(
            [
                origin["system"],
                origin["folder"],
                f"{origin['model']['name']} ({origin['model']['kind']})",
                origin["model"]["sha256"][:12],
                ", ".join(seeds) or NONE,
                ", ".join(steps) or NONE,
                ", ".join(dict.fromkeys(losses)) or NONE,
                ", ".join(dict.fromkeys(teachers)) or NONE,
                str((origin["generation"] or {}).get("num_beams", NONE)),
                str((origin["speed"] or {}).get("threads") or NONE),
                str((origin["environment"] or {}).get("processor", NONE)),
                origin["git"] or NONE,
            ]
        )
    return found


def _name(line: Line) -> str:
    return f"{line.name} ({line.role})" if line.role != "student" else line.name


def _spread(value: Spread, digits: int) -> str:
    deviation = "" if value.deviation is None else f" ± {value.deviation:.{digits}f}"
    return f"{value.mean:.{digits}f}{deviation}"


def _difference(found: Comparison | None) -> tuple[str, str]:
    if found is None:
        return NONE, NONE
    d = found.difference
    return f"{d.value:+.2f} ({d.low:+.2f} to {d.high:+.2f})", f"{found.p:.3f}"


def _share(share: Interval | None) -> str:
    return (
        NONE
        if share is None
        else f"{100 * share.value:.1f}% ({100 * share.low:.1f} to {100 * share.high:.1f})"
    )


def _card(example: Example, picture: str) -> str:
    """One picture with a caption of each system and its references."""
    said = "".join(
        f"<dt>{escape(name)}</dt><dd>{escape(caption) or '<i>(no words)</i>'}</dd>"
        for name, caption in example.captions.items()
    )
    people = "".join(f"<li>{escape(text)}</li>" for text in example.references)
    shown = (
        f'<img loading="lazy" src="{escape(picture)}" alt="{escape(example.key)}">'
        if picture
        else '<div class="none">no picture</div>'
    )
    return (
        f'<figure class="card">{shown}<figcaption><dl>{said}</dl><ul>{people}</ul>'
        f'<p class="file">{escape(example.key)}</p></figcaption></figure>'
    )


def _html_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """First column names, the others figures."""
    top = "".join(f'<th class="n">{escape(name)}</th>' for name in head[1:])
    body = ""
    for row in rows:
        cells = "".join(f'<td class="n">{escape(cell)}</td>' for cell in row[1:])
        body += f"<tr><th>{escape(row[0])}</th>{cells}</tr>"
    return f"<table><tr><th>{escape(head[0])}</th>{top}</tr>{body}</table>"


def _markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(_plain(cell) for cell in line)} |" for line in lines)


def _plain(text: str) -> str:
    """Text that Markdown shows as it is, in one line."""
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", " ".join(text.split()))
