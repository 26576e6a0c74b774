"""A training step of the captioner with padding left out, beside one that works every place out.

    python benchmarks/padding.py built/flickr8k [--batch 32] [--rounds 9] [--threads 1] [--write]

The model of the package with its tower frozen: a step begins with kept features (random ones here) and learns
the five captions of each picture. The two ways take turns on the same batches, each with its own copy of the
same weights and no dropout, so their losses must agree. With --write the medians go to
docs/benchmarks/padding.md.
"""

import argparse
import os
import statistics
import time
from pathlib import Path
from unittest.mock import patch

import torch

from vistill.data.collate import Batch, pad_texts
from vistill.data.dataset import open_split
from vistill.data.text import TokenizerConfig, encode, train_tokenizer
from vistill.distill.objective import CaptionObjective, ObjectiveConfig
from vistill.models.captioner import Captioner, CaptionerConfig
from vistill.models.language import DecoderConfig, Held
from vistill.models.mapper import MapperConfig
from vistill.models.tokens import PAD
from vistill.models.vision import VisionConfig
from vistill.provenance import environment
from vistill.train.optim import OptimConfig, build_optimizer

PAGE = Path(__file__).parents[1] / "docs" / "benchmarks" / "padding.md"
LEFT_OUT, WORKED_OUT = "padding left out", "every place worked out"


def every_place(mask: torch.Tensor) -> Held:
    """As if no place were padding."""
    return Held(torch.ones_like(mask))


def batches(pictures: list[list[list[int]]], size: int, count: int, stages: int) -> list[Batch]:
    """`count` batches of what all `stages` give, [B, 1280, 7, 7], with the captions of `size` pictures."""
    draw = torch.Generator().manual_seed(0)
    found = []
    for i in range(count):
        tokens = pad_texts(pictures[i * size : (i + 1) * size])
        features = torch.randn(size, 1280, 7, 7, generator=draw)
        found.append(Batch(tuple(map(str, range(size))), features, stages, tokens))
    return found


def measure(data: Path, size: int, rounds: int) -> tuple[dict[str, float], float]:
    """Median seconds of a step in each way, and the share of places that are padding."""
    captions = open_split(data, "train")["captions"][: size * (rounds + 1)]
    tokenizer = train_tokenizer((text for texts in captions for text in texts), TokenizerConfig())
    ids = [[encode(tokenizer, text, 32) for text in texts] for texts in captions]
    decoder = DecoderConfig(tokenizer.get_vocab_size(), width=256, layers=3, heads=4, context=32, dropout=0.0)
    config = CaptionerConfig(VisionConfig(), MapperConfig(layers=1, dropout=0.0), decoder)
    objective = CaptionObjective(ObjectiveConfig(), tokenizer, {})
    models, optimizers = {}, {}
    for way in (LEFT_OUT, WORKED_OUT):
        torch.manual_seed(0)
        models[way] = Captioner(config).train()
        models[way].tower.requires_grad_(False)
        optimizers[way] = build_optimizer(models[way], OptimConfig())

    drawn = batches(ids, size, rounds + 1, len(models[LEFT_OUT].tower.stages))

    def step(way: str, batch: Batch) -> tuple[float, float]:
        began = time.perf_counter()
        with patch("vistill.models.language.Held", Held if way == LEFT_OUT else every_place):
            loss = objective.total(objective(models[way], batch))
        optimizers[way].zero_grad()
        loss.backward()
        optimizers[way].step()
        return time.perf_counter() - began, loss.item()

    times: dict[str, list[float]] = {way: [] for way in models}
    for turn, batch in enumerate(drawn):
        losses = []
        for way in models:
            seconds, loss = step(way, batch)
            losses.append(loss)
            if turn:  # the first is a warm-up
                times[way].append(seconds)
        if abs(losses[0] - losses[1]) > 1e-3:
            raise SystemExit(f"the losses of step {turn} differ: {losses}")
    padding = torch.cat([(batch.tokens == PAD).flatten() for batch in drawn]).float().mean().item()
    return {way: statistics.median(values) for way, values in times.items()}, padding


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    found, padding = measure(options.data, options.batch, options.rounds)
    lines = [
        "# A training step without padding",
        "",
        "Written by `python benchmarks/padding.py built/flickr8k --write`. The model of the package, its",
        f"tower frozen, kept features; {options.batch} pictures with five captions a step, {padding:.0%} of",
        f"the places padding; threads: {options.threads}. Medians of {options.rounds} rounds in which the",
        "two take turns.",
        "",
        "| a step | seconds | times |",
        "|---|---|---|",
    ]
    facts = {**environment(), "processors": str(len(os.sched_getaffinity(0)))}
    lines += [
        f"| {way} | {found[way]:.2f} | {found[WORKED_OUT] / found[way]:.2f} |"
        for way in (WORKED_OUT, LEFT_OUT)
    ]
    lines += ["", "| machine | |", "|---|---|", *[f"| {k} | {v} |" for k, v in facts.items()], ""]
    print("\n".join(lines))
    if options.write:
        PAGE.write_text("\n".join(lines))


if __name__ == "__main__":
    main()
