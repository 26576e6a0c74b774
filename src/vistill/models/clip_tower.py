"""The picture tower of a CLIP in `transformers`' format, cut into stages like timm's towers.

What a checkpoint has to know of it is `VisionConfig.clip`: the sizes of the network and CLIP's own
preprocessing. It is read from the folder or hub name once; a saved checkpoint never looks there again.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from vistill.errors import ConfigError
from vistill.models.adopt import require_all_weights
from vistill.models.torchvision_repair import repair_torchvision
from vistill.models.vision import Stage, VisionConfig
from vistill.runtime.image import Preprocess

RESAMPLING = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}  # Pillow's numbers


def described(config: VisionConfig) -> VisionConfig:
    """`config` with what its CLIP is like, so that it can be built without its folder; others as they are.

    A local folder's name is cut to its last part. Raises ConfigError if there is no such CLIP, or if
    `image_size` is not that of its pictures.
    """
    if config.weights != "clip":
        return config
    clip = config.clip or _read(config.name)
    size = clip["network"]["image_size"]
    if size != config.image_size:
        raise ConfigError(
            f"model.vision.image_size={config.image_size}: {config.name} reads pictures of {size} pixels, "
            f"set it to {size}"
        )
    name = Path(config.name).name if Path(config.name).is_dir() else config.name
    return replace(config, clip=clip, name=name)


def clip_preprocess(config: VisionConfig) -> Preprocess:
    """CLIP's own preprocessing, as its folder states it; only `resize` may be set to something else."""
    config = described(config)
    clip = config.clip
    resize = clip["resize"] if config.resize == "auto" else config.resize
    size = (config.image_size, config.image_size)
    return Preprocess(size, tuple(clip["mean"]), tuple(clip["std"]), resize, clip["interpolation"])


def make_clip(config: VisionConfig, *, pretrained: bool) -> Any:
    """`CLIPVisionModelWithProjection` with the weights of its folder or hub name, or with random ones.

    No code from the folder or the hub is run. Raises ConfigError if it has no such weights.
    """
    repair_torchvision()
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    if not pretrained:
        network: Any = CLIPVisionConfig(**described(config).clip["network"])
        return CLIPVisionModelWithProjection(network)
    described(config)  # whose errors name the setting
    try:
        loaded: Any = CLIPVisionModelWithProjection.from_pretrained(
            config.name, dtype=torch.float32, trust_remote_code=False, output_loading_info=True
        )
        net, info = loaded
        require_all_weights(info, config.name)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ConfigError(f"model.vision.name={config.name!r}: {str(error).splitlines()[0][:300]}") from error
    return net


def clip_stages(net: Any, *, projected: bool) -> tuple[list[Stage], int]:
    """(stages, width of what the last one gives): [B, N, D], class token first, after the last norm.

    With `projected` the last stage gives the embedding that CLIP compares with texts, [B, 1, E].
    """
    model = net.vision_model

    def embed(pixels: Tensor) -> Tensor:
        tokens: Tensor = model.pre_layrnorm(model.embeddings(pixels))
        return tokens

    def project(tokens: Tensor) -> Tensor:
        embedding: Tensor = net.visual_projection(tokens[:, :1])
        return embedding

    def run_of(layer: nn.Module) -> Any:
        return lambda tokens: layer(tokens, attention_mask=None)

    layers = [Stage(f"layers.{i}", (layer,), run_of(layer)) for i, layer in enumerate(model.encoder.layers)]
    stages = [
        Stage("embeddings", (model.embeddings, model.pre_layrnorm), embed),
        *layers,
        Stage("norm", (model.post_layernorm,), model.post_layernorm),
    ]
    if not projected:
        net.visual_projection = nn.Identity()  # no weight that nothing runs through
        return stages, int(net.config.hidden_size)
    return [*stages, Stage("projection", (net.visual_projection,), project)], int(net.config.projection_dim)


def resize_of(images: dict[str, Any]) -> tuple[str, int]:
    """(`crop` or `squash`, side in pixels) of an image processor; ConfigError for anything else."""
    size, cut = images["size"], images.get("crop_size") or {}
    cropped = images.get("do_center_crop", False)
    if not all(images.get(name, True) for name in ("do_resize", "do_rescale", "do_normalize")):
        raise ConfigError("its image processor leaves out resizing, rescaling or normalisation")
    if not cropped and size.get("height") is not None and size["height"] == size.get("width"):
        return "squash", int(size["height"])
    edge = size.get("shortest_edge")
    if cropped and edge is not None and edge == cut.get("height") == cut.get("width"):
        return "crop", int(edge)
    raise ConfigError(f"its image processor resizes to {size} and crops to {cut}; that is not supported")


def _read(source: str) -> dict[str, Any]:
    """Sizes and preprocessing of a CLIP folder or hub name, as JSON values. Raises ConfigError."""
    repair_torchvision()
    from transformers import AutoConfig, AutoImageProcessor, CLIPVisionConfig

    try:
        found: Any = AutoConfig.from_pretrained(source, trust_remote_code=False)
        if found.model_type not in ("clip", "clip_vision_model"):
            raise ConfigError(f"a {found.model_type} model is no CLIP")
        whole = found.model_type == "clip"
        tower = found.vision_config if whole else found
        images: Any = AutoImageProcessor.from_pretrained(source, backend="pil", trust_remote_code=False)
        settings = images.to_dict()
        resize, size = resize_of(settings)
        if size != tower.image_size:
            raise ConfigError(f"its pictures are made {size} wide, its tower wants {tower.image_size}")
    except (OSError, ValueError, KeyError, ConfigError) as error:
        raise ConfigError(f"model.vision.name={source!r}: {str(error).splitlines()[0][:300]}") from error
    plain = CLIPVisionConfig().to_dict()
    network = {k: v for k, v in tower.to_dict().items() if k in plain and isinstance(v, int | float | str)}
    network["projection_dim"] = found.projection_dim
    for name in ("model_type", "transformers_version", "_name_or_path", "dtype"):
        network.pop(name, None)
    return {
        "network": network,
        "mean": list(settings["image_mean"]),
        "std": list(settings["image_std"]),
        "resize": resize,
        "interpolation": RESAMPLING[int(settings.get("resample", 3))],
    }
