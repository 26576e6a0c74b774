"""Words to settings, and a named error for each wrong word."""

import pytest

from vistill.cli.compose import compose_train, experiments
from vistill.errors import ConfigError
from vistill.models.clip import ClipConfig
from vistill.train.caption import TrainConfig
from vistill.train.dual import DualTrainConfig


def test_defaults_groups_and_overrides() -> None:
    config = compose_train(
        ["model=tiny", "objective=self-critical", "trainer.max_epochs=3", "datamodule.augment.flip=0.25"]
    )
    assert config.model.vision.name == "test_vit"
    assert config.objective.self_critical == 1.0
    assert config.trainer.max_epochs == 3
    assert config.datamodule.augment.flip == 0.25
    assert config.datamodule.augment.crop_scale == (0.7, 1.0)
    assert config.model.decoder.width == 32


@pytest.mark.parametrize("name", experiments())
def test_every_experiment_composes_and_can_be_overridden(name: str) -> None:
    once = ("trainer.max_epochs=1", "trainer.validate_every=1")
    config = compose_train([f"experiment={name}", *once, "datamodule.batch_size=2"])
    assert config.name == {"finetune": "mine"}.get(name, name)
    assert (config.trainer.max_epochs, config.datamodule.batch_size) == (1, 2)


def test_the_shipped_experiments_are_there() -> None:
    assert {"flickr8k-captioner", "flickr8k-captioner-scst"} <= set(experiments())


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("trainer.max_epochs=many", "^trainer.max_epochs: Value 'many' .* Integer$"),
        ("trainer.max_epoch=3", r"^trainer.max_epoch: there is no such setting; did you mean max_epochs\?"),
        ("bogus.key=3", "^bogus: there is no such setting; there are task, name, "),
        ("trainer.ema=2", "trainer.ema=2"),
        ("model=huge", "huge"),
        ("experiment=nothing", "flickr8k-captioner"),
        ("trainer.max_epochs", "trainer.max_epochs"),
        ("datamodule.tokenizer.kind=char", "tokenizer.kind"),
    ],
)
def test_wrong_words_are_named(word: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        compose_train([word])


@pytest.mark.parametrize("word", ["objective.scales={hidden_mse: 0.1}", "objective.scales.hidden_mse=0.1"])
def test_losses_are_scaled_by_name(word: str) -> None:
    config = compose_train([word])
    assert isinstance(config, TrainConfig)
    assert config.objective.scales == {"hidden_mse": 0.1}
    with pytest.raises(ConfigError, match=r"objective\.scales: hidden_mze: the losses are"):
        compose_train([word.replace("mse", "mze")])


@pytest.mark.parametrize(
    "word", ["prefix.decoder.settings={n_layer: 3}", "prefix.decoder.settings.n_layer=3"]
)
@pytest.mark.parametrize("prefix", ["captioner", "tinyvit-distilgpt2"])
def test_a_language_model_is_sized_by_its_own_settings(prefix: str, word: str) -> None:
    config = compose_train([f"prefix={prefix}", word])
    assert isinstance(config, TrainConfig)
    assert config.prefix is not None
    assert config.prefix.decoder.settings == {"n_layer": 3}


def test_the_words_of_the_original_pipeline() -> None:
    config = compose_train("datamodule=flickr trainer=default datamodule.num_samples=5000".split())
    assert config.datamodule.path == compose_train(["datamodule=flickr30k"]).datamodule.path
    assert (config.datamodule.num_samples, config.trainer.accelerator) == (5000, "auto")
    for name in ("medicat", "roco"):
        assert compose_train([f"datamodule={name}"]).datamodule.path == f"built/{name}"


def test_a_freeze_policy_is_composed_with_its_sizes() -> None:
    config = compose_train(["trainer.freeze=lora", "trainer.lora.rank=4", "trainer.patience=2"])
    assert (config.trainer.policy().decoder, config.trainer.policy().lora.rank) == ("lora", 4)
    with pytest.raises(
        ConfigError, match=r"trainer\.freeze=lora says what learns, and so does trainer\.encoder"
    ):
        compose_train(["experiment=flickr8k-captioner", "trainer.freeze=lora"])
    with pytest.raises(ConfigError, match="a dual encoder has no decoder"):
        compose_train(["task=dual", "trainer.freeze=all"])
    with pytest.raises(ConfigError, match=r"trainer\.patience=-1"):
        compose_train(["trainer.patience=-1"])


def test_tasks_have_settings_of_their_own() -> None:
    """By a word, or by the experiment that names its task; a choice of another task is refused."""
    config = compose_train(["task=dual", "model=dual-tiny", "towers=image", "objective.image.l1=0.5"])
    assert isinstance(config, DualTrainConfig)
    assert (config.towers, config.objective.image.l1) == ("image", 0.5)
    assert (config.objective.contrastive, config.model.text.width, config.clip) == (1.0, 32, None)
    config = compose_train(["experiment=clip-text-tower", "clip.text_width=64"])
    assert isinstance(config, DualTrainConfig)
    assert config.clip == ClipConfig(text_width=64)
    assert config.objective.weights() == {"text_l1": 0.6, "text_cross_entropy": 0.35, "text_kl": 0.05}
    with pytest.raises(ConfigError, match="known: student, tiny"):
        compose_train(["task=dual", "clip.width=8"])
    with pytest.raises(ConfigError, match="task=vqa"):
        compose_train(["task=vqa"])
    for words in (["model=dual"], ["towers=image"], ["task=dual", "objective=self-critical"]):
        with pytest.raises(ConfigError):
            compose_train(words)


def test_settings_of_a_prefix_need_one() -> None:
    with pytest.raises(ConfigError, match=r"known: .*tinyvit-distilgpt2, tiny"):
        compose_train(["prefix.mapper.kind=mlp"])
    config = compose_train(["prefix=tiny", "prefix.mapper.kind=mlp"])
    assert config.prefix is not None
    assert config.prefix.mapper.kind == "mlp"
    assert config.prefix.decoder.blocked == ()
    assert compose_train([]).prefix is None
