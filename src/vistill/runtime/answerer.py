"""What a user imports: `Answerer`. Pictures and questions in, answers out; no torch."""

import os
import threading
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tokenizers import Tokenizer

from vistill.errors import BundleError, ConfigError
from vistill.runtime.bundle import ANSWERER, open_kind
from vistill.runtime.decode import GenerationConfig, generate
from vistill.runtime.image import DEFAULT_LIMITS, Limits, preprocess
from vistill.runtime.pipelines import (
    Source,
    check_counts,
    check_fit,
    check_picture,
    check_pixels,
    check_text,
    check_texts,
    returning,
    search_settings,
)
from vistill.runtime.prompts import answer_text, left_padded, prompt_ids
from vistill.runtime.sessions import (
    Cross,
    DecoderSession,
    PromptSession,
    VisionSession,
    available_cpus,
    of_pictures,
)

QUESTIONS = 4
"""Questions that are answered at once, for each picture of a batch."""
SHORTEST_PROMPT = 3  # the two marks and a word


@dataclass(frozen=True)
class Answer:
    """An answer and its score: sum(log p) / length ** length_penalty, so at most 0, higher is surer."""

    text: str
    score: float


Pair = tuple[Source, str]


class Answerer:
    """Answers questions about pictures with a bundle; by default the one in the package.

        >>> from vistill import Answerer
        >>> Answerer()("photo.jpg", "what is the dog doing?")  # doctest: +SKIP
        'running'

    bundle: a folder written by `vistill export`. threads: of each batch, by default all CPUs. batch_size:
    pictures that go through the model together. limits: see `vistill.runtime.image.Limits`. Other keywords
    are fields of GenerationConfig and override those of the bundle (`num_beams=3`, ...).
    One object may be used from many threads. Raises BundleError and ConfigError; calls raise ImageError, and
    TypeError for what can be no picture or no question.
    """

    def __init__(
        self,
        bundle: str | Path | None = None,
        threads: int | None = None,
        batch_size: int = 16,
        limits: Limits = DEFAULT_LIMITS,
        **generation: Any,
    ) -> None:
        check_counts(threads, batch_size)
        self.threads = threads or available_cpus()
        self.batch_size = batch_size
        self.limits = limits
        self.bundle = open_kind(bundle, ANSWERER)
        self.manifest = self.bundle.manifest
        self.preprocess = self.manifest.preprocess
        self.generation = search_settings(self.manifest, generation, "Answerer")
        self.longest = self.manifest.context - self.generation.max_new_tokens
        """Tokens of a question, its marks included; what is longer loses its last words."""
        if self.longest < SHORTEST_PROMPT:
            longest, context = self.generation.max_new_tokens, self.manifest.context
            raise ConfigError(
                f"generation.max_new_tokens={longest}: of the {context} tokens of this model too few are "
                "left for a question"
            )
        self._lock = threading.Lock()

    @overload
    def __call__(self, pictures: Source, question: str) -> str: ...
    @overload
    def __call__(self, pictures: Iterable[Pair]) -> list[str]: ...
    def __call__(self, pictures: Source | Iterable[Pair], question: str | None = None) -> str | list[str]:
        """The best answer to a question about a picture, or a list of them for (picture, question) pairs."""
        if question is not None:
            return self.answer([(pictures, question)])[0][0].text  # type: ignore[list-item]
        return [answers[0].text for answers in self.answer(pictures)]  # type: ignore[arg-type]

    def answer(self, pairs: Iterable[Pair], num_return: int | None = None) -> list[list[Answer]]:
        """`num_return` answers to each (picture, question), best first.

        Pictures are bytes, paths or PIL images. One that comes several times is read and seen once.
        """
        given = list(_checked(pairs))
        with ThreadPoolExecutor(self.threads) as pool:

            def read(sources: list[Source]) -> NDArray[np.float32]:
                return np.stack(list(pool.map(self._read, sources)))

            return answer_pairs(
                given, self.batch_size, read, partial(self.answer_arrays, num_return=num_return)
            )

    def answer_arrays(
        self,
        pixels: NDArray[np.float32],
        owner: Sequence[int],
        questions: Sequence[str],
        num_return: int | None = None,
    ) -> list[list[Answer]]:
        """As `answer`, for pictures that `preprocess` describes, ready as float32 [P, 3, H, W].

        Question b is about picture owner[b].
        """
        check_pixels(pixels, self.preprocess)
        check_texts(questions, "questions")
        if not questions:
            return []
        config = returning(self.generation, num_return)
        vision, *_, tokenizer = self._parts
        cross = vision.run(pixels)
        prompts = [prompt_ids(tokenizer, question, self.longest) for question in questions]
        # prompts of like length together: what is filled up costs as much as what is read
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        found: dict[int, list[Answer]] = {}
        step = QUESTIONS * self.batch_size
        for start in range(0, len(order), step):
            some = order[start : start + step]
            theirs = of_pictures(cross, np.array([owner[i] for i in some]))
            found.update(zip(some, self._search(theirs, [prompts[i] for i in some], config), strict=True))
        return [found[number] for number in range(len(questions))]

    def _search(self, cross: Cross, prompts: list[list[int]], config: GenerationConfig) -> list[list[Answer]]:
        _, reader, decoder, tokenizer = self._parts
        tokens = self.manifest.special_tokens
        stepper = decoder.start(cross, reader.run(*left_padded([prompt[:-1] for prompt in prompts]), cross))
        # the last token of every prompt is the mark that an answer begins with
        hypotheses = generate(stepper, len(prompts), bos=tokens["ask"], eos=tokens["eos"], config=config)
        return [[Answer(answer_text(tokenizer, h.tokens), h.score) for h in one] for one in hypotheses]

    def _read(self, source: Source) -> NDArray[np.float32]:
        return preprocess(source, self.preprocess, self.limits)

    @property
    def _parts(self) -> tuple[VisionSession, PromptSession, DecoderSession, Tokenizer]:
        with self._lock:  # two first calls at once must not load twice
            return self._loaded

    @cached_property
    def _loaded(self) -> tuple[VisionSession, PromptSession, DecoderSession, Tokenizer]:
        bundle, threads = self.bundle, self.threads
        vision = VisionSession(bundle.read("vision"), threads, str(bundle.path("vision")))
        reader = PromptSession(bundle.read("prompt"), threads, str(bundle.path("prompt")))
        decoder = DecoderSession(bundle.read("decoder"), threads, str(bundle.path("decoder")))
        check_fit(bundle, vision, decoder)
        tokenizer = bundle.tokenizer()
        if sorted(reader.outputs) != sorted(decoder.past):
            raise BundleError(f"{bundle.folder}: prompt graph and decoder are not made for each other")
        if tokenizer.token_to_id("<ask>") != self.manifest.special_tokens["ask"]:
            raise BundleError(f"{bundle.folder}: <ask> of the tokenizer is not special_tokens.ask")
        return vision, reader, decoder, tokenizer


