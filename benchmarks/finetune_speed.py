"""A step of fine-tuning ViT-GPT2's last layers: vistill's way, and the way of the pipeline it replaces.

    python benchmarks/finetune_speed.py [--batch 8] [--rounds 3] [--write]

The network has the size of nlpconnect/vit-gpt2-image-captioning (ViT-B/16 at 224 and GPT-2 with
cross-attention, 239 M parameters) and random weights; the last layer of encoder and decoder learns. The
original's way: every row is a picture and one caption, which go through the whole network in eager fp32,
labels filled up to one length, and the captions of the batch are generated (greedily, 16 tokens) in every
step. vistill's: what the frozen layers give is kept once a picture, a step runs the rest of the encoder and
the decoder, and nothing is generated; with one caption of a picture a step, and with all five. Each way runs
in processes of its own, which take turns; with --write the medians go to docs/benchmarks/finetune_speed.md.
"""

import argparse
import itertools
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from caption_speed import has_bf16, write_photos
from embed_speed import TEXTS

from vistill.provenance import environment

PAGE = Path(__file__).parents[1] / "docs" / "benchmarks" / "finetune_speed.md"
ORIGINAL = "the original's way"
WAYS = {ORIGINAL: 0, "vistill, one caption of a picture": 1, "vistill, five captions of a picture": 5}
"""{way: captions of a picture in a step}; 0 is not vistill's."""
CAPTIONS = 5
PICTURES, EPOCHS = 29_000, 10
"""Of Flickr30k's train split, and how long one fine-tunes."""
TOKENS = 16
LABELS = 24
"""Length that the original fills labels up to."""

KEEP = "keep"
"""What comes before vistill's steps, in a process of its own."""

Found = dict[str, Any]
Step = Callable[[], float]
"""One step; returns its loss."""


def write_data(folder: Path, pictures: int, tiny: bool) -> None:
    """`built`, a data set of `pictures` photos with five captions each, and `vit-gpt2`, the model."""
    from distill_epoch import write_vit_gpt2

    from vistill.data.dataset import BuildConfig, build

    photos = folder / "photos"
    captions = [TEXTS[number : number + CAPTIONS] for number in range(len(TEXTS) - CAPTIONS)]
    for split, count in (("train", pictures), ("dev", 1)):
        (photos / split).mkdir(parents=True)
        for number, path in enumerate(write_photos(photos / split, count)):
            path.with_suffix(".txt").write_text("\n".join(captions[number % len(captions)]))
    build("folder", photos, folder / "built", BuildConfig(near_duplicates=None))
    write_vit_gpt2(folder / "vit-gpt2", TEXTS, tiny=tiny)


def original_step(folder: Path, batch: int) -> tuple[Step, tuple[int, int]]:
    """Whole forward and backward, AdamW on the last layers, and generation; (step, parameters)."""
    import torch
    from torch import nn

    from vistill.data.dataset import open_split
    from vistill.models.torchvision_repair import repair_torchvision
    from vistill.runtime.image import read_image

    repair_torchvision()
    from transformers import AutoImageProcessor, AutoTokenizer, VisionEncoderDecoderModel

    place = folder / "vit-gpt2"
    model = VisionEncoderDecoderModel.from_pretrained(place, dtype=torch.float32).train()
    words = AutoTokenizer.from_pretrained(place)
    images = AutoImageProcessor.from_pretrained(place, backend="pil")
    model.requires_grad_(False)
    for part in (model.encoder, model.decoder):
        layers = next(module for module in part.modules() if isinstance(module, nn.ModuleList))
        layers[-1].requires_grad_(True)
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=5e-5)
    table = open_split(folder / "built", "train")
    rows = itertools.cycle((row, caption) for caption in range(CAPTIONS) for row in range(len(table)))

    def step() -> float:
        shown = [(table[row], caption) for row, caption in itertools.islice(rows, batch)]
        pictures = [read_image(sample["image"]) for sample, _ in shown]
        pixels = images(images=pictures, return_tensors="pt")["pixel_values"]
        texts = [sample["captions"][caption] for sample, caption in shown]
        labels = words(texts, padding="max_length", max_length=LABELS, truncation=True, return_tensors="pt")
        loss = model(pixel_values=pixels, labels=labels["input_ids"]).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            model.generate(
                pixel_values=pixels,
                num_beams=1,
                do_sample=False,
                min_new_tokens=TOKENS,
                max_new_tokens=TOKENS,
            )
        return float(loss.detach())

    return step, _counted(model)


