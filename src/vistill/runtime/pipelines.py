"""What a user imports: `Captioner`. Pictures in, text out; no torch."""

import os
import threading
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from functools import cached_property
from itertools import islice
from numbers import Integral, Real
from pathlib import Path
from typing import Any, NamedTuple, overload

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tokenizers import Tokenizer

from vistill.errors import BundleError, ConfigError
from vistill.runtime.bundle import ANSWERER, CAPTIONER, Bundle, Manifest, open_kind
from vistill.runtime.consensus import ConsensusHead, open_head, to_choose_from
from vistill.runtime.decode import GenerationConfig, generate
from vistill.runtime.image import DEFAULT_LIMITS, Limits, Preprocess, preprocess
from vistill.runtime.sessions import TOWER_MEAN, DecoderSession, VisionSession, available_cpus

Source = bytes | str | Path | Image.Image
MOST_THREADS = 256
"""More help no processor, and onnxruntime starts every one it is asked for: 100,000 took 17 GB of memory."""
_KINDS: dict[Any, tuple[Any, str]] = {
    int: (Integral, "an integer"),
    float: (Real, "a number"),
    bool: ((bool, np.bool_), "True or False"),
}


@dataclass(frozen=True)
class Caption:
    """A caption and its score, higher is better: sum(log p) / length ** length_penalty, so at most 0.

    With do_sample it is sum(log p), undivided. Of a bundle with a consensus head that had several to choose
    from, WEIGHT times the consensus is added (`vistill.runtime.consensus`).
    """

    text: str
    score: float


