"""A teacher of arithmetic: its answers follow from the picture's mean colour and the texts, at once."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from vistill.distill.answers import Answer, Ask, Teacher, TeacherIdentity, Text

WORDS = ("dog", "cat", "left", "right")
EVERYTHING = frozenset(("captions", "top_k", "hidden", "embedding"))


def identity(**changes: object) -> TeacherIdentity:
    """Who the fake says that it is."""
    facts = {"kind": "fake", "name": "fake", "weights": "w1", "preprocess": "p1", "tokenizer": "t1"}
    return TeacherIdentity(**{**facts, "vocab_size": 40, **changes})  # type: ignore[arg-type]


@dataclass
class FakeTeacher:
    """Answers from a seed made of picture and text, so that equal questions have equal answers."""

    identity: TeacherIdentity = field(default_factory=identity)
    can: frozenset[str] = EVERYTHING
    drift: float = 0.0
    """Added to every log-probability and state, as another teacher under the same name would."""
    asked: list[int] = field(default_factory=list)
    """Pictures of each call."""
    saw: list[tuple[str, ...]] = field(default_factory=list)
    """Gold captions of each picture."""

    def answer(self, images: Sequence[Image.Image], gold: Sequence[Sequence[str]], ask: Ask) -> list[Answer]:
        self.asked.append(len(images))
        self.saw += [tuple(texts) for texts in gold]
        return [self._one(image, texts, ask) for image, texts in zip(images, gold, strict=True)]

    def _one(self, image: Image.Image, gold: Sequence[str], ask: Ask) -> Answer:
        mean = np.asarray(image.resize((4, 4)), np.float64).reshape(-1, 3).mean(0).round(3).tolist()
        draw = _draw(mean)
        captions = tuple(f"a {WORDS[draw.integers(4)]} {n}" for n in range(ask.captions))
        has_ids = self.identity.vocab_size > 0
        wants_gold = has_ids and ask.top_k and ask.gold
        return Answer(
            captions,
            tuple(self._text(mean, text, ask) for text in gold) if wants_gold else (),
            tuple(self._text(mean, text, ask) for text in captions) if has_ids else (),
            self._hidden(draw, ask),
            (draw.normal(size=5) + self.drift).astype(np.float32) if ask.embedding else None,
        )

    def _text(self, mean: list[float], text: str, ask: Ask) -> Text:
        vocab = self.identity.vocab_size
        draw = _draw((mean, text))
        ids = np.array([1, *[3 + len(word) for word in text.split()], 2][: ask.longest], np.int64)
        if not ask.top_k:
            return Text(ids)
        logits = draw.normal(size=(len(ids) - 1, vocab)) * 3
        logp = logits - np.log(np.exp(logits).sum(1, keepdims=True)) + self.drift
        top = np.argsort(-logp, axis=1)[:, : min(ask.top_k, vocab)]
        return Text(ids, top, np.take_along_axis(logp, top, 1).astype(np.float32))

    def _hidden(self, draw: np.random.Generator, ask: Ask) -> np.ndarray | None:
        if ask.hidden == "none":
            return None
        states = (draw.normal(size=(6, 8)) + self.drift).astype(np.float32)
        return states if ask.hidden == "all" else states.mean(0)


def _draw(value: object) -> np.random.Generator:
    digest = hashlib.sha256(repr(value).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "little"))


_: Teacher = FakeTeacher()
