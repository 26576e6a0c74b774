"""Download the pictures of Conceptual Captions: many addresses, most of the dead ones known after one run.

    OUT/NAME.tsv                  a copy of the list: `vistill data build conceptual_captions OUT` reads it
    OUT/pictures/66/6601...jpg    each picture as it came, named by its address (`picture_name`)
    OUT/blocklist.txt             url<TAB>reason of what will never work; it is not asked again

A run that stops goes on where it was: what exists or is blocked is not asked for. What may work later (no
answer, a busy server) is tried a few times, counted, and tried again by the next run.
"""

import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path

from vistill.data.download import DownloadError, Limits, download
from vistill.data.records import Dropped
from vistill.data.sources.common import require_file
from vistill.data.sources.conceptual_captions import picture_name, rows
from vistill.data.store import locked
from vistill.errors import ConfigError, ImageError
from vistill.files import atomic_file
from vistill.runtime.formats import sniff
from vistill.runtime.image import Limits as ImageLimits
from vistill.runtime.image import read_image

BLOCKLIST = "blocklist.txt"
PICTURES = "pictures"
SUFFIXES = {"JPEG": ".jpg", "MPO": ".jpg", "JPEG2000": ".jp2", "PPM": ".ppm"}

Progress = Callable[[int, int], None]  # (done, total)


@dataclass(frozen=True)
class FetchConfig:
    """How pictures are fetched.

    attempts: how often one is asked for in a run, with a pause (seconds, doubled each time) in between.
    max_pixels: of a picture, by its header.
    """

    workers: int = 16
    attempts: int = 3
    pause: float = 1.0
    max_pixels: int = ImageLimits.max_pixels
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        for name in ("workers", "attempts", "max_pixels"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.pause < 0:
            raise ConfigError(f"pause must be 0 or more seconds, not {self.pause}")


@dataclass
class Fetched:
    """What a run did, in addresses: new pictures, those of before, blocked before, and failures by reason."""

    fetched: int = 0
    there: int = 0
    blocked: int = 0
    failed: dict[str, int] = field(default_factory=dict)
    bad_rows: int = 0


def fetch(
    tsv: Path,
    out: Path,
    config: FetchConfig | None = None,
    *,
    blocklists: Sequence[Path] = (),
    progress: Progress = lambda done, total: None,
) -> Fetched:
    """Download the pictures of `tsv` (caption<TAB>url) into the folder `out`.

    blocklists: more files whose first field in each line is a url that is not asked for. Raises DataError
    where a file is missing or another run works on `out`.
    """
    config = config or FetchConfig()
    require_file(tsv, "captions and addresses (caption<TAB>url)")
    (out / PICTURES).mkdir(parents=True, exist_ok=True)
    with locked(out / ".lock", f"another run downloads into {out}"):
        copy = out / tsv.name
        if not copy.exists() or copy.stat().st_size != tsv.stat().st_size:
            with tsv.open("rb") as source, atomic_file(copy) as target:
                shutil.copyfileobj(source, target)
        return _fetch_all(tsv, out, config, blocklists, progress)


def _fetch_all(
    tsv: Path, out: Path, config: FetchConfig, blocklists: Sequence[Path], progress: Progress
) -> Fetched:
    result = Fetched()
    known = {path.stem for path in (out / PICTURES).glob("*/*") if path.suffix != ".tmp"}
    blocked = _blocked([out / BLOCKLIST, *(require_file(path, "a blocklist") for path in blocklists)])
    total = sum(1 for _ in rows(tsv))
    settled = 0
    with (out / BLOCKLIST).open("ab") as block, ThreadPoolExecutor(config.workers) as pool:
        waiting: dict[Future[str], str] = {}

        def settle(futures: Iterable[Future[str]]) -> None:
            nonlocal settled
            for future in futures:
                url = waiting.pop(future)
                reason = future.result()
                if reason:
                    result.failed[reason] = result.failed.get(reason, 0) + 1
                    if not reason.startswith(LATER):
                        block.write(f"{url}\t{reason}\n".encode())
                        block.flush()
                result.fetched += not reason
                settled += 1
            progress(settled + result.there + result.blocked + result.bad_rows, total)

        try:
            for url in _new(rows(tsv), known, blocked, result):
                waiting[pool.submit(_fetch_one, url, out, config)] = url
                if len(waiting) >= 2 * config.workers:
                    settle(wait(waiting, return_when=FIRST_COMPLETED).done)
            settle(wait(waiting).done)
        finally:
            pool.shutdown(cancel_futures=True)
    progress(total, total)
    return result


LATER = "later_"
"""How reasons begin of what may work later."""


def _new(
    found: Iterator[tuple[str, str] | Dropped], known: set[str], blocked: set[str], result: Fetched
) -> Iterator[str]:
    """Yield each address once that has no picture and is not blocked; count the others."""
    seen: set[str] = set()
    for row in found:
        if isinstance(row, Dropped):
            result.bad_rows += 1
            continue
        name = picture_name(row[1])
        if name in seen:
            continue
        seen.add(name)
        if name in known:
            result.there += 1
        elif name in blocked:
            result.blocked += 1
        else:
            yield row[1]


def _blocked(paths: Iterable[Path]) -> set[str]:
    """The names of the pictures of all addresses in blocklists; a line that a kill cut off does not count."""
    found = set()
    for path in paths:
        lines = path.read_bytes().split(b"\n") if path.is_file() else []
        if lines and lines[-1] and path.name == BLOCKLIST:
            with path.open("r+b") as file:
                file.truncate(path.stat().st_size - len(lines.pop()))
        for line in lines:
            url = line.split(b"\t")[0].strip().decode("utf-8", "replace")
            if url and not url.startswith("#"):
                found.add(picture_name(url))
    return found


def _fetch_one(url: str, out: Path, config: FetchConfig) -> str:
    """Fetch one picture and keep it; return "" or the reason why not."""
    reason = ""
    for attempt in range(config.attempts):
        if attempt:
            time.sleep(config.pause * 2 ** (attempt - 1))
        try:
            data = download(url, config.limits)
            read_image(data, ImageLimits(config.limits.max_bytes, config.max_pixels))
        except DownloadError as error:
            reason = error.reason if error.final else LATER + error.reason
            if error.final:
                return reason
        except ImageError as error:
            return f"image_{error.reason}"
        else:
            name = picture_name(url)
            kind = sniff(data, name)
            folder = out / PICTURES / name[:2]
            folder.mkdir(exist_ok=True)
            with atomic_file(folder / (name + SUFFIXES.get(kind, f".{kind.lower()}"))) as file:
                file.write(data)
            return ""
    return reason
