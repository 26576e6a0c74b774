"""Pictures small enough to lie inside a page."""

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from vistill.errors import DataError, ImageError
from vistill.runtime.image import Limits, read_image

SIDE = 320  # pixels of the longer side: sharp on a screen of twice the density, about 15 kB
QUALITY = 72


def data_uri(image: bytes | str | Path, side: int = SIDE) -> str:
    """A picture (bytes or path) as a `data:` URI of an upright RGB JPEG of at most `side` pixels a side.

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


def shown(image: bytes, side: int = SIDE) -> str:
    """`data_uri`; empty if the picture cannot be decoded, which its card then says."""
    try:
        return data_uri(image, side)
    except ImageError:
        return ""


def example_pictures(folder: Path, measured: Mapping[str, Any], keys: Sequence[str]) -> dict[str, str]:
    """`data:` URIs of some pictures of a built data set, by key; those that cannot be decoded lack.

    measured: `split`, `pictures` and `fingerprint` of an evaluation. Raises DataError if the data set in
    `folder` is not what was evaluated.
    """
    from vistill.data.dataset import open_split
    from vistill.report.captions import fingerprint

    rows = open_split(folder, measured["split"])
    rows = rows.select(range(min(measured["pictures"], len(rows))))
    found = fingerprint(rows)
    if found != measured["fingerprint"]:
        raise DataError(
            f"{folder}, {measured['split']}: its first {measured['pictures']} pictures are not those that "
            f"were evaluated: fingerprint {found[:12]}, evaluated {measured['fingerprint'][:12]}"
        )
    places = {key: place for place, key in enumerate(rows["key"][:])}
    pictures = {key: shown(rows[places[key]]["image"]) for key in keys}
    return {key: picture for key, picture in pictures.items() if picture}
