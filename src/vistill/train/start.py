"""What runs of captions and of answers share: the model to begin with, and where it is from."""

import copy
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from tokenizers import Tokenizer

from vistill.distill.cache import TeacherCache
from vistill.errors import ConfigError
from vistill.models.adopt import load_language, source_hash
from vistill.models.captioner import Captioner, CaptionerConfig
from vistill.models.inherit import inherit
from vistill.models.language import DecoderConfig
from vistill.models.loading import AnyCaptioner, load_tower
from vistill.models.prefix import LanguageConfig, PrefixCaptioner, PrefixConfig
from vistill.models.pretrained import PretrainedCaptioner
from vistill.models.vision import VisionTower
from vistill.runtime.image import Preprocess
from vistill.train.run import provenance

if TYPE_CHECKING:
    from vistill.train.answer import AnswerTrainConfig
    from vistill.train.caption import TrainConfig

Sized = TypeVar("Sized", DecoderConfig, LanguageConfig)


def with_language(prefix: PrefixConfig, source: str) -> tuple[PrefixCaptioner, Tokenizer]:
    """A prefix captioner around the language model of a folder or hub name, and its tokenizer.

    Raises ConfigError if there is no such model.
    """
    language, tokenizer, blocked = load_language(source, prefix.decoder.bits)
    decoder = dataclasses.replace(prefix.decoder, blocked=blocked)
    if decoder.named or decoder.bits:
        place = str(Path(source).resolve()) if Path(source).is_dir() else source
        decoder = dataclasses.replace(decoder, source=place, weights=source_hash(place))
    start = dataclasses.replace(prefix, decoder=decoder)
    return PrefixCaptioner(start, pretrained=True, language=language), tokenizer


def from_nothing(
    model: CaptionerConfig, prefix: PrefixConfig | None, tokenizer: Tokenizer
) -> Captioner | PrefixCaptioner:
    """A new captioner, or prefix captioner if there are settings of one, for this vocabulary.

    Raises ConfigError if the settings name a smaller vocabulary.
    """
    if prefix is not None:
        start = dataclasses.replace(prefix, decoder=_sized(prefix.decoder, tokenizer))
        return PrefixCaptioner(start, pretrained=True)
    plain = dataclasses.replace(model, decoder=_sized(model.decoder, tokenizer))
    return Captioner(plain, pretrained=True)


def with_layers(model: AnyCaptioner, layers: int) -> AnyCaptioner:
    """A captioner whose decoder has so many of the layers of `model`'s, evenly spread (`models.inherit`).

    All else is the same. Raises ConfigError if it has fewer, or if its language model does not learn as a
    whole: what is missing would have to be learnt by the rest.
    """
    smaller: AnyCaptioner
    if isinstance(model, Captioner):
        decoder = dataclasses.replace(model.config.decoder, layers=layers)
        smaller = Captioner(dataclasses.replace(model.config, decoder=decoder))
    elif isinstance(model, PrefixCaptioner):
        if model.config.decoder.tune != "full":
            raise ConfigError(
                f"keep_layers={layers}: the language model does not learn as a whole "
                f"(decoder.tune={model.config.decoder.tune}); set tune to full, or keep_layers to 0"
            )
        settings = copy.deepcopy(model.decoder.language.config)
        settings.num_hidden_layers = layers
        smaller = PrefixCaptioner(model.config, language=type(model.decoder.language)(settings))
    else:
        whole, images, words = model.beside
        settings = copy.deepcopy(whole.config)
        text = settings.text_config if hasattr(settings, "text_config") else settings.decoder
        text.num_hidden_layers = layers
        other = type(whole)(settings)
        other.generation_config = whole.generation_config
        smaller = PretrainedCaptioner(other, images, words)
    smaller.load_state_dict(inherit(model.state_dict(), smaller.state_dict()))
    return smaller


def with_tower(model: AnyCaptioner, folder: str) -> Preprocess:
    """Give a model the tower of another checkpoint; returns how pictures are prepared for it.

    Raises ConfigError if its features have not the shape [B, N, D] that the model reads.
    """
    if isinstance(model, PretrainedCaptioner):
        raise ConfigError("tower_from: a public captioner keeps its own tower")
    tower, vision, preprocess = load_tower(folder)
    reads = _features(model.tower, model.config.vision.image_size)
    gives = _features(tower, vision.image_size)
    if reads != gives:
        raise ConfigError(
            f"tower_from={folder}: gives features of {gives} (patches, width), the model reads {reads}; set "
            f"model.vision.name={vision.name} model.vision.image_size={vision.image_size}, or take another"
        )
    model.tower = tower
    changes: Any = {"vision": vision}
    model.config = dataclasses.replace(model.config, **changes)
    return preprocess


def text_provenance(
    config: "TrainConfig | AnswerTrainConfig", model: Any, taught: TeacherCache | None = None, **reached: Any
) -> dict[str, Any]:
    """`provenance` with the settings of the model that `init_from` or `language` brought.

    Adds the losses it learns by, and who taught it.
    """
    brought = {"prefix": model} if isinstance(model, PrefixConfig) else {"model": model, "prefix": None}
    found = provenance(config, language=Path(config.language).name, **brought, **reached)
    found["losses"] = {name: weight for name, weight in config.objective.weights().items() if weight}
    if taught is not None:
        found["teacher"] = {**dataclasses.asdict(taught.teacher), "ask": taught.manifest["ask"]}
    return found


@torch.no_grad()
def _features(tower: VisionTower, size: int) -> tuple[int, int]:
    return tuple(tower.eval()(torch.zeros(1, 3, size, size)).shape[1:])


def _sized(decoder: Sized, tokenizer: Tokenizer) -> Sized:
    """`decoder` with the tokenizer's vocabulary, unless it names a larger one. Raises ConfigError."""
    size = decoder.vocab_size or tokenizer.get_vocab_size()
    if size < tokenizer.get_vocab_size():
        raise ConfigError(
            f"model.decoder.vocab_size={size}: the tokenizer has {tokenizer.get_vocab_size()} entries"
        )
    return dataclasses.replace(decoder, vocab_size=size)
