"""A checkpoint folder: config.json, model.safetensors, tokenizer.json and, once scored, metrics.json.

A captioner and an answerer are the same network; the answerer's tokenizer has the mark `<ask>`.
"""

import hashlib
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer

from vistill.errors import BundleError, ConfigError
from vistill.files import replacing
from vistill.models.captioner import Captioner, CaptionerConfig
from vistill.models.folder import load_weights, read_config, write_config
from vistill.models.language import DecoderConfig
from vistill.models.mapper import MapperConfig
from vistill.models.vision import VisionConfig
from vistill.runtime.image import Preprocess
from vistill.runtime.prompts import ask_mark

KIND = "captioner"
ANSWERER = "answerer"


def save_captioner(folder: Path, model: Captioner, tokenizer: Tokenizer, provenance: dict[str, Any]) -> None:
    """Write a checkpoint folder; it appears at once under its name, replacing an older one.

    `provenance` says where the model comes from (data, settings, git revision) and is kept as it is.
    """
    _save(folder, KIND, model, tokenizer, provenance)


def save_answerer(folder: Path, model: Captioner, tokenizer: Tokenizer, provenance: dict[str, Any]) -> None:
    """As `save_captioner`, for a model that reads a question first. Raises ConfigError without `<ask>`."""
    ask_mark(tokenizer)
    _save(folder, ANSWERER, model, tokenizer, provenance)


def _save(
    folder: Path, kind: str, model: Captioner, tokenizer: Tokenizer, provenance: dict[str, Any]
) -> None:
    with replacing(folder) as temporary:
        write_config(temporary, kind, model.config, provenance)
        weights = {name: t.detach().cpu().contiguous() for name, t in model.state_dict().items()}
        save_file(weights, temporary / "model.safetensors")
        tokenizer.save(str(temporary / "tokenizer.json"))


Loaded = tuple[Captioner, Tokenizer, CaptionerConfig, Preprocess]


def load_captioner(folder: Path | str) -> Loaded:
    """Read a checkpoint folder; the model comes in evaluation mode on the CPU.

    Raises BundleError, naming the file, if something is missing, broken or of another format.
    """
    return _load(Path(folder), KIND)


def load_answerer(folder: Path | str) -> Loaded:
    """As `load_captioner`, for a model that reads a question first."""
    return _load(Path(folder), ANSWERER)


def _load(folder: Path, *kinds: str) -> Loaded:
    raw = read_config(folder, *kinds)
    try:
        config = config_from_dict(raw["model"])
        preprocess = Preprocess.from_dict(raw["preprocess"])
    except (KeyError, TypeError, ConfigError) as error:
        raise BundleError(f"{folder / 'config.json'}: {error!r} does not describe a {kinds[0]}") from error
    model = Captioner(config)
    load_weights(model, folder)
    tokenizer_file = folder / "tokenizer.json"
    if not tokenizer_file.is_file():
        raise BundleError(f"{tokenizer_file} is missing: the checkpoint is incomplete")
    return model.eval(), Tokenizer.from_file(str(tokenizer_file)), config, preprocess


def config_from_dict(raw: dict[str, Any]) -> CaptionerConfig:
    """CaptionerConfig from `dataclasses.asdict` of one; an unknown key raises TypeError."""
    return CaptionerConfig(
        vision=VisionConfig(**raw["vision"]),
        mapper=MapperConfig(**raw["mapper"]),
        decoder=DecoderConfig(**raw["decoder"]),
    )


def weights_hash(state: dict[str, torch.Tensor]) -> str:
    """sha256 over names, dtypes, shapes and values of a state dict, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
