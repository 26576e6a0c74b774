"""Questions about coloured shapes, in the layout of DAQUAR: several a picture, one with two answers.

And about grey patterns, in that of VQA-RAD: a closed and an open one a picture.
"""

import csv
import json
import random
from pathlib import Path

from PIL import Image
from tests.tiny import draw_shape

from vistill.data.dataset import BuildConfig, build


def write_daquar(root: Path, pictures: int = 24, name: str = "image") -> Path:
    """Coloured shapes on grey with three or four questions each; the same bytes on every call."""
    (root / "images").mkdir(parents=True)
    draw = random.Random(name)
    rows = []
    for number in range(pictures):
        image, colour, shape, side = draw_shape(draw, (72, 64), (16, 32))
        image.save(root / "images" / f"{name}{number}.png")
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


def write_vqa_rad(root: Path, pictures: int = 8) -> Path:
    """Grey patterns, each with a closed and an open question that both begin with "is"."""
    (root / "images").mkdir(parents=True)
    rows = []
    for number in range(pictures):
        name = f"synpic{number}.jpg"
        pattern = random.Random(number).randbytes(64)
        Image.frombytes("L", (8, 8), pattern).resize((64, 64), Image.Resampling.NEAREST).save(
            root / "images" / name
        )
        about = {"image_name": name, "question": "Is it the lung?", "answer": "Yes", "answer_type": "CLOSED "}
        rows.append(about | {"qid": 2 * number})
        about |= {"question": "Is this chest or head?", "answer": "Chest", "answer_type": "OPEN"}
        rows.append(about | {"qid": 2 * number + 1})
    (root / "VQA_RAD Dataset Public.json").write_text(json.dumps(rows))
    return root
