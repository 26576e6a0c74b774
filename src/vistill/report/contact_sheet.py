"""What a search found, as one page with small pictures that are made while it is written."""

from collections.abc import Sequence
from html import escape

from vistill.errors import ImageError
from vistill.report.page import document
from vistill.report.pictures import data_uri
from vistill.runtime.image import printable

_SIDE = 240  # pixels: some 8 kB a picture


def contact_sheet(asked: str, hits: Sequence[tuple[str, float]]) -> str:
    """A page about photos (path, score), best first; one that cannot be read any more says so."""
    cards = "".join(_card(number, path, score) for number, (path, score) in enumerate(hits, 1))
    subtitle = f"{len(hits)} photos, nearest first; the score is a cosine" if hits else "no photos"
    return document(asked, subtitle, [], [f'<div class="cards">{cards}</div>'])


def _card(number: int, path: str, score: float) -> str:
    name = escape(printable(path))
    try:
        picture = f'<img loading="lazy" src="{data_uri(path, _SIDE)}" alt="{name}">'
    except ImageError as error:
        picture = f'<div class="none">{escape(error.reason)}</div>'
    return (
        f'<figure class="card">{picture}<figcaption><p class="scores"><span>{number}</span> '
        f'<span>score <b>{score:.4f}</b></span></p><p class="file">{name}</p></figcaption></figure>'
    )
