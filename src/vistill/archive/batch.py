"""Captioning many pictures: decoding runs ahead in threads while the model works, in bounded memory.

paths -> decode_ahead (threads) -> batches -> captioner -> Result, in the order of the paths
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from vistill.errors import ImageError
from vistill.runtime.image import DEFAULT_LIMITS, Limits, Preprocess, preprocess

Pixels = NDArray[np.float32]


class Scored(Protocol):
    """A caption with its score."""

    @property
    def text(self) -> str: ...
    @property
    def score(self) -> float: ...


class ArrayCaptioner(Protocol):
    """What is needed of `vistill.runtime.pipelines.Captioner`."""

    @property
    def preprocess(self) -> Preprocess: ...
    def caption_arrays(self, pixels: Pixels, num_return: int) -> Sequence[Sequence[Scored]]:
        """float32 [B, 3, H, W] -> for each picture its captions, best first."""
        ...


@dataclass(frozen=True)
class Result:
    """What became of one picture: captions (text, score), best first, or the error."""

    path: str
    captions: tuple[tuple[str, float], ...] = ()
    error: ImageError | None = None


def caption_paths(
    captioner: ArrayCaptioner,
    paths: Iterable[str],
    batch_size: int = 8,
    workers: int = 2,
    num_return: int = 1,
    limits: Limits = DEFAULT_LIMITS,
) -> Iterator[list[Result]]:
    """Results in the order of `paths`, a list for each batch of the model.

    `paths` is drawn from as the work goes on. At most two batches of arrays are held, and `workers` pictures
    in decoding. A picture that cannot be read takes no place in a batch; its Result carries the ImageError.
    """
    spec = captioner.preprocess

    def read(path: str) -> Pixels:
        return preprocess(path, spec, limits)

    pending: list[tuple[str, Pixels | ImageError]] = []
    good = 0
    for path, outcome in decode_ahead(paths, read, workers, ahead=2 * batch_size):
        pending.append((path, outcome))
        good += not isinstance(outcome, ImageError)
        # Failures alone must not pile up either: a folder of a million broken files shows its lines.
        if good == batch_size or len(pending) == 4 * batch_size:
            yield _caption_batch(captioner, pending, num_return)
            pending, good = [], 0
    if pending:
        yield _caption_batch(captioner, pending, num_return)


def decode_ahead(
    paths: Iterable[str], read: Callable[[str], Pixels], workers: int, ahead: int
) -> Iterator[tuple[str, Pixels | ImageError]]:
    """`read` of each path, in order, by `workers` threads that stay at most `ahead` paths in front."""

    def attempt(path: str) -> Pixels | ImageError:
        try:
            return read(path)
        except ImageError as error:
            return error

    queue: deque[tuple[str, Future[Pixels | ImageError]]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")
    try:
        for path in paths:
            queue.append((path, pool.submit(attempt, path)))
            if len(queue) >= ahead:
                first, future = queue.popleft()
                yield first, future.result()
        while queue:
            first, future = queue.popleft()
            yield first, future.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _caption_batch(
    captioner: ArrayCaptioner, pending: Sequence[tuple[str, Pixels | ImageError]], num_return: int
) -> list[Result]:
    arrays = [outcome for _, outcome in pending if not isinstance(outcome, ImageError)]
    captions = iter(captioner.caption_arrays(np.stack(arrays), num_return=num_return) if arrays else ())
    results = []
    for path, outcome in pending:
        if isinstance(outcome, ImageError):
            results.append(Result(path, error=outcome))
        else:
            results.append(Result(path, tuple((c.text, float(c.score)) for c in next(captions))))
    return results
