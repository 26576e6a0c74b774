"""Learning curves on aerial photos: the captioner fine-tuned on RSICD under each freeze policy.

    VISTILL_DATA=... python scripts/finetune_rsicd.py [CHECKPOINT] [--folder .] [--most N] [--write]

CHECKPOINT is a captioner's in fp32, by default runs/flickr8k-captioner-scst/best. 50, 200, 800 and 1,200
photos x last-layer, cross-attention, lora, all and from scratch x 3 seeds: 60 runs, one after another in
this process. Under --folder come built/rsicd and built/flickr8k (if they are not there), the kept features,
and the result of each run in runs/finetune-rsicd; what is there is kept, so a stopped script goes on when it
is run again. The runs take turns, so any number of them (--most N stops after so many new ones) is a smaller
table of the same kind. --write puts the table and the picture into docs/results.

What makes a run a matter of a minute on one core: every picture is shown as it is, without augmentation, so
the frozen stages' output is kept once for all runs; each run has about STEPS steps of 8 photos with 2
captions each (there are 2 on average), or one epoch where that is more; it is scored once, at its end, with
greedy captions, so nothing is chosen on the photos that score it. Photos are drawn by the seed; the larger
sets hold the smaller ones. From scratch: the same network on the ImageNet tower, frozen, with the words of
its photos alone. The rates were chosen by hand, on 50 photos of seed 0 at most; of cross-attention 1e-3 gave
CIDEr 25.9 (Flickr8k afterwards 40.4), 3e-3 31.6 (10.5) and 6e-3 16.3 (1.6).
"""

import argparse
import json
import os
import shutil
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from vistill.cli.compose import compose_train
from vistill.data.dataset import BuildConfig, build, open_split
from vistill.files import write_json, write_text
from vistill.models.loading import load_model
from vistill.report.charts import HEIGHT, WIDTH, Line, line_chart
from vistill.runtime.decode import GenerationConfig
from vistill.train import caption
from vistill.train.callbacks import BEST, LAST
from vistill.train.datamodule import CaptionData, DataConfig
from vistill.train.freeze import freeze, parameter_table

DOCS = Path(__file__).parents[1] / "docs" / "results"
PAGE, PICTURE = "finetune-rsicd.md", "finetune-rsicd.svg"
PHOTOS = (50, 200, 800, 1200)
SEEDS = (0, 1, 2)
BATCH, STEPS = 8, 75
SCORED = 300
"""Photos of Flickr8k dev on which forgetting is measured."""
SCRATCH = "from scratch"
POLICIES: dict[str, list[str]] = {
    "last-layer": ["trainer.freeze=last-layer", "optim.lr=6e-4", "optim.encoder_lr=1e-4"],
    "cross-attention": ["trainer.freeze=cross-attention", "optim.lr=2e-3"],
    "lora": ["trainer.freeze=lora", "optim.lr=1.5e-3"],
    "all": ["trainer.freeze=all", "optim.lr=4e-4", "optim.encoder_lr=5e-5"],
    SCRATCH: ["optim.lr=1.5e-3"],
}
GREEDY = GenerationConfig(max_new_tokens=24, num_beams=1)
COMMON = [
    "logger=none",
    f"datamodule.batch_size={BATCH}",
    "datamodule.captions=2",
    "datamodule.views=1",
    "datamodule.tokenizer.min_count=2",
    "objective.label_smoothing=0.1",
    "optim.warmup=0.1",
    "generation.num_beams=1",
    f"generation.max_new_tokens={GREEDY.max_new_tokens}",
    "trainer.checkpoint_every=1000000",
    "trainer.validate_first=false",
]
COLOURS = ("#2b62c9", "#b3402a", "#1a7f4b", "#a8741a", "#8a5bd0")


