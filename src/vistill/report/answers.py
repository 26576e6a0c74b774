"""Evaluate an answerer: its answers to a split, accuracy kind by kind beside blind answers, and the page."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from vistill.data.asked import AskedPictures
from vistill.metrics.bootstrap import Interval, ratio_intervals
from vistill.metrics.vqa_baselines import Asked, BlindScores, blind_scores
from vistill.provenance import stamp
from vistill.report.answering import Answering
from vistill.report.page import Card, Figure, Gallery, Page, Panel, render, table
from vistill.report.pictures import shown

FORMAT = 1
BATCH = 16
ALL = "all"
BLIND = {"most_frequent": "most frequent", "same_question": "same question", "question_words": "its words"}


@dataclass(frozen=True)
class Answered:
    """One question of a split, what the model said, and how right that is (0 to 1)."""

    key: str
    picture: int
    """Row of the picture."""
    asked: Asked
    kind: str
    answer: str
    model_score: float
    accuracy: float


@dataclass(frozen=True)
class Evaluation:
    """Accuracies in hundredths by kind, `all` first, with 95% intervals over pictures; blind ones beside."""

    rows: tuple[Answered, ...]
    figures: Mapping[str, Interval]
    blind: Mapping[str, BlindScores]
    seconds: float

    def beats(self, kind: str) -> bool:
        """Whether the whole interval lies above the best blind answer."""
        return self.figures[kind].low > 100 * self.blind[kind].best


def evaluate_answers(
    answering: Answering,
    part: AskedPictures,
    learned: Sequence[Asked],
    progress: Callable[[int], object] = lambda done: None,
) -> Evaluation:
    """Ask every question of `part`; the blind answers learn from `learned`. `progress`: pictures done."""
    rows: list[Answered] = []
    begun = time.monotonic()
    for start in range(0, len(part.asked), BATCH):
        batch = range(start, min(start + BATCH, len(part.asked)))
        images = {row: part.table[row]["image"] for row in batch}
        pairs = [(images[row], one.question) for row in batch for one in part.asked[row]]
        places = [(row, place) for row in batch for place in range(len(part.asked[row]))]
        for (row, place), found in zip(places, answering.answer(pairs, 1), strict=True):
            one, best = part.asked[row][place], found[0]
            key, right = part.keys[row][place], one.accuracy(best.text)
            rows.append(Answered(key, row, one, one.kind, best.text, best.score, right))
        progress(batch.stop)
    seconds = time.monotonic() - begun
    blind = blind_scores(learned, [row.asked for row in rows])
    return Evaluation(tuple(rows), {kind: _interval(rows, kind) for kind in blind}, blind, seconds)


def _interval(rows: Sequence[Answered], kind: str) -> Interval:
    """Accuracy of a kind, the pictures drawn again: questions about one picture stand or fall together."""
    right: dict[int, float] = {}
    count: dict[int, float] = {}
    for row in rows:
        if kind in (ALL, row.kind):
            right[row.picture] = right.get(row.picture, 0.0) + 100 * row.accuracy
            count[row.picture] = count.get(row.picture, 0.0) + 1
    both = (np.array(list(right.values())), np.array(list(count.values())))
    return ratio_intervals({kind: both})[kind]


def to_json(
    found: Evaluation, answering: Answering, name: str, data: str, split: str, learn: str
) -> dict[str, Any]:
    """What metrics.json holds."""
    scores = {
        kind: {
            "questions": found.blind[kind].questions,
            "accuracy": asdict(figure),
            "blind": {name: 100 * getattr(found.blind[kind], name) for name in BLIND},
            "beats_blind": found.beats(kind),
        }
        for kind, figure in found.figures.items()
    }
    return {
        "format": FORMAT,
        "task": "answer",
        "model": {"name": name, "kind": answering.kind, "sha256": answering.hash},
        "data": {
            "name": data,
            "split": split,
            "blind_learned_from": learn,
            "pictures": len({row.picture for row in found.rows}),
            "questions": len(found.rows),
        },
        "generation": asdict(answering.generation),
        "scores": scores,
        "seconds": round(found.seconds, 3),
        "questions_per_second": round(len(found.rows) / found.seconds, 2),
        **stamp(),
    }


def prediction_lines(found: Evaluation) -> list[str]:
    """One JSON object a question: question_id, question, answer, answers, kind, accuracy, model_score."""
    return [
        json.dumps(
            {
                "question_id": row.key,
                "question": row.asked.question,
                "answer": row.answer,
                "answers": list(row.asked.answers),
                "kind": row.kind,
                "accuracy": row.accuracy,
                "model_score": row.model_score,
            },
            ensure_ascii=False,
        )
        for row in found.rows
    ]


def figure_rows(found: Evaluation) -> list[tuple[Any, ...]]:
    """(kind, questions, accuracy, low, high, the three blind ones, whether it beats them) in hundredths."""
    return [
        (
            kind,
            found.blind[kind].questions,
            round(figure.value, 1),
            round(figure.low, 1),
            round(figure.high, 1),
            *(round(100 * getattr(found.blind[kind], name), 1) for name in BLIND),
            "yes" if found.beats(kind) else "no",
        )
        for kind, figure in found.figures.items()
    ]


def render_answers(found: Evaluation, part: AskedPictures, metrics: Mapping[str, Any], examples: int) -> str:
    """The page: figures beside blind answers, wrong and right answers of each kind with their pictures."""
    figures = [Figure(kind, f.value, f.low, f.high) for kind, f in found.figures.items()]
    head = ("kind", "questions", "accuracy", "from", "to", *BLIND.values(), "beats them")
    note = "Blind answers never see the picture; they learn from the train questions."
    galleries = []
    for name, title, right in (("wrong", "Wrong answers", False), ("right", "Right answers", True)):
        chosen = _spread([row for row in found.rows if (row.accuracy >= 0.5) == right], examples)
        cards = [_card(row, part) for row in chosen]
        galleries.append(Gallery(name, title, "Drawn evenly from all kinds of question.", cards))
    return render(
        Page(
            title=f"{metrics['model']['name']} on {metrics['data']['name']}, {metrics['data']['split']}",
            subtitle=f"{len(found.rows):,} questions about {metrics['data']['pictures']:,} pictures",
            headline=figures[:4],
            figures=figures,
            panels=[Panel("Beside blind answers", table(head, figure_rows(found)), note)],
            galleries=galleries,
            details={key: value for key, value in metrics.items() if key != "scores"},
        )
    )


def _spread(rows: Sequence[Answered], count: int) -> list[Answered]:
    """`count` rows, as many of each kind as there are, evenly over the split."""
    kinds = sorted({row.kind for row in rows})
    chosen: list[Answered] = []
    for number, kind in enumerate(kinds):
        some = [row for row in rows if row.kind == kind]
        share = (count - len(chosen)) // (len(kinds) - number)
        places = np.linspace(0, len(some) - 1, min(share, len(some))).astype(int).tolist()
        chosen += [some[place] for place in places]
    return chosen


def _card(row: Answered, part: AskedPictures) -> Card:
    picture = shown(part.table[row.picture]["image"])
    caption = f"{row.asked.question} {row.answer}"
    return Card(row.key, caption, [", ".join(row.asked.answers)], {"accuracy": 100 * row.accuracy}, picture)
