"""CIDEr-D (Vedantam, Zitnick and Parikh 2015, arXiv 1411.5726).

What papers print as "CIDEr" on COCO and Flickr is the number of pycocoevalcap's `Cider`, and that class
computes CIDEr-D: tf-idf cosine over 1- to 4-grams with clipping, a gaussian penalty on the length difference
(sigma 6) and a factor of 10. So does `ciderD` of vrama91/cider and of its descendants for self-critical
training; those only add document frequencies of another set. The first definition in the paper, without
clipping and penalty (`cider` of vrama91/cider), is `plain=True` here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from vistill.errors import DataError
from vistill.metrics.ngrams import ORDER, Ints, Ngrams, count_ngrams, distinct, find, flatten, number_words

SIGMA = 6.0
Floats = NDArray[np.float64]
References = Mapping[str, Sequence[Sequence[str]]]


@dataclass(frozen=True)
class _Order:
    """What the references say about the n-grams of one order (R references, G grams).

    A gram in the references of a picture is looked up by `pair` = picture * G + gram (sorted); the references
    behind pair i are `reference[start[i]:start[i + 1]]`, with tf-idf `value[start[i]:start[i + 1]]`.
    """

    codes: Ints  # [G]
    idf: Floats  # [G]
    pair: Ints  # [P]
    start: Ints  # [P + 1]
    reference: Ints  # [E]
    value: Floats  # [E]
    norm: Floats  # [R], length of the tf-idf vector of each reference


class CiderD:
    """CIDEr-D against a fixed set of references, made to be called often: a reward of self-critical training.

    references: picture key -> tokenised references, at least one each. Any string is a token, `<eos>` too if
        both sides carry it. Their tf-idf vectors are computed once, here.
    idf_references: the set that document frequencies are counted on, one document a picture; the references
        themselves if left out (as pycocoevalcap does).
    plain: the paper's first definition, without clipping and without the length penalty.

    Raises DataError when there is no picture or a picture has no reference.
    """

    def __init__(
        self, references: References, idf_references: References | None = None, plain: bool = False
    ) -> None:
        captions, picture = _lay_out(references, "references")
        documents = picture
        if idf_references is not None:
            more, documents = _lay_out(idf_references, "idf_references")
            captions = captions + more
        self._plain = plain
        self._pictures = {key: index for index, key in enumerate(references)}
        self._per_picture = np.bincount(picture)
        self._numbers = number_words(captions)
        self._log_documents = float(np.log(documents[-1] + 1.0))
        flat = flatten(captions, self._numbers)
        self._lengths = flat.lengths
        self._orders = [
            self._index(grams, picture, documents) for grams in count_ngrams(flat, max(len(self._numbers), 1))
        ]

    def _index(self, grams: Ngrams, picture: Ints, documents: Ints) -> _Order:
        """`grams` of the references and, behind them, of the idf set if that is another one."""
        total = max(len(grams.codes), 1)
        ours = grams.caption < len(picture)
        offset = len(self._lengths) - len(
            documents
        )  # where the idf set begins: 0 if it is the references themselves
        counted = grams.caption >= offset
        seen = distinct(documents[grams.caption[counted] - offset] * total + grams.gram[counted])
        frequency = np.bincount(seen % total, minlength=len(grams.codes))
        idf = self._log_documents - np.log(np.maximum(1.0, frequency))
        reference, gram = grams.caption[ours], grams.gram[ours]
        value = grams.count[ours] * idf[gram]
        keys = picture[reference] * total + gram
        by_key = np.argsort(keys, kind="stable")
        pair, start = np.unique(keys[by_key], return_index=True)
        return _Order(
            codes=grams.codes,
            idf=idf,
            pair=pair,
            start=np.append(start, len(keys)),
            reference=reference[by_key],
            value=value[by_key],
            norm=np.sqrt(np.bincount(reference, value**2, minlength=len(picture))),
        )

    def score(self, keys: Sequence[str], candidates: Sequence[Sequence[str]]) -> Floats:
        """CIDEr-D of candidate i against the references of picture keys[i]; float64 [n], 0 to 10.

        Keys may repeat. Raises DataError for a key without references and for lists of different length.
        """
        if len(keys) != len(candidates):
            raise DataError(
                f"{len(keys)} keys but {len(candidates)} candidates: one key per candidate is needed"
            )
        unknown = [key for key in keys if key not in self._pictures]
        if unknown:
            raise DataError(f"picture {unknown[0]!r} has no references ({len(unknown)} such keys)")
        if not keys:
            return np.zeros(0)
        picture = np.fromiter(map(self._pictures.__getitem__, keys), np.int64, len(keys))
        numbers = number_words(candidates, self._numbers)
        flat = flatten(candidates, numbers)
        words = len(self._numbers) + len(numbers)
        known = np.zeros(1, np.int64)
        total = np.zeros(len(keys))
        for grams, index in zip(count_ngrams(flat, words), self._orders, strict=True):
            known = self._known(grams, index, known, words)
            total += self._similarity(grams, index, known, picture, flat.lengths)
        return 10.0 * total / (ORDER * self._per_picture[picture])

    def _known(self, grams: Ngrams, index: _Order, known: Ints, words: int) -> Ints:
        """Number in the index of each gram of the candidates, -1 if it is not there; int64 [G]."""
        prefix, last = np.divmod(grams.codes, words)
        at, there = find(index.codes, known[prefix] * len(self._numbers) + last)
        return np.where(there & (known[prefix] >= 0) & (last < len(self._numbers)), at, -1)

    def _similarity(self, grams: Ngrams, index: _Order, known: Ints, picture: Ints, lengths: Ints) -> Floats:
        """Sum over the references of the similarity in one order; float64 [n]."""
        idf = np.full(len(known), self._log_documents)
        idf[known >= 0] = index.idf[known[known >= 0]]
        value = grams.count * idf[grams.gram]
        norm = np.sqrt(np.bincount(grams.caption, value**2, minlength=len(picture)))
        gram = known[grams.gram]
        pair, there = find(index.pair, picture[grams.caption] * max(len(index.codes), 1) + gram)
        there &= gram >= 0
        pair, candidate, value = pair[there], grams.caption[there], value[there]
        # one row for each (candidate, reference) that share a gram
        width = index.start[pair + 1] - index.start[pair]
        row = np.repeat(np.arange(len(pair)), width)
        entry = np.arange(len(row)) - np.repeat(np.cumsum(width) - width, width) + index.start[pair][row]
        candidate, ours, theirs, reference = (
            candidate[row],
            value[row],
            index.value[entry],
            index.reference[entry],
        )
        scale = norm[candidate] * index.norm[reference]
        product = (ours if self._plain else np.minimum(ours, theirs)) * theirs
        product = np.divide(product, scale, out=np.zeros_like(product), where=scale != 0)
        if not self._plain:
            # the published code counts bigrams, not words; only an empty caption could tell: it scores 0
            difference = np.maximum(lengths[candidate] - 1, 0) - np.maximum(self._lengths[reference] - 1, 0)
            product *= np.exp(-(difference**2) / (2 * SIGMA**2))
        out: Floats = np.bincount(candidate, product, minlength=len(picture)).astype(np.float64)
        return out


def _lay_out(references: References, name: str) -> tuple[list[Sequence[str]], Ints]:
    """All captions of all pictures, and the picture each belongs to."""
    if not references:
        raise DataError(f"{name}: there is no picture in it")
    empty = [key for key, captions in references.items() if not captions]
    if empty:
        raise DataError(f"{name}: picture {empty[0]!r} has no caption ({len(empty)} such pictures)")
    per_picture = np.fromiter(map(len, references.values()), np.int64, len(references))
    return list(chain.from_iterable(references.values())), np.repeat(np.arange(len(references)), per_picture)
