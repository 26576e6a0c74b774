"""How well the embedder's text tower copies its teacher, and at what share of its compute.

    python benchmarks/text_tower.py built/flickr8k [--split dev] [--bundle DIR] [--write]

The int8 text tower of the package beside all-MiniLM-L6-v2 (the wheel) on the captions of a split that neither
tower's training has seen: Spearman's correlation of the cosines of 200,000 drawn pairs, and multiply-adds of
both by their sizes, as in `multiply_adds`. `--write` puts the page into docs/benchmarks/text_tower.md.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np

from vistill import Embedder
from vistill.data.dataset import open_split
from vistill.models.sentence import load_sentence_encoder
from vistill.provenance import environment
from vistill.runtime.bundle import MANIFEST, PACKAGED
from vistill.train.dual_score import PAIRS, copy_scores

PAGE = Path(__file__).parents[1] / "docs" / "benchmarks" / "text_tower.md"


def multiply_adds(layers: int, width: int, tokens: float, out: int = 0) -> float:
    """Of a transformer for one text: 12 D^2 a token (attention 4, feed-forward of 4 D 8), 2 T D for each
    token's attention, and a projection [D, out] of the whole text. Look-ups cost none."""
    return layers * tokens * (12 * width**2 + 2 * tokens * width) + width * out


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="folder of `vistill data build`")
    parser.add_argument("--split", default="dev")
    parser.add_argument("--bundle", type=Path, default=PACKAGED / "embedder")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    texts = [text for captions in open_split(options.data, options.split)["captions"] for text in captions]
    teacher = load_sentence_encoder()
    student = Embedder(options.bundle, threads=1)
    clock = time.process_time()
    copied = student.texts(texts)
    own = time.process_time() - clock
    clock = time.process_time()
    given = teacher(texts).numpy()
    theirs = time.process_time() - clock
    found = copy_scores(copied, given, seed=0)
    config = json.loads((options.bundle / MANIFEST).read_text())["provenance"]["config"]["model"]
    size, big = config["text"], teacher.model.config
    tokens = float(np.mean([sum(row.attention_mask) for row in teacher.tokenizer.encode_batch(texts)]))
    small = multiply_adds(size["layers"] * size["repeat"], size["width"], tokens, config["width"])
    large = multiply_adds(big.num_hidden_layers, big.hidden_size, tokens)
    rows = (
        ("all-MiniLM-L6-v2, fp32 in torch", big.num_hidden_layers, big.hidden_size, large, theirs),
        ("the text tower in the package, int8", size["layers"], size["width"], small, own),
    )
    table = "\n".join(
        f"| {name} | {layers} | {width} | {work / 1e6:.2f} | 1/{large / work:.1f} "
        f"| {1000 * seconds / len(texts):.2f} |"
        for name, layers, width, work, seconds in rows
    )
    page = f"""# The text tower beside its teacher

Written by `python benchmarks/text_tower.py {options.data.name} --split {options.split} --write`:
{len(texts):,} captions of the split {options.split}, {tokens:.1f} word pieces each on average.

| | layers | width | million multiply-adds a text | share | CPU ms a text |
|---|---|---|---|---|---|
{table}

| against the teacher | |
|---|---|
| Spearman's correlation of the cosines of {PAIRS:,} pairs | {found["spearman"] / 100:.4f} |
| mean cosine of the vectors | {found["cosine"] / 100:.4f} |

Machine: {", ".join(f"{key} {value}" for key, value in environment().items())}.
"""
    print(page)
    if options.write:
        PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
