"""What a user imports: `Embedder`. Pictures and texts in, unit vectors of one space out; no torch."""

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from vistill.errors import BundleError, ConfigError, ImageError
from vistill.runtime.bundle import EMBEDDER, Bundle, open_kind
from vistill.runtime.image import DEFAULT_LIMITS, Limits, preprocess
from vistill.runtime.pipelines import (
    Source,
    check_counts,
    check_picture,
    check_pixels,
    check_several,
    check_text,
    check_texts,
)
from vistill.runtime.sessions import EmbeddingSession, available_cpus
from vistill.runtime.texts import encode_texts

Floats = NDArray[np.float32]
OnError = Callable[[int, ImageError], object]


@dataclass(frozen=True)
class Label:
    """A label and its probability among the labels that were asked for."""

    text: str
    score: float


class Embedder:
    """Embeds pictures and texts with a bundle; by default the one in the package.

        >>> from vistill import Embedder
        >>> embedder = Embedder()  # doctest: +SKIP
        >>> embedder.images(["a.jpg", "b.jpg"]) @ embedder.texts(["a dog in the snow"]).T  # doctest: +SKIP

    bundle: a folder written by `vistill export`. threads: of each batch, by default all CPUs. batch_size:
    pictures or texts that go through the model together. limits: see `vistill.runtime.image.Limits`.
    One object may be used from many threads. Raises BundleError and ConfigError; calls raise ImageError, and
    TypeError for what can be no picture or no text.
    """

    def __init__(
        self,
        bundle: str | Path | None = None,
        threads: int | None = None,
        batch_size: int = 16,
        limits: Limits = DEFAULT_LIMITS,
    ) -> None:
        check_counts(threads, batch_size)
        self.threads = threads or available_cpus()
        self.batch_size = batch_size
        self.limits = limits
        self.bundle = open_kind(bundle, EMBEDDER)
        self.manifest = self.bundle.manifest
        self.preprocess = self.manifest.preprocess
        self.name = self.manifest.name
        self.hash = self.bundle.hash()
        """Which model this is: vectors of embedders with one hash may be compared."""
        self.width = self.manifest.width
        """E, numbers in an embedding."""
        self._lock = threading.Lock()

    def images(self, sources: Iterable[Source], on_error: OnError | None = None) -> Floats:
        """Pictures (bytes, paths or PIL images) -> float32 [n, E], unit norm.

        The next batch is decoded in threads while the graph runs. on_error: called with the number and the
        error of each picture that cannot be read, whose row is then nan; without it the first one raises.
        """
        check_several(sources)
        found = [np.empty((0, self.width), np.float32)]
        iterator = iter(sources)
        with ThreadPoolExecutor(self.threads) as pool:

            def submit() -> list[Future[Floats | ImageError]]:
                return [pool.submit(self._read, source) for source in islice(iterator, self.batch_size)]

            done, ahead = 0, submit()
            while ahead:
                batch, ahead = ahead, submit()
                outcomes = [future.result() for future in batch]
                rows = np.full((len(outcomes), self.width), np.nan, np.float32)
                good = []
                for i, outcome in enumerate(outcomes):
                    if not isinstance(outcome, ImageError):
                        good.append(i)
                    elif on_error is None:
                        pool.shutdown(cancel_futures=True)
                        raise outcome
                    else:
                        on_error(done + i, outcome)
                if good:
                    rows[good] = self.image_arrays(np.stack([outcomes[i] for i in good]))  # type: ignore[misc]
                found.append(rows)
                done += len(batch)
        return np.concatenate(found)

    def image_arrays(self, pixels: Floats) -> Floats:
        """As `images`, for pictures that `preprocess` describes, ready as float32 [B, 3, H, W]."""
        check_pixels(pixels, self.preprocess)
        vision = self._parts[0]
        return self._joined(vision.run(pixels[rows]) for rows in self._batches(len(pixels)))

    def texts(self, texts: Iterable[str]) -> Floats:
        """Texts -> float32 [n, E], unit norm. What goes beyond the model's context is cut off."""
        check_texts(texts, "texts")
        given = list(texts)
        for one in given:
            check_text(one, "a text")
        _, text, tokenizer = self._parts
        tokens = encode_texts(tokenizer, given, self.manifest.context)
        lengths = (tokens != 0).cumsum(axis=1).argmax(axis=1) + 1  # up to the last token that is no padding
        order = np.argsort(lengths, kind="stable")  # texts of like length together: less padding
        found = np.empty((len(given), self.width), np.float32)
        for batch in self._batches(len(given)):
            rows = order[batch]
            found[rows] = text.run(tokens[rows, : lengths[rows].max()])
        return found

    def classify(
        self,
        sources: Iterable[Source],
        labels: Sequence[str],
        template: str = "a photo of {}",
        on_error: OnError | None = None,
    ) -> list[list[Label]]:
        """The labels of each picture, likeliest first; the scores of a picture sum to 1.

        Softmax over the cosines with `template`, `{}` replaced by each label, times the model's logit scale.
        on_error: as for `images`; a picture that cannot be read has no labels. Raises ConfigError without
        labels or for a template without `{}`.
        """
        check_texts(labels, "labels")
        labels = list(labels)
        for label in labels:
            check_text(label, "a label")
        if not labels:
            raise ConfigError("classify needs at least one label")
        if "{}" not in template:
            raise ConfigError(f"template={template!r}: must hold {{}}, where the label goes")
        texts = self.texts([template.replace("{}", label) for label in labels])
        found = []
        for image in self.images(sources, on_error):
            logits = self.manifest.logit_scale * (texts @ image).astype(np.float64)
            scores = np.exp(logits - logits.max())
            best = np.argsort(-logits, kind="stable") if np.isfinite(image).all() else ()
            found.append([Label(labels[i], float(scores[i] / scores.sum())) for i in best])
        return found

    def _read(self, source: Source) -> Floats | ImageError:
        check_picture(source)
        try:
            return preprocess(source, self.preprocess, self.limits)
        except ImageError as error:
            return error

    def _batches(self, count: int) -> Iterator[slice]:
        return (slice(start, start + self.batch_size) for start in range(0, count, self.batch_size))

    def _joined(self, parts: Iterable[Floats]) -> Floats:
        return np.concatenate([np.empty((0, self.width), np.float32), *parts])

    @property
    def _parts(self) -> tuple[EmbeddingSession, EmbeddingSession, Tokenizer]:
        with self._lock:  # two first calls at once must not load twice
            return self._loaded

    @cached_property
    def _loaded(self) -> tuple[EmbeddingSession, EmbeddingSession, Tokenizer]:
        bundle = self.bundle
        vision = EmbeddingSession(bundle.read("vision"), "pixels", self.threads, str(bundle.path("vision")))
        text = EmbeddingSession(bundle.read("text"), "tokens", self.threads, str(bundle.path("text")))
        _check_fit(bundle, vision, text)
        return vision, text, bundle.tokenizer()


def _check_fit(bundle: Bundle, vision: EmbeddingSession, text: EmbeddingSession) -> None:
    """Raise BundleError if the parts of a bundle are each whole but not made for each other."""
    manifest = bundle.manifest
    size = vision.shape[2:]
    if size != manifest.preprocess.size:
        problem = f"preprocess.size is {manifest.preprocess.size}, but the vision graph takes {size}"
    elif not vision.width == text.width == manifest.width:
        problem = f"width is {manifest.width}, but the graphs give {vision.width} and {text.width} numbers"
    else:
        return
    raise BundleError(f"{bundle.folder}: the parts do not fit: {problem}")