def prepare(folder: Path, batch: int, captions: int) -> tuple[Any, Any, Any, int]:
    """(model, its preprocessing, data, number of frozen stages) of a run of `vistill train`.

    The first call for a folder keeps the features of the frozen stages there.
    """
    from vistill.models.loading import load_model
    from vistill.train.datamodule import CaptionData, DataConfig
    from vistill.train.freeze import freeze
    from vistill.train.run import TrainerConfig

    place, views = str(folder / "built"), str(folder / "views")
    settings = DataConfig(path=place, cache=views, views=1, batch_size=batch, captions=captions)
    data = CaptionData(settings, seed=0, epochs=10_000)
    model, tokenizer, preprocess = load_model(folder / "vit-gpt2")
    model.train()
    frozen = freeze(model, TrainerConfig(freeze="last-layer").policy())
    longest = model.config.decoder.context
    data.prepare(tokenizer, model.tower, preprocess, frozen=frozen, longest=longest)
    return model, preprocess, data, frozen


def keep(folder: Path, batch: int) -> Found:
    """Keep the features; seconds a picture, without those of compiling the layers."""
    import numpy as np

    from vistill.models.compiled import compile_trunk
    from vistill.runtime.image import preprocess

    model, spec, data, frozen = prepare(folder, batch, 1)
    run = compile_trunk(model.tower, spec.size, frozen)
    images = data.train_table["image"][:]
    times = []
    for _ in range(3):
        began = time.perf_counter()
        run(np.stack([preprocess(image, spec) for image in images]))
        times.append((time.perf_counter() - began) / len(images))
    return {"keeping": statistics.median(times)}


def own_step(folder: Path, batch: int, captions: int) -> tuple[Step, tuple[int, int]]:
    """A step of `vistill train` from kept features; (step, parameters)."""
    import torch

    from vistill.distill.objective import CaptionObjective, ObjectiveConfig
    from vistill.train.optim import OptimConfig, build_optimizer

    model, _, data, _ = prepare(folder, batch, captions)
    objective = CaptionObjective(ObjectiveConfig(), data.train_rows.tokenizer, {})
    optimizer = build_optimizer(model, OptimConfig())
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    batches = iter(data.train_dataloader())

    def step() -> float:
        loss = objective.total(objective(model, next(batches)))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learning, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    return step, _counted(model)


def _counted(model: Any) -> tuple[int, int]:
    """Parameters, and those that learn."""
    every = list(model.parameters())
    return sum(p.numel() for p in every), sum(p.numel() for p in every if p.requires_grad)


def measure_here(way: str, folder: Path, batch: int, steps: int) -> Found:
    """Median seconds of a step of one way in this process, after one that is not counted; peak memory."""
    import torch

    torch.manual_seed(0)
    if way == KEEP:
        return keep(folder, batch)
    captions = WAYS[way]
    made = own_step(folder, batch, captions) if captions else original_step(folder, batch)
    step, (total, learning) = made
    times, losses = [], []
    for _ in range(steps + 1):
        began = time.perf_counter()
        losses.append(step())
        times.append(time.perf_counter() - began)
    return {
        "seconds": statistics.median(times[1:]),
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "parameters": total,
        "learning": learning,
        "losses": losses,
    }


