"""What is in a built data set: counts, sizes, words, and what the build left out (`vistill data info`)."""

from collections import Counter
from pathlib import Path
from typing import Any

import datasets

from vistill.data.cleaning import LONG_WORDS, WORD
from vistill.data.store import open_split, read_report, split_names

COMMON_SIZES = 5  # sizes named for each split; the others are counted together


def info(folder: Path, long_words: int = LONG_WORDS) -> dict[str, Any]:
    """Return a summary of a built data set that JSON can hold; no picture is decoded.

    long_words: captions with more words are counted as long. Words are runs of letters, digits and inner
    apostrophes or hyphens in lower case: near the tokens of the caption metrics and forty times faster.
    Raises DataError for a folder that no build made.
    """
    report = read_report(folder)
    words: Counter[str] = Counter()
    splits = {}
    for name in split_names(folder):
        table = open_split(folder, name)
        counts = {key: report["splits"][name][key] for key in ("pictures", "bytes")}
        splits[name] = {**counts, "rows": len(table), **_split(table, words)}
    kinds = Counter(pair["kind"] for pair in report["duplicates"])
    across = sum(pair["splits"][0] != pair["splits"][1] for pair in report["duplicates"])
    return {
        "folder": str(folder),
        "source": report["source"],
        "fingerprint": report["fingerprint"],
        "splits": splits,
        "vocabulary": len(words),
        "words_seen_once": sum(count == 1 for count in words.values()),
        "long_captions": {
            "words": long_words,
            "captions": {name: _longer(split["caption_words"], long_words) for name, split in splits.items()},
            "longest": max((max(split["caption_words"], default=0) for split in splits.values()), default=0),
        },
        "cleaned": {name: rule["captions"] for name, rule in (report.get("cleaned") or {}).items()},
        "sampled": report.get("sampled"),
        "dropped": report["dropped"]["counts"],
        "duplicates": {"pairs": dict(kinds), "across_splits": across},
    }


def _longer(lengths: dict[int, int], words: int) -> int:
    """Return how many captions of {length: count} have more than `words` words."""
    return sum(count for length, count in lengths.items() if length > words)


def _split(table: datasets.Dataset, words: Counter[str]) -> dict[str, Any]:
    """Summarise one split and add its words to `words`."""
    captions: list[list[str]] = table["captions"][:]
    lengths: Counter[int] = Counter()
    vocabulary: set[str] = set()
    for texts in captions:
        for text in texts:
            tokens = WORD.findall(text.lower())
            lengths[len(tokens)] += 1
            vocabulary.update(tokens)
            words.update(tokens)
    sizes = Counter(zip(table["width"][:], table["height"][:], strict=True))
    common = sizes.most_common(COMMON_SIZES)
    widths, heights = zip(*sizes, strict=True)
    return {
        "captions": sum(lengths.values()),
        "questions": sum(map(bool, table["question"][:])),
        "licences": dict(Counter(table["licence"][:])),
        "captions_per_picture": dict(sorted(Counter(map(len, captions)).items())),
        "caption_words": dict(sorted(lengths.items())),
        "vocabulary": len(vocabulary),
        "sizes": {
            "width": [min(widths), max(widths)],
            "height": [min(heights), max(heights)],
            "common": {f"{width}x{height}": count for (width, height), count in common},
            "others": len(table) - sum(count for _, count in common),
        },
    }
