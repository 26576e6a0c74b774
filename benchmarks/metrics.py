"""Caption metrics beside pycocoevalcap, in one run, with their values compared.

    VISTILL_DATA=... python benchmarks/metrics.py [--pictures 5000] [--rounds 5] [--out FILE]

BLEU-1..4, ROUGE-L and CIDEr of tokenised captions of Flickr8k's train photos against their five references.
Seconds of processor time on one thread; the two take turns, so that other work on the machine slows both, and
the medians are compared. Stops with an error if a value differs by more than 1e-6.
"""

import argparse
import importlib.metadata
import os
import platform
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge

from vistill.metrics.caption import NAMES, score_captions
from vistill.metrics.cider import CiderD
from vistill.metrics.ptb import tokenize

Captions = dict[str, list[str]]


def train_captions(root: Path, pictures: int) -> Captions:
    """Tokenised captions of the first train photos of Flickr8k."""
    folder = root / "flickr8k" / "Flickr8k_text"
    names = (folder / "Flickr_8k.trainImages.txt").read_text().split()
    found: Captions = {}
    for line in (folder / "Flickr8k.token.txt").read_text(encoding="utf-8").splitlines():
        name, text = line.split("\t", 1)
        found.setdefault(name.rpartition("#")[0], []).append(text)
    chosen = [name for name in names if name in found][:pictures]
    return {name: [" ".join(tokenize(text)) for text in found[name]] for name in chosen}


def made_up_answers(references: Captions) -> dict[str, str]:
    """What a middling model says: words of one reference, some of them from another photo's caption."""
    rng = random.Random(0)
    keys = list(references)
    answers = {}
    for key in keys:
        words = rng.choice(references[key]).split()
        other = rng.choice(references[rng.choice(keys)]).split()
        answers[key] = " ".join(b if rng.random() < 0.3 else a for a, b in zip(words, other, strict=False))
    return answers


def published(answers: dict[str, str], references: Captions) -> tuple[list[float], list[np.ndarray]]:
    ours = {key: [text] for key, text in answers.items()}
    corpus, pictures = Bleu(4).compute_score(references, ours, verbose=0)
    for metric in (Rouge(), Cider()):
        whole, each = metric.compute_score(references, ours)
        corpus.append(whole)
        pictures.append(each)
    return corpus, [np.array(values) for values in pictures]


def furthest_apart(answers: dict[str, str], references: Captions) -> float:
    """Greatest difference of any value of the two, of the corpus or of a picture."""
    corpus, pictures = published(answers, references)
    scores = score_captions(answers, references, tokenized=True)
    apart = [abs(scores.corpus[name] - value) for name, value in zip(NAMES, corpus, strict=True)]
    apart += [np.abs(scores.per_picture[n] - v).max() for n, v in zip(NAMES, pictures, strict=True)]
    return float(max(apart))


def seconds(way: Callable[[], object]) -> float:
    start = time.process_time()
    way()
    return time.process_time() - start


def median_in_turns(ways: list[Callable[[], object]], rounds: int) -> list[float]:
    found = [[seconds(way) for way in ways] for _ in range(rounds)]
    return [statistics.median(column) for column in zip(*found, strict=True)]


def reward_figures(references: Captions, rounds: int) -> tuple[float, float]:
    """Seconds to prepare CiderD, and seconds for 80 candidates of 12 words of 16 photos."""
    tokens = {key: [text.split() for text in texts] for key, texts in references.items()}
    build = statistics.median(seconds(lambda: CiderD(tokens)) for _ in range(min(rounds, 3)))
    reward, rng = CiderD(tokens), random.Random(0)
    keys = [key for key in rng.sample(list(tokens), 16) for _ in range(5)]
    candidates = [(rng.choice(tokens[key]) + rng.choice(tokens[keys[0]]))[:12] for key in keys]
    return build, statistics.median(seconds(lambda: reward.score(keys, candidates)) for _ in range(50))


def machine() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.split(": ", 1)[1] for line in lines if line.startswith("model name")]
    model = models[0] if models else platform.processor()
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("numpy", "pycocoevalcap"))
    return f"{model}, {os.cpu_count()} cores, one used; Python {platform.python_version()}, {versions}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pictures", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--out", type=Path, help="Markdown file to write, docs/benchmarks/metrics.md in the repository"
    )
    options = parser.parse_args()
    if "VISTILL_DATA" not in os.environ:
        parser.error("VISTILL_DATA has to name the folder that holds flickr8k/")
    references = train_captions(Path(os.environ["VISTILL_DATA"]), options.pictures)
    answers = made_up_answers(references)
    apart = furthest_apart(answers, references)
    if apart > 1e-6:
        raise SystemExit(f"the values differ by {apart}")
    ways: list[Callable[[], object]] = [
        lambda: published(answers, references),
        lambda: score_captions(answers, references, tokenized=True),
    ]
    slow, quick = median_in_turns(ways, options.rounds)
    build, reward = reward_figures(references, options.rounds)
    count = sum(map(len, references.values()))
    text = f"""# Caption metrics: speed

Written by `python benchmarks/metrics.py --out docs/benchmarks/metrics.md`. {len(references)} train photos of
Flickr8k with {count} references, tokenised; one candidate a photo. Seconds of processor time, median of
{options.rounds} rounds in turns.

Machine: {machine()}.

| | pycocoevalcap, s | vistill, s | ratio |
|---|---|---|---|
| BLEU-1..4 + ROUGE-L + CIDEr | {slow:.2f} | {quick:.2f} | {slow / quick:.1f} |

Greatest difference of any corpus or picture value: {apart:.1e}.

Reward of self-critical training (`CiderD`) on these references: prepared in {build:.2f} s; 80 candidates
of 12 words in {1000 * reward:.1f} ms.
"""
    print(text)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
