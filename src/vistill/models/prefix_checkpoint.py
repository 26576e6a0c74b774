"""A prefix captioner as one folder.

config.json         format, kind `prefix-captioner` or `prefix-answerer`, settings, preprocessing, provenance
model.safetensors   tower, mapper and LoRA
tokenizer.json      ids 0 to 3 are `<pad> <bos> <eos> <unk>`
language/           the language model as `transformers` saves it, without LoRA; `from_pretrained` opens it

With `decoder.named` there is no `language/`: `decoder.source` and `decoder.weights` in config.json say which
language model it was, and its files are checked when it is loaded.
"""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from vistill.errors import BundleError, ConfigError
from vistill.files import replacing
from vistill.models.adopt import load_language, require_all_weights, source_hash
from vistill.models.folder import read_config, write_config
from vistill.models.lora import Lora, LoraConfig
from vistill.models.prefix import LanguageConfig, PrefixCaptioner, PrefixConfig, PrefixMapperConfig
from vistill.models.torchvision_repair import repair_torchvision
from vistill.models.vision import VisionConfig
from vistill.runtime.image import Preprocess
from vistill.runtime.prompts import ask_mark

KIND = "prefix-captioner"
ANSWERER = "prefix-answerer"  # the same, with the mark `<ask>` in its tokenizer
LANGUAGE = "language"


def save_prefix_captioner(
    folder: Path,
    model: PrefixCaptioner,
    tokenizer: Tokenizer,
    provenance: dict[str, Any],
    kind: str = KIND,
) -> None:
    """Write the folder; it appears at once under its name, replacing an older one.

    Raises ConfigError for an answerer without the mark `<ask>`.
    """
    if kind == ANSWERER:
        ask_mark(tokenizer)
    with replacing(folder) as temporary:
        write_config(temporary, kind, model.config, provenance)
        save_file(
            {name: t.detach().cpu().contiguous() for name, t in _own_weights(model).items()},
            temporary / "model.safetensors",
        )
        tokenizer.save(str(temporary / "tokenizer.json"))
        if not model.config.decoder.source:
            language = model.decoder.language
            language.save_pretrained(temporary / LANGUAGE, state_dict=_without_lora(language))


def load_prefix_captioner(
    folder: Path | str, kind: str = KIND
) -> tuple[PrefixCaptioner, Tokenizer, PrefixConfig, Preprocess]:
    """Read the folder of this kind; the model comes in evaluation mode on the CPU.

    Raises BundleError, naming the file, if something is missing, broken or of another format.
    """
    folder = Path(folder)
    raw = read_config(folder, kind)
    try:
        config = _config(raw["model"])
        preprocess = Preprocess.from_dict(raw["preprocess"])
    except (KeyError, TypeError, ConfigError) as error:
        raise BundleError(f"{folder / 'config.json'}: {error!r} does not describe a {kind}") from error
    named = bool(config.decoder.source)
    for name in ("model.safetensors", "tokenizer.json", *([] if named else [f"{LANGUAGE}/config.json"])):
        if not (folder / name).is_file():
            raise BundleError(f"{folder / name} is missing: the checkpoint is incomplete")
    language = _load_named(config.decoder, folder) if named else _load_language(folder / LANGUAGE)
    model = PrefixCaptioner(config, language=language)
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
    decoder["lora"] = LoraConfig(**decoder.get("lora", {}))
    return PrefixConfig(
        VisionConfig(**raw["vision"]), PrefixMapperConfig(**raw["mapper"]), LanguageConfig(**decoder)
    )


def _load_named(config: LanguageConfig, folder: Path) -> Any:
    """The language model that a checkpoint names. BundleError if its files are not those of then."""
    language, _, _ = load_language(config.source, config.bits)
    if source_hash(config.source) != config.weights:
        raise BundleError(
            f"{folder} was trained with the language model {config.source!r}, whose files have changed since"
        )
    return language


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
    """Everything but the language model as it came, which has a place of its own."""
    before = "decoder.language."
    lora = tuple(
        f"{before}{name}.{part}." for name in _loras(model.decoder.language) for part in ("down", "up")
    )
    state = model.state_dict()
    return {name: t for name, t in state.items() if not name.startswith(before) or name.startswith(lora)}


def _without_lora(language: Any) -> dict[str, torch.Tensor]:
    """The state dict of a language model under the names that it has without LoRA."""
    state: dict[str, torch.Tensor] = language.state_dict()
    for name in _loras(language):
        for inner in [key for key in state if key.startswith(f"{name}.")]:
            tensor = state.pop(inner)
            if inner.startswith(f"{name}.base."):
                state[name + inner.removeprefix(f"{name}.base")] = tensor
    return state


def _loras(language: Any) -> list[str]:
    return [name for name, module in language.named_modules() if isinstance(module, Lora)]
