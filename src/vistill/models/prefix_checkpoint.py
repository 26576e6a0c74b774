"""A prefix captioner as one folder.

config.json         format, kind `prefix-captioner`, settings, preprocessing, provenance
model.safetensors   tower and mapper
tokenizer.json      ids 0 to 3 are `<pad> <bos> <eos> <unk>`
language/           the language model as `transformers` saves it; `from_pretrained` opens it on its own
"""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from vistill.errors import BundleError, ConfigError
from vistill.files import replacing
from vistill.models.adopt import require_all_weights
from vistill.models.folder import read_config, write_config
from vistill.models.prefix import LanguageConfig, PrefixCaptioner, PrefixConfig, PrefixMapperConfig
from vistill.models.torchvision_repair import repair_torchvision
from vistill.models.vision import VisionConfig
from vistill.runtime.image import Preprocess

KIND = "prefix-captioner"
LANGUAGE = "language"


def save_prefix_captioner(
    folder: Path, model: PrefixCaptioner, tokenizer: Tokenizer, provenance: dict[str, Any]
) -> None:
    """Write the folder; it appears at once under its name, replacing an older one."""
    with replacing(folder) as temporary:
        write_config(temporary, KIND, model.config, provenance)
        save_file(
            {name: t.detach().cpu().contiguous() for name, t in _own_weights(model).items()},
            temporary / "model.safetensors",
        )
        tokenizer.save(str(temporary / "tokenizer.json"))
        model.decoder.language.save_pretrained(temporary / LANGUAGE)


def load_prefix_captioner(folder: Path | str) -> tuple[PrefixCaptioner, Tokenizer, PrefixConfig, Preprocess]:
    """Read the folder; the model comes in evaluation mode on the CPU.

    Raises BundleError, naming the file, if something is missing, broken or of another format.
    """
    folder = Path(folder)
    raw = read_config(folder, KIND)
    try:
        config = _config(raw["model"])
        preprocess = Preprocess.from_dict(raw["preprocess"])
    except (KeyError, TypeError, ConfigError) as error:
        raise BundleError(f"{folder / 'config.json'}: {error!r} does not describe a {KIND}") from error
    for name in ("model.safetensors", "tokenizer.json", f"{LANGUAGE}/config.json"):
        if not (folder / name).is_file():
            raise BundleError(f"{folder / name} is missing: the checkpoint is incomplete")
    model = PrefixCaptioner(config, language=_load_language(folder / LANGUAGE))
    weights = folder / "model.safetensors"
    try:
        state = load_file(weights)
    except SafetensorError as error:
        raise BundleError(f"{weights} does not fit its config.json: {error}") from error
    own = _own_weights(model)
    wrong = sorted(
        name
        for name in {*own, *state}
        if name not in own or name not in state or own[name].shape != state[name].shape
    )
    if wrong:
        raise BundleError(f"{weights} does not fit its config.json: {', '.join(wrong[:3])}")
    model.load_state_dict(state, strict=False)
    return model.eval(), Tokenizer.from_file(str(folder / "tokenizer.json")), model.config, preprocess


def _config(raw: dict[str, Any]) -> PrefixConfig:
    decoder = {**raw["decoder"], "blocked": tuple(raw["decoder"]["blocked"])}
    return PrefixConfig(
        VisionConfig(**raw["vision"]), PrefixMapperConfig(**raw["mapper"]), LanguageConfig(**decoder)
    )


def _load_language(folder: Path) -> Any:
    repair_torchvision()
    from transformers import AutoModelForCausalLM

    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=torch.float32,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
        )
        language, info = loaded
        require_all_weights(info, str(folder))
    except (OSError, ValueError, SafetensorError, ConfigError) as error:
        raise BundleError(f"{folder} holds no language model that can be read: {error}") from error
    return language


def _own_weights(model: PrefixCaptioner) -> dict[str, torch.Tensor]:
    """Everything but the language model, whose folder holds it."""
    return {name: t for name, t in model.state_dict().items() if not name.startswith("decoder.language.")}
