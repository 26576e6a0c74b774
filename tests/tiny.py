"""A tiny data set of coloured shapes, in the layout of Flickr8k, and tiny models: seconds, not minutes."""

import random
from pathlib import Path

from PIL import Image, ImageDraw

from vistill.data.dataset import BuildConfig, build
from vistill.models.captioner import Captioner, CaptionerConfig
from vistill.models.language import DecoderConfig
from vistill.models.mapper import MapperConfig
from vistill.models.vision import VisionConfig

COLOURS = {"red": (220, 30, 30), "green": (30, 180, 30), "blue": (30, 60, 220), "white": (250, 250, 250)}
SHAPES = ("circle", "square")


def draw_shape(
    draw: random.Random, canvas: tuple[int, int], sizes: tuple[int, int]
) -> tuple[Image.Image, str, str, str]:
    """A coloured shape on grey: the picture, its colour, its shape, and the side where it lies."""
    colour, shape = draw.choice(list(COLOURS)), draw.choice(SHAPES)
    image = Image.new("RGB", canvas, tuple(draw.randrange(90, 160) for _ in range(3)))
    x, y, size = draw.randrange(40), draw.randrange(30), draw.randrange(*sizes)
    pen = ImageDraw.Draw(image)
    paint = pen.ellipse if shape == "circle" else pen.rectangle
    paint((x, y, x + size, y + size), fill=COLOURS[colour])
    return image, colour, shape, "left" if x < 20 else "right"


def write_flickr8k(root: Path, train: int = 24, dev: int = 8) -> Path:
    """Coloured shapes on grey with two captions each; the same bytes on every call."""
    photos = root / "Flicker8k_Dataset"
    texts = root / "Flickr8k_text"
    photos.mkdir(parents=True)
    texts.mkdir()
    draw = random.Random(7)
    names, lines = [], []
    for number in range(train + dev):
        image, colour, shape, side = draw_shape(draw, (80, 64), (14, 34))
        name = f"{number:05d}.jpg"
        image.save(photos / name, quality=92)
        names.append(name)
        lines.append(
            f"{name}#0\tA {colour} {shape} on the {side} .\n{name}#1\tThere is one {colour} {shape} .\n"
        )
    (texts / "Flickr8k.token.txt").write_text("".join(lines))
    (texts / "Flickr_8k.trainImages.txt").write_text("\n".join(names[:train]) + "\n")
    (texts / "Flickr_8k.devImages.txt").write_text("\n".join(names[train:]) + "\n")
    return root


def build_data(folder: Path, train: int = 24, dev: int = 8) -> Path:
    """The tiny data set, built; near duplicates stay, since shapes on grey all look alike."""
    root = write_flickr8k(folder / "raw", train, dev)
    out = folder / "built"
    build("flickr8k", root, out, BuildConfig(near_duplicates=None))
    return out


def tiny_config(name: str = "test_efficientnet", vocab: int = 20) -> CaptionerConfig:
    """A captioner of some ten thousand parameters on a tiny timm tower."""
    return CaptionerConfig(
        VisionConfig(name=name, image_size=64),
        MapperConfig(layers=1, dropout=0.0),
        DecoderConfig(vocab_size=vocab, width=16, layers=2, heads=2, context=12, dropout=0.0),
    )


def tiny_captioner(name: str = "test_efficientnet", vocab: int = 20) -> Captioner:
    """`tiny_config` as a network in evaluation mode; seed torch before for the same weights."""
    return Captioner(tiny_config(name, vocab)).eval()
