"""How fast a photo becomes an array, beside the usual Pillow lines, in one run.

    python benchmarks/decode_images.py [--seconds 1]

Prints a Markdown table. Milliseconds of processor time on one thread, best of the rounds; the two ways take
turns, so that other work on the machine slows both alike.
"""

import argparse
import io
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from vistill.runtime.image import Preprocess, preprocess

SPEC = Preprocess((224, 224), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
PHOTO = Path(__file__).parents[1] / "samples" / "temple.jpg"


def usual(data: bytes) -> np.ndarray:
    """Decode in full, turn upright, resize, normalise: what image processors do."""
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    pixels = np.asarray(image.resize((224, 224), Image.Resampling.BICUBIC), dtype=np.float32) / 255
    return ((pixels - SPEC.mean) / SPEC.std).astype(np.float32).transpose(2, 0, 1)


def ours(data: bytes) -> np.ndarray:
    return preprocess(data, SPEC)


def photos() -> dict[str, bytes]:
    """One scene as a web photo and as phone photos."""
    base = Image.open(PHOTO).convert("RGB")

    def jpeg(width: int, height: int, **options: object) -> bytes:
        buffer = io.BytesIO()
        base.resize((width, height), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90, **options)
        return buffer.getvalue()

    return {
        "JPEG 224 x 224": jpeg(224, 224),
        "JPEG 500 x 375": jpeg(500, 375),
        "JPEG 4000 x 3000": jpeg(4000, 3000),
        "JPEG 4000 x 3000, progressive": jpeg(4000, 3000, progressive=True),
    }


def best_of_turns(ways: list[Callable[[bytes], np.ndarray]], data: bytes, seconds: float) -> list[float]:
    """Least processor milliseconds of each way."""
    best = [float("inf")] * len(ways)
    end = time.perf_counter() + seconds * len(ways)
    while time.perf_counter() < end:
        for index, way in enumerate(ways):
            start = time.process_time()
            way(data)
            best[index] = min(best[index], 1000 * (time.process_time() - start))
    return best


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=1.0, help="time for each way and size")
    seconds = parser.parse_args().seconds
    print("| picture | usual, ms | vistill, ms | ratio | mean difference, of 255 |")
    print("|---|---|---|---|---|")
    for name, data in photos().items():
        slow, quick = best_of_turns([usual, ours], data, seconds)
        scale = 255 * np.array(SPEC.std)[:, None, None]
        apart = np.abs((ours(data) - usual(data)) * scale).mean()
        print(f"| {name} | {slow:.2f} | {quick:.2f} | {slow / quick:.1f} | {apart:.2f} |")


if __name__ == "__main__":
    main()