@dataclass(frozen=True)
class Cell:
    """One run."""

    policy: str
    photos: int
    seed: int

    @property
    def name(self) -> str:
        return f"{self.policy.replace(' ', '-')}-{self.photos}-{self.seed}"

    @property
    def epochs(self) -> int:
        """Passes over the photos that make about STEPS steps."""
        return max(1, round(STEPS / max(1, self.photos // BATCH)))


@dataclass(frozen=True)
class Place:
    """What the runs read and where they write."""

    checkpoint: Path
    aerial: Path
    everyday: Path
    folder: Path

    def result(self, name: str) -> Path:
        return self.folder / "runs" / "finetune-rsicd" / f"{name}.json"

    def cache(self, data: Path, policy: str) -> Path:
        """Kept features of a data set; policies that freeze the same stages share them."""
        cut = {"last-layer": "last", SCRATCH: "imagenet"}.get(policy, "frozen")
        return self.folder / "built" / f"views-finetune-{data.name}-{cut}"


def run(place: Place, cell: Cell, *, keep: bool, settings: Sequence[str]) -> dict[str, Any]:
    """Train and score one cell; the file of its result stands for it afterwards."""
    began = time.monotonic()
    out = place.result(cell.name).parent
    words = [
        *COMMON,
        *POLICIES[cell.policy],
        f"name={cell.name}",
        f"out={out}",
        f"init_from={'' if cell.policy == SCRATCH else place.checkpoint}",
        f"datamodule.path={place.aerial}",
        f"datamodule.cache={place.cache(place.aerial, cell.policy)}",
        f"datamodule.num_samples={cell.photos}",
        f"datamodule.sample_seed={cell.seed}",
        f"trainer.seed={cell.seed}",
        f"trainer.max_epochs={cell.epochs}",
        f"trainer.validate_every={cell.epochs}",
        *settings,
    ]
    config = compose_train(words)
    assert isinstance(config, caption.TrainConfig)
    start, _, _ = load_model(place.checkpoint)
    if cell.policy == SCRATCH:  # the same network, and a vocabulary of its own
        model: Any = start.config
        config = replace(config, model=replace(model, decoder=replace(model.decoder, vocab_size=0)))
    freeze(start, config.trainer.policy())
    _, total, learning = parameter_table(start)[-1]
    last = out / cell.name / LAST
    folder = caption.train(config, resume=last.is_file())
    trained = time.monotonic() - began
    best = folder / BEST
    reached = json.loads((best / "config.json").read_text())["provenance"]["reached"]
    forgot = {} if cell.policy == SCRATCH else everyday_scores(place, best, cell.policy)
    last.unlink()
    if not keep:
        shutil.rmtree(folder)
    found = {
        "policy": cell.policy,
        "photos": cell.photos,
        "seed": cell.seed,
        "steps": reached["step"],
        "aerial": reached["dev"],
        "everyday": forgot,
        "share": learning / total,
        "train_seconds": trained,
        "seconds": time.monotonic() - began,
    }
    write_json(place.result(cell.name), found)
    return found


def everyday_scores(place: Place, model: Path, policy: str) -> dict[str, float]:
    """Scores of greedy captions on the first SCORED dev photos of Flickr8k."""
    return dev_scores(model, place.everyday, place.cache(place.everyday, policy), policy, SCORED)


def dev_scores(folder: Path, data: Path, cache: Path, policy: str, count: int = 0) -> dict[str, float]:
    """Scores of greedy captions on the first `count` dev photos of a data set; 0: all."""
    model, tokenizer, preprocess = load_model(folder)
    split = DataConfig(
        path=str(data), train_split="dev", dev_samples=count, views=1, batch_size=32, cache=str(cache)
    )
    photos = CaptionData(split, 0)
    chosen = compose_train(POLICIES[policy])
    frozen = freeze(model, replace(chosen.trainer.policy(), decoder="full"))
    photos.prepare(tokenizer, model.tower, preprocess, frozen=frozen, longest=model.config.decoder.context)
    model.eval()
    captions: dict[str, str] = {}
    with torch.inference_mode():
        for batch in photos.val_dataloader():
            captions |= caption.write_captions(model, batch, tokenizer, GREEDY)
    return caption.score_against(photos.references(photos.dev_table), captions)


def before(place: Place) -> dict[str, Any]:
    """Scores of the checkpoint as it is."""
    file = place.result("before")
    if not file.is_file():
        aerial = place.cache(place.aerial, "lora")
        write_json(
            file,
            {
                "aerial": dev_scores(place.checkpoint, place.aerial, aerial, "lora"),
                "everyday": everyday_scores(place, place.checkpoint, "lora"),
            },
        )
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def build_sets(place: Place) -> None:
    """Both data sets, unless they are there."""
    source = os.environ.get("VISTILL_DATA", "")
    for kind, name, out, unique in (
        ("karpathy", "rsicd", place.aerial, True),
        ("flickr8k", "flickr8k", place.everyday, False),
    ):
        if out.is_dir():
            continue
        if not source:
            raise SystemExit(f"{out} is not there: set VISTILL_DATA to the folder that holds {name}/")
        tell(f"building {out}")
        build(kind, Path(source) / name, out, BuildConfig(unique_captions=unique))


def remaining(done: Sequence[dict[str, Any]], left: Sequence[Cell]) -> float:
    """Seconds that the runs that are left will take, by those that are done."""
    per_step: dict[str, list[float]] = {}
    for one in done:
        per_step.setdefault(one["policy"], []).append(one["seconds"] / one["steps"])
    means = {policy: statistics.fmean(found) for policy, found in per_step.items()}
    usual = statistics.fmean(means.values()) if means else 0.0
    return sum(means.get(c.policy, usual) * c.epochs * max(1, c.photos // BATCH) for c in left)


def tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def mean(found: Sequence[dict[str, Any]], part: str, score: str) -> str:
    """`mean ± deviation` of a score over seeds."""
    values = [one[part][score] for one in found if one[part]]
    if not values:
        return "-"
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.1f}{spread}"


def page(start: dict[str, Any], done: Sequence[dict[str, Any]], aerial: int, everyday: int) -> str:
    """The Markdown of the results. aerial, everyday: photos that score them."""
    sizes = sorted({one["photos"] for one in done})
    rows = {
        policy: [[one for one in done if (one["policy"], one["photos"]) == (policy, size)] for size in sizes]
        for policy in POLICIES
        if any(one["policy"] == policy for one in done)
    }
    head = "| |" + "".join(f" {size:,} photos |" for size in sizes)
    line = "|---|" + "---|" * len(sizes)

    def table(part: str, score: str) -> list[str]:
        as_it_was = f"| before | {start[part][score]:.1f} |" + " |" * (len(sizes) - 1)
        cells = [
            f"| {policy} |" + "".join(f" {mean(found, part, score)} |" for found in row)
            for policy, row in rows.items()
            if part == "aerial" or policy != SCRATCH
        ]
        return [head, line, as_it_was, *cells, ""]

    costs = []
    for policy, row in rows.items():
        largest = next(found for found in reversed(row) if found)
        seconds = statistics.fmean(one["seconds"] / one["steps"] for found in row for one in found)
        costs.append(
            f"| {policy} | {100 * largest[0]['share']:.0f}% | {mean(largest, 'aerial', 'BLEU-4')} | "
            f"{mean(largest, 'aerial', 'ROUGE-L')} | {seconds:.2f} |"
        )
    seeds = len({one["seed"] for one in done})
    return "\n".join(
        [
            "# Fine-tuning on aerial photos",
            "",
            "Made by `python scripts/finetune_rsicd.py --write`, whose head says what a run is: the",
            "captioner of the package, fine-tuned on photos of RSICD (captions de-duplicated in a photo).",
            f"Mean ± standard deviation of {seeds} seeds, greedy captions throughout.",
            f"Every run has about {STEPS} steps of {BATCH} photos, or one epoch where that is more: with few",
            "photos each is seen many times, and nothing here is trained to its end.",
            "",
            f"![CIDEr by photos]({PICTURE})",
            "",
            f"CIDEr on the val part of RSICD ({aerial} photos):",
            "",
            *table("aerial", "CIDEr"),
            f"Forgetting: CIDEr of the same models on {everyday} dev photos of Flickr8k:",
            "",
            *table("everyday", "CIDEr"),
            f"At {sizes[-1]:,} photos (or the most that there is), and what it costs:",
            "",
            "| | parameters that learn | BLEU-4 | ROUGE-L | seconds a step, with scoring |",
            "|---|---|---|---|---|",
            *costs,
            "",
        ]
    )


def picture(start: dict[str, Any], done: Sequence[dict[str, Any]]) -> str:
    """An SVG file: CIDEr on the aerial photos by their number, a line for each policy."""
    lines = []
    for number, policy in enumerate(POLICIES):
        sizes = sorted({one["photos"] for one in done if one["policy"] == policy})
        values = [
            statistics.fmean(
                one["aerial"]["CIDEr"] for one in done if (one["policy"], one["photos"]) == (policy, size)
            )
            for size in sizes
        ]
        first = policy == SCRATCH
        xs, ys = (sizes, values) if first else ([0, *sizes], [start["aerial"]["CIDEr"], *values])
        lines.append(Line(policy, f"c{number}", xs, ys))
    chart = line_chart(lines, x="photos learnt from", y="CIDEr")
    inside = chart[chart.index(">") + 1 : -len("</svg>")]
    colours = "".join(
        f".curve.c{n}{{stroke:{colour}}}.dot.c{n}{{fill:{colour}}}" for n, colour in enumerate(COLOURS)
    )
    names = "".join(
        f'<text x="{44 + 96 * n}" y="{HEIGHT + 16}" style="fill:{COLOURS[n]}">{line.name}</text>'
        for n, line in enumerate(lines)
    )
    style = ".curve{fill:none;stroke-width:1.75}.grid{stroke:#e2e2dd}text{font:12px sans-serif;fill:#63676d}"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT + 24}">'
        f"<style>{style}{colours}</style>"
        f'<rect width="{WIDTH}" height="{HEIGHT + 24}" fill="#ffffff"/>{inside}{names}</svg>\n'
    )


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", nargs="?", type=Path, default=Path("runs/flickr8k-captioner-scst/best"))
    parser.add_argument("--folder", type=Path, default=Path(), help="of built/ and runs/")
    parser.add_argument("--aerial", type=Path, help="RSICD, built already")
    parser.add_argument("--everyday", type=Path, help="Flickr8k, built already")
    parser.add_argument("--photos", type=int, nargs="+", default=PHOTOS)
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--policies", nargs="+", default=list(POLICIES), choices=list(POLICIES))
    parser.add_argument("--most", type=int, help="stop after so many new runs")
    parser.add_argument("--keep", action="store_true", help="keep the checkpoints, 40 MB a run")
    parser.add_argument(
        "--write", action="store_true", help="write the page and the picture into docs/results"
    )
    parser.add_argument("--settings", nargs="*", default=[], help="further words of training")
    told = parser.parse_args(words)
    built = told.folder / "built"
    place = Place(
        told.checkpoint, told.aerial or built / "rsicd", told.everyday or built / "flickr8k", told.folder
    )
    build_sets(place)
    place.result("before").parent.mkdir(parents=True, exist_ok=True)
    start = before(place)
    tell(f"before: CIDEr {start['aerial']['CIDEr']:.1f}, on Flickr8k {start['everyday']['CIDEr']:.1f}")
    cells = [Cell(p, n, seed) for seed in told.seeds for n in told.photos for p in told.policies]
    done = [json.loads(f.read_text()) for f in (place.result(c.name) for c in cells) if f.is_file()]
    left = [cell for cell in cells if not place.result(cell.name).is_file()]
    for number, cell in enumerate(left[: told.most]):
        found = run(place, cell, keep=told.keep, settings=told.settings)
        done.append(found)
        everyday = f", on Flickr8k {found['everyday']['CIDEr']:.1f}" if found["everyday"] else ""
        tell(
            f"[{len(done)}/{len(cells)}] {cell.name}: CIDEr {found['aerial']['CIDEr']:.1f}{everyday}, "
            f"{found['seconds']:.0f} s ({found['train_seconds']:.0f} s training), "
            f"about {remaining(done, left[number + 1 :]) / 60:.0f} min left"
        )
    if done:
        aerial, everyday_count = (len(open_split(d, "dev")) for d in (place.aerial, place.everyday))
        text = page(start, done, aerial, min(everyday_count, SCORED))
        print(text)
        if told.write:
            write_text(DOCS / PAGE, text)
            write_text(DOCS / PICTURE, picture(start, done))


if __name__ == "__main__":
    main()
