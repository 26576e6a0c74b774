"""Captions of photos of other shapes than the squares that the captioner was trained on.

    VISTILL_DATA=... python benchmarks/aspects.py [--bundle DIR] [--pictures 1000]

The train photos were squashed to squares, so the bundle squashes whatever it is shown: nothing is cut off.
The sample photos are captioned as they are and cut to each shape about their middle; the photos of Flickr8k's
dev split are stretched to these shapes, as JPEG files, and scored.
Writes docs/benchmarks/aspects.md.
"""

import argparse
import io
import os
from pathlib import Path

from PIL import Image

from vistill import Captioner
from vistill.data.records import Entry
from vistill.data.sources.flickr8k import read
from vistill.metrics.caption import score_captions
from vistill.provenance import environment

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "benchmarks" / "aspects.md"
SHAPES = {"1:1": (1, 1), "4:3": (4, 3), "16:9": (16, 9), "3:4, portrait": (3, 4)}
LONG_SIDE = 640


def cut(image: Image.Image, wide: int, high: int) -> Image.Image:
    """The largest part of this shape about the middle."""
    scale = min(image.width / wide, image.height / high)
    width, height = round(wide * scale), round(high * scale)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def stretched(path: Path, wide: int, high: int) -> bytes:
    """A JPEG file of the photo in this shape, 640 pixels long."""
    scale = LONG_SIDE / max(wide, high)
    with Image.open(path) as image:
        size = (round(wide * scale), round(high * scale))
        larger = image.convert("RGB").resize(size, Image.Resampling.BICUBIC)
    file = io.BytesIO()
    larger.save(file, "JPEG", quality=92)
    return file.getvalue()


def sample_rows(captioner: Captioner) -> list[str]:
    """A table row for each sample photo and shape, with its caption."""
    rows = []
    for path in sorted((ROOT / "samples").glob("*.jpg")):
        with Image.open(path) as opened:
            image = opened.convert("RGB")
        shapes = {"as it is": image, **{name: cut(image, *shape) for name, shape in SHAPES.items()}}
        captions = captioner(shapes.values())
        rows += [
            f"| {path.name} | {name} | {part.width} x {part.height} | {caption} |"
            for (name, part), caption in zip(shapes.items(), captions, strict=True)
        ]
    return rows


def dev_rows(captioner: Captioner, flickr8k: Path, pictures: int) -> list[str]:
    """A table row of dev scores for the photos as they are, and for each shape."""
    entries = [e for e in read(flickr8k) if isinstance(e, Entry) and e.split == "dev"][:pictures]
    references = {entry.key: entry.captions for entry in entries}
    said: dict[str, dict[str, str]] = {}
    for name, shape in {"224 x 224, as they are": None, **SHAPES}.items():
        files = (e.path if shape is None else stretched(e.path, *shape) for e in entries)
        said[name] = dict(zip(references, captioner(files), strict=True))
    first = next(iter(said.values()))
    rows = []
    for name, captions in said.items():
        scores = score_captions(captions, references).corpus
        same = sum(captions[key] == first[key] for key in first) / len(first)
        rows.append(
            f"| {name} | {100 * scores['CIDEr']:.1f} | {100 * scores['BLEU-4']:.1f} | {100 * same:.0f}% |"
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bundle", default="")
    parser.add_argument("--pictures", type=int, default=1000)
    options = parser.parse_args()
    if "VISTILL_DATA" not in os.environ:
        raise SystemExit("set VISTILL_DATA to the folder with flickr8k/")
    captioner = Captioner(options.bundle or None)
    lines = [
        "# Photos of other shapes",
        "",
        "Written by `python benchmarks/aspects.py`. The captioner in the package squashes every photo to",
        f"a square. {options.pictures:,} dev photos of Flickr8k, which are squares, stretched to each shape,",
        f"{LONG_SIDE} pixels long:",
        "",
        "| photos | CIDEr | BLEU-4 | same caption as before |",
        "|---|---|---|---|",
        *dev_rows(captioner, Path(os.environ["VISTILL_DATA"]) / "flickr8k", options.pictures),
        "",
        "The sample photos as they are, and cut to each shape about their middle:",
        "",
        "| photo | cut to | pixels | caption |",
        "|---|---|---|---|",
        *sample_rows(captioner),
        "",
        "| machine | |",
        "|---|---|",
        *[f"| {k} | {v} |" for k, v in environment().items()],
        "",
    ]
    print("\n".join(lines))
    PAGE.write_text("\n".join(lines))


if __name__ == "__main__":
    main()
