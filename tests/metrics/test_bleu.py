"""BLEU against the formula; pycocoevalcap is compared with in test_caption.py."""

import numpy as np
import pytest
from hypothesis import assume, given
from tests.metrics import naive
from tests.metrics.strategies import corpora

from vistill.errors import DataError
from vistill.metrics.bleu import bleu_counts, bleu_of_sums, bleu_per_picture

Corpus = tuple[dict[str, list[str]], dict[str, list[list[str]]]]


@given(corpora())
def test_equals_the_formula(corpus: Corpus) -> None:
    candidates, references = corpus
    assume(any(candidates.values()))
    scores = bleu_of_sums(bleu_counts(candidates, references))
    wanted = naive.bleu([(candidate, references[key]) for key, candidate in candidates.items()])
    right = np.array(wanted) > 0
    # where no n-gram is right or none is there at all, the published code leaves 1e-15 / 1e-9, to the 1/4th
    assert (scores[~right] <= 1e-6 ** (1 / 4)).all()
    np.testing.assert_allclose(scores[right], np.array(wanted)[right], atol=1e-6)


@given(corpora())
def test_bounds_and_order(corpus: Corpus) -> None:
    candidates, references = corpus
    counts = bleu_counts(candidates, references)
    pictures = bleu_per_picture(counts)
    assert pictures.shape == (len(candidates), 4)
    assert ((pictures >= 0) & (pictures <= 1)).all()
    turned = dict(reversed(candidates.items()))
    again = bleu_counts(turned, references)
    np.testing.assert_allclose(bleu_per_picture(again)[::-1], pictures, atol=1e-12)
    np.testing.assert_allclose(bleu_of_sums(again), bleu_of_sums(counts), atol=1e-12)


def test_a_reference_scores_one() -> None:
    text = "a dog runs on the grass".split()
    counts = bleu_counts({"1": text}, {"1": [["a", "cat"], text]})
    np.testing.assert_allclose(bleu_of_sums(counts), 1, atol=1e-8)


def test_clipping_and_brevity_by_hand() -> None:
    # "the" counts once of three; two pairs "the the" are wrong; 3 words against 4
    counts = bleu_counts({"1": ["the", "the", "the"]}, {"1": [["the", "cat", "is", "here"]]})
    assert counts.correct.tolist() == [[1, 0, 0, 0]]
    assert counts.guess.tolist() == [[3, 2, 1, 0]]
    assert bleu_of_sums(counts)[0] == pytest.approx(1 / 3 * np.exp(1 - 4 / 3))


def test_the_closest_reference_counts_and_the_shorter_of_two() -> None:
    references = {"1": [["w"] * 2, ["w"] * 4, ["w"] * 9]}
    assert bleu_counts({"1": ["w"] * 3}, references).reference_length.tolist() == [2]
    assert bleu_counts({"1": ["w"] * 8}, references).reference_length.tolist() == [9]


def test_a_picture_without_references() -> None:
    with pytest.raises(DataError, match="'2'"):
        bleu_counts({"1": ["a"], "2": ["a"]}, {"1": [["a"]], "2": []})