class Captioner:
    """Captions pictures with a bundle; by default the one in the package.

        >>> from vistill import Captioner
        >>> Captioner()("photo.jpg")  # doctest: +SKIP
        'a dog runs through the grass'

    bundle: a folder written by `vistill export`. threads: of each picture batch, by default all CPUs.
    batch_size: pictures that go through the model together. limits: see `vistill.runtime.image.Limits`.
    rerank: let the bundle's consensus head, if it has one, choose among the captions that the search found.
    Other keywords are fields of GenerationConfig and override those of the bundle (`num_beams=1`, ...).
    One object may be used from many threads. Raises BundleError and ConfigError; calls raise ImageError, and
    TypeError for what can be no picture.
    """

    def __init__(
        self,
        bundle: str | Path | None = None,
        threads: int | None = None,
        batch_size: int = 16,
        limits: Limits = DEFAULT_LIMITS,
        rerank: bool = True,
        **generation: Any,
    ) -> None:
        check_counts(threads, batch_size)
        self.threads = threads or available_cpus()
        self.batch_size = batch_size
        self.limits = limits
        self.rerank = rerank
        self.bundle = open_kind(bundle, CAPTIONER)
        self.manifest = self.bundle.manifest
        self.preprocess = self.manifest.preprocess
        self.generation = search_settings(self.manifest, generation, "Captioner")
        longest, context = self.generation.max_new_tokens, self.manifest.context
        if context and longest > context:
            raise ConfigError(f"generation.max_new_tokens={longest}: this model can write at most {context}")
        self._lock = threading.Lock()

    @overload
    def __call__(self, sources: Source) -> str: ...  # type: ignore[overload-overlap]
    @overload
    def __call__(self, sources: Iterable[Source]) -> list[str]: ...
    def __call__(self, sources: Source | Iterable[Source]) -> str | list[str]:
        """The best caption of one picture, or a list of them for several."""
        if isinstance(sources, Source):
            return self.caption([sources])[0][0].text
        return [captions[0].text for captions in self.caption(sources)]

    def caption(self, sources: Iterable[Source], num_return: int | None = None) -> list[list[Caption]]:
        """`num_return` captions of each picture, best first; pictures are bytes, paths or PIL images."""
        check_several(sources)
        found: list[list[Caption]] = []
        iterator = iter(sources)
        with ThreadPoolExecutor(self.threads) as pool:
            while batch := list(islice(iterator, self.batch_size)):
                found += self.caption_arrays(np.stack(self._read(batch, pool)), num_return)
        return found

    def caption_arrays(
        self, pixels: NDArray[np.float32], num_return: int | None = None
    ) -> list[list[Caption]]:
        """As `caption`, for pictures that `preprocess` describes, ready as float32 [B, 3, H, W]."""
        check_pixels(pixels, self.preprocess)
        config = returning(self.generation, num_return)
        found: list[list[Caption]] = []
        for start in range(0, len(pixels), self.batch_size):
            found += self._caption_batch(pixels[start : start + self.batch_size], config)
        return found

    def features(self, sources: Sequence[Source], pool: ThreadPoolExecutor) -> NDArray[np.float32]:
        """What a consensus head sees of each picture [B, F]."""
        vision = self._parts.vision
        if vision.tower_width is None:
            raise BundleError(
                f"{self.bundle.folder}: its vision graph gives no {TOWER_MEAN}, which a consensus head "
                "reads; export the captioner again"
            )
        features: NDArray[np.float32] = vision.run(np.stack(self._read(sources, pool)))[TOWER_MEAN].numpy()
        return features

    def _caption_batch(self, pixels: NDArray[np.float32], config: GenerationConfig) -> list[list[Caption]]:
        parts, tokens = self._parts, self.manifest.special_tokens
        wanted = config.num_return
        head = parts.consensus if self.rerank and max(config.num_beams, wanted) > 1 else None
        if head is not None:
            config = to_choose_from(config)
        cross = parts.vision.run(pixels)
        stepper = parts.decoder.start(cross)
        found = generate(stepper, len(pixels), bos=tokens["bos"], eos=tokens["eos"], config=config)
        written = [
            [Caption(parts.tokenizer.decode(list(h.tokens)).strip(), h.score) for h in one] for one in found
        ]
        if head is None:
            return written
        expected = head.expect(cross[TOWER_MEAN].numpy())
        return [
            _reranked(head, row, captions)[:wanted] for row, captions in zip(expected, written, strict=True)
        ]

    def _read(self, batch: Sequence[Source], pool: ThreadPoolExecutor) -> list[NDArray[np.float32]]:
        def read(source: Source) -> NDArray[np.float32]:
            check_picture(source)
            return preprocess(source, self.preprocess, self.limits)

        return list(map(read, batch)) if len(batch) == 1 else list(pool.map(read, batch))

    @property
    def _parts(self) -> "_Parts":
        with self._lock:  # two first calls at once must not load twice
            return self._loaded

    @cached_property
    def _loaded(self) -> "_Parts":
        bundle = self.bundle
        with ThreadPoolExecutor(2) as pool:  # each takes its time, mostly outside the interpreter
            other = pool.submit(
                lambda: DecoderSession(bundle.read("decoder"), self.threads, str(bundle.path("decoder")))
            )
            chooser = pool.submit(open_head, bundle) if self.rerank else None
            vision = VisionSession(bundle.read("vision"), self.threads, str(bundle.path("vision")))
            tokenizer = bundle.tokenizer()
            decoder = other.result()
            head = None if chooser is None else chooser.result()
        check_fit(bundle, vision, decoder, head)
        return _Parts(vision, decoder, tokenizer, head)


class _Parts(NamedTuple):
    """What runs when a picture is captioned."""

    vision: VisionSession
    decoder: DecoderSession
    tokenizer: Tokenizer
    consensus: ConsensusHead | None


def _reranked(
    head: ConsensusHead, expected: NDArray[np.float32], captions: Sequence[Caption]
) -> list[Caption]:
    """The captions of a picture, the one first that people would agree with most."""
    ranked = head.ranked(expected, [c.text for c in captions], [c.score for c in captions])
    return [Caption(captions[place].text, score) for place, score in ranked]


def check_counts(threads: int | None, batch_size: int) -> None:
    """Raise ConfigError unless threads are 1 to MOST_THREADS (None: all CPUs) and batch_size at least 1."""
    if threads is not None and not (_is_whole(threads) and 1 <= threads <= MOST_THREADS):
        raise ConfigError(
            f"threads={threads!r}: must be at least 1 and at most {MOST_THREADS}, an integer or None"
        )
    if not _is_whole(batch_size) or batch_size < 1:
        raise ConfigError(f"batch_size={batch_size!r}: must be at least 1, an integer")


def _is_whole(value: object) -> bool:
    return isinstance(value, Integral)


