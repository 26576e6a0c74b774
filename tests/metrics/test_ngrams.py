"""Counting n-grams of many captions at once equals counting them one by one."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from tests.metrics import naive
from tests.metrics.strategies import caption

from vistill.metrics.ngrams import count_ngrams, distinct, find, flatten, number_words

numbers = st.lists(st.integers(-5, 5))


@given(st.lists(caption, max_size=6))
def test_counts_equal_counters(captions: list[list[str]]) -> None:
    words = number_words(captions)
    by_number = {number: word for word, number in words.items()}
    spelled: list[tuple[str, ...]] = [()]
    for order, grams in enumerate(count_ngrams(flatten(captions, words), max(len(words), 1)), 1):
        codes = [divmod(int(code), len(words)) for code in grams.codes]
        spelled = [(*spelled[prefix], by_number[last]) for prefix, last in codes]
        assert len(set(spelled)) == len(spelled)
        rows = zip(grams.caption, grams.gram, grams.count, strict=True)
        found = {(int(i), spelled[g]): int(n) for i, g, n in rows}
        wanted = {(i, g): n for i, c in enumerate(captions) for g, n in naive.grams(c, order).items()}
        assert found == wanted


def test_known_words_keep_their_numbers() -> None:
    known = {"a": 0, "dog": 1}
    assert number_words([["cat", "dog"], ["cat", "cow"]], known) == {"cat": 2, "dog": 1, "cow": 3}


@given(numbers, numbers)
def test_find(values: list[int], wanted: list[int]) -> None:
    ordered = sorted(set(values))
    at, there = find(np.array(ordered, np.int64), np.array(wanted, np.int64))
    assert there.tolist() == [value in ordered for value in wanted]
    assert [ordered[i] for i in at[there]] == [value for value in wanted if value in ordered]


@given(numbers)
def test_distinct(values: list[int]) -> None:
    assert distinct(np.array(values, np.int64)).tolist() == sorted(set(values))
