"""`vistill data fetch`: download the pictures that a data set names by address."""

import json
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from vistill.cli.progress import steps


def fetch(
    source: Annotated[str, typer.Argument(help="conceptual-captions.")],
    tsv: Annotated[Path, typer.Argument(help="caption<TAB>url a row, as it was published.")],
    out: Annotated[
        Path, typer.Option(help="Folder for pictures and blocklist; a stopped run goes on in it.")
    ],
    workers: Annotated[int, typer.Option(help="Downloads at the same time.")] = 16,
    attempts: Annotated[int, typer.Option(help="How often one is asked for in a run.")] = 3,
    timeout: Annotated[float, typer.Option(help="Seconds without a byte.")] = 10.0,
    deadline: Annotated[float, typer.Option(help="Seconds for one request.")] = 60.0,
    max_bytes: Annotated[int, typer.Option(help="Largest file that is kept.")] = 20 * 2**20,
    max_pixels: Annotated[int, typer.Option(help="Largest picture that is kept, width times height.")] = 2
    ** 26,
    blocklist: Annotated[
        list[Path] | None, typer.Option(help="File of addresses, one a line, that are not asked for.")
    ] = None,
    allow_private: Annotated[
        bool, typer.Option("--allow-private", help="Also ask servers of this machine and its network.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was done as JSON.")] = False,
) -> None:
    """Download the pictures of a list of addresses.

    They come into OUT; what will never work goes on a blocklist. `vistill data build conceptual_captions OUT`
    reads the result.
    """
    from dataclasses import asdict

    from vistill.data.download import Limits
    from vistill.data.fetch import FetchConfig
    from vistill.data.fetch import fetch as fetch_all
    from vistill.errors import ConfigError

    if source != "conceptual-captions":
        raise ConfigError(f"unknown source {source!r}; there is conceptual-captions")
    limits = Limits(max_bytes=max_bytes, timeout=timeout, deadline=deadline, private=allow_private)
    config = FetchConfig(workers=workers, attempts=attempts, max_pixels=max_pixels, limits=limits)
    with steps() as show:
        found = fetch_all(tsv, out, config, blocklists=blocklist or (), progress=partial(show, "fetch"))
    typer.echo(f"{found.fetched:,} new, {found.there:,} there before, {found.blocked:,} blocked", err=True)
    for reason, count in sorted(found.failed.items(), key=lambda pair: -pair[1]):
        typer.echo(f"{count:,} {reason}", err=True)
    typer.echo(json.dumps(asdict(found), indent=1) if as_json else str(out))