def check_picture(source: object) -> None:
    """Raise TypeError unless it is of a type that pictures are read from."""
    if not isinstance(source, (bytes, str, os.PathLike, Image.Image)):
        raise TypeError(f"a picture must be bytes, a path or a PIL image, got {type(source).__name__}")


def check_several(sources: object) -> None:
    """Raise TypeError for one picture, or a kind of one, where several are wanted.

    Some of these are iterable too, but give no pictures: a name its letters, a file its lines, an array rows.
    """
    single = (bytes, bytearray, memoryview, str, os.PathLike, Image.Image, np.ndarray)
    if isinstance(sources, single) or hasattr(sources, "read") or not isinstance(sources, Iterable):
        raise TypeError(
            "pictures must come as a list or another iterable of bytes, paths or PIL images, got "
            f"{type(sources).__name__}"
        )


def check_text(text: object, what: str) -> None:
    """Raise TypeError unless `what`, a question or another text, is a str."""
    if not isinstance(text, str):
        raise TypeError(f"{what} must be a str, got {type(text).__name__}")


def check_texts(texts: object, what: str) -> None:
    """Raise TypeError for one text where several are wanted: its letters are not meant."""
    if isinstance(texts, (str, bytes)) or not isinstance(texts, Iterable):
        raise TypeError(f"{what} must come as a list or another iterable of str, got {type(texts).__name__}")


def check_pixels(pixels: NDArray[np.float32], spec: Preprocess) -> None:
    """Raise ValueError unless pixels are float32 [B, 3, H, W] of the size that `spec` gives."""
    shape = (3, *spec.size)
    if pixels.dtype != np.float32 or pixels.shape[1:] != shape:
        raise ValueError(f"pixels must be float32 [B, {shape}], got {pixels.dtype} {pixels.shape}")


def returning(config: GenerationConfig, num_return: int | None) -> GenerationConfig:
    """`config` with so many texts returned, and beams enough for them; None leaves it as it is.

    Raises ConfigError unless it is an integer of at least 1.
    """
    if num_return is None:
        return config
    if not _is_whole(num_return):
        raise ConfigError(f"num_return={num_return!r}: must be an integer")
    return replace(config, num_return=num_return, num_beams=max(config.num_beams, num_return))


def search_settings(manifest: Manifest, given: Mapping[str, Any], who: str) -> GenerationConfig:
    """How a bundle that writes searches, with `given` settings in place of its own. Raises ConfigError."""
    assert manifest.generation is not None  # its kind has one
    known = {field.name: field.type for field in fields(GenerationConfig)}
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise ConfigError(f"{who}: unknown setting in {unknown}; known are {', '.join(known)}")
    for name, value in given.items():
        kind, wanted = _KINDS[known[name]]
        if not isinstance(value, kind):
            raise ConfigError(f"{who}: {name}={value!r}: must be {wanted}")
    return replace(manifest.generation, **given)


def check_fit(
    bundle: Bundle, vision: VisionSession, decoder: DecoderSession, head: ConsensusHead | None = None
) -> None:
    """Raise BundleError if the parts of a bundle are each whole but not made for each other."""
    manifest = bundle.manifest
    if vision.size != manifest.preprocess.size:
        problem = f"preprocess.size is {manifest.preprocess.size}, but the vision graph takes {vision.size}"
    elif vision.layers != decoder.layers:
        problem = f"the vision graph serves {vision.layers} layers, the decoder has {decoder.layers}"
    elif decoder.prompted != (manifest.kind == ANSWERER):
        problem = f"the decoder of kind {manifest.kind!r} must take `offset` if it answers, and only then"
    elif isinstance(decoder.vocabulary, int) and max(manifest.special_tokens.values()) >= decoder.vocabulary:
        problem = f"a special token is beyond the decoder's {decoder.vocabulary} tokens"
    elif head is not None and vision.tower_width != len(head.mean):
        problem = (
            f"the consensus head reads {len(head.mean)} numbers of {TOWER_MEAN}, the vision graph gives "
            f"{vision.tower_width or 'none'}"
        )
    else:
        return
    raise BundleError(f"{bundle.folder}: the parts do not fit: {problem}")
