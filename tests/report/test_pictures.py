"""Pictures inside a page: size, orientation and errors."""

import base64
import io

import pytest
from PIL import Image

from vistill.errors import ImageError
from vistill.report.pictures import data_uri


def encoded(picture: Image.Image, **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG" if picture.mode == "RGBA" else "JPEG", **options)
    return buffer.getvalue()


def decoded(uri: str) -> Image.Image:
    head, _, data = uri.partition(",")
    assert head == "data:image/jpeg;base64"
    return Image.open(io.BytesIO(base64.b64decode(data, validate=True)))


@pytest.mark.parametrize(
    ("size", "small"), [((800, 400), (100, 50)), ((60, 30), (60, 30)), ((3000, 2), (100, 1))]
)
def test_the_longer_side_is_bounded_and_the_aspect_kept(
    size: tuple[int, int], small: tuple[int, int]
) -> None:
    assert decoded(data_uri(encoded(Image.new("RGB", size, "teal")), side=100)).size == small


def test_a_turned_picture_stands_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = decoded(data_uri(encoded(Image.new("RGB", (80, 40)), exif=exif)))
    assert picture.size == (40, 80)
    assert 0x0112 not in picture.getexif()


def test_transparency_becomes_white() -> None:
    picture = decoded(data_uri(encoded(Image.new("RGBA", (8, 8), (255, 0, 0, 0)))))
    assert min(picture.convert("RGB").getpixel((4, 4))) > 250


def test_what_is_no_picture_raises() -> None:
    with pytest.raises(ImageError):
        data_uri(b"no picture")
