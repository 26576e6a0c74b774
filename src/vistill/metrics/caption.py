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
    candidates: Mapping[str, str], references: Mapping[str, Sequence[str]], tokenized: bool = False
) -> CaptionScores:
    """Score one caption a picture against its references.

    Only pictures with a candidate count, for the document frequencies of CIDEr too (as pycocoevalcap does).
    `tokenized` says that the texts are PTB tokens with one space between already. "CIDEr" is what
    pycocoevalcap calls by that name, see `vistill.metrics.cider`. Raises DataError when there is no candidate
    or a candidate has no references.
    """
    if not candidates:
        raise DataError("there is no caption to score")
    without = [key for key in candidates if not references.get(key)]
    if without:
        raise DataError(
            f"picture {without[0]!r} has a caption but no references ({len(without)} such pictures)"
        )
    cut = str.split if tokenized else tokenize
    ours = {key: cut(caption) for key, caption in candidates.items()}
    theirs = {key: [cut(caption) for caption in references[key]] for key in candidates}
    counts = bleu_counts(ours, theirs)
    bleu = bleu_per_picture(counts)
    per_picture = {name: bleu[:, i] for i, name in enumerate(BLEU)}
    per_picture["ROUGE-L"] = rouge_l(ours, theirs)
    per_picture["CIDEr"] = CiderD(theirs).score(list(ours), list(ours.values()))
    corpus = dict(zip(BLEU, map(float, bleu_of_sums(counts)), strict=True))
    corpus |= {name: float(per_picture[name].mean()) for name in ("ROUGE-L", "CIDEr")}
    return CaptionScores(tuple(ours), corpus, per_picture, counts)
