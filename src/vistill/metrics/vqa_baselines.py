"""What can be answered without the picture: the baselines that an answerer has to beat, kind by kind.

Goyal et al., "Making the V in VQA matter" (arXiv 1612.00837): a model that sees only the question is right
far more often than chance. Three blind answerers learn from training questions: the most frequent answer of
the kind of question, the most frequent answer of the very same question, and naive Bayes over its words.
"""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from vistill.errors import DataError
from vistill.metrics.vqa import answer_accuracy, normalise

SMOOTHING = 0.1  # added to each count of a word
MOST_WORDS = 5000
MOST_ANSWERS = 2000  # the most frequent ones of a kind: bounds the table to 80 MB
ROWS = 4096  # questions at a time
PEOPLE = 10  # answers of a row that was asked of many people

_WORD = re.compile(r"[a-z0-9]+")
_YES_NO = frozenset(
    "is are was were am do does did has have had can could will would should isn't aren't".split()
)


@dataclass(frozen=True)
class Asked:
    """A question, what is right, and whether `answers` are those of many people or one answer in parts."""

    question: str
    answers: tuple[str, ...]
    people: bool = False
    type: str = ""
    """What its data set calls it, as closed or number; empty where it calls it nothing."""

    @property
    def kind(self) -> str:
        """The kind it is scored under: its type, else by its words."""
        return self.type or question_kind(self.question)

    @property
    def label(self) -> str:
        """The answer to learn: what most people said (the first of equals), or all parts joined by ", "."""
        if not self.people:
            return ", ".join(sorted(normalise(answer) for answer in self.answers))
        return Counter(normalise(answer) for answer in self.answers).most_common(1)[0][0]

    def score(self, label: str) -> float:
        """Accuracy of a label: the rule of the VQA challenge among people, else 1 for equal answers."""
        return answer_accuracy(label, self.answers) if self.people else float(label == self.label)

    def accuracy(self, answer: str) -> float:
        """Accuracy of an answer as a model writes it, its parts in the order in which they were learned."""
        if self.people:
            return answer_accuracy(answer, self.answers)
        return float(normalise(answer) == normalise(", ".join(self.answers)))


@dataclass(frozen=True)
class BlindScores:
    """Accuracy (0 to 1) of each baseline on the questions of one kind, and the best of them."""

    questions: int
    most_frequent: float
    same_question: float
    question_words: float

    @property
    def best(self) -> float:
        """The accuracy that an answerer of this kind has to beat."""
        return max(self.most_frequent, self.same_question, self.question_words)


def question_kind(question: str) -> str:
    """The kind of a question by its words: object, number, colour, location, activity or yes/no."""
    words = re.findall(r"[a-z']+", question.lower())
    text = " ".join(words)
    if not words:
        return "object"
    if words[0] in _YES_NO:
        return "yes/no"
    if text.startswith(("how many", "what number", "what is the number")):
        return "number"
    if re.match(r"(what|which) (\w+ ){0,3}colou?rs?\b", text):
        return "colour"
    if words[0] == "where":
        return "location"
    return "activity" if words[0] == "what" and words[-1] == "doing" else "object"


def blind_scores(learned: Sequence[Asked], tested: Sequence[Asked]) -> dict[str, BlindScores]:
    """Score the three baselines on `tested` after learning from `learned`, for each kind and for "all".

    A kind that was never learned scores 0. Raises DataError when either is empty.
    """
    if not learned or not tested:
        raise DataError(f"{len(learned)} questions to learn from and {len(tested)} to test: neither may be 0")
    scores: dict[str, BlindScores] = {}
    values: list[NDArray[np.float64]] = []
    for kind in sorted({row.kind for row in tested}):
        known = [row for row in learned if row.kind == kind]
        asked = [row for row in tested if row.kind == kind]
        found = np.array([_accuracy(answerer(known), asked) for answerer in ANSWERERS.values()])
        values.append(found)
        scores[kind] = BlindScores(len(asked), *found.mean(1).tolist())
    together = np.concatenate(values, axis=1).mean(1)
    return {"all": BlindScores(len(tested), *together.tolist()), **scores}


def _accuracy(answerer: "Answerer", asked: Sequence[Asked]) -> NDArray[np.float64]:
    answers = answerer([row.question for row in asked])
    return np.array([row.score(answer) for row, answer in zip(asked, answers, strict=True)])


Answerer = Callable[[Sequence[str]], list[str]]


def most_frequent(learned: Sequence[Asked]) -> Answerer:
    """Answer everything with the most frequent answer ("" where nothing was learned)."""
    answer = _top(Counter(row.label for row in learned))
    return lambda questions: [answer] * len(questions)


def same_question(learned: Sequence[Asked]) -> Answerer:
    """Answer with the most frequent answer of the very same words; of all questions where there are none."""
    fallback = _top(Counter(row.label for row in learned))
    counts: dict[str, Counter[str]] = {}
    for row in learned:
        counts.setdefault(" ".join(_words(row.question)), Counter())[row.label] += 1
    answers = {text: _top(found) for text, found in counts.items()}
    return lambda questions: [answers.get(" ".join(_words(text)), fallback) for text in questions]


def question_words(learned: Sequence[Asked]) -> Answerer:
    """Naive Bayes over the words and the pairs of neighbouring words of a question."""
    labels = [label for label, _ in Counter(row.label for row in learned).most_common(MOST_ANSWERS)]
    if not labels:
        return most_frequent(learned)
    place = {label: number for number, label in enumerate(labels)}
    rows = [row for row in learned if row.label in place]
    seen = Counter(feature for row in rows for feature in _features(row.question))
    column = {feature: number for number, (feature, _) in enumerate(seen.most_common(MOST_WORDS))}
    counts = np.full((len(labels), len(column)), SMOOTHING)
    prior = np.zeros(len(labels))
    for row in rows:
        prior[place[row.label]] += 1
        counts[place[row.label], _columns(row.question, column)] += 1
    # [answers, features] log P(feature | answer); a question is the set of its features
    table = np.log(counts / (prior[:, None] + 2 * SMOOTHING))
    start = np.log(prior / prior.sum())

    def answer(questions: Sequence[str]) -> list[str]:
        found: list[str] = []
        for first in range(0, len(questions), ROWS):
            part = questions[first : first + ROWS]
            present = np.zeros((len(part), len(column)))
            for number, text in enumerate(part):
                present[number, _columns(text, column)] = 1
            found += [labels[best] for best in (present @ table.T + start).argmax(1)]
        return found

    return answer


ANSWERERS: Mapping[str, Callable[[Sequence[Asked]], Answerer]] = {
    "most_frequent": most_frequent,
    "same_question": same_question,
    "question_words": question_words,
}


def _top(counts: Counter[str]) -> str:
    """The most frequent label; of equals the first in alphabetical order."""
    return min(counts, key=lambda label: (-counts[label], label)) if counts else ""


def _words(question: str) -> list[str]:
    return _WORD.findall(question.lower())


def _features(question: str) -> set[str]:
    words = _words(question)
    return {*words, *(f"{one} {two}" for one, two in pairwise(words))}


def _columns(question: str, column: Mapping[str, int]) -> list[int]:
    return [column[feature] for feature in _features(question) if feature in column]
