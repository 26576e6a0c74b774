"""ROUGE-L against the textbook table; pycocoevalcap is compared with in test_caption.py."""

import numpy as np
import pytest
from hypothesis import given
from tests.metrics import naive
from tests.metrics.strategies import corpora

from vistill.errors import DataError
from vistill.metrics.rouge import rouge_l

Corpus = tuple[dict[str, list[str]], dict[str, list[list[str]]]]


@given(corpora(filled=True))
def test_equals_the_formula(corpus: Corpus) -> None:
    candidates, references = corpus
    wanted = [naive.rouge_l(candidate, references[key]) for key, candidate in candidates.items()]
    scores = rouge_l(candidates, references)
    np.testing.assert_allclose(scores, wanted, atol=1e-12)
    assert ((scores >= 0) & (scores <= 1)).all()


def test_long_captions() -> None:
    rng = np.random.default_rng(0)
    one, two = (list(map(str, rng.integers(5, size=200))) for _ in range(2))
    assert rouge_l({"1": one}, {"1": [two]})[0] == pytest.approx(naive.rouge_l(one, [two]))


def test_empty_captions_are_one_empty_word() -> None:
    scores = rouge_l({"1": [], "2": [], "3": ["a"]}, {"1": [[]], "2": [["a"]], "3": [[]]})
    assert scores.tolist() == [1.0, 0.0, 0.0]


def test_a_picture_without_references() -> None:
    with pytest.raises(DataError, match="'1'"):
        rouge_l({"1": ["a"]}, {})
