"""Diversity by hand."""

import pytest

from vistill.errors import DataError
from vistill.metrics.diversity import diversity


def test_by_hand() -> None:
    found = diversity([["a", "dog", "runs"], ["a", "dog", "runs"], ["a", "cat"], []])
    assert found.captions == 4
    assert found.distinct_captions == 3 / 4
    assert found.distinct_1 == 4 / 8
    assert found.distinct_2 == 3 / 5
    assert found.vocabulary == 4
    assert found.mean_length == 2
    assert found.repetition == 0


@pytest.mark.parametrize(
    ("caption", "repeats"),
    [
        ("a dog dog runs", True),
        ("a man and a man", True),
        ("a dog and a cat", False),
        ("a a", True),
        ("a", False),
    ],
)
def test_repetition(caption: str, repeats: bool) -> None:
    assert diversity([caption.split()]).repetition == float(repeats)


def test_empty_captions_only() -> None:
    found = diversity([[], []])
    assert (found.distinct_1, found.distinct_2, found.mean_length, found.vocabulary) == (0, 0, 0, 0)
    assert found.distinct_captions == 1 / 2


def test_no_caption() -> None:
    with pytest.raises(DataError, match="no caption"):
        diversity([])
