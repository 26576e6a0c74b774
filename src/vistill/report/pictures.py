"""Pictures small enough to lie inside a page."""

import base64
import io

from PIL import Image

from vistill.runtime.image import Limits, read_image

SIDE = 320  # pixels of the longer side: sharp on a screen of twice the density, about 15 kB
QUALITY = 72


def data_uri(image: bytes, side: int = SIDE) -> str:
    """An encoded picture as a `data:` URI of an upright RGB JPEG whose longer side is at most `side` pixels.

    Raises ImageError if the picture cannot be decoded.
    """
    picture = read_image(image, Limits(), target=(side, side))
    scale = side / max(picture.size)
    if scale < 1:
        size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=QUALITY, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
