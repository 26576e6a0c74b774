"""Pictures and texts embedded a second, beside an eager CLIP ViT-B/32, in one run.

    python benchmarks/embed_speed.py [--bundle DIR] [--rounds 3]

Pictures are JPEG files of 500 x 375, decoding included; texts are captions of about ten words. Every system
runs in processes of its own, one after another, round by round; medians are printed and written to
docs/benchmarks/embed_speed.md. CLIP has the size of ViT-B/32 (151 M parameters) and random weights.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from caption_speed import write_photos
from PIL import Image

from vistill.provenance import environment

PAGE = Path(__file__).parents[1] / "docs" / "benchmarks" / "embed_speed.md"
SYSTEMS = ("vistill, pictures", "CLIP ViT-B/32, pictures", "vistill, texts", "CLIP ViT-B/32, texts")
BASELINE = {"pictures": "CLIP ViT-B/32, pictures", "texts": "CLIP ViT-B/32, texts"}
BATCH = 16
TEXTS = [
    f"{who} {what} {where}"
    for who in ("a brown dog", "two small children", "a man in a red shirt", "a woman with a camera")
    for what in ("runs after a ball", "sit beside each other", "is climbing up", "looks at something")
    for where in ("in the snow", "on a sandy beach", "in front of a large building", "beside the road")
]

Embed = Callable[[list[Path] | list[str]], int]


def load_vistill(bundle: str, kind: str) -> Embed:
    from vistill import Embedder

    embedder = Embedder(bundle or None, batch_size=BATCH)
    run = embedder.images if kind == "pictures" else embedder.texts
    return lambda items: len(run(items))  # type: ignore[arg-type]


def load_clip(kind: str) -> Embed:
    import numpy as np
    import torch

    from vistill.models.torchvision_repair import repair_torchvision

    repair_torchvision()
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(0)
    model = CLIPModel(CLIPConfig()).eval()

    def pictures(paths: list[Path]) -> int:
        images = [Image.open(path).convert("RGB") for path in paths]
        arrays = [np.asarray(image.resize((224, 224), Image.Resampling.BICUBIC)) for image in images]
        pixels = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).float() / 127.5 - 1
        return len(model.get_image_features(pixel_values=pixels).pooler_output)

    def texts(given: list[str]) -> int:
        ids = torch.randint(1, 49000, (len(given), 12))  # as many pieces as these texts have
        ids[:, -1] = 49407
        return len(model.get_text_features(input_ids=ids).pooler_output)

    run: Callable[[list[Path] | list[str]], int] = pictures if kind == "pictures" else texts  # type: ignore[assignment]

    def embed(items: list[Path] | list[str]) -> int:
        with torch.inference_mode():
            return sum(run(items[start : start + BATCH]) for start in range(0, len(items), BATCH))

    return embed


def measure_here(system: str, bundle: str, folder: Path, seconds: float) -> dict[str, float]:
    """Run one system in this process: items a second after a warm-up, peak memory in MB."""
    name, kind = system.split(", ")
    embed = load_vistill(bundle, kind) if name == "vistill" else load_clip(kind)
    items: list[Path] | list[str] = sorted(folder.glob("*.jpg")) if kind == "pictures" else TEXTS
    embed(items[:BATCH])
    done, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        done += embed(items)
    rate = done / (time.perf_counter() - began)
    return {"per_second": rate, "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def measure(system: str, bundle: str, folder: Path, seconds: float) -> dict[str, float]:
    """`measure_here` in a fresh process."""
    command = [sys.executable, __file__, "--system", system, "--bundle", bundle, "--pictures", str(folder)]
    done = subprocess.run([*command, "--seconds", str(seconds)], capture_output=True, text=True, check=True)
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def write_page(rows: dict[str, list[dict[str, float]]], rounds: int) -> str:
    """The table as Markdown."""
    rate = {name: statistics.median(row["per_second"] for row in found) for name, found in rows.items()}
    lines = [
        "# Embedding speed",
        "",
        f"`python benchmarks/embed_speed.py --rounds {rounds}`: items a second in batches of {BATCH}, "
        "medians. Pictures come from JPEG files of 500 x 375, decoding included; texts have about ten words. "
        "CLIP is that of `transformers` in eager fp32 with random weights.",
        "",
        "| system | a second | times CLIP | peak MB |",
        "|---|---|---|---|",
    ]
    for name, found in rows.items():
        ratio = rate[name] / rate[BASELINE[name.split(", ")[1]]]
        peak = max(row["peak_mb"] for row in found)
        lines.append(f"| {name} | {rate[name]:.0f} | {ratio:.1f} | {peak:.0f} |")
    machine = ", ".join(f"{key} {value}" for key, value in environment().items())
    return "\n".join([*lines, "", f"Machine: {machine}.", ""])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bundle", default="", help="embedder bundle; by default the one in the package")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each measurement")
    parser.add_argument("--system", choices=SYSTEMS, help="measure this one in this process and print JSON")
    parser.add_argument("--pictures", type=Path, help="folder of JPEG files, with --system")
    options = parser.parse_args()
    if options.system:
        print(json.dumps(measure_here(options.system, options.bundle, options.pictures, options.seconds)))
        return
    rows: dict[str, list[dict[str, float]]] = {system: [] for system in SYSTEMS}
    with tempfile.TemporaryDirectory() as name:
        write_photos(Path(name), 128)
        for _ in range(options.rounds):
            for system, found in rows.items():
                found.append(measure(system, options.bundle, Path(name), options.seconds))
    page = write_page(rows, options.rounds)
    PAGE.write_text(page, "utf-8")
    print(page)


if __name__ == "__main__":
    main()
