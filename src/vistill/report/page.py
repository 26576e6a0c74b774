"""One HTML page about a captioner's evaluation: figures, distributions and pictures with their captions.

The page is a single file without a script; its policy forbids it to load anything, so it can be mailed and
opened from a disk. Every text that comes from data is escaped.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from importlib import resources
from typing import Any, TypeGuard

from vistill.report.charts import interval_bar, nice_ceiling

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


@dataclass(frozen=True)
class Figure:
    """A score of the whole data set with its interval, on the scale that papers print."""

    name: str
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Card:
    """One picture: what the model said, what people said, and the scores of this picture."""

    key: str
    caption: str
    references: Sequence[str]
    scores: Mapping[str, float]
    picture: str = ""
    """A `data:` URI; empty where the picture cannot be shown."""
    unseen: frozenset[str] = frozenset()
    """Words of the caption (lower case) that no reference has."""


@dataclass(frozen=True)
class Gallery:
    """Some pictures under a heading; `name` is its anchor."""

    name: str
    title: str
    note: str
    cards: Sequence[Card]


@dataclass(frozen=True)
class Panel:
    """A chart or a table under a heading; `body` is HTML that this package made."""

    title: str
    body: str
    note: str = ""


@dataclass(frozen=True)
class Page:
    """All that the page shows."""

    title: str
    subtitle: str
    headline: Sequence[Figure]
    figures: Sequence[Figure]
    panels: Sequence[Panel]
    galleries: Sequence[Gallery]
    details: Mapping[str, Any] = field(default_factory=dict)


def render(page: Page) -> str:
    """The page as HTML text, UTF-8 when written."""
    links = [("scores", "Scores"), ("variety", "Distributions"), *((g.name, g.title) for g in page.galleries)]
    panels = "".join(render_panel(panel) for panel in page.panels)
    parts = [
        f'<div class="tiles">{"".join(render_tile(figure) for figure in page.headline)}</div>',
        '<h2 id="scores">Scores</h2>',
        '<p class="soft">With 95% intervals: the pictures drawn again 1,000 times with replacement.</p>'
        if any(figure.high > figure.low for figure in page.figures)
        else "",
        f'<div class="panel">{figure_table(page.figures)}</div>',
        f'<h2 id="variety">Distributions</h2><div class="panels">{panels}</div>',
        *(render_gallery(gallery) for gallery in page.galleries),
        render_details("How this was measured", page.details),
    ]
    return document(page.title, page.subtitle, links, parts)


def document(title: str, subtitle: str, links: Sequence[tuple[str, str]], parts: Sequence[str]) -> str:
    """A whole page around `parts`, which are HTML; `links` are (anchor, title) of its sections."""
    style = resources.files("vistill.report").joinpath("page.css").read_text(encoding="utf-8")
    navigation = "".join(f'<a href="#{escape(name)}">{escape(text)}</a>' for name, text in links)
    return "\n".join(
        [
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)}</title><style>{style}</style></head><body><main>",
            f'<header><h1>{escape(title)}</h1><p class="soft">{escape(subtitle)}</p>',
            f"<nav>{navigation}</nav></header>",
            *parts,
            "</main></body></html>\n",
        ]
    )


def render_details(title: str, details: Mapping[str, Any]) -> str:
    """Nested settings as a table under a heading with the anchor `details`."""
    rows = table(("", ""), list(flatten(details)))
    return f'<h2 id="details">{escape(title)}</h2><div class="panel">{rows}</div>'


def render_tile(figure: Figure) -> str:
    """A headline figure."""
    interval = f"{figure.low:.1f} to {figure.high:.1f}" if figure.high > figure.low else "&nbsp;"
    return f'<div class="tile">{escape(figure.name)}<b>{figure.value:.1f}</b><small>{interval}</small></div>'


def render_panel(panel: Panel) -> str:
    """A chart or table in its frame."""
    note = f'<p class="soft">{escape(panel.note)}</p>' if panel.note else ""
    return f'<section class="panel"><h3>{escape(panel.title)}</h3>{note}{panel.body}</section>'


def render_gallery(gallery: Gallery) -> str:
    """Pictures side by side."""
    cards = "".join(render_card(card) for card in gallery.cards)
    head = f'<h2 id="{escape(gallery.name)}">{escape(gallery.title)}</h2>'
    return f'{head}<p class="soft">{escape(gallery.note)}</p><div class="cards">{cards}</div>'


def render_card(card: Card) -> str:
    """One picture with caption, references and scores."""
    caption = " ".join(_word(word, card.unseen) for word in card.caption.split()) or "<i>(no words)</i>"
    references = "".join(f"<li>{escape(text)}</li>" for text in card.references)
    scores = " ".join(
        f"<span>{escape(name)} <b>{value:.1f}</b></span>" for name, value in card.scores.items()
    )
    picture = (
        f'<img loading="lazy" src="{escape(card.picture)}" alt="{escape(card.caption)}">'
        if card.picture
        else '<div class="none">not decodable</div>'
    )
    return (
        f'<figure class="card">{picture}<figcaption><p class="caption">{caption}</p><ul>{references}</ul>'
        f'<p class="scores">{scores}</p><p class="file">{escape(card.key)}</p></figcaption></figure>'
    )


def figure_table(figures: Sequence[Figure]) -> str:
    """Every score with its interval and a bar; all bars share one scale."""
    full = nice_ceiling(max((figure.high for figure in figures), default=0.0))
    rows = "".join(
        f'<tr><th>{escape(f.name)}</th><td class="n">{f.value:.2f}</td>'
        f'<td class="n">{f.low:.2f} to {f.high:.2f}</td>'
        f'<td class="bar">{interval_bar(f.value, f.low, f.high, full)}</td></tr>'
        for f in figures
    )
    names = '<th>Score</th><th class="n">Value</th><th class="n">95% interval</th>'
    head = f'<tr>{names}<th class="bar">&nbsp; 0 to {full:g}</th></tr>'
    return f"<table>{head}{rows}</table>"


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A plain table; numbers stand on the right, every cell is escaped."""
    numeric = [bool(rows) and _is_number(value) for value in (rows[0] if rows else head)]
    names = (
        f"""<th{' class="n"' if right else ""}>{escape(name)}</th>"""
        for name, right in zip(head, numeric, strict=True)
    )
    top = "".join(names) if any(head) else ""
    body = "".join(f"<tr>{''.join(_cell(value) for value in row)}</tr>" for row in rows)
    return f"<table>{f'<tr>{top}</tr>' if top else ''}{body}</table>"


def flatten(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested settings as rows: {"a": {"b": 1}} -> [("a.b", "1")]."""
    rows: list[tuple[str, str]] = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            rows.extend(flatten(value, f"{prefix}{name}."))
        else:
            text = ", ".join(str(item) for item in value) if isinstance(value, list | tuple) else str(value)
            rows.append((f"{prefix}{name}", text))
    return rows


def _cell(value: object) -> str:
    if not _is_number(value):
        return f'<td class="wrap">{escape(str(value))}</td>'
    return f'<td class="n">{value:,.0f}</td>' if value == int(value) else f'<td class="n">{value:,.3f}</td>'


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _word(word: str, unseen: frozenset[str]) -> str:
    text = escape(word)
    return f"<mark>{text}</mark>" if word.lower().strip(".,;:!?\"'") in unseen else text
