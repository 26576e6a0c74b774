"""Captions and split names as the sources hand them over."""

import pytest

from vistill.data.records import SPLITS, clean_captions, normalise_split, split_order, tidy
from vistill.errors import DataError


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("  A dog .\r\n", "A dog ."),
        ("two\nlines\t and  tabs", "two lines and tabs"),
        ("no\x00 control\x1b chars", "no control chars"),
        ("Käse – „schön“ 犬", "Käse – „schön“ 犬"),
        ("lone \udc80 surrogate", "lone surrogate"),
        ("e\u0301 stays as it is", "e\u0301 stays as it is"),
        ("\u200b", "\u200b"),
        ("   ", ""),
    ],
)
def test_tidy_keeps_the_words_on_one_line(raw: str, clean: str) -> None:
    assert tidy(raw) == clean


def test_captions_are_dropped_with_reason_and_number() -> None:
    captions = ["A dog .", "A", "", " . ", "a dog .", "ok"]
    kept, dropped = clean_captions("p.jpg", captions)
    assert kept == ("A dog .", "a dog .", "ok")
    assert [(item.key, item.reason) for item in dropped] == [
        ("p.jpg", "caption_too_short"),
        ("p.jpg", "caption_empty"),
        ("p.jpg", "caption_too_short"),
    ]
    assert "caption 1 is 'A'" in dropped[0].detail


def test_unique_keeps_the_first_of_equal_captions_whatever_the_case() -> None:
    kept, dropped = clean_captions("p", ["A dog .", "a  DOG .", "a cat"], unique=True)
    assert kept == ("A dog .", "a cat")
    assert [item.reason for item in dropped] == ["caption_repeated"]


def test_min_chars_zero_keeps_all_but_empty_captions() -> None:
    assert clean_captions("p", ["A", "犬", ".", ""], min_chars=0)[0] == ("A", "犬", ".")


@pytest.mark.parametrize(
    ("name", "split"),
    [("train", "train"), ("VAL", "dev"), (" validation ", "dev"), ("test", "test"), ("", "extra")],
)
def test_split_names(name: str, split: str) -> None:
    assert normalise_split(name, "here") == split


def test_unknown_split_names_the_place_and_the_known_ones() -> None:
    with pytest.raises(DataError, match=r"meta.csv:3: unknown split 'holdout'; known are .*train"):
        normalise_split("holdout", "meta.csv:3")


def test_evaluated_splits_come_first() -> None:
    assert sorted(SPLITS, key=split_order) == ["test", "dev", "train", "extra"]
