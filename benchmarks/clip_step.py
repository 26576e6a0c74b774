"""A step of distilling CLIP's picture tower: from a teacher cache, and with the teacher in the step.

    python benchmarks/clip_step.py [--batch 32] [--rounds 5] [--write]

The teacher is the picture tower of CLIP ViT-B/32 with random weights, the student the picture tower of system
3 (6 layers of width 576) with its losses (L1, cross-entropy and KL of 0.6, 0.35, 0.05). A step reads the
pictures from JPEG files, sees them, and learns; with the teacher in the step it looks at the very pixels that
the student was given. Each way runs in processes of its own, which take turns; with --write the medians go to
docs/benchmarks/clip_step.md.
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
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from caption_speed import write_photos

from vistill.provenance import environment

PAGE = Path(__file__).parents[1] / "docs" / "benchmarks" / "clip_step.md"
WAYS = ("from the cache", "teacher in the step")
TINY = {"layers": 2, "width": 96, "heads": 4}


def vit_b32(layers: int = 12, width: int = 768, heads: int = 12) -> Any:
    """The picture tower of CLIP ViT-B/32, random weights, in evaluation mode."""
    import torch

    from vistill.models.torchvision_repair import repair_torchvision

    repair_torchvision()
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    torch.manual_seed(0)
    config = CLIPVisionConfig(
        hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers, num_attention_heads=heads
    )
    return CLIPVisionModelWithProjection(config).eval().requires_grad_(False)


def write_cache(photos: Path, built: Path, cache: Path, sizes: dict[str, int]) -> None:
    """Build the photos as a data set and keep what the teacher says of them."""
    import numpy as np
    import torch

    from vistill.data.dataset import BuildConfig, build
    from vistill.distill.answers import Ask, TeacherIdentity
    from vistill.distill.cache import CacheConfig
    from vistill.distill.cache_run import run
    from vistill.distill.teachers_clip import PictureTeacher
    from vistill.models.clip import ClipConfig
    from vistill.runtime.image import to_array

    build("folder", photos, built, BuildConfig(near_duplicates=None, allow_uncaptioned=True))
    teacher, spec = vit_b32(**sizes), ClipConfig().preprocess()

    def see(images: Sequence[Any]) -> Any:
        return torch.from_numpy(np.stack([to_array(image, spec) for image in images]))

    def look(pixels: Any) -> tuple[Any, Any]:
        out = teacher(pixel_values=pixels)
        return out.last_hidden_state, out.image_embeds

    identity = TeacherIdentity("clip", "ViT-B/32, random weights", "seed 0", spec.hash(), "", 0)
    asked = CacheConfig(ask=Ask(captions=0, embedding=True))
    run(cache, PictureTeacher(identity, see, look), built, asked)


def measure_here(way: str, folder: Path, batch: int, steps: int, sizes: dict[str, int]) -> dict[str, Any]:
    """Median seconds of a step of one way in this process, and its peak memory in MB."""
    import numpy as np
    import torch
    import torch.nn.functional as F

    from vistill.data.collate import Item, collate, online_pixels
    from vistill.data.dataset import open_split
    from vistill.distill.cache import TeacherCache
    from vistill.distill.join import kept_answers
    from vistill.distill.objective_dual import DualObjective, DualObjectiveConfig, Known, TowerLosses
    from vistill.models.clip import ClipConfig, ClipDual
    from vistill.train.optim import OptimConfig, build_optimizer

    torch.manual_seed(0)
    config = ClipConfig()
    student = ClipDual(config).train()
    for module in student.text_side:
        module.requires_grad_(False)
    student.logit_scale.requires_grad_(False)
    table = open_split(folder / "built", "train")
    source = online_pixels(table, config.preprocess(), None)
    seen: list[Any] = []  # the pixels of this step

    def from_teacher(items: Sequence[Item]) -> Any:
        with torch.no_grad():
            return F.normalize(teacher(pixel_values=seen[-1]).image_embeds, dim=-1)

    def from_cache(items: Sequence[Item]) -> Any:
        found = np.stack([answer.embedding for answer in answers(items)])  # type: ignore[misc]
        return F.normalize(torch.from_numpy(found), dim=-1)

    target: Callable[[Sequence[Item]], Any]
    if way == "from the cache":
        answers = kept_answers(TeacherCache.open(folder / "cache"), ["train"])
        target = from_cache
    else:
        teacher = vit_b32(**sizes)
        target = from_teacher
    known = Known(
        lambda items: np.zeros((len(items), 1), np.int64), image=target, widths={"image": config.width}
    )
    losses = DualObjectiveConfig(image=TowerLosses(l1=0.6, cross_entropy=0.35, kl=0.05))
    objective = DualObjective(losses, "image", known, width=config.width, hidden_width=config.image_width)
    optimizer = build_optimizer(student, OptimConfig(), objective.heads)
    times, totals = [], []
    rows = itertools.cycle(range(len(table)))
    for _ in range(steps + 1):
        began = time.perf_counter()
        shown = list(itertools.islice(rows, batch))
        views = [(row, source(row, 0)) for row in shown]
        data = collate(
            [(Item(table[row]["key"], row, 0, False, (), ()), view.pixels) for row, view in views], start=0
        )
        seen.append(data.pixels)
        loss = objective.total(objective(student, data))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seen.clear()
        times.append(time.perf_counter() - began)
        totals.append(float(loss.detach()))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"seconds": statistics.median(times[1:]), "peak_mb": peak, "losses": totals}


def measure(way: str, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """`measure_here` in a fresh process."""
    command = [sys.executable, __file__, "--way", way, "--folder", str(folder), "--batch", str(options.batch)]
    command += ["--steps", str(options.steps), *(["--tiny"] if options.tiny else [])]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def make_page(found: dict[str, list[dict[str, Any]]], options: argparse.Namespace, kept: float) -> str:
    """The table as Markdown; kept: bytes of the cache a picture."""
    seconds = {way: statistics.median(row["seconds"] for row in rows) for way, rows in found.items()}
    peak = {way: max(row["peak_mb"] for row in rows) for way, rows in found.items()}
    cache, online = WAYS
    lines = [
        "# A step of distilling CLIP's picture tower",
        "",
        f"Written by `python benchmarks/clip_step.py --batch {options.batch} --rounds {options.rounds}",
        "--write`. Teacher: the picture tower of CLIP ViT-B/32 (88 M parameters), random weights, float32.",
        "Student: the defaults of system 3 (26 M parameters in its picture tower). A step reads and",
        "prepares its JPEG files, and learns. Each way in processes of its own, which take turns; medians of",
        f"{options.rounds} rounds of {options.steps} steps, memory of the whole process.",
        "",
        "| | s/step | pictures/s | peak MB |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {way} | {seconds[way]:.2f} | {options.batch / seconds[way]:.1f} | {peak[way]:.0f} |"
        for way in found
    ]
    lines += [
        "",
        f"From the cache a step takes {seconds[cache] / seconds[online]:.2f} of the time and",
        f"{peak[cache] / peak[online]:.2f} of the memory; the cache holds {kept:.0f} bytes a picture. Losses",
        "of the first step: " + ", ".join(f"{found[way][0]['losses'][0]:.4f} {way}" for way in found) + ".",
        "",
        "| machine | |",
        "|---|---|",
    ]
    facts = {**environment(), "processors": str(len(os.sched_getaffinity(0)))}
    return "\n".join([*lines, *[f"| {key} | {value} |" for key, value in facts.items()], ""])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=4, help="of a round, after one that is not counted")
    parser.add_argument("--tiny", action="store_true", help="a small teacher, to try it out")
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.name}")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    sizes = TINY if options.tiny else {}
    if options.way:
        print(json.dumps(measure_here(options.way, options.folder, options.batch, options.steps, sizes)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "photos" / "train").mkdir(parents=True)
        write_photos(folder / "photos" / "train", 2 * options.batch)
        write_cache(folder / "photos", folder / "built", folder / "cache", sizes)
        size = sum(path.stat().st_size for path in (folder / "cache").glob("*.arrow"))
        found: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
        for turn in range(options.rounds):
            for way, rows in found.items():
                rows.append(measure(way, folder, options))
                told = f"{rows[-1]['seconds']:.2f} s/step, {rows[-1]['peak_mb']:.0f} MB"
                print(f"round {turn + 1}, {way}: {told}", file=sys.stderr, flush=True)
    page = make_page(found, options, size / (2 * options.batch))
    print(page)
    if options.write:
        PAGE.write_text(page, "utf-8")


if __name__ == "__main__":
    main()
