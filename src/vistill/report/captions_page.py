"""The page about a captioner's evaluation: which pictures, charts and figures stand on it."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vistill.metrics.ptb import tokenize
from vistill.report.captions import Rows, Scored
from vistill.report.charts import Series, bar_chart, bin_counts, legend
from vistill.report.page import Card, Figure, Gallery, Page, Panel, table
from vistill.report.pictures import shown

HEADLINE = ("CIDEr", "BLEU-4", "ROUGE-L", "BLEU-1")
SORT_BY = "CIDEr"
CARD_SCORES = ("CIDEr", "BLEU-4", "ROUGE-L")
BY = f"By the {SORT_BY} of the single picture."
MARKED = "Marked words are in none of its references."
SMALL_WORDS = frozenset(
    "a an and are as at be by for from has have her his in is it its of on or the to with".split()
)
VARIETY_TITLES = {
    "vocabulary": "different words",
    "mean_length": "words a caption",
    "distinct_captions": "different captions / captions",
    "distinct_1": "different words / words",
    "distinct_2": "different word pairs / pairs",
    "repetition": "captions that repeat a word pair",
}
LONGEST = 20  # words; the chart's last bar holds all longer captions
CIDER_STEP, CIDER_BINS = 20, 13
COMMON = 10


def build_page(scored: Scored, rows: Rows, metrics: Mapping[str, Any], *, pictures: int) -> Page:
    """A page with `pictures` best, as many worst and as many drawn at random (with a fixed seed)."""
    order = np.argsort(-scored.pictures[SORT_BY], kind="stable")
    count = len(order)
    shown = min(pictures, count)
    sample = np.sort(np.random.default_rng(0).permutation(count)[:shown])
    data, model = metrics["data"], metrics["model"]
    figures = [Figure(name, f["value"], f["low"], f["high"]) for name, f in scored.figures.items()]
    by_name = {figure.name: figure for figure in figures}
    galleries = [
        Gallery("best", "Best", f"{BY} {MARKED}", cards(scored, rows, order[:shown])),
        Gallery(
            "worst", "Worst", f"{BY} The worst first. {MARKED}", cards(scored, rows, order[::-1][:shown])
        ),
        Gallery("sample", "Drawn at random", f"{shown} of {count:,}. {MARKED}", cards(scored, rows, sample)),
    ]
    return Page(
        title=f"{model['name']} on {data['name']}, {data['split']}",
        subtitle=(
            f"{data['pictures']:,} pictures, {data['references']:,} references; {model['kind']}, "
            f"{metrics['generation']['num_beams']} beams; {metrics['created'][:10]}"
        ),
        headline=[by_name[name] for name in HEADLINE if name in by_name],
        figures=figures,
        panels=panels(scored),
        galleries=galleries,
        details={name: value for name, value in metrics.items() if name not in ("scores", "variety")},
    )


def cards(scored: Scored, rows: Rows, chosen: NDArray[np.int64]) -> list[Card]:
    """Cards of the pictures with these numbers."""
    return [card(scored, rows, int(i)) for i in chosen]


def card(scored: Scored, rows: Rows, number: int) -> Card:
    """One picture of the run; its caption's words that no reference has are noted."""
    run = scored.run
    known = {word for reference in run.references[number] for word in tokenize(reference)}
    return Card(
        key=run.keys[number],
        caption=run.captions[number],
        references=run.references[number],
        scores={name: float(scored.pictures[name][number]) for name in CARD_SCORES},
        picture=shown(rows[number]["image"]),
        unseen=frozenset(tokenize(run.captions[number])) - known - SMALL_WORDS,
    )


def panels(scored: Scored) -> list[Panel]:
    """Charts and tables about all pictures."""
    run = scored.run
    return [
        _score_panel(scored),
        _length_panel(run.captions, run.references),
        _variety_panel(scored),
        _common_panel(run.captions),
    ]


def _score_panel(scored: Scored) -> Panel:
    values = scored.pictures[SORT_BY].tolist()
    counts = bin_counts(values, 0, CIDER_STEP, CIDER_BINS)
    labels = [str(i * CIDER_STEP) if i % 2 == 0 else "" for i in range(CIDER_BINS)]
    labels[-1] += "+" if labels[-1] else ""
    chart = bar_chart(
        labels, [Series("pictures", "model", counts)], x=f"{SORT_BY} of a picture", y="pictures"
    )
    middle = float(np.median(scored.pictures[SORT_BY]))
    none = sum(value < 1 for value in values)
    return Panel(f"{SORT_BY} of single pictures", chart, f"Median {middle:.1f}; {none} pictures below 1.")


def _length_panel(captions: Sequence[str], references: Sequence[Sequence[str]]) -> Panel:
    def shares(texts: Sequence[str]) -> list[float]:
        counts = bin_counts([len(tokenize(text)) for text in texts], 0, 1, LONGEST + 1)
        return [100 * count / max(len(texts), 1) for count in counts]

    people = [text for texts in references for text in texts]
    series = [Series("model", "model", shares(captions)), Series("people", "human", shares(people))]
    labels = [str(n) if n % 4 == 0 else "" for n in range(LONGEST)] + [f"{LONGEST}+"]
    chart = bar_chart(labels, series, x="words in a caption", y="share of captions", percent=True)
    return Panel("Length", legend(series) + chart)


def _variety_panel(scored: Scored) -> Panel:
    rows = [(VARIETY_TITLES[name], f["model"], f["people"]) for name, f in scored.variety.items()]
    note = "People: the first reference of each picture."
    return Panel("Variety", table(("", "model", "people"), rows), note)


def _common_panel(captions: Sequence[str]) -> Panel:
    common = Counter(captions).most_common(COMMON)
    repeated = sum(count for _, count in Counter(captions).items() if count > 1)
    note = f"{repeated:,} of {len(captions):,} pictures share their caption with another."
    return Panel("Most frequent captions", table(("caption", "pictures"), common), note)
