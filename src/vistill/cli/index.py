"""`vistill index`: bring the searchable index of a folder of photos up to date."""

import json
from pathlib import Path
from typing import Annotated

import typer

from vistill.cli.options import MAX_BYTES, MAX_PIXELS, BatchSize, Bundle, MaxBytes, MaxPixels, Threads


def index(
    root: Annotated[Path, typer.Argument(help="Folder of photos.", metavar="DIR")],
    folder: Annotated[
        Path | None, typer.Option("--index", help="Where the index lies; else with your own data.")
    ] = None,
    model: Bundle = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="A line for each failure, then the counts, as JSON on stdout.")
    ] = False,
    batch_size: BatchSize = 16,
    threads: Threads = None,
    max_bytes: MaxBytes = MAX_BYTES,
    max_pixels: MaxPixels = MAX_PIXELS,
) -> None:
    """Index a folder of photos, and the folders in it, for `vistill search`.

    Only photos that are new, changed or gone since the last time cost anything. The index holds names and
    vectors and no pictures; nothing is written among the photos unless --index says so. Exit code: 0 all
    indexed, 1 some photos failed (each is named with a reason), 2 a wrong option, 130 interrupted.
    """
    from vistill.archive.catalogue import only_writer
    from vistill.archive.index import Update, open_index
    from vistill.archive.places import default_index
    from vistill.archive.search import has_faiss, wants_lists, write_lists
    from vistill.archive.walk import walk
    from vistill.cli.pictures import Screen, hush_pillow, reporting, write
    from vistill.errors import ConfigError
    from vistill.runtime.embedder import Embedder
    from vistill.runtime.image import Limits, printable

    hush_pillow()
    limits = Limits(max_bytes, max_pixels)
    embedder = Embedder(model, threads=threads, batch_size=batch_size, limits=limits)
    place = default_index(root) if folder is None else folder
    screen = Screen(as_json, printing=False)
    with only_writer(place):
        catalogue = open_index(place, root, embedder)
        try:
            update = Update(catalogue, embedder, batch_size, embedder.threads, limits)
            with reporting(screen, lambda: sum(1 for _ in walk(str(root), True, lambda *_: None))):
                for outcomes in update.run():
                    for path, error in outcomes:
                        screen.failed(path, error) if error else screen.done()
                    screen.advance(update.counts["unchanged"])
            photos = len(catalogue)
            if not photos and not update.counts["failed"] and not update.counts["removed"]:
                raise ConfigError(f"found no pictures in {printable(root)}")
            if wants_lists(catalogue):
                if has_faiss():
                    screen.note(f"laying out {photos} vectors for quick search")
                    write_lists(catalogue)
                else:
                    screen.note("search will be quicker with: pip install 'vistill[search]'")
        finally:
            catalogue.close()
    counts = dict(update.counts)
    if as_json:
        report = {"index": str(place), "root": catalogue.manifest.root, "photos": photos, **counts}
        write(json.dumps(report | {"model": embedder.name}).encode() + b"\n")
    else:
        told = ", ".join(f"{number} {kind}" for kind, number in counts.items())
        screen.note(f"{photos} photos in {printable(place)}: {told}")
    if counts["failed"]:
        raise typer.Exit(1)
