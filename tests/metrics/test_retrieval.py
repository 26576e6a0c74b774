"""Ranks against a loop over every pair, ties, folds, chance and intervals."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from vistill.errors import ConfigError, DataError
from vistill.metrics.retrieval import (
    TIE,
    Ranks,
    RankScores,
    chance_scores,
    fold_ranks,
    joined_ranks,
    mean_scores,
    retrieval_intervals,
    retrieval_ranks,
    retrieval_scores,
)


def unit(x: NDArray[np.float32]) -> NDArray[np.float32]:
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def brute(image: NDArray, text: NDArray, owner: NDArray) -> tuple[list[int], list[int]]:
    """Sort all candidates for each query by hand; those as similar as the right one come first."""
    similar = unit(text.astype(np.float64)) @ unit(image.astype(np.float64)).T
    to_image, to_text = [], []
    for t, o in enumerate(owner):
        to_image.append(1 + sum(similar[t, i] >= similar[t, o] - TIE for i in range(len(image)) if i != o))
    for i in range(len(image)):
        mine = [t for t in range(len(text)) if owner[t] == i]
        if not mine:
            to_text.append(0)
            continue
        best = max(similar[t, i] for t in mine)
        others = [t for t in range(len(text)) if owner[t] != i]
        to_text.append(1 + sum(similar[t, i] >= best - TIE for t in others))
    return to_image, to_text


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 9), st.integers(1, 30), st.integers(1, 40))
def test_ranks_equal_a_loop_over_all_pairs_whatever_the_chunk(seed: int, n: int, m: int, chunk: int) -> None:
    rng = np.random.default_rng(seed)
    image = rng.standard_normal((n, 5)).astype(np.float32)
    text = rng.standard_normal((m, 5)).astype(np.float32)
    image[rng.integers(n)] = image[0]  # twins tie
    text[rng.integers(m)] = 3 * text[0]
    owner = rng.integers(n, size=m)
    found = retrieval_ranks(image, text, owner, chunk)
    to_image, to_text = brute(image, text, owner)
    assert found.text_to_image.tolist() == to_image
    assert found.image_to_text.tolist() == to_text


def test_scores_are_those_of_the_sorted_lists() -> None:
    rng = np.random.default_rng(0)
    owner = np.repeat(np.arange(60), 5)
    image = rng.standard_normal((60, 16)).astype(np.float32)
    text = image[owner] + 2 * rng.standard_normal((300, 16)).astype(np.float32)
    scores = retrieval_scores(image, text, owner, chunk=17)
    order = np.argsort(-(unit(text) @ unit(image).T), axis=1)
    for k, value in ((1, scores.text_to_image.r1), (5, scores.text_to_image.r5)):
        assert value == np.mean([owner[t] in order[t, :k] for t in range(300)])
    order = np.argsort(-(unit(image) @ unit(text).T), axis=1)
    assert scores.image_to_text.r10 == np.mean([i in owner[order[i, :10]] for i in range(60)])
    assert scores.mean_r10 == (scores.text_to_image.r10 + scores.image_to_text.r10) / 2


def test_a_model_that_answers_all_alike_gets_the_last_rank() -> None:
    image, text, owner = np.ones((50, 384), np.float32), np.ones((250, 384), np.float32), np.arange(250) // 5
    found = retrieval_ranks(image, text, owner, chunk=7)
    assert (found.text_to_image == 50).all()
    assert (found.image_to_text == 246).all()


def test_a_duplicated_picture_costs_a_rank_in_any_chunk() -> None:
    rng = np.random.default_rng(1)
    image = rng.standard_normal((300, 384)).astype(np.float32)
    image[250] = image[3]
    found = [
        retrieval_ranks(image, image, np.arange(300), chunk).text_to_image for chunk in (29, 64, 128, 512)
    ]
    for ranks in found:
        assert ranks[3] == ranks[250] == 2
        assert (np.delete(ranks, [3, 250]) == 1).all()


def test_folds_are_scored_alone_and_averaged() -> None:
    rng = np.random.default_rng(2)
    owner = rng.permutation(np.repeat(np.arange(20), 3))  # in no order
    image = rng.standard_normal((20, 4)).astype(np.float32)
    text = rng.standard_normal((60, 4)).astype(np.float32)
    parts = []
    for fold in range(5):
        mine = owner // 4 == fold
        parts.append(retrieval_scores(image[fold * 4 : fold * 4 + 4], text[mine], owner[mine] - fold * 4))
    found = retrieval_scores(image, text, owner, folds=5)
    for name in RankScores.__dataclass_fields__:
        wanted = np.mean([getattr(part.image_to_text, name) for part in parts])
        assert getattr(found.image_to_text, name) == pytest.approx(wanted)
    assert found.text_to_image.r1 > retrieval_scores(image, text, owner).text_to_image.r1
    each = fold_ranks(image, text, owner, folds=5)
    whole = joined_ranks(each, owner)
    for fold in range(5):
        assert (whole.text_to_image[owner // 4 == fold] == each[fold].text_to_image).all()
    assert whole.image_to_text.tolist() == [rank for ranks in each for rank in ranks.image_to_text]
    chance, alone = chance_scores(20, owner, folds=5), chance_scores(4, np.repeat(np.arange(4), 3))
    for way, values in chance.to_dict().items():
        assert values == pytest.approx(alone.to_dict()[way])


@pytest.mark.parametrize(("pictures", "captions"), [(40, 5), (7, 1), (3, 4)])
def test_chance_is_what_random_ranks_score(pictures: int, captions: int) -> None:
    rng = np.random.default_rng(3)
    owner = np.repeat(np.arange(pictures), captions)
    places = rng.permuted(np.tile(np.arange(len(owner)), (4000, 1)), axis=1)[:, :captions]
    drawn = mean_scores([Ranks(rng.integers(pictures, size=4000) + 1, places.min(axis=1) + 1)])
    chance = chance_scores(pictures, owner)
    for way in ("text_to_image", "image_to_text"):
        ours, theirs = getattr(chance, way), getattr(drawn, way)
        assert ours.r1 == pytest.approx(theirs.r1, abs=0.03)
        assert ours.r10 == pytest.approx(theirs.r10, abs=0.03)
        assert ours.mean == pytest.approx(theirs.mean, rel=0.05)
        assert ours.median == pytest.approx(theirs.median, abs=0.05 * len(owner) + 0.5)
    assert chance.text_to_image.r1 == pytest.approx(1 / pictures)
    assert chance.text_to_image.median == (pictures + 1) / 2


def test_intervals_draw_pictures_with_all_their_texts() -> None:
    owner = np.repeat(np.arange(100), 5)
    right = np.repeat(np.arange(100) % 2 == 0, 5)  # all five texts of a picture, or none
    ranks = Ranks(np.where(right, 1, 50), np.where(np.arange(100) % 4 == 0, 5, 60))
    found = retrieval_intervals(ranks, owner, samples=2000)
    assert found["text_to_image.r1"].value == 0.5
    assert found["image_to_text.r5"].value == 0.25
    assert found["image_to_text.r1"].high == 0
    half = 1.96 * np.sqrt(0.25 / 100)  # of 100 pictures, not of 500 texts
    width = found["text_to_image.r1"].high - found["text_to_image.r1"].low
    assert width / 2 == pytest.approx(half, rel=0.1)


def test_pictures_without_texts_are_in_the_way_but_not_scored() -> None:
    image = np.eye(3, dtype=np.float32)
    text = np.array([[0, 0.6, 0.8]], np.float32)
    found = retrieval_ranks(image, text, np.array([1]))
    assert found.text_to_image.tolist() == [2]
    assert found.image_to_text.tolist() == [0, 1, 0]
    assert mean_scores([found]).image_to_text.r1 == 1
    assert retrieval_intervals(found, np.array([1]), samples=10)["image_to_text.r1"].low == 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"owner": np.array([0, 9])}, "there are 3"),
        ({"owner": np.array([0])}, "one picture a text"),
        ({"text": np.ones((2, 5), np.float32)}, "one width"),
        ({"text": np.zeros((2, 4), np.float32)}, "zero or not finite"),
        ({"image": np.full((3, 4), np.nan, np.float32)}, "zero or not finite"),
        ({"text": np.ones((0, 4), np.float32), "owner": np.zeros(0, np.int64)}, "needs pictures and texts"),
    ],
)
def test_what_cannot_be_scored_is_refused(change: dict[str, NDArray], words: str) -> None:
    given = {"image": np.eye(3, 4, dtype=np.float32), "text": np.eye(2, 4, dtype=np.float32)}
    with pytest.raises(DataError, match=words):
        retrieval_scores(**(given | {"owner": np.array([0, 1])} | change))


def test_more_folds_than_pictures_or_an_empty_fold_are_refused() -> None:
    image = np.eye(3, dtype=np.float32)
    with pytest.raises(ConfigError, match="folds=4"):
        retrieval_scores(image, image, np.arange(3), folds=4)
    with pytest.raises(DataError, match="needs pictures and texts"):
        retrieval_scores(image, image[:1], np.array([0]), folds=3)
