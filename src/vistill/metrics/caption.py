"""All caption metrics of a set of captions at once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vistill.errors import DataError
from vistill.metrics.bleu import BleuCounts, bleu_counts, bleu_of_sums, bleu_per_picture
from vistill.metrics.cider import CiderD
from vistill.metrics.ptb import tokenize
from vistill.metrics.rouge import rouge_l

BLEU = ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4")
NAMES = (*BLEU, "ROUGE-L", "CIDEr")


@dataclass(frozen=True)
class CaptionScores:
    """Scores by name (`NAMES`), on the scale of the published code: 0 to 1, CIDEr 0 to 10.

    corpus: one value a metric. per_picture: float64 [n] a metric, in the order of `keys`; the corpus value of
    ROUGE-L and CIDEr is their mean, that of BLEU comes from the sums of `bleu`.
    """

    keys: tuple[str, ...]
    corpus: dict[str, float]
    per_picture: dict[str, NDArray[np.float64]]
    bleu: BleuCounts


def score_captions(
    candidates: Mapping[str, str],
    references: Mapping[str, Sequence[str]],
    tokenized: bool = False,
    idf_references: Mapping[str, Sequence[str]] | None = None,
) -> CaptionScores:
    """Score one caption a picture against its references.

    Only pictures with a candidate count, for the document frequencies of CIDEr too (as pycocoevalcap does).
    `tokenized` says that the texts are PTB tokens with one space between already. "CIDEr" is what
    pycocoevalcap calls by that name, see `vistill.metrics.cider`; "CIDEr-D" comes in addition, with the
    document frequencies of `idf_references`, where that is given.

    Raises DataError when there is no candidate or a candidate has no references.
    """
    if not candidates:
        raise DataError("there is no caption to score")
    without = [key for key in candidates if not references.get(key)]
    if without:
        raise DataError(
            f"picture {without[0]!r} has a caption but no references ({len(without)} such pictures)"
        )
    ours = {key: candidates[key] if tokenized else _joined(candidates[key]) for key in candidates}
    theirs = _texts({key: references[key] for key in candidates}, tokenized)
    # pycocoevalcap splits at single spaces for ROUGE-L and at any white space elsewhere, which differs for
    # tokens with a no-break space inside and for empty captions
    per_rouge = rouge_l(_split(ours, " "), _split_all(theirs, " "))
    words, reference_words = _split(ours), _split_all(theirs)
    counts = bleu_counts(words, reference_words)
    bleu = bleu_per_picture(counts)
    per_picture = {name: bleu[:, i] for i, name in enumerate(BLEU)}
    per_picture["ROUGE-L"] = per_rouge
    per_picture["CIDEr"] = CiderD(reference_words).score(list(words), list(words.values()))
    if idf_references is not None:
        reward = CiderD(reference_words, _split_all(_texts(idf_references, tokenized)))
        per_picture["CIDEr-D"] = reward.score(list(words), list(words.values()))
    corpus = {name: float(values.mean()) for name, values in per_picture.items()}
    corpus |= dict(zip(BLEU, map(float, bleu_of_sums(counts)), strict=True))
    return CaptionScores(tuple(ours), corpus, per_picture, counts)


def _joined(caption: str) -> str:
    return " ".join(tokenize(caption))


def _texts(references: Mapping[str, Sequence[str]], tokenized: bool) -> dict[str, list[str]]:
    return {key: list(texts if tokenized else map(_joined, texts)) for key, texts in references.items()}


def _split(captions: Mapping[str, str], at: str | None = None) -> dict[str, list[str]]:
    return {key: caption.split(at) for key, caption in captions.items()}


def _split_all(captions: Mapping[str, Sequence[str]], at: str | None = None) -> dict[str, list[list[str]]]:
    return {key: [text.split(at) for text in texts] for key, texts in captions.items()}
