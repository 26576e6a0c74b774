"""How varied a set of captions is: figures that a captioner can be poor in while it scores well."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from vistill.errors import DataError


@dataclass(frozen=True)
class Diversity:
    """Figures of a set of tokenised captions; empty captions count as captions.

    They depend on the number of captions: compare sets of the same size only.
    """

    captions: int
    distinct_captions: float
    """Different captions / captions."""
    distinct_1: float
    """Different words / words, over the whole set (Li et al. 2016, arXiv 1510.03055); 0 without words."""
    distinct_2: float
    """Different pairs of neighbouring words / pairs, over the whole set; 0 without pairs."""
    repetition: float
    """Share of captions in which some pair of neighbouring words comes twice or a word follows itself."""
    mean_length: float
    """Words a caption."""
    vocabulary: int
    """Different words."""


def diversity(captions: Sequence[Sequence[str]]) -> Diversity:
    """Diversity of tokenised captions, see `vistill.metrics.ptb.tokenize`. DataError when there is none."""
    if not captions:
        raise DataError("there is no caption to measure")
    words = [word for caption in captions for word in caption]
    pairs = [list(pairwise(caption)) for caption in captions]
    flat = [pair for found in pairs for pair in found]
    repeating = sum(len(set(found)) < len(found) or any(a == b for a, b in found) for found in pairs)
    return Diversity(
        captions=len(captions),
        distinct_captions=len({tuple(caption) for caption in captions}) / len(captions),
        distinct_1=len(set(words)) / max(len(words), 1),
        distinct_2=len(set(flat)) / max(len(flat), 1),
        repetition=repeating / len(captions),
        mean_length=len(words) / len(captions),
        vocabulary=len(set(words)),
    )
