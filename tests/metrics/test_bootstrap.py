"""Intervals over pictures: their width, their centre, and BLEU of a resample."""

import numpy as np
import pytest

from vistill.errors import ConfigError, DataError
from vistill.metrics.bleu import bleu_counts, bleu_of_sums
from vistill.metrics.bootstrap import (
    _resampled,
    _weights,
    compare,
    compare_drawn,
    draw,
    intervals,
    intervals_drawn,
    share_drawn,
)
from vistill.metrics.caption import NAMES, CaptionScores, score_captions

WORDS = "a red blue dog cat man runs sleeps on the grass street".split()


def made_up(pictures: int, share_right: float, seed: int = 0) -> tuple[dict[str, str], dict[str, list[str]]]:
    """Captions of random words; some candidates are a reference of their picture."""
    rng = np.random.default_rng(seed)
    references = {str(i): [" ".join(rng.choice(WORDS, 7)) for _ in range(3)] for i in range(pictures)}
    wrong = {key: " ".join(rng.choice(WORDS, 7)) for key in references}
    right = rng.random(pictures) < share_right
    return {
        k: references[k][0] if ok else wrong[k] for k, ok in zip(references, right, strict=True)
    }, references


def scored(pictures: int = 60, share_right: float = 0.3) -> CaptionScores:
    return score_captions(*made_up(pictures, share_right))


def test_an_interval_holds_the_score_and_narrows_with_more_pictures() -> None:
    few, many = intervals(scored(40), 300), intervals(scored(1000), 300)
    assert set(few) == set(NAMES)
    for found in (few, many):
        for interval in found.values():
            assert interval.low < interval.value < interval.high
    width = {name: (few[name].high - few[name].low) / (many[name].high - many[name].low) for name in NAMES}
    assert all(3 < ratio < 8 for ratio in width.values())  # sqrt(1000 / 40) is 5


def test_the_interval_of_a_mean_is_the_textbook_one() -> None:
    scores = scored(400)
    values = scores.per_picture["ROUGE-L"]
    half = 1.96 * values.std() / np.sqrt(len(values))
    found = intervals(scores, 2000)["ROUGE-L"]
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.1)


def test_bleu_of_a_resample_is_bleu_of_the_drawn_pictures() -> None:
    candidates, references = made_up(12, 0.5)
    scores = score_captions(candidates, references)
    drawn = _resampled(scores, 5, seed=3)
    weights = np.concatenate(list(_weights(12, 5, seed=3))).astype(int)
    assert (weights.sum(1) == 12).all()
    for number, row in enumerate(weights):
        keys = [key for key, times in zip(candidates, row, strict=True) for _ in range(times)]
        ours = {str(i): candidates[key].split() for i, key in enumerate(keys)}
        theirs = {str(i): [text.split() for text in references[key]] for i, key in enumerate(keys)}
        wanted = bleu_of_sums(bleu_counts(ours, theirs))
        np.testing.assert_allclose([drawn[name][number] for name in NAMES[:4]], wanted, atol=1e-9)


def test_a_seed_repeats() -> None:
    scores = scored()
    assert intervals(scores, 100, seed=1) == intervals(scores, 100, seed=1)
    assert intervals(scores, 100, seed=1) != intervals(scores, 100, seed=2)


def test_equal_pictures_give_an_interval_of_no_width() -> None:
    scores = score_captions(
        {str(i): "a dog runs on grass" for i in range(5)}, {str(i): ["a dog runs"] for i in range(5)}
    )
    for interval in intervals(scores, 50).values():
        assert interval.low == pytest.approx(interval.high) == pytest.approx(interval.value)


def test_comparing_a_system_with_a_better_one_and_with_itself() -> None:
    worse, better = scored(200, 0.1), scored(200, 0.5)
    better_by = compare(worse, better, 500)
    for name in NAMES:
        found = better_by[name]
        assert found.difference.value == pytest.approx(better.corpus[name] - worse.corpus[name])
        assert 0 < found.difference.low < found.difference.value < found.difference.high
        assert found.p == pytest.approx(2 / 501)
        assert compare(better, worse, 500)[name].difference.low == pytest.approx(-found.difference.high)
    for same in compare(worse, worse, 100).values():
        assert same.difference == type(same.difference)(0, 0, 0)
        assert same.p == 1


