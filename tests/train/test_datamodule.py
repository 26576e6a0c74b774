"""Which pictures are trained on, and what happens to words that a checkpoint does not know."""

from pathlib import Path

import pytest
import torch
from tests.models.test_lora import captioner as prefix_captioner
from tests.tiny import build_data, tiny_config

from vistill.data.text import TokenizerConfig, by_id, train_tokenizer, with_words
from vistill.errors import ConfigError
from vistill.models.captioner import Captioner
from vistill.models.tokens import UNK
from vistill.runtime.image import Preprocess
from vistill.train.caption import _with_new_words
from vistill.train.datamodule import CaptionData, DataConfig

WORDS = TokenizerConfig(min_count=1)


def test_samples_are_drawn_by_their_seed_and_larger_sets_hold_the_smaller() -> None:
    few, many = (DataConfig(num_samples=n, sample_seed=3).drawn(100) for n in (10, 40))
    assert len(set(few)) == 10
    assert set(few) < set(many)
    assert few == sorted(few)
    assert few != list(range(10))
    assert DataConfig(num_samples=10, sample_seed=4).drawn(100) != few
    assert DataConfig(num_samples=10, sample_seed=-1).drawn(100) == list(range(10))
    assert DataConfig(num_samples=200).drawn(100) == DataConfig().drawn(100) == list(range(100))
    with pytest.raises(ConfigError, match=r"datamodule\.sample_seed=-2"):
        DataConfig(sample_seed=-2)


def test_the_loader_shows_the_drawn_pictures_under_their_own_rows(tmp_path: Path) -> None:
    config = DataConfig(
        path=str(build_data(tmp_path)), num_samples=8, batch_size=4, captions=1, tokenizer=WORDS
    )
    data = CaptionData(config, seed=0, epochs=3)
    model = Captioner(tiny_config(vocab=40))
    tokenizer = data.train_tokenizer()
    preprocess = Preprocess((64, 64), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    data.prepare(tokenizer, model.tower, preprocess, frozen=0, longest=12)
    assert data.batches_per_epoch(1) == 2
    items = [item for batch in data.train_dataloader() for item in batch.items]
    assert len(items) == 24
    assert {item.row for item in items} == set(config.drawn(24))
    assert all(data.train_table[item.row]["key"] == item.key for item in items)
    shown = {
        word
        for row in config.drawn(24)
        for text in data.train_table[row]["captions"]
        for word in text.lower().split()
    }
    assert set(by_id(tokenizer)[4:]) <= shown


def test_words_are_added_behind_those_that_are_there() -> None:
    start = train_tokenizer(["a dog runs"], WORDS)
    grown = with_words(with_words(start, ["a", "viaduct"]), ["viaduct", "pond"])
    assert by_id(grown) == [*by_id(start), "viaduct", "pond"]
    assert grown.encode("a viaduct").ids == [start.token_to_id("a"), start.get_vocab_size()]
    pieces = train_tokenizer(["a dog runs"], TokenizerConfig(kind="bpe", min_count=1))
    assert with_words(pieces, ["viaduct"]).get_vocab() == pieces.get_vocab()


def test_a_checkpoint_gets_rows_for_the_words_of_the_new_captions(tmp_path: Path) -> None:
    config = DataConfig(path=str(build_data(tmp_path)), tokenizer=WORDS)
    data = CaptionData(config, seed=0)
    start = train_tokenizer(["a red dog", "a green one"], WORDS)
    model = Captioner(tiny_config(vocab=start.get_vocab_size()))
    grown, tokenizer = _with_new_words(model, start, data)
    assert isinstance(grown, Captioner)
    assert UNK not in tokenizer.encode("there is one blue square").ids
    new = tokenizer.get_vocab_size() - start.get_vocab_size()
    assert new > 5
    assert grown.decoder.new_rows == new
    assert grown.config.decoder.vocab_size == tokenizer.get_vocab_size()
    assert torch.equal(grown.decoder.embed.weight[:-new], model.decoder.embed.weight)
    again, _ = _with_new_words(grown, tokenizer, data)
    assert again is grown, "nothing is new the second time"
    prefixed = prefix_captioner("gpt2")
    assert _with_new_words(prefixed, start, data) == (prefixed, start)
