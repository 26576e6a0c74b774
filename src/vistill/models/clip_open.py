"""A CLIP of ours as open_clip opens it: its weights under open_clip's names, its sizes in open_clip's words.

save_open_clip(Path("student-open-clip"), load_clip("student")[0])
model, preprocess = open_clip.create_model_from_pretrained("local-dir:student-open-clip")
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from vistill.errors import ConfigError
from vistill.files import replacing
from vistill.models.clip import ClipDual, unshared_state


def save_open_clip(folder: Path, model: ClipDual) -> None:
    """Write open_clip_config.json and open_clip_model.safetensors; the folder appears at once.

    Raises ConfigError if the end mark is not the largest id, where open_clip looks for it.
    """
    with replacing(folder) as temporary:
        (temporary / "open_clip_config.json").write_text(json.dumps(open_clip_config(model), indent=2) + "\n")
        save_file(open_clip_state(model), temporary / "open_clip_model.safetensors")


def open_clip_config(model: ClipDual) -> dict[str, Any]:
    """What open_clip_config.json holds. Raises ConfigError as `save_open_clip`."""
    config, text = model.config, model.model.config.text_config
    if text.eos_token_id not in (2, config.vocab_size - 1):
        raise ConfigError(
            f"open_clip takes the largest id for the end mark, here it is {text.eos_token_id} of "
            f"{config.vocab_size} entries"
        )
    return {
        "model_cfg": {
            "embed_dim": config.width,
            "quick_gelu": config.activation == "quick_gelu",
            "vision_cfg": {
                "image_size": config.image_size,
                "patch_size": config.patch,
                "width": config.image_width,
                "layers": config.image_layers * config.image_repeat,
                "head_width": config.image_width // config.image_heads,
                "mlp_ratio": (config.image_hidden or 4 * config.image_width) / config.image_width,
            },
            "text_cfg": {
                "context_length": config.context,
                "vocab_size": config.vocab_size,
                "width": config.text_width,
                "heads": config.text_heads,
                "layers": config.text_layers * config.text_repeat,
                "mlp_ratio": (config.text_hidden or 4 * config.text_width) / config.text_width,
            },
        },
        "preprocess_cfg": {
            "size": config.image_size,
            "mean": list(config.mean),
            "std": list(config.std),
            "interpolation": config.interpolation,
            "resize_mode": {"crop": "shortest", "squash": "squash"}[config.resize],
        },
    }


def open_clip_state(model: ClipDual) -> dict[str, Tensor]:
    """Weights under the names of `open_clip.CLIP`."""
    state = unshared_state(model.model)
    image, text = "vision_model.", "text_model."
    out = {
        "logit_scale": state["logit_scale"],
        "visual.class_embedding": state[f"{image}embeddings.class_embedding"],
        "visual.conv1.weight": state[f"{image}embeddings.patch_embedding.weight"],
        "visual.positional_embedding": state[f"{image}embeddings.position_embedding.weight"],
        "visual.proj": state["visual_projection.weight"].T.contiguous(),
        "token_embedding.weight": state[f"{text}embeddings.token_embedding.weight"],
        "positional_embedding": state[f"{text}embeddings.position_embedding.weight"],
        "text_projection": state["text_projection.weight"].T.contiguous(),
    }
    for part in ("weight", "bias"):
        out[f"visual.ln_pre.{part}"] = state[f"{image}pre_layrnorm.{part}"]  # so spelt there
        out[f"visual.ln_post.{part}"] = state[f"{image}post_layernorm.{part}"]
        out[f"ln_final.{part}"] = state[f"{text}final_layer_norm.{part}"]
    towers = model.model.config
    for ours, theirs, depth in (
        (image, "visual.", towers.vision_config.num_hidden_layers),
        (text, "", towers.text_config.num_hidden_layers),
    ):
        for i in range(depth):
            layer = _layer(state, f"{ours}encoder.layers.{i}.")
            out |= {f"{theirs}transformer.resblocks.{i}.{name}": value for name, value in layer.items()}
    return out


def _layer(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """One layer under open_clip's names; its queries, keys and values are one matrix."""
    names = {"ln_1": "layer_norm1", "ln_2": "layer_norm2", "attn.out_proj": "self_attn.out_proj",
             "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}  # fmt: skip
    out = {}
    for part in ("weight", "bias"):
        for theirs, ours in names.items():
            out[f"{theirs}.{part}"] = state[f"{prefix}{ours}.{part}"]
        qkv = [state[f"{prefix}self_attn.{name}_proj.{part}"] for name in "qkv"]
        out[f"attn.in_proj_{part}"] = torch.cat(qkv)
    return out
