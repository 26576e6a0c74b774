"""Many pictures through a model: decoding runs ahead in threads while it works, in bounded memory.

paths -> decode_ahead (threads) -> batches -> captioner or embedder -> results, in the order of the paths
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from vistill.errors import ImageError
from vistill.runtime.image import DEFAULT_LIMITS, Limits, Preprocess, preprocess

Pixels = NDArray[np.float32]
Vector = NDArray[np.float32]
T = TypeVar("T")


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
    for batch in read_batches(paths, lambda path: preprocess(path, spec, limits), batch_size, workers):
        yield _caption_batch(captioner, batch, num_return)


class ArrayEmbedder(Protocol):
    """What is needed of `vistill.runtime.embedder.Embedder` to embed pictures."""

    @property
    def preprocess(self) -> Preprocess: ...
    def image_arrays(self, pixels: Pixels) -> Pixels:
        """float32 [B, 3, H, W] -> float32 [B, E], unit norm."""
        ...


@dataclass(frozen=True)
class Embedded:
    """What became of one picture: its vector [E], or the error."""

    path: str
    vector: Vector | None = None
    error: ImageError | None = None


def embed_paths(
    embedder: ArrayEmbedder,
    paths: Iterable[str],
    batch_size: int = 16,
    workers: int = 2,
    limits: Limits = DEFAULT_LIMITS,
) -> Iterator[list[Embedded]]:
    """As `caption_paths`, with vectors for captions."""
    spec = embedder.preprocess
    for batch in read_batches(paths, lambda path: preprocess(path, spec, limits), batch_size, workers):
        arrays = [outcome for _, outcome in batch if not isinstance(outcome, ImageError)]
        vectors = iter(embedder.image_arrays(np.stack(arrays)) if arrays else ())
        yield [
            Embedded(path, error=outcome)
            if isinstance(outcome, ImageError)
            else Embedded(path, next(vectors))
            for path, outcome in batch
        ]


def read_batches(
    paths: Iterable[str], read: Callable[[str], T], batch_size: int, workers: int
) -> Iterator[list[tuple[str, T | ImageError]]]:
    """`read` of each path, ahead in threads, in lists with `batch_size` that could be read.

    A list ends early after many failures: they alone must not pile up.
    """
    pending: list[tuple[str, T | ImageError]] = []
    good = 0
    for path, outcome in decode_ahead(paths, read, workers, ahead=2 * batch_size):
        pending.append((path, outcome))
        good += not isinstance(outcome, ImageError)
        # A folder of a million broken files shows its lines.
        if good == batch_size or len(pending) == 4 * batch_size:
            yield pending
            pending, good = [], 0
    if pending:
        yield pending


def decode_ahead(
    paths: Iterable[str], read: Callable[[str], T], workers: int, ahead: int
) -> Iterator[tuple[str, T | ImageError]]:
    """`read` of each path, in order, by `workers` threads that stay at most `ahead` paths in front."""

    def attempt(path: str) -> T | ImageError:
        try:
            return read(path)
        except ImageError as error:
            return error

    queue: deque[tuple[str, Future[T | ImageError]]] = deque()
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
