"""The page about a retriever's evaluation, as HTML and as Markdown: scores beside chance, queries, ranks."""

from collections.abc import Mapping
from html import escape
from typing import Any

import numpy as np

from vistill.metrics.retrieval import fold_slices
from vistill.report.captions import Rows
from vistill.report.charts import Series, bar_chart, legend
from vistill.report.page import (
    Card,
    Figure,
    Gallery,
    document,
    figure_table,
    render_card,
    render_details,
    render_gallery,
    render_tile,
    table,
)
from vistill.report.pictures import shown
from vistill.report.retrieval import WAYS, Retrieval

HEAD = ("", "R@1", "R@5", "R@10", "median rank", "mean rank")
EDGES = (1, 5, 10, 20, 50, 100, 200, 500, 1000)  # upper ends of the bars of ranks
SHOWN = 5  # pictures of a query
QUERY_SIDE = 200  # pixels of a picture of a query


def render_retrieval(found: Retrieval, rows: Rows, metrics: Mapping[str, Any], *, examples: int) -> str:
    """The page as HTML, with `examples` queries and as many pictures drawn at random (with a fixed seed)."""
    rng = np.random.default_rng(0)
    queries = np.sort(rng.permutation(len(found.texts))[:examples]).tolist()
    scored = np.flatnonzero(found.ranks.image_to_text)
    pictures = np.sort(rng.permutation(scored)[:examples]).tolist()
    figures = [Figure(name, f.value, f.low, f.high) for name, f in found.figures.items()]
    tiles = [figure for figure in figures if figure.name.endswith(("R@1", "R@10"))]
    gallery = Gallery(
        "pictures",
        "Pictures and their first text",
        f"{len(pictures)} drawn at random, with their own captions below.",
        [_picture_card(found, rows, number) for number in pictures],
    )
    parts = [
        f'<div class="tiles">{"".join(render_tile(figure) for figure in tiles)}</div>',
        '<h2 id="scores">Scores</h2>',
        '<p class="soft">With 95% intervals: the pictures drawn again 1,000 times with replacement.</p>',
        f'<div class="panel">{figure_table(figures)}</div>',
        '<h2 id="ranks">Ranks</h2>',
        f'<div class="panel">{table(HEAD, score_rows(found))}</div>',
        f'<div class="panel">{_rank_chart(found)}</div>',
        '<h2 id="queries">Queries</h2>',
        f'<p class="soft">{len(queries)} captions drawn at random and the first pictures found.</p>',
        *(_query(found, rows, number) for number in queries),
        render_gallery(gallery),
        render_details("How this was measured", {k: v for k, v in metrics.items() if k != "scores"}),
    ]
    links = [("scores", "Scores"), ("ranks", "Ranks"), ("queries", "Queries"), ("pictures", "Pictures")]
    return document(title(metrics), subtitle(metrics), links, parts)


def markdown(found: Retrieval, metrics: Mapping[str, Any]) -> str:
    """The scores beside chance as Markdown."""
    lines = [
        f"# {title(metrics)}",
        "",
        subtitle(metrics),
        "",
        f"| {' | '.join(HEAD)} |",
        "|---" * len(HEAD) + "|",
        *(f"| {' | '.join(row)} |" for row in score_rows(found)),
        "",
        "| score | value | 95% interval |",
        "|---|---|---|",
        *(f"| {name} | {f.value:.2f} | {f.low:.2f} to {f.high:.2f} |" for name, f in found.figures.items()),
    ]
    return "\n".join(lines) + "\n"


def title(metrics: Mapping[str, Any]) -> str:
    """Which model on what."""
    return f"{metrics['model']['name']} on {metrics['data']['name']}, {metrics['data']['split']}"


def subtitle(metrics: Mapping[str, Any]) -> str:
    """How many pictures and texts, and who embedded them."""
    data, model, folds = metrics["data"], metrics["model"], metrics["folds"]
    who = [f"{side} by {model[side]['name']} ({model[side]['kind']})" for side in ("pictures", "texts")]
    parts = f", mean of {folds} folds" if folds > 1 else ""
    return (
        f"{data['pictures']:,} pictures, {data['references']:,} texts{parts}; {', '.join(who)}; "
        f"{metrics['created'][:10]}"
    )


def score_rows(found: Retrieval) -> list[list[str]]:
    """A row of cells for each way and for chance, under `HEAD`."""
    rows = []
    for way, name in WAYS.items():
        for who, scores in (("", found.scores), (", chance", found.chance)):
            s = getattr(scores, way)
            recall = [f"{100 * value:.1f}" for value in (s.r1, s.r5, s.r10)]
            rows.append([f"{name}{who}", *recall, f"{s.median:g}", f"{s.mean:.1f}"])
    return rows


def _rank_chart(found: Retrieval) -> str:
    """Shares of ranks from 1 to the last, in bars that grow wider."""
    ranks = (found.ranks.text_to_image, found.ranks.image_to_text[found.ranks.image_to_text > 0])
    edges = np.array([0, *(edge for edge in EDGES if edge < max(map(np.max, ranks))), np.inf])
    shares = [100 * np.histogram(values - 0.5, edges)[0] / len(values) for values in ranks]
    ends = [int(edge) for edge in edges[1:-1]]
    labels = [f"to {end}" for end in ends] + (["more"] if ends else ["all"])
    series = [
        Series("texts", "model", shares[0].tolist()),
        Series("pictures", "human", shares[1].tolist()),
    ]
    return legend(series) + bar_chart(labels, series, x="rank of the right answer", y="share", percent=True)


def _query(found: Retrieval, rows: Rows, number: int) -> str:
    """A text and the first pictures found for it; among those of its fold where there are folds."""
    owner = int(found.owner[number])
    here = _fold(found, owner)
    cosines = _cosines(found.text[number], found.image[here])
    first = [int(i) + here.start for i in np.argsort(-cosines, kind="stable")[:SHOWN]]
    cards = "".join(
        render_card(
            Card(
                key=found.keys[i],
                caption="its picture" if i == owner else "another picture",
                references=list(rows[i]["captions"])[:1],
                scores={"cosine x 100": 100 * float(cosines[i - here.start])},
                picture=shown(rows[i]["image"], QUERY_SIDE),
            )
        )
        for i in first
    )
    rank = found.ranks.text_to_image[number]
    return (
        f"<h3>{escape(found.texts[number])}</h3>"
        f'<p class="soft">rank of its picture: {rank}</p><div class="cards">{cards}</div>'
    )


def _picture_card(found: Retrieval, rows: Rows, number: int) -> Card:
    """A picture and the text that is nearest to it."""
    here = _fold(found, number)
    texts = np.flatnonzero((found.owner >= here.start) & (found.owner < here.stop))
    nearest = texts[int(_cosines(found.image[number], found.text[texts]).argmax())]
    return Card(
        key=found.keys[number],
        caption=found.texts[nearest],
        references=list(rows[number]["captions"]),
        scores={"rank": float(found.ranks.image_to_text[number])},
        picture=shown(rows[number]["image"]),
    )


def _fold(found: Retrieval, number: int) -> slice:
    """The pictures that are searched together with this one."""
    return next(part for part in fold_slices(len(found.keys), found.folds) if number < part.stop)


def _cosines(one: Any, many: Any) -> Any:
    return many @ one / (np.linalg.norm(many, axis=1) * np.linalg.norm(one))