def _checked(pairs: Iterable[Pair]) -> Iterator[Pair]:
    """The pairs. Raises TypeError for what is none, before any picture is read."""
    single = isinstance(pairs, (bytes, str, os.PathLike, Image.Image)) or hasattr(pairs, "read")
    if single or not isinstance(pairs, Iterable):
        raise TypeError(
            "questions must come as a list or another iterable of (picture, question), or as a picture and "
            f"its question: got {type(pairs).__name__}"
        )
    for pair in pairs:
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise TypeError(f"each must be (picture, question), got {type(pair).__name__}")
        source, question = pair
        check_picture(source)
        check_text(question, "a question")
        yield source, question


def answer_pairs(
    pairs: Sequence[Pair],
    batch_size: int,
    read: Callable[[list[Source]], NDArray[np.float32]],
    answer: Callable[[NDArray[np.float32], list[int], list[str]], list[list[Answer]]],
) -> list[list[Answer]]:
    """Answers to (picture, question) pairs in their order; a picture that comes several times is read once.

    read: pictures -> pixels [P, 3, H, W]; answer: these, the picture of each question, questions -> answers.
    """
    numbers: dict[Hashable, list[int]] = {}
    for number, (source, _) in enumerate(pairs):
        numbers.setdefault(_same(source), []).append(number)
    pictures = list(numbers.values())
    found: dict[int, list[Answer]] = {}
    for start in range(0, len(pictures), batch_size):
        batch = pictures[start : start + batch_size]
        pixels = read([pairs[of[0]][0] for of in batch])
        owner = [place for place, of in enumerate(batch) for _ in of]
        order = [number for of in batch for number in of]
        found.update(zip(order, answer(pixels, owner, [pairs[i][1] for i in order]), strict=True))
    return [found[number] for number in range(len(pairs))]


def _same(source: Source) -> Hashable:
    """Equal for sources that are the same picture: equal names or bytes, or one PIL image."""
    return id(source) if isinstance(source, Image.Image) else source
