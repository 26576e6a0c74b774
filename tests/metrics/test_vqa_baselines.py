"""Blind baselines: compared with counting by hand, and unable to see what is not in the question."""

import math
import random
from collections import Counter

import pytest

from vistill.errors import DataError
from vistill.metrics.vqa_baselines import (
    SMOOTHING,
    Asked,
    blind_scores,
    most_frequent,
    question_kind,
    question_words,
    same_question,
)


@pytest.mark.parametrize(
    ("question", "kind"),
    [
        ("How many dogs are there?", "number"),
        ("what number is on the shirt", "number"),
        ("what color is the dog?", "colour"),
        ("What is the colour of the wall ?", "colour"),
        ("which color is the ball", "colour"),
        ("where is the boy?", "location"),
        ("what is the dog doing?", "activity"),
        ("is the dog running?", "yes/no"),
        ("Are there any stairs?", "yes/no"),
        ("what is on the left of the door", "object"),
        ("who is riding the bike?", "object"),
        ("", "object"),
        ("???", "object"),
    ],
)
def test_kinds(question: str, kind: str) -> None:
    assert question_kind(question) == kind


def rows(count: int, seed: int) -> list[Asked]:
    """Questions whose answer depends on one of their words, with noise."""
    draw = random.Random(seed)
    likely = {"man": "bike", "girl": "horse", "dog": "sled"}
    found = []
    for _ in range(count):
        who = draw.choice(list(likely))
        answer = likely[who] if draw.random() < 0.8 else draw.choice(list(likely.values()))
        found.append(Asked(f"what is the {draw.choice(['big', 'small'])} {who} riding?", (answer,)))
    return found


def test_naive_bayes_equals_a_loop() -> None:
    learned, tested = rows(80, 1), rows(30, 2)
    labels = [label for label, _ in Counter(row.label for row in learned).most_common()]

    def features(text: str) -> set[str]:
        words = text.rstrip("?").split()
        return set(words) | {" ".join(words[i : i + 2]) for i in range(len(words) - 1)}

    known = {feature for row in learned for feature in features(row.question)}
    wanted = []
    for row in tested:
        scores = []
        for label in labels:
            mine = [features(other.question) for other in learned if other.label == label]
            score = math.log(len(mine) / len(learned))
            for feature in features(row.question) & known:
                told = sum(feature in other for other in mine)
                score += math.log((told + SMOOTHING) / (len(mine) + 2 * SMOOTHING))
            scores.append(score)
        wanted.append(labels[scores.index(max(scores))])
    assert question_words(learned)([row.question for row in tested]) == wanted
    assert len(set(wanted)) == 3


def test_scores_are_those_of_counting() -> None:
    learned, tested = rows(200, 3), rows(100, 4)
    scores = blind_scores(learned, tested)
    top = Counter(row.label for row in learned).most_common(1)[0][0]
    assert set(scores) == {"all", "object"}
    assert scores["object"].questions == 100
    assert scores["object"].most_frequent == pytest.approx(sum(row.label == top for row in tested) / 100)
    assert scores["object"].question_words > scores["object"].most_frequent + 0.2, "the words do tell"
    assert scores["object"].best == max(scores["object"].question_words, scores["object"].same_question)


def test_the_same_words_and_what_to_say_without() -> None:
    learned = [Asked("Is it red?", ("yes",)), Asked("is it red", ("yes",)), Asked("is it wet?", ("no",))]
    learned += [Asked("is it dry?", ("no",)), Asked("is it blue?", ("no",))]
    assert same_question(learned)(["is it red?", "is it wet?", "is it new?"]) == ["yes", "no", "no"]
    assert most_frequent(learned)(["anything"]) == ["no"]


def test_balanced_yes_no_cannot_be_guessed() -> None:
    learned = [Asked(f"is there a {x}?", (a,)) for x in ("dog", "cat") for a in ("yes", "no") * 10]
    score = blind_scores(learned, learned)["yes/no"]
    assert (score.most_frequent, score.same_question, score.question_words) == (0.5, 0.5, 0.5)


def test_an_unknown_kind_scores_nothing() -> None:
    scores = blind_scores(
        [Asked("is it?", ("yes",))], [Asked("where is it?", ("here",)), Asked("is it?", ("yes",))]
    )
    assert scores["location"].best == 0.0
    assert scores["all"].most_frequent == 0.5


def test_answers_of_ten_people_and_answers_in_parts() -> None:
    ten = Asked("is it?", ("yes",) * 2 + ("no",) * 8, people=True)
    assert ten.label == "no"
    assert ten.score("no") == 1.0
    assert ten.score("yes") == pytest.approx(0.6)  # 8 x min(2/3, 1) + 2 x min(1/3, 1), over 10
    parts = Asked("what is on the desk", ("scissors", "a book"))
    assert parts.label == "book, scissors"
    assert parts.score("book, scissors") == 1.0
    assert parts.score("book") == 0.0


@pytest.mark.parametrize("empty", [0, 1])
def test_nothing_to_learn_or_to_test(empty: int) -> None:
    both = [[Asked("is it?", ("yes",))], [Asked("is it?", ("yes",))]]
    both[empty] = []
    with pytest.raises(DataError, match="neither may be 0"):
        blind_scores(*both)
