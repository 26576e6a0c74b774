"""`vistill search`: the photos of an index nearest to words or to a picture."""

from pathlib import Path
from typing import Annotated

import typer

from vistill.cli.options import Bundle, Threads


def search(
    text: Annotated[str | None, typer.Argument(help="What to look for, in words.", metavar="TEXT")] = None,
    folder: Annotated[
        Path | None,
        typer.Option("--index", help="An index, or a folder of photos that has one; else the only one."),
    ] = None,
    image: Annotated[Path | None, typer.Option(help="Photos like this one, instead of words.")] = None,
    top: Annotated[int, typer.Option(min=1, help="How many photos.")] = 10,
    model: Bundle = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a photo on stdout.")] = False,
    html: Annotated[Path | None, typer.Option(help="Write a page with small pictures of the photos.")] = None,
    threads: Threads = None,
) -> None:
    """Search a folder that `vistill index` has seen.

    Prints score<TAB>path, best first; the score is a cosine, at most 1. Nothing leaves this machine.
    """
    from vistill.archive.catalogue import open_catalogue
    from vistill.archive.index import check_model
    from vistill.archive.outputs import json_line
    from vistill.archive.places import find_index
    from vistill.archive.search import Searcher
    from vistill.cli.pictures import hush_pillow, write
    from vistill.errors import ConfigError
    from vistill.files import write_text
    from vistill.runtime.embedder import Embedder
    from vistill.runtime.image import printable

    if (text is None) == (image is None):
        raise ConfigError("search for words or for a picture: vistill search TEXT, or --image photo.jpg")
    hush_pillow()
    catalogue = open_catalogue(find_index(folder))
    try:
        embedder = Embedder(model, threads=threads)
        check_model(catalogue, embedder)
        query = embedder.texts([text])[0] if text is not None else embedder.images([str(image)])[0]
        hits = Searcher(catalogue)(query, top)
    finally:
        catalogue.close()
    for hit in hits:
        if as_json:
            write(json_line({"path": hit.path, "score": round(hit.score, 6)}))
        else:
            write(f"{hit.score:.4f}\t{printable(hit.path)}\n".encode())
    if html is not None:
        from vistill.report.contact_sheet import contact_sheet

        asked = text if text is not None else f"photos like {printable(str(image))}"
        write_text(html, contact_sheet(asked, [(hit.path, hit.score) for hit in hits]))
        typer.echo(f"page: {printable(html)}", err=True)
