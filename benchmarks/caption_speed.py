"""Captions a second from JPEG files, peak memory and cold start, beside eager ViT-GPT2, in one run.

    python benchmarks/caption_speed.py [--bundle DIR] [--rounds 3] [--quick]

Every system runs in processes of its own, one after another, round by round, so that other work on the
machine slows all alike; medians are printed and written to docs/benchmarks/caption_speed.md. ViT-GPT2 has the
size of nlpconnect/vit-gpt2-image-captioning (ViT-B/16 at 224 + GPT-2 with cross-attention, 239 M parameters)
and random weights, and writes exactly 16 tokens, greedily; vistill writes whole captions as its bundle says.
"""

import argparse
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

from PIL import Image

from vistill.provenance import environment

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "benchmarks" / "caption_speed.md"
SYSTEMS = {
    "vistill, beam search of the bundle": ("vistill", {"batch_size": 16}),
    "vistill, greedy": ("vistill", {"batch_size": 16, "num_beams": 1}),
    "vistill, beam search, one by one": ("vistill", {"batch_size": 1}),
    "ViT-GPT2, transformers eager fp32": ("vit-gpt2", {"batch_size": 8, "dtype": "float32"}),
    "ViT-GPT2, transformers eager bf16": ("vit-gpt2", {"batch_size": 8, "dtype": "bfloat16"}),
}
BASELINE = "ViT-GPT2, transformers eager fp32"
TOKENS = 16


def write_photos(folder: Path, count: int) -> list[Path]:
    """`count` JPEG files of 500 x 375: windows of the sample photos."""
    sources = sorted((ROOT / "samples").glob("*.jpg"))
    paths = []
    for number in range(count):
        image = Image.open(sources[number % len(sources)]).convert("RGB")
        inset = number // len(sources) * 2
        image = image.crop((inset, inset, image.width - inset, image.height - inset))
        paths.append(folder / f"{number:04d}.jpg")
        image.resize((500, 375), Image.Resampling.BICUBIC).save(paths[-1], "JPEG", quality=90)
    return paths


def load_vistill(bundle: str, options: dict[str, int]) -> Callable[[list[Path]], list[str]]:
    from vistill import Captioner

    captioner = Captioner(bundle or None, **options)
    return lambda paths: captioner(paths)


def load_vit_gpt2(options: dict[str, str | int]) -> Callable[[list[Path]], list[str]]:
    import numpy as np
    import torch

    from vistill.models.torchvision_repair import repair_torchvision

    repair_torchvision()
    from transformers import GPT2Config, VisionEncoderDecoderConfig, VisionEncoderDecoderModel, ViTConfig

    decoder = GPT2Config(add_cross_attention=True, is_decoder=True)
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(ViTConfig(), decoder)
    torch.manual_seed(0)
    model = VisionEncoderDecoderModel(config).eval().to(getattr(torch, str(options["dtype"])))
    size = int(options["batch_size"])

    def caption(paths: list[Path]) -> list[str]:
        out: list[str] = []
        for start in range(0, len(paths), size):
            images = [Image.open(path).convert("RGB") for path in paths[start : start + size]]
            arrays = [np.asarray(image.resize((224, 224), Image.Resampling.BICUBIC)) for image in images]
            pixels = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).to(model.dtype) / 127.5 - 1
            with torch.inference_mode():
                ids = model.generate(
                    pixel_values=pixels,
                    decoder_start_token_id=50256,
                    pad_token_id=50256,
                    num_beams=1,
                    do_sample=False,
                    min_new_tokens=TOKENS,
                    max_new_tokens=TOKENS,
                )
            out += [str(row) for row in ids.tolist()]
        return out

    return caption


