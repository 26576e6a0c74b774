"""Questions by picture: each picture once, prompts that are not learned, the same draw at any time."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tests.tiny_questions import build_questions

from vistill.data.asked import answer_tokenizer, open_asked, unique_keys
from vistill.data.collate import FRESH, View, collate
from vistill.data.dataset import open_split
from vistill.data.question_rows import QuestionRows, spoken
from vistill.data.text import TokenizerConfig
from vistill.errors import ConfigError, DataError
from vistill.metrics.vqa_baselines import Asked
from vistill.models.tokens import EOS, PAD


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_questions(tmp_path_factory.mktemp("asked"))


def _rows(data: Path, questions: int, mirrored: bool = False) -> QuestionRows:
    part = open_asked(data, "train")
    texts = [text for ones in part.asked for one in ones for text in (one.question, *one.answers)]

    def pixels(row: int, seed: int) -> View:
        return View(np.full((1, 2), row, np.float32), mirrored, FRESH)

    return QuestionRows(
        part.table["key"][:],
        part.asked,
        pixels,
        answer_tokenizer(texts, TokenizerConfig(min_count=1)),
        questions=questions,
        longest=9,
        longest_answer=4,
        seed=1,
    )


def test_each_picture_is_there_once_with_all_its_questions(data: Path) -> None:
    part, table = open_asked(data, "train"), open_split(data, "train")
    assert len(part.table) == len(part.keys) == len(part.asked) == 18
    assert sorted(key for keys in part.keys for key in keys) == sorted(table["key"])
    by_key = {row["key"]: row for row in table}
    for row, keys, asked in zip(part.table, part.keys, part.asked, strict=True):
        assert len({key.partition("#")[0] for key in keys}) == 1
        for key, one in zip(keys, asked, strict=True):
            assert by_key[key]["image"] == row["image"]
            assert (by_key[key]["question"], tuple(by_key[key]["answers"])) == (one.question, one.answers)


def test_a_question_is_given_and_its_answer_learned(data: Path) -> None:
    rows = _rows(data, 0)
    batch = collate([rows[0, row] for row in range(4)], 0)
    assert batch.prompt is not None
    word = rows.tokenizer.id_to_token
    for place, asked in enumerate(rows.asked[:4]):
        for number, one in enumerate(asked):
            learned = [word(i) for i in batch.targets[place, number].tolist() if i != PAD]
            assert learned == [*one.answers[0].replace(",", " ,").split(), "<eos>"]
            text, prompt = batch.tokens[place, number].tolist(), int(batch.prompt[place, number])
            assert [word(i) for i in (text[0], text[prompt - 1])] == ["<bos>", "<ask>"]
            assert (
                text[prompt : prompt + len(learned)]
                == batch.targets[place, number][prompt - 1 : prompt - 1 + len(learned)].tolist()
            )
    moved = batch.to(torch.device("cpu"), dtype=torch.float64)
    assert moved.prompt is not None
    assert moved.pixels.dtype == torch.float64


def test_captions_have_no_prompt() -> None:
    from vistill.data.collate import Item

    item = Item("a", 0, 0, False, (0,), ([1, 5, EOS],))
    batch = collate([(item, np.zeros(3, np.float32))], 0)
    assert batch.prompt is None
    assert torch.equal(batch.targets, batch.tokens[..., 1:])


def test_an_epoch_draws_the_same_questions_whenever_it_is_asked(data: Path) -> None:
    rows = _rows(data, 2)
    first, again, other = rows[3, 5][0], rows[3, 5][0], [rows[epoch, 5][0].shown for epoch in range(12)]
    assert first == again
    assert len(first.texts) == len(first.prompts) == 2
    assert len(set(other)) > 3
    assert len(_rows(data, 9)[0, 5][0].texts) == len(rows.asked[5])


def test_a_mirrored_picture_swaps_left_and_right(data: Path) -> None:
    plain, mirrored = _rows(data, 0), _rows(data, 0, mirrored=True)
    word = plain.tokenizer.id_to_token
    row = next(row for row, ones in enumerate(plain.asked) if len(ones) == 4)
    before, after = ([word(i) for i in rows[0, row][0].texts[3]] for rows in (plain, mirrored))
    assert {before[-2], after[-2]} == {"left", "right"}


def test_of_ten_people_one_answer_is_drawn() -> None:
    ten = Asked("what?", ("cat",) * 6 + ("dog",) * 4, people=True)
    drawn = [spoken(ten, np.random.default_rng(seed)) for seed in range(200)]
    assert 90 < drawn.count("cat") < 150
    assert spoken(ten) == "cat"
    assert spoken(Asked("what?", ("book, scissor", "cup"))) == "book, scissor, cup"


def test_what_cannot_be_asked_is_named(data: Path, tmp_path: Path) -> None:
    from tests.tiny import build_data

    with pytest.raises(DataError, match="no questions with answers"):
        open_asked(build_data(tmp_path, train=4, dev=2), "train")
    part = open_asked(data, "dev")
    with pytest.raises(ConfigError, match="same key"):
        unique_keys([part, part])
