"""Questions about coloured shapes, in the layout of DAQUAR: several a picture, one with two answers."""

import csv
import random
from pathlib import Path

from PIL import Image, ImageDraw
from tests.tiny import COLOURS, SHAPES

from vistill.data.dataset import BuildConfig, build


def write_daquar(root: Path, pictures: int = 24, name: str = "image") -> Path:
    """Coloured shapes on grey with three or four questions each; the same bytes on every call."""
    (root / "images").mkdir(parents=True)
    draw = random.Random(name)
    rows = []
    for number in range(pictures):
        colour, shape = draw.choice(list(COLOURS)), draw.choice(SHAPES)
        image = Image.new("RGB", (72, 64), tuple(draw.randrange(90, 160) for _ in range(3)))
        x, y, size = draw.randrange(40), draw.randrange(30), draw.randrange(16, 32)
        pen = ImageDraw.Draw(image)
        paint = pen.ellipse if shape == "circle" else pen.rectangle
        paint((x, y, x + size, y + size), fill=COLOURS[colour])
        image.save(root / "images" / f"{name}{number}.png")
        side = "left" if x < 20 else "right"
        asked = [
            (f"What color is the {shape}?", colour),
            ("what is there", f"{colour}, {shape}"),
            (f"is the {shape} on the left", "yes" if side == "left" else "no"),
            ("where is it?", side),
        ]
        rows += [(text, answer, f"{name}{number}") for text, answer in asked[: 3 + number % 2]]
    with (root / "data.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("question", "answer", "image_id"), *rows])
    return root


def build_questions(folder: Path, pictures: int = 24, name: str = "image") -> Path:
    """The tiny data set, built; a quarter of the pictures is dev."""
    root = write_daquar(folder / "raw-questions", pictures, name)
    out = folder / f"questions-{folder.name}"
    build("daquar", root, out, BuildConfig(near_duplicates=None, options={"dev_fraction": 0.25}))
    return out
