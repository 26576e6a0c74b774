"""Batches: the same item however it is asked for, order by seed and epoch, exact continuation."""

import numpy as np
import pytest
import torch
from tests.tiny import build_data

from vistill.data.collate import (
    FRESH,
    CaptionRows,
    EpochBatches,
    Item,
    ResumableLoader,
    collate,
    locate,
    mirror_words,
    online_pixels,
    replayed_pixels,
)
from vistill.data.dataset import open_split
from vistill.data.text import TokenizerConfig, encode, train_tokenizer
from vistill.data.views import view_seed
from vistill.models.tokens import BOS, PAD
from vistill.runtime.image import AugmentSpec, Preprocess, augment, preprocess, read_image, to_array

SPEC = Preprocess(size=(32, 32), mean=(0.5,) * 3, std=(0.5,) * 3)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory):  # type: ignore[no-untyped-def]
    return open_split(build_data(tmp_path_factory.mktemp("tiny")), "train")


def _rows(table, *, captions: int = 2, augment: bool = True) -> CaptionRows:  # type: ignore[no-untyped-def]
    tokenizer = train_tokenizer(
        [t for texts in table["captions"] for t in texts], TokenizerConfig(min_count=1)
    )
    pixels = online_pixels(table, SPEC, AugmentSpec() if augment else None)
    return CaptionRows(table, pixels, tokenizer, captions=captions, longest=12, seed=3)


def test_an_item_is_the_same_whenever_it_is_asked_for(table) -> None:  # type: ignore[no-untyped-def]
    rows = _rows(table)
    first = rows[4, 7]
    rows[5, 7]
    again = rows[4, 7]
    assert first[0] == again[0]
    assert first[0].view == FRESH
    assert np.array_equal(first[1], again[1])
    assert not np.array_equal(first[1], rows[5, 7][1]), "another epoch shows another view"


def test_validation_shows_the_clean_picture_and_all_captions(table) -> None:  # type: ignore[no-untyped-def]
    rows = _rows(table, captions=0, augment=False)
    item, pixels = rows[0, 3]
    assert (item.key, item.row, item.view) == (table[3]["key"], 3, 0)
    assert np.array_equal(pixels, preprocess(table[3]["image"], SPEC))
    assert item.shown == tuple(range(len(table[3]["captions"])))
    assert len(item.texts) == len(item.shown)


def test_an_item_says_which_captions_it_shows(table) -> None:  # type: ignore[no-untyped-def]
    rows = _rows(table, captions=2, augment=False)
    for epoch in range(4):
        item, _ = rows[epoch, 5]
        texts = [encode(rows.tokenizer, table[5]["captions"][i], 12) for i in item.shown]
        assert list(item.texts) == texts


def test_replayed_views_are_those_of_their_seeds(table) -> None:  # type: ignore[no-untyped-def]
    load = replayed_pixels(table, SPEC, AugmentSpec(), views=3, seed=9)
    assert np.array_equal(load(2, 3).pixels, preprocess(table[2]["image"], SPEC)), "view 0 is clean"
    for draw in (1, 2, 4):
        view = load(2, draw)
        assert view.number == draw % 3
        seed = view_seed(9, table[2]["key"], view.number)
        image, mirrored = augment(read_image(table[2]["image"]), AugmentSpec(), seed)
        assert np.array_equal(view.pixels, to_array(image, SPEC))
        assert view.mirrored == mirrored


def test_more_captions_than_there_are_repeat_evenly(table) -> None:  # type: ignore[no-untyped-def]
    rows = _rows(table, captions=4, augment=False)
    texts = [tuple(t) for t in rows[0, 0][0].texts]
    assert len(texts) == 4
    assert all(texts.count(t) == 2 for t in texts)


def test_a_picture_without_captions_shows_none(table) -> None:  # type: ignore[no-untyped-def]
    rows = _rows(table, captions=2, augment=False)
    rows.texts[1] = []
    item, _ = rows[0, 1]
    assert (item.shown, item.texts) == ((), ())
    batch = collate([rows[0, 0], rows[0, 1]], start=0)
    assert batch.tokens.shape[:2] == (2, 2)
    assert (batch.tokens[0, :, 0] == BOS).all()
    assert (batch.tokens[1] == PAD).all()
    assert (collate([rows[0, 1]], start=0).tokens == PAD).all()


def test_rows_go_on_from_one_part_to_the_next() -> None:
    assert [locate([2, 0, 3], row) for row in range(5)] == [(0, 0), (0, 1), (2, 0), (2, 1), (2, 2)]
    with pytest.raises(IndexError, match="row 5"):
        locate([2, 0, 3], 5)


def test_left_and_right_are_swapped_when_mirrored() -> None:
    assert mirror_words("a man left of a dog , right there") == "a man right of a dog , left there"
    assert mirror_words("Left, of the right-hand leftover.") == "right, of the left-hand leftover."


def test_collate_pads_texts_and_missing_captions() -> None:
    pixels = np.zeros((3, 4, 4), dtype=np.float16)
    first = Item("a", 4, 0, False, (1, 0), ([BOS, 5, 2], [BOS, 2]))
    second = Item("b", 7, 2, True, (3,), ([BOS, 6, 7, 2],))
    batch = collate([(first, pixels), (second, pixels)], start=2)
    assert batch.items == (first, second)
    assert batch.keys == ("a", "b")
    assert batch.start == 2
    assert batch.pixels.dtype == torch.float32
    assert batch.tokens.tolist() == [[[BOS, 5, 2, PAD], [BOS, 2, PAD, PAD]], [[BOS, 6, 7, 2], [PAD] * 4]]


def test_ranks_share_an_epoch_without_overlap() -> None:
    seen = [
        {row for batch in EpochBatches(20, 2, shuffle=True, seed=1, rank=rank, ranks=2) for _, row in batch}
        for rank in range(2)
    ]
    assert not seen[0] & seen[1]
    assert len(seen[0] | seen[1]) == 20


def test_each_epoch_has_its_own_order_and_every_picture_once() -> None:
    pairs = [pair for batch in EpochBatches(20, 5, shuffle=True, seed=1, epochs=2) for pair in batch]
    assert [epoch for epoch, _ in pairs] == [0] * 20 + [1] * 20
    first, second = ([row for epoch, row in pairs if epoch == e] for e in (0, 1))
    assert sorted(first) == sorted(second) == list(range(20))
    assert first != second


@pytest.mark.parametrize(("stop", "workers"), [(0, 0), (1, 0), (3, 0), (6, 0), (7, 0), (11, 0), (3, 2)])
def test_a_stopped_loader_goes_on_exactly(table, stop: int, workers: int) -> None:  # type: ignore[no-untyped-def]
    def loader() -> ResumableLoader:
        return ResumableLoader(
            _rows(table), EpochBatches(24, 4, shuffle=True, seed=3, epochs=3), start=0, workers=workers
        )

    def run(source: ResumableLoader, count: int) -> list[tuple[tuple[str, ...], float]]:
        out: list[tuple[tuple[str, ...], float]] = []
        for batch in source:
            out.append((batch.keys, float(batch.pixels.sum())))
            if len(out) == count:
                break
        return out

    whole = run(loader(), 14)
    first = loader()
    before = run(first, stop) if stop else []
    second = loader()
    second.load_state_dict(first.state_dict())
    assert before + run(second, 14 - stop) == whole
