"""Greedy, beam and sampled decoding over a step function: the one decode loop of vistill, numpy only.

A `Stepper` hides where the logits come from (ONNX Runtime here, torch while training). Everything below is
vectorised over B pictures and C rows; no Python loop runs over pictures, rows or vocabulary inside a step.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from vistill.errors import ConfigError

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]

MOST_BEAMS = 256
"""More find nothing new and hold as many copies of the decoder's state for each picture."""
_NEVER = np.float32(-np.inf)
_WORTH_DROPPING = 0.25  # share of pictures done from which on copying the others pays


@dataclass(frozen=True)
class GenerationConfig:
    """How captions are generated. Raises ConfigError, naming the key, for a value out of range."""

    max_new_tokens: int = 20
    """Longest caption in tokens, the end mark included."""
    num_beams: int = 3
    """Beams of the search; 1 is greedy."""
    length_penalty: float = 1.0
    """A hypothesis scores sum(log p) / length ** length_penalty; the length counts the end mark."""
    num_return: int = 1
    """Captions returned for each picture, best first (sampling: in any order)."""
    do_sample: bool = False
    """Draw tokens at random instead of searching; `num_beams` is then ignored."""
    temperature: float = 1.0
    """Sampling: logits are divided by this."""
    top_k: int = 0
    """Sampling: only the k likeliest tokens may be drawn; 0 allows all."""
    top_p: float = 1.0
    """Sampling: only the fewest likeliest tokens whose probabilities reach this sum may be drawn."""
    seed: int = 0
    """Sampling: seed of the random numbers."""
    no_repeat_ngram: int = 0
    """No n-gram of this many tokens comes twice in a caption; 0 allows all."""
    repetition_penalty: float = 1.0
    """Log-probabilities of tokens that the caption holds already are multiplied by this."""
    min_new_tokens: int = 1
    """The end mark is forbidden before this many tokens."""

    def __post_init__(self) -> None:
        for name, least in (("max_new_tokens", 1), ("num_beams", 1), ("num_return", 1)):
            _require(getattr(self, name) >= least, name, getattr(self, name), f"at least {least}")
        _require(self.num_beams <= MOST_BEAMS, "num_beams", self.num_beams, f"at most {MOST_BEAMS}")
        for name in ("top_k", "seed", "no_repeat_ngram", "min_new_tokens"):
            _require(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")
        _require(self.temperature > 0, "temperature", self.temperature, "above 0")
        _require(0 < self.top_p <= 1, "top_p", self.top_p, "above 0 and at most 1")
        _require(self.repetition_penalty > 0, "repetition_penalty", self.repetition_penalty, "above 0")
        most = self.max_new_tokens
        _require(
            self.min_new_tokens <= most,
            "min_new_tokens",
            self.min_new_tokens,
            f"at most max_new_tokens={most}",
        )
        if not self.do_sample:
            _require(
                self.num_return <= self.num_beams,
                "num_return",
                self.num_return,
                f"at most num_beams={self.num_beams}",
            )


class Stepper(Protocol):
    """The state of B pictures x C rows of text. It starts with C = 1 and no text.

    It may also have `keep(pictures)`: forget all but these of the B pictures, which then are 0, 1, ... Beam
    search calls it once enough pictures are done, which saves about a fifth of the steps' work.
    """

    def step(self, tokens: Ints) -> Floats:
        """Append one token to each row: tokens [B, C] -> logits [B, C, V] of the position after it."""
        ...

    def reorder(self, rows: Ints) -> None:
        """rows [B, C2]: new row (b, c) continues old row (b, rows[b, c]); C2 may differ from C."""
        ...


@dataclass(frozen=True)
class Hypothesis:
    """One caption as token ids, without begin and end marks."""

    tokens: tuple[int, ...]
    score: float


def generate(
    stepper: Stepper, batch_size: int, *, bos: int, eos: int, config: GenerationConfig
) -> list[list[Hypothesis]]:
    """Captions of `batch_size` pictures, for each `config.num_return` hypotheses.

    Beam search is that of `transformers` with `early_stopping=True`: of the 2 x num_beams best continuations
    of a step, those among the first num_beams that end are finished; a picture is done once it has num_beams
    finished hypotheses; at `max_new_tokens` every open one counts as finished. One beam is greedy search.
    Fewer than `num_return` come back only if the vocabulary is too small to make that many.
    The score of a sample is its sum(log p) under the model itself, before temperature, top-k and top-p.
    """
    if batch_size == 0:
        return []
    if config.do_sample:
        return _sample(stepper, batch_size, bos, eos, config)
    return _beam_search(stepper, batch_size, bos, eos, config)


def _beam_search(
    stepper: Stepper, b: int, bos: int, eos: int, config: GenerationConfig
) -> list[list[Hypothesis]]:
    k = config.num_beams
    text = np.full((b, 1, config.max_new_tokens + 1), eos, np.int64)  # [B, C, T], C = 1 at first, then k
    text[:, :, 0] = bos
    scores = np.zeros((b, 1), np.float32)  # sum(log p) of the open rows
    finished = _Finished.none(b, k, config.max_new_tokens + 1)
    full = np.zeros(b, bool)
    place = np.arange(b)  # of the pictures still in the arrays
    found: list[list[Hypothesis]] = [[] for _ in range(b)]

    for t in range(1, config.max_new_tokens + 1):
        logp = _log_softmax(stepper.step(text[:, :, t - 1]))
        _constrain(logp, text[:, :, :t], eos, config)
        logp += scores[:, :, None]
        top, row, token = _best(logp, 2 * k)  # [B, 2k] each, best first
        grown = _take(text, row)
        grown[:, :, t] = token

        ended = (token == eos) | (t == config.max_new_tokens)
        ending = top[:, :k] / np.float32(t**config.length_penalty)
        ending = np.where(ended[:, :k] & ~full[:, None], ending, _NEVER)
        finished = finished.with_new(grown[:, :k], np.where(token[:, :k] == eos, t - 1, t), ending)

        order = np.argsort(ended, axis=1, kind="stable")[:, :k]  # the first k that go on, still best first
        scores = np.where(_take(ended, order), _NEVER, _take(top, order))
        full |= np.isfinite(finished.scores).all(axis=1) | ~np.isfinite(scores).any(axis=1)
        if full.all():
            break
        text, row = _take(grown, order), _take(row, order)
        stepper.reorder(row)
        if full.mean() >= _WORTH_DROPPING and hasattr(stepper, "keep"):
            for i in np.flatnonzero(full).tolist():
                found[place[i]] = finished.hypotheses(i, config.num_return)
            rest = np.flatnonzero(~full)
            stepper.keep(rest)
            text, scores, finished, place, full = (
                text[rest],
                scores[rest],
                finished.of(rest),
                place[rest],
                full[rest],
            )

    for j in range(len(place)):
        found[place[j]] = finished.hypotheses(j, config.num_return)
    return found


@dataclass(frozen=True)
class _Finished:
    """The best k finished hypotheses of each picture, best first; those that are not there score -inf."""

    text: Ints  # [B, k, T]
    length: Ints  # [B, k] tokens without begin and end marks
    scores: Floats  # [B, k]

    @classmethod
    def none(cls, b: int, k: int, t: int) -> "_Finished":
        return cls(np.zeros((b, k, t), np.int64), np.zeros((b, k), np.int64), np.full((b, k), _NEVER))

    def with_new(self, text: Ints, length: Ints, scores: Floats) -> "_Finished":
        """The best k of these and of new ones of the same shapes."""
        merged = np.concatenate((self.scores, scores), axis=1)
        order = np.argsort(-merged, axis=1, kind="stable")[:, : scores.shape[1]]
        return _Finished(
            _take(np.concatenate((self.text, text), axis=1), order),
            _take(np.concatenate((self.length, length), axis=1), order),
            _take(merged, order),
        )

    def of(self, pictures: Ints) -> "_Finished":
        return _Finished(self.text[pictures], self.length[pictures], self.scores[pictures])

    def hypotheses(self, picture: int, count: int) -> list[Hypothesis]:
        rows = zip(self.text[picture], self.length[picture], self.scores[picture], strict=True)
        return [
            Hypothesis(tuple(text[1 : length + 1].tolist()), float(score))
            for text, length, score in list(rows)[:count]
            if score > _NEVER
        ]


def _take(values: NDArray[Any], rows: Ints) -> NDArray[Any]:
    """values [B, C, ...], rows [B, C2] -> [B, C2, ...]."""
    return np.take_along_axis(values, rows.reshape(rows.shape + (1,) * (values.ndim - 2)), axis=1)


def _sample(stepper: Stepper, b: int, bos: int, eos: int, config: GenerationConfig) -> list[list[Hypothesis]]:
    rng = np.random.default_rng(config.seed)
    c = config.num_return
    text = np.full((b, c, config.max_new_tokens + 1), eos, np.int64)
    text[:, :, 0] = bos
    scores = np.zeros((b, c), np.float32)
    length = np.full((b, c), config.max_new_tokens)
    is_open = np.ones((b, c), bool)

    for t in range(1, config.max_new_tokens + 1):
        if t == 1:  # all rows begin alike: step once, then share the state
            logits = np.repeat(stepper.step(text[:, :1, 0]), c, axis=1)
            stepper.reorder(np.zeros((b, c), np.int64))
        else:
            logits = stepper.step(text[:, :, t - 1])
        logp = _log_softmax(logits)
        allowed = logp.copy()
        _constrain(allowed, text[:, :, :t], eos, config)
        token = _draw(allowed, rng, config)
        token[~is_open] = eos
        text[:, :, t] = token
        scores += np.where(
            is_open, np.take_along_axis(logp, token[:, :, None], axis=2)[:, :, 0], np.float32(0)
        )
        length[is_open & (token == eos)] = t - 1
        is_open &= token != eos
        if not is_open.any():
            break

    return [
        [Hypothesis(tuple(text[i, j, 1 : length[i, j] + 1].tolist()), float(scores[i, j])) for j in range(c)]
        for i in range(b)
    ]


def _log_softmax(logits: Floats) -> Floats:
    """float32 [..., V] -> log-probabilities, a new array."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return shifted


def _constrain(logp: Floats, text: Ints, eos: int, config: GenerationConfig) -> None:
    """Apply the rules of `config` to logp [B, C, V] in place; text so far [B, C, T], begin mark first."""
    if config.repetition_penalty != 1.0:
        seen = np.take_along_axis(logp, text, axis=2)
        np.put_along_axis(logp, text, seen * np.float32(config.repetition_penalty), axis=2)
    if config.min_new_tokens >= text.shape[2]:
        logp[:, :, eos] = _NEVER
    n = config.no_repeat_ngram
    if 0 < n <= text.shape[2]:
        grams = np.lib.stride_tricks.sliding_window_view(text, n, axis=2)  # [B, C, T - n + 1, n]
        tail = text[:, :, None, text.shape[2] - n + 1 :]
        batch, row, start = np.nonzero((grams[..., :-1] == tail).all(axis=-1))
        logp[batch, row, grams[batch, row, start, -1]] = _NEVER


def _best(scores: Floats, count: int) -> tuple[Floats, Ints, Ints]:
    """The `count` best continuations of scores [B, C, V]: (score, row, token), each [B, count], best first.

    Where C x V is smaller than `count` the rest is filled up with score -inf.
    """
    b, c, v = scores.shape
    flat = scores.reshape(b, c * v)
    if c * v > count:
        index = np.argpartition(flat, c * v - count, axis=1)[:, c * v - count :]
        index.sort(axis=1)  # of equals the lower index comes first
    else:
        index = np.broadcast_to(np.arange(c * v), (b, c * v))
    top = np.take_along_axis(flat, index, axis=1)
    order = np.argsort(-top, axis=1, kind="stable")
    top, index = np.take_along_axis(top, order, axis=1), np.take_along_axis(index, order, axis=1)
    missing = count - index.shape[1]
    if missing > 0:
        top = np.pad(top, ((0, 0), (0, missing)), constant_values=_NEVER)
        index = np.pad(index, ((0, 0), (0, missing)))
    return top, index // v, index % v


def _draw(logp: Floats, rng: np.random.Generator, config: GenerationConfig) -> Ints:
    """One token for each row of logp [B, C, V] -> [B, C], by temperature, top-k and top-p."""
    order = None
    if config.top_k or config.top_p < 1:
        order = np.argsort(-logp, axis=2, kind="stable")  # [B, C, V], likeliest first
        order = order[:, :, : config.top_k or None]
        logp = np.take_along_axis(logp, order, axis=2)
    logits = logp.astype(np.float64) / config.temperature
    p = np.exp(logits - logits.max(axis=2, keepdims=True))
    if config.top_p < 1:
        p /= p.sum(axis=2, keepdims=True)
        p[np.cumsum(p, axis=2) - p >= config.top_p] = 0  # the likeliest always stays
    cumulative = np.cumsum(p, axis=2)
    total = cumulative[:, :, -1]
    # below the total even after rounding, so that the first place above it always has p > 0
    u = np.minimum(rng.random(total.shape) * total, np.nextafter(total, 0))
    place = (cumulative > u[:, :, None]).argmax(axis=2)
    return place if order is None else np.take_along_axis(order, place[:, :, None], axis=2)[:, :, 0]


def _require(holds: bool, name: str, value: object, rule: str) -> None:
    if not holds:
        raise ConfigError(f"generation.{name}={value}: must be {rule}")
