"""VQA accuracy against a second implementation of the published rule, and by example."""

import gzip
import itertools
import json
import random
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vistill.errors import DataError
from vistill.metrics.vqa import CONTRACTIONS, Question, answer_accuracy, normalise, score_answers

WORDS = {
    word: str(n) for n, word in enumerate("zero one two three four five six seven eight nine ten".split())
}
WORDS["none"] = "0"


@cache
def naive_normalise(text: str) -> str:
    """The rule once more, mark by mark as visualqa.org tells it, with regular expressions."""
    text = re.sub(r"[\n\t]", " ", text).strip()
    out = text
    for mark in ';/[]"{}()=+\\_-><@`,?!':
        glued = re.search(rf"(?: {re.escape(mark)}|{re.escape(mark)} )", text) or re.search(
            "[0-9],[0-9]", text
        )
        out = re.sub(re.escape(mark), "" if glued else " ", out)
    parts = re.split(r"\.(?![0-9])", out)
    words = "".join(parts).lower().split()
    words = [WORDS.get(word, word) for word in words]
    words = [word for word in words if word not in ("a", "an", "the")]
    return " ".join(CONTRACTIONS.get(word, word) for word in words)


def naive_accuracy(answer: str, people: list[str]) -> float:
    """Over every nine of ten people, min(those who said it / 3, 1)."""
    if len({text.strip() for text in people}) > 1:
        answer, people = naive_normalise(answer), [naive_normalise(text) for text in people]
    else:
        answer, people = answer.strip(), [text.strip() for text in people]
    nines = itertools.combinations(people, len(people) - 1)
    scores = [min(1.0, nine.count(answer) / 3) for nine in nines]
    return sum(scores) / len(scores)


@pytest.mark.parametrize(
    ("raw", "wanted"),
    [
        ("Two", "2"),
        ("None", "0"),
        ("ten. ", "10"),
        ("eleven", "eleven"),
        ("The Dog", "dog"),
        ("an apple a day", "apple day"),
        ("dont know", "don't know"),
        ("couldntve", "couldntve"),  # the table knows words that lack one apostrophe
        ("couldn'tve", "couldn't've"),
        ("somebody'd", "somebodyd"),  # an oddity of the table
        ("girl's", "girl's"),
        ("2:50 pm", "2:50 pm"),
        ("100,978", "100978"),
        ("1,5-2", "152"),  # a comma between digits: no mark leaves a blank
        ("black-white", "black white"),
        ("black - white", "black white"),
        ("red, white", "red white"),
        ("red,white", "red white"),
        ("1.5", "1.5"),
        (".5", ".5"),
        ("St. John", "st john"),
        ("U.S.A.", "usa"),
        ("what?!", "what"),
        ("line\nbreak\there", "line break here"),
        ("", ""),
        ("the", ""),
        ("." * 33, "."),  # the published code removes 32 full stops
    ],
)
def test_normalise(raw: str, wanted: str) -> None:
    assert normalise(raw) == wanted


def test_contractions_only_gain_an_apostrophe() -> None:
    odd = {"somebody'd"}
    assert len(CONTRACTIONS) == 114
    for without, word in CONTRACTIONS.items():
        assert without in odd or without.replace("'", "") == word.replace("'", "")
        assert without in odd or word.count("'") == without.count("'") + 1


@pytest.mark.parametrize(("matches", "wanted"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)])
def test_accuracy_of_ten_people(matches: int, wanted: float) -> None:
    people = ["cat"] * matches + [f"other {n}" for n in range(10 - matches)]
    assert answer_accuracy("The cat", people) == pytest.approx(wanted if matches < 10 else 0)
    assert answer_accuracy("cat", people) == pytest.approx(wanted)


def test_of_ten_equal_answers_only_blanks_are_normalised() -> None:
    assert answer_accuracy(" 2\n", ["2"] * 10) == 1
    assert answer_accuracy("two", ["2"] * 10) == 0
    assert answer_accuracy("two", ["2"] * 9 + ["3"]) == 1


ANSWERS = st.lists(
    st.text(alphabet="aAb1,.- '?the", max_size=6) | st.sampled_from(["yes", "no", "2", "two", "a dog"]),
    min_size=2,
    max_size=10,
)


@settings(deadline=None)
@given(ANSWERS, st.data())
def test_equal_to_the_second_implementation(people: list[str], data: st.DataObject) -> None:
    answer = data.draw(st.sampled_from(people) | st.text(max_size=5))
    assert answer_accuracy(answer, people) == pytest.approx(naive_accuracy(answer, people), abs=1e-12)


@settings(deadline=None)
@given(st.text(max_size=20))
def test_normalise_equals_the_second_implementation(text: str) -> None:
    assert normalise(text) == naive_normalise(text)


def test_groups_and_order() -> None:
    asked = {
        "1": Question(("yes",) * 5 + ("no",) * 5, "is the", "yes/no"),
        "2": Question(("2",) * 2 + ("3",) * 8, "how many", "number"),
        "3": Question(("no",) * 10, "is the", "yes/no"),
        "4": Question(("x",) * 10),
    }
    scores = score_answers({"3": "yes", "2": "two", "1": "Yes."}, asked)
    assert scores.keys == ("3", "2", "1")
    assert scores.per_question.tolist() == pytest.approx([0, 0.6, 1])
    assert scores.overall == pytest.approx(1.6 / 3)
    assert scores.per_answer_type == pytest.approx({"number": 0.6, "yes/no": 0.5})
    assert scores.per_question_type == pytest.approx({"how many": 0.6, "is the": 0.5})
    assert score_answers({"4": "x"}, asked).per_answer_type == {}


def test_errors() -> None:
    with pytest.raises(DataError, match="question_id 9 has an answer but no annotation"):
        score_answers({"9": "x"}, {})
    with pytest.raises(DataError, match="no answer to score"):
        score_answers({}, {})
    with pytest.raises(DataError, match="without an answer of anybody"):
        answer_accuracy("x", [])


@pytest.mark.data
@pytest.mark.parametrize("split", [pytest.param("train", marks=pytest.mark.slow), "valid", "test"])
def test_the_real_questions(data_root: Path, split: str) -> None:
    path = data_root / "vqa_v2_text" / f"vqa_annotatons_{split}.gzip"
    rows: list[dict[str, Any]] = json.loads(gzip.decompress(path.read_bytes()))["annotations"]
    people = {str(row["question_id"]): [one["answer"] for one in row["answers"]] for row in rows}
    asked = {
        str(row["question_id"]): Question(
            tuple(people[str(row["question_id"])]), row["question_type"], row["answer_type"]
        )
        for row in rows
    }
    rng = random.Random(0)
    everything = [text for texts in people.values() for text in texts]
    for answers in (
        {str(row["question_id"]): row["multiple_choice_answer"] for row in rows},
        {key: f"The {rng.choice(texts).title()}." for key, texts in people.items()},
        {key: rng.choice(everything) for key in people},
    ):
        scores = score_answers(answers, asked)
        naive = [naive_accuracy(answers[key], people[key]) for key in answers]
        assert scores.per_question.tolist() == pytest.approx(naive, abs=1e-12)
        assert scores.overall == pytest.approx(sum(naive) / len(naive))
        for name in ("yes/no", "number", "other"):
            of = [value for value, key in zip(naive, answers, strict=True) if asked[key].answer_type == name]
            assert scores.per_answer_type[name] == pytest.approx(sum(of) / len(of))