def measure_here(system: str, bundle: str, folder: Path, seconds: float) -> dict[str, float]:
    """Run one system in this process: images a second after a warm-up, peak memory in MB."""
    kind, options = SYSTEMS[system]
    caption = load_vistill(bundle, options) if kind == "vistill" else load_vit_gpt2(options)
    paths = sorted(folder.glob("*.jpg"))
    caption(paths[: options["batch_size"]])
    done, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        share = paths if kind == "vistill" else paths[: options["batch_size"]]
        assert len(caption(share)) == len(share)
        done += len(share)
    rate = done / (time.perf_counter() - began)
    return {"images_per_second": rate, "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def measure(system: str, bundle: str, folder: Path, seconds: float) -> dict[str, float]:
    """`measure_here` in a fresh process."""
    command = [sys.executable, __file__, "--system", system, "--bundle", bundle, "--pictures", str(folder)]
    done = subprocess.run(
        [*command, "--seconds", str(seconds)], capture_output=True, text=True, check=True, env=os.environ
    )
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def has_bf16() -> bool:
    """Whether the processor multiplies bfloat16; without, torch takes minutes for one picture."""
    info = Path("/proc/cpuinfo")
    return not info.is_file() or any(flag in info.read_text() for flag in ("avx512_bf16", "amx_bf16"))


def seconds_of(command: list[str], rounds: int) -> float:
    """Median wall time of a command, after one run that is not counted."""
    times = []
    for _ in range(rounds + 1):
        began = time.perf_counter()
        subprocess.run(command, capture_output=True, check=True)
        times.append(time.perf_counter() - began)
    return statistics.median(times[1:])


def write_page(rows: dict[str, list[dict[str, float]]], cold: dict[str, float], rounds: int) -> str:
    """The table as Markdown."""
    rate = {name: statistics.median(r["images_per_second"] for r in found) for name, found in rows.items()}
    lines = [
        "# Speed of captioning",
        "",
        "Written by `python benchmarks/caption_speed.py`. JPEG files of 500 x 375 to text, all processors of",
        f"the machine, medians of {rounds} rounds in which the systems take turns. ViT-GPT2: full size,",
        f"random weights, {TOKENS} tokens, batches of 8.",
        "" if has_bf16() else "bf16 is left out: this processor has no instructions for it.",
        "",
        "| system | images/s | times fp32 eager | peak memory, MB |",
        "|---|---|---|---|",
    ]
    for name, found in rows.items():
        times = f"{rate[name] / rate[BASELINE]:.1f}" if BASELINE in rate else ""
        peak = max(r["peak_mb"] for r in found)
        lines.append(f"| {name} | {rate[name]:.2f} | {times} | {peak:.0f} |")
    lines += ["", "| command, from process start to its end | seconds |", "|---|---|"]
    lines += [f"| `{name}` | {value:.2f} |" for name, value in cold.items()]
    facts = environment()
    facts["processors"] = str(len(os.sched_getaffinity(0)))
    lines += ["", "| machine | |", "|---|---|", *[f"| {k} | {v} |" for k, v in facts.items()], ""]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bundle", default="", help="a bundle folder; by default the one in the package")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=8.0, help="time for each system and round")
    parser.add_argument(
        "--quick", action="store_true", help="vistill alone, one short round, nothing written"
    )
    parser.add_argument("--system", help=argparse.SUPPRESS)
    parser.add_argument("--pictures", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.system:
        print(json.dumps(measure_here(options.system, options.bundle, options.pictures, options.seconds)))
        return
    names = [name for name in SYSTEMS if not options.quick or SYSTEMS[name][0] == "vistill"]
    if not has_bf16():
        names = [name for name in names if SYSTEMS[name][1].get("dtype") != "bfloat16"]
    rounds, seconds = (1, 2.0) if options.quick else (options.rounds, options.seconds)
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as scratch:
        photos = write_photos(Path(scratch), 64)
        for turn in range(rounds):
            for name in names:
                rows[name].append(measure(name, options.bundle, Path(scratch), seconds))
                print(f"round {turn + 1}, {name}: {rows[name][-1]}", file=sys.stderr, flush=True)
        vistill = [str(Path(sys.executable).with_name("vistill"))]
        model = ["--model", options.bundle] if options.bundle else []
        cold = {
            "vistill --help": seconds_of([*vistill, "--help"], rounds + 2),
            "vistill caption photo.jpg": seconds_of(
                [*vistill, "caption", str(photos[0]), *model], rounds + 2
            ),
        }
    page = write_page(rows, cold, rounds)
    print(page)
    if not options.quick:
        PAGE.parent.mkdir(parents=True, exist_ok=True)
        PAGE.write_text(page)


if __name__ == "__main__":
    main()
