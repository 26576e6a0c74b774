"""Decoding against a brute-force search, an independent textbook beam search, and `transformers`."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vistill.errors import ConfigError
from vistill.runtime.decode import GenerationConfig, Hypothesis, generate

BOS, EOS = 0, 1


class TableStepper:
    """A random language model: the logits depend on the picture and on the whole text before."""

    def __init__(self, batch: int, vocabulary: int, seed: int = 0, sharpness: float = 2.0) -> None:
        self.vocabulary, self.seed, self.sharpness = vocabulary, seed, sharpness
        self.text: list[list[tuple[int, ...]]] = [[()] for _ in range(batch)]
        self.steps = 0

    def logits(self, picture: int, text: tuple[int, ...]) -> np.ndarray:
        rng = np.random.default_rng((self.seed, picture, *text))
        return (rng.standard_normal(self.vocabulary) * self.sharpness).astype(np.float32)

    def step(self, tokens: np.ndarray) -> np.ndarray:
        self.steps += 1
        assert tokens.dtype == np.int64
        assert tokens.shape == (len(self.text), len(self.text[0]))
        self.text = [
            [(*old, int(token)) for old, token in zip(rows, new, strict=True)]
            for rows, new in zip(self.text, tokens, strict=True)
        ]
        return np.stack([[self.logits(b, row) for row in rows] for b, rows in enumerate(self.text)])

    def reorder(self, rows: np.ndarray) -> None:
        assert rows.dtype == np.int64
        self.text = [[old[int(r)] for r in row] for old, row in zip(self.text, rows, strict=True)]


def log_p(model: TableStepper, picture: int, text: tuple[int, ...]) -> np.ndarray:
    logits = model.logits(picture, text).astype(np.float64)
    return logits - np.log(np.exp(logits).sum())


def every_caption(model: TableStepper, picture: int, config: GenerationConfig) -> list[Hypothesis]:
    """All texts up to max_new_tokens with their scores, best first: brute force."""
    found = []
    words = [w for w in range(model.vocabulary) if w != EOS]
    for length in range(config.max_new_tokens + 1):
        for tokens in itertools.product(words, repeat=length):
            ends = length < config.max_new_tokens
            if ends and length < config.min_new_tokens:
                continue
            full = (*tokens, EOS) if ends else tokens
            total = sum(log_p(model, picture, (BOS, *full[:i]))[w] for i, w in enumerate(full))
            found.append(Hypothesis(tokens, total / len(full) ** config.length_penalty))
    return sorted(found, key=lambda h: -h.score)


def textbook_beam(model: TableStepper, picture: int, config: GenerationConfig) -> list[Hypothesis]:
    """Beam search for one picture, written with lists."""
    k = config.num_beams
    beams: list[tuple[float, tuple[int, ...]]] = [(0.0, ())]
    done: list[Hypothesis] = []
    for t in range(1, config.max_new_tokens + 1):
        candidates = []
        for score, text in beams:
            p = log_p(model, picture, (BOS, *text))
            if t <= config.min_new_tokens:
                p[EOS] = -math.inf
            candidates += [(score + p[w], (*text, w)) for w in range(model.vocabulary)]
        candidates = sorted((c for c in candidates if c[0] > -math.inf), reverse=True)[: 2 * k]
        for score, text in candidates[:k]:
            if text[-1] == EOS or t == config.max_new_tokens:
                done.append(Hypothesis(tuple(w for w in text if w != EOS), score / t**config.length_penalty))
        done = sorted(done, key=lambda h: -h.score)
        beams = [c for c in candidates if c[1][-1] != EOS][:k]
        if len(done) >= k or not beams:
            break
    return done[: config.num_return]


def same(ours: list[Hypothesis], theirs: list[Hypothesis]) -> None:
    assert [h.tokens for h in ours] == [h.tokens for h in theirs]
    assert [h.score for h in ours] == pytest.approx([h.score for h in theirs], abs=1e-4)


@pytest.mark.parametrize("length_penalty", [0.0, 1.0, 2.0])
def test_a_beam_as_wide_as_the_search_space_finds_the_best_caption(length_penalty: float) -> None:
    # Early stopping may end before a longer caption comes up, so the beam is wide enough for it not to.
    config = GenerationConfig(max_new_tokens=3, num_beams=200, length_penalty=length_penalty, num_return=5)
    model = TableStepper(batch=3, vocabulary=4, seed=7)
    found = generate(model, 3, bos=BOS, eos=EOS, config=config)
    for picture in range(3):
        same(found[picture], every_caption(model, picture, config)[:5])


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    vocabulary=st.integers(3, 12),
    beams=st.integers(1, 5),
    length_penalty=st.sampled_from([0.0, 0.7, 1.0, 1.5]),
    least=st.integers(0, 3),
)
def test_beam_search_equals_the_textbook(
    seed: int, vocabulary: int, beams: int, length_penalty: float, least: int
) -> None:
    config = GenerationConfig(
        max_new_tokens=6,
        num_beams=beams,
        num_return=beams,
        length_penalty=length_penalty,
        min_new_tokens=least,
    )
    model = TableStepper(batch=2, vocabulary=vocabulary, seed=seed)
    found = generate(model, 2, bos=BOS, eos=EOS, config=config)
    for picture in range(2):
        same(found[picture], textbook_beam(model, picture, config))
        assert [h.score for h in found[picture]] == sorted((h.score for h in found[picture]), reverse=True)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), vocabulary=st.integers(3, 40))
def test_one_beam_is_greedy_search(seed: int, vocabulary: int) -> None:
    config = GenerationConfig(max_new_tokens=8, num_beams=1, length_penalty=0.0, min_new_tokens=0)
    model = TableStepper(batch=2, vocabulary=vocabulary, seed=seed)
    found = generate(model, 2, bos=BOS, eos=EOS, config=config)
    for picture in range(2):
        text: tuple[int, ...] = ()
        score = 0.0
        for _ in range(8):
            p = log_p(model, picture, (BOS, *text))
            score += p.max()
            if p.argmax() == EOS:
                break
            text = (*text, int(p.argmax()))
        same(found[picture], [Hypothesis(text, score)])


def test_pictures_do_not_depend_on_their_batch() -> None:
    config = GenerationConfig(max_new_tokens=9, num_beams=3, num_return=3)
    together = generate(TableStepper(batch=6, vocabulary=9), 6, bos=BOS, eos=EOS, config=config)
    alone = generate(TableStepper(batch=1, vocabulary=9), 1, bos=BOS, eos=EOS, config=config)
    same(together[0], alone[0])


def test_the_search_stops_once_every_picture_has_its_captions() -> None:
    class EndsAtOnce(TableStepper):
        def logits(self, picture: int, text: tuple[int, ...]) -> np.ndarray:
            logits = np.zeros(self.vocabulary, np.float32)
            logits[EOS if len(text) > 1 else 2] = 20
            return logits

    model = EndsAtOnce(batch=2, vocabulary=5)
    found = generate(model, 2, bos=BOS, eos=EOS, config=GenerationConfig(num_beams=1))
    assert [[h.tokens for h in one] for one in found] == [[(2,)], [(2,)]]
    assert model.steps == 2


class DroppingStepper(TableStepper):
    """As its base, and it can forget pictures."""

    def __init__(self, *args: int) -> None:
        super().__init__(*args)
        self.pictures = list(range(len(self.text)))

    def step(self, tokens: np.ndarray) -> np.ndarray:
        grown = [
            [(*old, int(token)) for old, token in zip(rows, new, strict=True)]
            for rows, new in zip(self.text, tokens, strict=True)
        ]
        self.text = grown
        return np.stack(
            [[self.logits(p, row) for row in rows] for p, rows in zip(self.pictures, grown, strict=True)]
        )

    def keep(self, pictures: np.ndarray) -> None:
        assert 0 < len(pictures) < len(self.pictures)
        self.pictures = [self.pictures[i] for i in pictures]
        self.text = [self.text[i] for i in pictures]


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), batch=st.integers(1, 9), beams=st.integers(1, 4))
def test_dropping_finished_pictures_changes_no_caption(seed: int, batch: int, beams: int) -> None:
    config = GenerationConfig(max_new_tokens=10, num_beams=beams, num_return=beams)
    plain = generate(TableStepper(batch, 8, seed), batch, bos=BOS, eos=EOS, config=config)
    assert generate(DroppingStepper(batch, 8, seed), batch, bos=BOS, eos=EOS, config=config) == plain


def test_finished_pictures_are_dropped() -> None:
    config = GenerationConfig(max_new_tokens=10, num_beams=2)
    model = DroppingStepper(16, 5)
    generate(model, 16, bos=BOS, eos=EOS, config=config)
    assert len(model.pictures) < 16


def test_a_caption_cut_at_its_longest_has_no_end_mark() -> None:
    class NeverEnds(TableStepper):
        def logits(self, picture: int, text: tuple[int, ...]) -> np.ndarray:
            return np.array([-30, -30, 0, 1], np.float32)

    config = GenerationConfig(max_new_tokens=4, num_beams=2, num_return=2)
    (found,) = generate(NeverEnds(batch=1, vocabulary=4), 1, bos=BOS, eos=EOS, config=config)
    assert found[0].tokens == (3, 3, 3, 3)
    assert len(found[1].tokens) == 4


@pytest.mark.parametrize("beams", [1, 3])
def test_no_ngram_comes_twice(beams: int) -> None:
    config = GenerationConfig(max_new_tokens=12, num_beams=beams, no_repeat_ngram=2, min_new_tokens=12)
    found = generate(TableStepper(batch=8, vocabulary=7), 8, bos=BOS, eos=EOS, config=config)
    for one in found:
        pairs = list(itertools.pairwise(one[0].tokens))
        assert len(pairs) == len(set(pairs)) == 11
    free = GenerationConfig(max_new_tokens=12, num_beams=beams, min_new_tokens=12)
    found = generate(TableStepper(batch=8, vocabulary=7), 8, bos=BOS, eos=EOS, config=free)
    pairs = [list(itertools.pairwise(one[0].tokens)) for one in found]
    assert any(len(p) > len(set(p)) for p in pairs)  # without the rule they do repeat


def test_a_repetition_penalty_makes_captions_repeat_less() -> None:
    def distinct(penalty: float) -> int:
        config = GenerationConfig(
            max_new_tokens=10, num_beams=2, min_new_tokens=10, repetition_penalty=penalty
        )
        found = generate(TableStepper(batch=10, vocabulary=9), 10, bos=BOS, eos=EOS, config=config)
        return sum(len(set(one[0].tokens)) for one in found)

    assert distinct(3.0) > distinct(1.0)


@pytest.mark.parametrize(
    ("extra", "allowed"),
    [
        ({}, [0.5, 0.25, 0.15, 0.1]),
        ({"top_k": 2}, [2 / 3, 1 / 3, 0, 0]),
        ({"top_p": 0.8}, [5 / 9, 2.5 / 9, 1.5 / 9, 0]),
    ],
)
def test_samples_follow_the_distribution(extra: dict[str, float], allowed: list[float]) -> None:
    p = np.array([0.25, 0.0, 0.5, 0.1, 0.15])  # by token id; EOS has none
    by_rank = [2, 0, 4, 3]

    class Fixed(TableStepper):
        def logits(self, picture: int, text: tuple[int, ...]) -> np.ndarray:
            return np.log(p + 1e-20).astype(np.float32)

    config = GenerationConfig(max_new_tokens=1, do_sample=True, num_return=6000, min_new_tokens=0, **extra)  # type: ignore[arg-type]
    (found,) = generate(Fixed(batch=1, vocabulary=5), 1, bos=BOS, eos=EOS, config=config)
    counts = np.bincount([h.tokens[0] for h in found], minlength=5)[by_rank] / 6000
    np.testing.assert_allclose(counts, allowed, atol=0.03)
    assert all(h.score == pytest.approx(math.log(p[h.tokens[0]]), abs=1e-4) for h in found[:50])


def test_a_low_temperature_is_greedy_and_a_seed_repeats() -> None:
    def sample(seed: int, temperature: float) -> list[list[Hypothesis]]:
        config = GenerationConfig(do_sample=True, num_return=4, seed=seed, temperature=temperature)
        return generate(TableStepper(batch=3, vocabulary=30), 3, bos=BOS, eos=EOS, config=config)

    assert sample(1, 1.0) == sample(1, 1.0)
    assert sample(1, 1.0) != sample(2, 1.0)
    greedy = generate(
        TableStepper(3, 30), 3, bos=BOS, eos=EOS, config=GenerationConfig(num_beams=1, length_penalty=0)
    )
    for cold, best in zip(sample(1, 1e-4), greedy, strict=True):
        for one in cold:
            same([one], best)


def test_the_score_of_a_sample_is_its_log_probability() -> None:
    config = GenerationConfig(do_sample=True, num_return=5, max_new_tokens=6, temperature=1.7, top_k=6)
    model = TableStepper(batch=2, vocabulary=8)
    for picture, samples in enumerate(generate(model, 2, bos=BOS, eos=EOS, config=config)):
        for one in samples:
            text = one.tokens if len(one.tokens) == 6 else (*one.tokens, EOS)
            total = sum(log_p(model, picture, (BOS, *text[:i]))[w] for i, w in enumerate(text))
            assert one.score == pytest.approx(total, abs=1e-4)


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"num_beams": 0}, "num_beams=0"),
        ({"num_beams": 257}, "num_beams=257: must be at most 256"),
        ({"num_return": 4}, "num_return=4"),
        ({"temperature": 0.0}, "temperature=0"),
        ({"top_p": 1.5}, "top_p=1.5"),
        ({"min_new_tokens": 30}, "min_new_tokens=30"),
    ],
)
def test_a_wrong_setting_is_named(values: dict[str, float], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        GenerationConfig(**values)  # type: ignore[arg-type]


def test_no_pictures_give_no_captions() -> None:
    assert generate(TableStepper(0, 5), 0, bos=BOS, eos=EOS, config=GenerationConfig()) == []


class Gpt2Stepper:
    """The stepper over a `transformers` GPT-2 without a cache: simple, slow, surely right."""

    def __init__(self, model: object, batch: int) -> None:
        self.model, self.text = model, np.zeros((batch, 1, 0), np.int64)

    def step(self, tokens: np.ndarray) -> np.ndarray:
        import torch

        self.text = np.concatenate((self.text, tokens[:, :, None]), axis=2)
        b, c, t = self.text.shape
        with torch.inference_mode():
            logits = self.model(torch.from_numpy(self.text.reshape(b * c, t))).logits[:, -1]  # type: ignore[operator]
        return np.asarray(logits.reshape(b, c, -1).numpy())

    def reorder(self, rows: np.ndarray) -> None:
        self.text = np.take_along_axis(self.text, rows[:, :, None], axis=1)


@pytest.mark.parametrize("beams", [1, 3, 4])
@pytest.mark.parametrize(
    "rules",
    [{}, {"length_penalty": 0.3}, {"repetition_penalty": 1.4}, {"no_repeat_ngram": 2, "min_new_tokens": 4}],
)
def test_beam_search_equals_transformers(beams: int, rules: dict[str, float]) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from vistill.models.torchvision_repair import repair_torchvision

    repair_torchvision()
    torch.manual_seed(3)
    settings = transformers.GPT2Config(
        vocab_size=23, n_positions=16, n_embd=16, n_layer=2, n_head=2, initializer_range=0.6
    )
    model = transformers.GPT2LMHeadModel(settings).eval()
    config = GenerationConfig(**{"max_new_tokens": 9, "num_beams": beams, "num_return": beams} | rules)  # type: ignore[arg-type]
    theirs = model.generate(
        torch.full((5, 1), BOS),
        num_beams=beams,
        num_return_sequences=beams,
        max_new_tokens=9,
        early_stopping=beams > 1,
        do_sample=False,
        length_penalty=config.length_penalty,
        repetition_penalty=config.repetition_penalty,
        no_repeat_ngram_size=config.no_repeat_ngram,
        min_new_tokens=config.min_new_tokens,
        bos_token_id=BOS,
        eos_token_id=EOS,
        pad_token_id=EOS,
        return_dict_in_generate=True,
        output_scores=True,
    )
    ours = [h for one in generate(Gpt2Stepper(model, 5), 5, bos=BOS, eos=EOS, config=config) for h in one]
    for our, their in zip(ours, theirs.sequences.tolist(), strict=True):
        text = their[1:]
        assert list(our.tokens) == (text[: text.index(EOS)] if EOS in text else text)
    if beams > 1:
        assert [h.score for h in ours] == pytest.approx(theirs.sequences_scores.tolist(), abs=1e-4)
