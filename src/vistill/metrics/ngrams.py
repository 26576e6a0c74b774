"""N-gram counting for many captions at once, in numpy; BLEU and CIDEr stand on it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from numpy.typing import NDArray

ORDER = 4
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Ngrams:
    """All n-grams of one order in a list of captions.

    Row i says that `gram[i]` occurs `count[i]` times in caption `caption[i]`; sorted by (caption, gram).
    A gram is a number from 0 to len(codes)-1 and is told by its prefix (a gram of the order below) and its
    last word: `codes` = prefix * words + last word, sorted, where `words` is the size of the vocabulary.
    """

    caption: Ints  # [M]
    gram: Ints  # [M]
    count: Ints  # [M]
    codes: Ints  # [G]


@dataclass(frozen=True)
class Flat:
    """Captions laid end to end: word numbers [T] and the length of each caption [S]."""

    words: Ints
    lengths: Ints


def flatten(captions: Sequence[Sequence[str]], numbers: Mapping[str, int]) -> Flat:
    """Lay captions end to end; every word must be in `numbers`."""
    lengths = np.fromiter(map(len, captions), np.int64, len(captions))
    words = np.fromiter(map(numbers.__getitem__, chain.from_iterable(captions)), np.int64, int(lengths.sum()))
    return Flat(words, lengths)


def number_words(captions: Sequence[Sequence[str]], known: Mapping[str, int] | None = None) -> dict[str, int]:
    """Word -> number for all words of the captions; those of `known` stay, new words follow."""
    numbers = dict.fromkeys(chain.from_iterable(captions), -1)
    if known is None:
        return {word: number for number, word in enumerate(numbers)}
    fresh = len(known)
    for word in numbers:
        number = known.get(word, -1)
        if number < 0:
            number, fresh = fresh, fresh + 1
        numbers[word] = number
    return numbers


def count_ngrams(flat: Flat, words: int) -> list[Ngrams]:
    """Ngrams of order 1, 2, .. ORDER of the captions; `words` is the size of the vocabulary."""
    captions = len(flat.lengths)
    caption = np.repeat(np.arange(captions), flat.lengths)
    left = np.repeat(np.cumsum(flat.lengths), flat.lengths) - np.arange(
        len(flat.words)
    )  # words from here to the end
    at = np.arange(len(flat.words))  # where a gram starts
    prefix = np.zeros(len(at), np.int64)
    orders = []
    for order in range(1, ORDER + 1):
        inside = left[at] >= order
        at, prefix = at[inside], prefix[inside]
        codes, prefix = np.unique(prefix * words + flat.words[at + order - 1], return_inverse=True)
        rows, count = np.unique(caption[at] * max(len(codes), 1) + prefix, return_counts=True)
        row_caption, gram = np.divmod(rows, max(len(codes), 1))
        orders.append(Ngrams(row_caption, gram, count.astype(np.int64), codes))
    return orders


def find(sorted_values: Ints, wanted: Ints) -> tuple[Ints, NDArray[np.bool_]]:
    """Index of each wanted value in a sorted array, and whether it is there (where not, the index is 0)."""
    if len(sorted_values) == 0:
        return np.zeros(len(wanted), np.int64), np.zeros(len(wanted), bool)
    at = np.minimum(np.searchsorted(sorted_values, wanted), len(sorted_values) - 1)
    there = sorted_values[at] == wanted
    return np.where(there, at, 0), there


def distinct(values: Ints) -> Ints:
    """The different values, sorted; for this many times faster than the hash table of np.unique."""
    ordered = np.sort(values)
    return ordered[np.concatenate(([True], ordered[1:] != ordered[:-1]))] if len(ordered) else ordered
