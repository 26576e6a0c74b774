"""CIDEr-D against the formula of the paper; pycocoevalcap is compared with in test_caption.py."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.metrics import naive
from tests.metrics.strategies import corpora

from vistill.errors import DataError
from vistill.metrics.cider import CiderD

REFERENCES = {
    "dog": [["a", "dog", "runs", "on", "grass"], ["a", "brown", "dog"]],
    "cat": [["a", "cat", "sleeps"], ["the", "cat", "is", "on", "a", "mat"]],
    "man": [["a", "man", "rides", "a", "red", "bike"]],
}


@given(corpora(), st.booleans())
def test_equals_the_formula(
    corpus: tuple[dict[str, list[str]], dict[str, list[list[str]]]], plain: bool
) -> None:
    candidates, references = corpus
    scores = CiderD(references, plain=plain).score(list(candidates), list(candidates.values()))
    wanted = [naive.cider_d(c, references[key], references, plain) for key, c in candidates.items()]
    np.testing.assert_allclose(scores, wanted, atol=1e-9)


@given(corpora(), corpora())
def test_document_frequencies_of_another_set(
    corpus: tuple[dict[str, list[str]], dict[str, list[list[str]]]],
    other: tuple[dict[str, list[str]], dict[str, list[list[str]]]],
) -> None:
    candidates, references = corpus
    scores = CiderD(references, other[1]).score(list(candidates), list(candidates.values()))
    wanted = [naive.cider_d(c, references[key], other[1]) for key, c in candidates.items()]
    np.testing.assert_allclose(scores, wanted, atol=1e-9)


@given(corpora())
def test_bounds_and_order(corpus: tuple[dict[str, list[str]], dict[str, list[list[str]]]]) -> None:
    candidates, references = corpus
    keys = list(candidates)
    metric = CiderD(references)
    scores = metric.score(keys, [candidates[key] for key in keys])
    assert ((scores >= 0) & (scores <= 10 + 1e-9)).all()
    turned = CiderD({key: references[key] for key in reversed(keys)})
    again = turned.score(keys[::-1], [candidates[key] for key in reversed(keys)])
    np.testing.assert_allclose(again[::-1], scores, atol=1e-12)


def test_a_rare_caption_that_is_the_reference_scores_ten() -> None:
    metric = CiderD({"1": [["a", "small", "brown", "dog"]], "2": [["two", "men"]], "3": [["a", "cat"]]})
    assert metric.score(["1"], [["a", "small", "brown", "dog"]])[0] == pytest.approx(10)


def test_many_candidates_of_one_picture() -> None:
    metric = CiderD(REFERENCES)
    samples = [["a", "dog"], [], ["on", "red"], ["zebra", "zebra"], ["a", "dog"]]
    together = metric.score(["dog"] * 5, samples)
    alone = [metric.score(["dog"], [sample])[0] for sample in samples]
    assert together.tolist() == pytest.approx(alone)
    assert together[0] == together[4] > together[2] > together[1] == together[3] == 0
    assert together.dtype == np.float64


def test_eos_is_a_word_like_others() -> None:
    ended = {key: [[*text, "<eos>"] for text in texts] for key, texts in REFERENCES.items()}
    metric = CiderD(ended)
    whole, broken = metric.score(["dog"] * 2, [["a", "brown", "dog", "<eos>"], ["a", "brown", "dog"]])
    assert whole > broken


def test_one_picture_alone_scores_zero() -> None:
    # every n-gram is in every document, so all weights are log(1/1) = 0; pycocoevalcap gives 0 too
    assert CiderD({"1": [["a", "dog"]]}).score(["1"], [["a", "dog"]]).tolist() == [0.0]


def test_length_penalty() -> None:
    long = ["a", "cat", "sleeps", "x", "y", "z"]
    references = {"cat": REFERENCES["cat"][:1], "dog": REFERENCES["dog"], "man": REFERENCES["man"]}
    metric, plain = CiderD(references), CiderD(references, plain=True)
    ratio = metric.score(["cat"], [long])[0] / plain.score(["cat"], [long])[0]
    assert ratio == pytest.approx(math.exp(-(3**2) / (2 * 6**2)))


def test_nothing_to_score() -> None:
    assert CiderD(REFERENCES).score([], []).shape == (0,)


def test_errors_name_the_picture() -> None:
    with pytest.raises(DataError, match="'cow' has no references"):
        CiderD(REFERENCES).score(["dog", "cow"], [["a"], ["a"]])
    with pytest.raises(DataError, match="2 keys but 1 candidates"):
        CiderD(REFERENCES).score(["dog", "dog"], [["a"]])
    with pytest.raises(DataError, match="no picture"):
        CiderD({})
    with pytest.raises(DataError, match="'b' has no caption"):
        CiderD({"a": [["x"]], "b": []})
    with pytest.raises(DataError, match="idf_references: picture 'b'"):
        CiderD(REFERENCES, {"b": []})
