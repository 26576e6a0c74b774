"""What a teacher is asked and what it answers: the contract between teachers, their cache and objectives."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vistill.errors import ConfigError
from vistill.runtime.decode import GenerationConfig

HIDDEN = ("none", "all", "pooled")


@dataclass(frozen=True)
class Ask:
    """What to ask of a teacher about each picture."""

    captions: int = 1
    """Captions that the teacher makes, best first; 0 makes none."""
    generation: GenerationConfig = field(default_factory=GenerationConfig)
    """How it makes them; `num_return` is set to `captions`."""
    gold: bool = True
    """Whether `top_k` also looks at the gold captions (before those of the teacher)."""
    top_k: int = 0
    """Log-probabilities kept at each position of each text; 0 keeps none."""
    hidden: str = "none"
    """Encoder states: none, all (every patch) or pooled (their mean)."""
    embedding: bool = False
    """Whether to keep the picture's embedding."""
    longest: int = 40
    """Longest text in tokens, marks included; a longer one is cut."""

    def __post_init__(self) -> None:
        if self.hidden not in HIDDEN:
            raise ConfigError(f"ask.hidden={self.hidden!r}: use {', '.join(HIDDEN)}")
        for name in ("captions", "top_k"):
            if getattr(self, name) < 0:
                raise ConfigError(f"ask.{name}={getattr(self, name)}: must be 0 or more")
        if self.longest < 2:
            raise ConfigError(f"ask.longest={self.longest}: must be at least 2")
        if self.top_k and not (self.gold or self.captions):
            raise ConfigError(f"ask.top_k={self.top_k}: of no text, neither gold nor captions are asked")
        if not (self.captions or self.top_k or self.embedding or self.hidden != "none"):
            raise ConfigError("ask: nothing is asked of the teacher")

    def wants(self) -> frozenset[str]:
        """Which kinds of answers this needs: of captions, top_k, hidden, embedding."""
        wanted = {
            "captions": self.captions,
            "top_k": self.top_k,
            "hidden": self.hidden != "none",
            "embedding": self.embedding,
        }
        return frozenset(name for name, value in wanted.items() if value)


@dataclass(frozen=True)
class Text:
    """One text as the teacher sees it: ids [T] with begin and end marks; of the token after each of the first
    T - 1 ids the K likeliest, `top_ids` [T-1, K] and `top_logp` float32 [T-1, K], likeliest first (None if
    not asked for)."""

    ids: NDArray[np.int64]
    top_ids: NDArray[np.int64] | None = None
    top_logp: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class Answer:
    """What a teacher says of one picture; parts that were not asked for are empty or None."""

    captions: tuple[str, ...] = ()
    """Made by the teacher, best first."""
    gold: tuple[Text, ...] = ()
    """The gold captions in their order, if `top_k` and `gold` were asked for."""
    generated: tuple[Text, ...] = ()
    """`captions` as token ids; empty for a black box."""
    hidden: NDArray[np.float32] | None = None
    """Encoder states [N, D], or [D] if pooled."""
    embedding: NDArray[np.float32] | None = None
    """[E]."""


@dataclass(frozen=True)
class TeacherIdentity:
    """Who answered; a cache refuses to go on, or to be learnt from, when any of it differs."""

    kind: str
    name: str
    """Folder or hub name, without the path before it; not compared, as folders are renamed."""
    weights: str
    """sha256 over the weights; of a black box over its URL and model name."""
    preprocess: str
    """sha256 of its preprocessing."""
    tokenizer: str
    """sha256 of its tokenizer; empty for a black box."""
    vocab_size: int
    """Entries of its vocabulary; 0 for a black box."""
    details: dict[str, Any] = field(default_factory=dict)
    """More that a person may want to know (parameters, members of an ensemble); not compared."""


class Teacher(Protocol):
    """Anything that answers. `can` names the kinds of answers it has: captions, top_k, hidden, embedding."""

    identity: TeacherIdentity
    can: frozenset[str]

    def answer(self, images: Sequence[Image.Image], gold: Sequence[Sequence[str]], ask: Ask) -> list[Answer]:
        """One answer for each RGB picture, in order; `gold` are its captions in the data set.

        The answer to a picture does not depend on the others of the batch, and asking twice gives the same.
        """
        ...


def check_able(teacher: Teacher, ask: Ask) -> None:
    """ConfigError if the teacher has no such answers."""
    missing = sorted(ask.wants() - teacher.can)
    if missing:
        who, able = teacher.identity, ", ".join(sorted(teacher.can)) or "nothing"
        raise ConfigError(
            f"teacher {who.name!r} ({who.kind}) gives no {', '.join(missing)}; it can give {able}"
        )