def measure(way: str, folder: Path, options: argparse.Namespace) -> Found:
    """`measure_here` in a fresh process."""
    command = [sys.executable, __file__, "--way", way, "--folder", str(folder)]
    command += ["--batch", str(options.batch), "--steps", str(options.steps)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    result: Found = json.loads(done.stdout.splitlines()[-1])
    return result


def make_page(found: dict[str, list[Found]], keeping: float, options: argparse.Namespace) -> str:
    """The table as Markdown; keeping: seconds to keep the features of a picture."""
    hours = {}
    for way, rows in found.items():
        a_step = options.batch * (WAYS[way] or 1)
        seconds = statistics.median(row["seconds"] for row in rows) / a_step
        hours[way] = seconds * PICTURES * CAPTIONS / 3600
    lines = [
        "# Fine-tuning ViT-GPT2",
        "",
        f"Written by `python benchmarks/finetune_speed.py --batch {options.batch} --rounds {options.rounds}",
        "--write`. ViT-B/16 and GPT-2 with cross-attention, full size, random weights; the last layer of",
        "encoder and decoder learns (`trainer.freeze=last-layer`). The original's way: each row is a picture",
        "and a caption, all layers run in eager fp32, and captions are generated in every step (greedily,",
        f"{TOKENS} tokens). vistill's: features of the frozen layers kept, no generation. Batches of",
        f"{options.batch} pictures; each way in processes of its own, which take turns; medians of",
        f"{options.rounds} rounds of {options.steps} steps. An epoch is projected: {PICTURES:,} pictures",
        f"with {CAPTIONS} captions each, as Flickr30k's train split, every caption seen once.",
        "",
        "| | s/step | captions a step | s/caption | epoch, hours | times faster | peak MB | learning |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for way, rows in found.items():
        seconds, a_step = statistics.median(row["seconds"] for row in rows), options.batch * (WAYS[way] or 1)
        peak, first = max(row["peak_mb"] for row in rows), rows[0]
        share = f"{first['learning'] / 1e6:.1f} of {first['parameters'] / 1e6:.0f} M"
        lines.append(
            f"| {way} | {seconds:.2f} | {a_step} | {seconds / a_step:.3f} | {hours[way]:.1f} "
            f"| {hours[ORIGINAL] / hours[way]:.1f} | {peak:.0f} "
            f"| {share} ({100 * first['learning'] / first['parameters']:.1f}%) |"
        )
    once = keeping * PICTURES / 3600
    whole = ", ".join(
        f"{EPOCHS * hours[ORIGINAL] / (EPOCHS * hours[way] + once):.1f} ({way.removeprefix('vistill, ')})"
        for way in found
        if WAYS[way]
    )
    lines += [
        "",
        f"Keeping the features takes {keeping:.2f} s a picture, {once:.1f} h once. With it {EPOCHS} epochs",
        f"are {whole} times faster.",
    ]
    if not has_bf16():
        lines.append("bf16 is left out: this processor has no instructions for it.")
    facts = {**environment(), "processors": str(len(os.sched_getaffinity(0)))}
    lines += ["", "| machine | |", "|---|---|", *[f"| {key} | {value} |" for key, value in facts.items()]]
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3, help="of a round, after one that is not counted")
    parser.add_argument("--tiny", action="store_true", help="a small network, to try it out")
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.name}")
    parser.add_argument("--way", choices=[*WAYS, KEEP], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        print(json.dumps(measure_here(options.way, options.folder, options.batch, options.steps)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        write_data(Path(scratch), 2 * options.batch, options.tiny)
        keeping = float(measure(KEEP, Path(scratch), options)["keeping"])
        found: dict[str, list[Found]] = {way: [] for way in WAYS}
        for turn in range(options.rounds):
            for way, rows in found.items():
                rows.append(measure(way, Path(scratch), options))
                told = f"{rows[-1]['seconds']:.2f} s/step, {rows[-1]['peak_mb']:.0f} MB"
                print(f"round {turn + 1}, {way}: {told}", file=sys.stderr, flush=True)
    page = make_page(found, keeping, options)
    print(page)
    if options.write:
        PAGE.write_text(page, "utf-8")


if __name__ == "__main__":
    main()
