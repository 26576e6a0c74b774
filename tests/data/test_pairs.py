"""Pictures with numbered texts show what `CaptionRows` does; batches of like length are still all rows."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.models.tiny_clip import tiny_tokenizer
from tests.runtime.test_texts import word_tokenizer
from tests.tiny import build_data

from vistill.data.collate import CaptionRows, EpochBatches, View, collate
from vistill.data.dataset import open_split
from vistill.data.pairs import NO_TEXT, PairRows, SpeltTexts, TextRows
from vistill.runtime.texts import encode_texts


def _mirrored(row: int, seed: int) -> View:
    return View(np.full((3, 2, 2), row, np.float32), bool(seed % 2), seed % 4)


def test_shows_the_views_and_captions_that_caption_rows_shows(tmp_path: Path) -> None:
    table = open_split(build_data(tmp_path, train=8, dev=2), "train")
    spelt = SpeltTexts(word_tokenizer(), 12)
    ours = PairRows(table["key"][:], table["captions"][:], _mirrored, spelt, shown=3, seed=5)
    theirs = CaptionRows(table, _mirrored, word_tokenizer(), captions=3, longest=12, seed=5)
    for index in [(0, 0), (0, 7), (3, 4)]:
        (a, x), (b, y) = ours[index], theirs[index]
        assert (a.key, a.row, a.view, a.mirrored, a.shown) == (b.key, b.row, b.view, b.mirrored, b.shown)
        assert np.array_equal(x, y)
    items = [ours[0, row][0] for row in range(8)]
    assert {item.mirrored for item in items} == {True, False}
    for item, numbers in zip(items, ours.numbers(items), strict=True):
        texts = [" ".join(table[item.row]["captions"][i].split()) for i in item.shown]
        if item.mirrored:
            texts = [
                t.replace("left", "LEFT").replace("right", "left").replace("LEFT", "right") for t in texts
            ]
        assert [spelt.texts[number] for number in numbers] == texts
        assert list(item.texts) == [spelt.ids[number] for number in numbers]


def test_validation_shows_every_caption_and_missing_ones_are_told() -> None:
    spelt = SpeltTexts(word_tokenizer(), 12)
    rows = PairRows(["a", "b", "c"], [["a dog", "dog"], [], ["dog"]], _mirrored, spelt, shown=0, seed=0)
    plain = [rows[0, row] for row in range(3)]
    assert [item.shown for item, _ in plain] == [(0, 1), (), (0,)]
    numbers = rows.numbers([item for item, _ in plain])
    assert (numbers == NO_TEXT).tolist() == [[False, False], [True, True], [False, True]]
    assert numbers[0, 1] == numbers[2, 0], "the same text has one number"
    assert collate(plain, 0).tokens.shape[:2] == (3, 2)


@pytest.mark.parametrize("tokenizer", [word_tokenizer(), tiny_tokenizer()])
def test_texts_are_spelt_as_the_runtime_spells_them(tokenizer: object) -> None:
    texts = ["a dog", "", "!", "dog runs far away from a dog and a dog and a dog", "a dog"]
    spelt = SpeltTexts(tokenizer, 10)  # type: ignore[arg-type]
    numbers = spelt.add(texts)
    assert numbers == [0, 1, 2, 3, 0]
    whole = encode_texts(tokenizer, texts, 10)  # type: ignore[arg-type]
    for number, row in zip(numbers, whole, strict=True):
        ids = spelt.ids[number]
        assert ids == row[: len(ids)].tolist()
        assert not row[len(ids) :].any()
    assert spelt.lengths(numbers).tolist() == [len(spelt.ids[number]) for number in numbers]
    assert TextRows(numbers, spelt)[4, 2][0].texts == (spelt.ids[2],)


@settings(deadline=None)
@given(st.integers(1, 400), st.integers(1, 9), st.integers(1, 3), st.integers(0, 99))
def test_batches_of_like_length_hold_the_rows_of_plain_ones(
    rows: int, size: int, ranks: int, seed: int
) -> None:
    lengths = np.random.default_rng(seed).integers(3, 40, rows)

    def epoch(lengths: np.ndarray | None) -> list[list[int]]:
        return [
            [row for _, row in batch]
            for rank in range(ranks)
            for batch in EpochBatches(
                rows, size, shuffle=True, seed=seed, rank=rank, ranks=ranks, lengths=lengths
            )
        ]

    plain, sorted_ = epoch(None), epoch(lengths)
    assert len(plain) == len(sorted_)
    shown = [row for batch in sorted_ for row in batch]
    assert len(set(shown)) == len(shown)
    assert sorted(shown) == sorted(row for batch in plain for row in batch)
    assert sorted_ == epoch(lengths), "drawn by the seed alone"


def test_batches_of_like_length_waste_little() -> None:
    lengths = np.random.default_rng(0).integers(3, 40, 5000)

    def waste(kind: np.ndarray | None) -> float:
        batches = EpochBatches(5000, 50, shuffle=True, seed=0, lengths=kind)
        rows = [lengths[[row for _, row in batch]] for batch in batches]
        return 1 - sum(map(np.sum, rows)) / sum(len(row) * row.max() for row in rows)

    assert waste(lengths) < 0.05 < 0.4 < waste(None)
