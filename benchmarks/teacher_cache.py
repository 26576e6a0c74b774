"""Size of a teacher cache for each gold caption, and time to read it beside Arrow's own conversion.

    python benchmarks/teacher_cache.py [--pictures 200] [--top-k 16] [--hidden none|all|pooled] [--data BUILT]

With --data, captions and their lengths in words are those of the train split of a built data set; else five
captions of 11 words on the average. The answers are random numbers of the right shape. Prints a Markdown
table.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from vistill.data.text import normalise
from vistill.distill.answers import Answer, Ask, Text
from vistill.distill.cache_shards import Layout, Record, Shard, flatten, to_batch, write_batch

VOCABULARY = 50257
BATCH = 64


def lengths(data: Path | None, pictures: int) -> list[list[int]]:
    """Ids of each gold caption of each picture, marks included."""
    if data is None:
        draw = np.random.default_rng(0)
        return (np.clip(draw.poisson(11, (pictures, 5)), 1, 38) + 2).tolist()
    from vistill.data.dataset import open_split

    captions = open_split(data, "train")["captions"][:pictures]
    return [[min(40, len(normalise(text).split()) + 2) for text in texts] for texts in captions]


def answer(draw: np.random.Generator, texts: list[int], ask: Ask) -> Answer:
    """Random numbers in the shape of an answer; one generated caption as long as the first gold one."""

    def text(length: int) -> Text:
        shape = (length - 1, ask.top_k)
        ids = draw.integers(0, VOCABULARY, shape)
        return Text(draw.integers(0, VOCABULARY, length), ids, -draw.exponential(5, shape).astype(np.float32))

    hidden = draw.normal(size=(197, 768)).astype(np.float32)
    states = {"none": None, "all": hidden, "pooled": hidden.mean(0)}[ask.hidden]
    made = text(texts[0])
    return Answer((" ".join(["word"] * texts[0]),), tuple(map(text, texts)), (made,), states)


def as_lists(shard: Shard, row: int) -> None:
    """What reading a record through Arrow's own conversion to Python does."""
    shard.batch.slice(row, 1).to_pylist()


def best(read: Callable[[int], object], rows: int, seconds: float = 1.0) -> float:
    """Least microseconds a record over rounds of random batches."""
    draw, least = np.random.default_rng(1), float("inf")
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        chosen = draw.integers(0, rows, BATCH).tolist()
        start = time.process_time()
        for row in chosen:
            read(row)
        least = min(least, 1e6 * (time.process_time() - start) / BATCH)
    return least


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pictures", type=int, default=200)
    parser.add_argument("--top-k", type=int, default=16)
    parser.add_argument("--hidden", default="none", choices=("none", "all", "pooled"))
    parser.add_argument("--data", type=Path, default=None)
    words = parser.parse_args()
    ask = Ask(captions=1, top_k=words.top_k, hidden=words.hidden)
    texts = lengths(words.data, words.pictures)
    draw = np.random.default_rng(2)
    golds = sum(map(len, texts))
    ids = sum(map(sum, texts)) / golds
    print(f"{len(texts)} pictures, {golds} gold captions, {ids:.1f} ids each, K={ask.top_k}\n")
    print("| hidden | bytes a gold caption | bytes a picture | read, us a picture | Arrow lists, us |")
    print("|---|---|---|---|---|")
    for dtype in ("float16", "int8") if words.hidden != "none" else ("float16",):
        layout = Layout(ask, VOCABULARY, dtype)
        rows = [
            flatten(Record(f"{n:010d}.jpg", False, answer(draw, each, ask)), layout)
            for n, each in enumerate(texts)
        ]
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "shard.arrow"
            with path.open("wb") as file:
                write_batch(file, to_batch(rows), {})
            shard, size = Shard(path, layout), path.stat().st_size
            ours = best(shard.answer, len(rows))
            lists = best(lambda row, shard=shard: as_lists(shard, row), len(rows))
        name = "none" if words.hidden == "none" else f"{words.hidden}, {dtype}"
        print(f"| {name} | {size / golds:,.0f} | {size / len(rows):,.0f} | {ours:.0f} | {lists:,.0f} |")


if __name__ == "__main__":
    main()