def test_the_pairing_makes_small_differences_visible() -> None:
    candidates, references = made_up(300, 0.3)
    slightly = dict(candidates)
    for key in list(candidates)[:15]:
        slightly[key] = references[key][0]
    first, second = score_captions(candidates, references), score_captions(slightly, references)
    alone = intervals(first, 500)["CIDEr"]
    assert alone.low < second.corpus["CIDEr"] < alone.high
    assert compare(first, second, 500)["CIDEr"].difference.low > 0


def trained(shares: tuple[float, ...], pictures: int = 100, shift: int = 0) -> list[CaptionScores]:
    """One system trained with several seeds: other captions for the same pictures."""
    _, references = made_up(pictures, 0)
    found = []
    for number, share in enumerate(shares):
        rng = np.random.default_rng(100 + shift + number)
        candidates = {
            key: texts[0] if rng.random() < share else " ".join(rng.choice(WORDS, 7))
            for key, texts in references.items()
        }
        found.append(score_captions(candidates, references))
    return found


def test_one_seed_is_drawn_as_pictures_are() -> None:
    one, other = trained((0.3, 0.5))
    assert intervals_drawn(draw([one], 200)) == intervals(one, 200)
    assert compare_drawn(draw([one], 200), draw([other], 200, stream=4)) == compare(one, other, 200)


def test_seeds_widen_an_interval_by_their_own_variance() -> None:
    seeds = trained((0.1, 0.3, 0.5), 400)
    drawn = draw(seeds, 4000)
    values = np.array([scores.corpus["ROUGE-L"] for scores in seeds])
    assert drawn.corpus["ROUGE-L"] == pytest.approx(values.mean())
    per_picture = np.mean([scores.per_picture["ROUGE-L"] for scores in seeds], axis=0)
    # of a mean over pictures and seeds that were both drawn; the seeds' part is far the larger here
    variance = values.var(ddof=1) / 3 + per_picture.var() / 400
    assert drawn.samples["ROUGE-L"].std() == pytest.approx(np.sqrt(variance), rel=0.05)


def test_equal_seeds_add_nothing() -> None:
    one = scored(50)
    np.testing.assert_allclose(draw([one] * 3, 50).samples["CIDEr"], draw([one], 50).samples["CIDEr"])


def test_systems_draw_their_seeds_independently() -> None:
    seeds = trained((0.1, 0.5))
    same = compare_drawn(draw(seeds, 300), draw(seeds, 300))["CIDEr"].difference
    assert (same.low, same.high) == (0, 0)  # one system with itself
    other = compare_drawn(draw(seeds, 300), draw(seeds, 300, stream=1))["CIDEr"]
    assert other.difference.low < 0 < other.difference.high
    assert other.difference.value == 0


def test_the_share_of_a_score() -> None:
    whole, part = draw(trained((0.6, 0.7)), 300), draw(trained((0.2, 0.25), shift=9), 300, stream=1)
    found = share_drawn(whole, part, "CIDEr")
    assert found is not None
    assert found.value == pytest.approx(part.corpus["CIDEr"] / whole.corpus["CIDEr"])
    assert 0 < found.low < found.value < found.high < 1
    nothing = draw([score_captions({"0": "x", "1": "y"}, {"0": ["a dog"], "1": ["a cat"]})], 5)
    assert share_drawn(nothing, nothing, "CIDEr") is None


def test_draws_that_cannot_be_paired() -> None:
    drawn = draw([scored(20)], 50)
    for other in (draw([scored(21)], 50), draw([scored(20)], 50, seed=1), draw([scored(20)], 60)):
        with pytest.raises(DataError, match="same pictures"):
            compare_drawn(drawn, other)
    with pytest.raises(DataError, match="seeds of one system"):
        draw([scored(20), scored(21)], 50)
    with pytest.raises(DataError, match="no scores"):
        draw([])


def test_errors() -> None:
    scores = scored(5)
    with pytest.raises(ConfigError, match="2 resamples, not 1"):
        intervals(scores, 1)
    with pytest.raises(ConfigError, match="level"):
        intervals(scores, 10, level=95)
    with pytest.raises(DataError, match="same pictures"):
        compare(scores, scored(6))
