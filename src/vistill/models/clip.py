"""CLIP (Radford et al., arXiv 2103.00020) as a teacher, a student or a model to use: `transformers`' network.

`ClipDual` answers to the calls of `models.dual.DualEncoder`. Its folder is one of `transformers`
(`CLIPModel.from_pretrained`, `CLIPProcessor.from_pretrained`), with `vistill.json` beside that says where it
comes from; `models.clip_open` writes it for open_clip. Tokens are CLIP's own ids: begin mark, text, end mark.
Attention looks back only and the vector is taken at the end mark: what stands after it does not matter.
"""

import dataclasses
import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from tokenizers import Tokenizer
from torch import Tensor, nn

from vistill.errors import BundleError, ConfigError
from vistill.files import replacing
from vistill.models.adopt import require_all_weights
from vistill.models.clip_bpe import read_merges, tokenizer_of_merges
from vistill.models.clip_tower import RESAMPLING, resize_of
from vistill.models.dual import FIRST_SCALE, LARGEST_SCALE
from vistill.models.folder import FORMAT, SIDE
from vistill.models.torchvision_repair import repair_torchvision
from vistill.runtime.image import Preprocess
from vistill.runtime.texts import text_marks

KIND = "clip"
MEAN = (0.48145466, 0.4578275, 0.40821073)  # of CLIP's training pictures
STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class ClipConfig:
    """Sizes of both towers: by default students of CLIP ViT-B/32."""

    image_size: int = 224
    """Side of a picture in pixels."""
    patch: int = 32
    """Side of a patch in pixels."""
    image_width: int = 576
    """Width of the picture tower."""
    image_layers: int = 6
    """Layers of the picture tower with weights of their own."""
    image_heads: int = 24
    """Attention heads of each."""
    image_hidden: int = 0
    """Width inside its feed-forward; 0: four times its width."""
    context: int = 77
    """Longest text in tokens, with the marks."""
    vocab_size: int = 49408
    """Entries of the vocabulary; the last two are the begin and the end mark."""
    text_width: int = 128
    """Width of the text tower."""
    text_layers: int = 6
    """Layers of the text tower with weights of their own."""
    text_heads: int = 8
    """Attention heads of each."""
    text_hidden: int = 0
    """Width inside its feed-forward; 0: four times its width."""
    width: int = 512
    """Width of the embedding, the teacher's: 512 of ViT-B, 768 of ViT-L/14."""
    activation: str = "quick_gelu"
    """`quick_gelu` (OpenAI's weights) or `gelu` (most others)."""
    image_repeat: int = 1
    """How often each layer of the picture tower runs in a row: the depth is layers x repeat."""
    text_repeat: int = 1
    """The same of the text tower."""
    resize: str = "crop"
    """`crop` keeps the aspect and cuts the sides, as CLIP was trained; `squash` keeps the full frame."""
    interpolation: str = "bicubic"
    """How pictures are resized."""
    mean: tuple[float, float, float] = MEAN
    """Of red, green, blue on the 0..1 scale."""
    std: tuple[float, float, float] = STD
    """The same."""

    def __post_init__(self) -> None:
        for name in ("image_width", "image_layers", "image_heads", "text_width", "text_layers", "text_heads",
                     "image_repeat", "text_repeat", "patch", "width"):  # fmt: skip
            if getattr(self, name) < 1:
                raise ConfigError(f"model.{name}={getattr(self, name)}: must be at least 1")
        for side in ("image", "text"):
            width, heads = getattr(self, f"{side}_width"), getattr(self, f"{side}_heads")
            if width % heads:
                raise ConfigError(f"model.{side}_width={width} is not a multiple of {side}_heads={heads}")
        if self.image_size < self.patch:
            raise ConfigError(f"model.image_size={self.image_size}: smaller than patch={self.patch}")
        if self.context < 2 or self.vocab_size < 3:
            raise ConfigError("model: context must be at least 2, vocab_size at least 3 with both marks")
        if self.activation not in ("quick_gelu", "gelu"):
            raise ConfigError(f"model.activation={self.activation!r}: use quick_gelu or gelu")
        if self.resize not in ("crop", "squash"):
            raise ConfigError(f"model.resize={self.resize!r}: CLIP's format knows crop and squash")
        self.preprocess()

    def preprocess(self) -> Preprocess:
        """How a picture becomes the array that the model reads."""
        size = (self.image_size, self.image_size)
        return Preprocess(size, self.mean, self.std, self.resize, self.interpolation)


class ClipDual(nn.Module):
    """`transformers.CLIPModel` under the calls of `DualEncoder`; `model`: a loaded one of that config."""

    def __init__(self, config: ClipConfig, model: Any = None) -> None:
        super().__init__()
        self.config = config
        self.model = _new_model(config) if model is None else model
        share_layers(self.model.vision_model.encoder.layers, config.image_repeat)
        share_layers(self.model.text_model.encoder.layers, config.text_repeat)

    @property
    def context(self) -> int:
        """Longest text in tokens."""
        return self.config.context

    @property
    def logit_scale(self) -> nn.Parameter:
        """Logarithm of what cosines are multiplied with."""
        parameter: nn.Parameter = self.model.logit_scale
        return parameter

    @property
    def image_side(self) -> tuple[nn.Module, ...]:
        """The modules that pictures go through."""
        return self.model.vision_model, self.model.visual_projection

    @property
    def text_side(self) -> tuple[nn.Module, ...]:
        """The modules that texts go through."""
        return self.model.text_model, self.model.text_projection

    def image_states(self, pixels: Tensor) -> Tensor:
        """pixels [B, 3, H, W] -> last hidden states [B, N, D] before the last norm, class token first."""
        states: Tensor = self.model.vision_model(pixel_values=pixels).last_hidden_state
        return states

    def text_states(self, tokens: Tensor) -> Tensor:
        """tokens int64 [B, T] -> last hidden states [B, T, D] after the last norm."""
        states: Tensor = self.model.text_model(input_ids=tokens).last_hidden_state
        return states

    def image_embeds(self, pixels: Tensor) -> Tensor:
        """pixels [B, 3, H, W] -> [B, E], projected but of any length."""
        pooled = self.model.vision_model(pixel_values=pixels).pooler_output
        embeds: Tensor = self.model.visual_projection(pooled)
        return embeds

    def text_embeds(self, tokens: Tensor) -> Tensor:
        """tokens int64 [B, T], each row with its end mark -> [B, E], projected but of any length."""
        pooled = self.model.text_model(input_ids=tokens).pooler_output
        embeds: Tensor = self.model.text_projection(pooled)
        return embeds

    def encode_image(self, pixels: Tensor, start: int = 0) -> Tensor:
        """pixels [B, 3, H, W] -> [B, E], unit norm. The tower is not cut into stages: start is 0."""
        if start:
            raise ConfigError(f"start={start}: a CLIP tower is not cut into stages, features cannot be kept")
        return F.normalize(self.image_embeds(pixels), dim=-1)

    def encode_text(self, tokens: Tensor) -> Tensor:
        """tokens int64 [B, T], anything after the end mark -> [B, E], unit norm."""
        return F.normalize(self.text_embeds(tokens), dim=-1)

    def scale(self) -> Tensor:
        """What cosines are multiplied with to be logits: exp(logit_scale), at most 100."""
        return self.logit_scale.exp().clamp(max=LARGEST_SCALE)

    def forward(self, pixels: Tensor, tokens: Tensor, start: int = 0) -> tuple[Tensor, Tensor]:
        """Both sides at once: ([B, E], [B, E])."""
        return self.encode_image(pixels, start), self.encode_text(tokens)


def share_layers(layers: nn.ModuleList, repeat: int) -> None:
    """Make each run of `repeat` layers one layer that runs so often; the first's weights stay."""
    for i in range(len(layers)):
        layers[i] = layers[i - i % repeat]


def unshared_state(model: nn.Module) -> dict[str, Tensor]:
    """The state dict with a copy of a shared weight under each of its names: a plain, deeper network."""
    return {name: value.detach().cpu().clone().contiguous() for name, value in model.state_dict().items()}


def clip_tokenizer(source: str | None = None) -> Tokenizer:
    """CLIP's byte-level BPE: that of a CLIP folder or hub name, else from the merges in open_clip's wheel.

    49,408 entries; 49406 and 49407 are `<|startoftext|>` and `<|endoftext|>`. Raises ConfigError if neither
    is there.
    """
    if source is not None:
        return _load_tokenizer(source)
    found = importlib.util.find_spec("open_clip")  # looks for the package without running it
    if found is None or found.origin is None:
        raise ConfigError(
            "CLIP's vocabulary is not here: name a CLIP folder or hub name as its source, or get the wheel "
            "that carries it: pip install --no-deps open_clip_torch"
        )
    return tokenizer_of_merges(read_merges(Path(found.origin).with_name("bpe_simple_vocab_16e6.txt.gz")))


def save_clip(folder: Path, model: ClipDual, tokenizer: Tokenizer, provenance: dict[str, Any]) -> None:
    """Write a folder that `transformers` opens; it appears at once, replacing an older one.

    Layers that share weights are written out one by one. Raises ConfigError if the tokenizer's marks are not
    where the model looks for them.
    """
    repair_torchvision()
    from transformers import CLIPImageProcessor, CLIPProcessor, CLIPTokenizer

    config, text = model.config, model.model.config.text_config
    begin, end = text_marks(tokenizer)
    if end != _end_mark(text) or tokenizer.get_vocab_size() > config.vocab_size:
        raise ConfigError(
            f"the tokenizer ({tokenizer.get_vocab_size()} entries, end mark {end}) does not belong to the "
            f"model ({config.vocab_size} entries, end mark {_end_mark(text)})"
        )
    side = {"height": config.image_size, "width": config.image_size}
    crop = config.resize == "crop"
    images = CLIPImageProcessor(
        size={"shortest_edge": config.image_size} if crop else side,
        crop_size=side,
        do_center_crop=crop,
        image_mean=list(config.mean),
        image_std=list(config.std),
        resample={name: number for number, name in RESAMPLING.items()}[config.interpolation],
    )
    first, last = str(tokenizer.id_to_token(begin)), str(tokenizer.id_to_token(end))
    words = CLIPTokenizer(
        bos_token=first, eos_token=last, unk_token=last, pad_token=last, model_max_length=config.context
    )
    about = {"format": FORMAT, "kind": KIND, "model": dataclasses.asdict(config), "provenance": provenance}
    with replacing(folder) as temporary:
        model.model.save_pretrained(temporary, state_dict=unshared_state(model.model))
        CLIPProcessor(images, words).save_pretrained(temporary)
        images.save_pretrained(temporary)  # preprocessor_config.json, which older versions look for
        tokenizer.save(str(temporary / "tokenizer.json"))  # ours, in place of the empty one
        (temporary / SIDE).write_text(json.dumps(about, indent=2) + "\n")


def load_clip(source: Path | str) -> tuple[ClipDual, Tokenizer, Preprocess]:
    """A CLIPModel of a local folder or hub name, in evaluation mode on the CPU, float32.

    No code from the folder or the hub is run. Raises BundleError if there is no such model, weights are
    missing in it, or its preprocessing is not one that `Preprocess` describes.
    """
    repair_torchvision()
    from transformers import AutoConfig, AutoImageProcessor, CLIPModel

    place = str(source)
    try:
        found: Any = AutoConfig.from_pretrained(place, trust_remote_code=False)
        if found.model_type != KIND:
            raise ConfigError(f"a {found.model_type} model is no CLIP")
        loaded: Any = CLIPModel.from_pretrained(
            place, dtype=torch.float32, trust_remote_code=False, output_loading_info=True
        )
        model, info = loaded
        require_all_weights(info, place)
        images: Any = AutoImageProcessor.from_pretrained(place, backend="pil", trust_remote_code=False)
        config = _config_of(model.config, images.to_dict(), _repeats(Path(place)))
        tokenizer = _load_tokenizer(place)
        if _end_mark(model.config.text_config) != text_marks(tokenizer)[1]:
            raise ConfigError("its tokenizer's end mark is not the one that the model looks for")
    except (OSError, ValueError, TypeError, RuntimeError, KeyError, SafetensorError, ConfigError) as error:
        text = str(error).strip() or repr(error)
        raise BundleError(f"CLIP {place!r}: {text.splitlines()[0][:300]}") from error
    return ClipDual(config, model).eval(), tokenizer, config.preprocess()


def _new_model(config: ClipConfig) -> Any:
    """A CLIPModel with random weights, without shared layers yet."""
    repair_torchvision()
    from transformers import CLIPConfig, CLIPModel

    common = {"hidden_act": config.activation, "projection_dim": config.width}
    text = {
        **common,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.context,
        "hidden_size": config.text_width,
        "intermediate_size": config.text_hidden or 4 * config.text_width,
        "num_hidden_layers": config.text_layers * config.text_repeat,
        "num_attention_heads": config.text_heads,
        "bos_token_id": config.vocab_size - 2,
        "eos_token_id": config.vocab_size - 1,
        "pad_token_id": config.vocab_size - 1,
    }
    image = {
        **common,
        "image_size": config.image_size,
        "patch_size": config.patch,
        "hidden_size": config.image_width,
        "intermediate_size": config.image_hidden or 4 * config.image_width,
        "num_hidden_layers": config.image_layers * config.image_repeat,
        "num_attention_heads": config.image_heads,
    }
    return CLIPModel(
        CLIPConfig(
            text_config=text,
            vision_config=image,
            projection_dim=config.width,
            logit_scale_init_value=FIRST_SCALE,
        )
    )


def _config_of(model: Any, images: dict[str, Any], repeats: tuple[int, int]) -> ClipConfig:
    """ClipConfig of a CLIPConfig and of the settings of an image processor."""
    text, image = model.text_config, model.vision_config
    resize, size = resize_of(images)
    if size != image.image_size:
        raise ConfigError(f"its pictures are made {size} pixels wide, its model wants {image.image_size}")
    if text.hidden_act != image.hidden_act:
        raise ConfigError(f"its towers differ in activation: {image.hidden_act} and {text.hidden_act}")
    return ClipConfig(
        image_size=image.image_size,
        patch=image.patch_size,
        image_width=image.hidden_size,
        image_layers=image.num_hidden_layers // repeats[0],
        image_heads=image.num_attention_heads,
        image_hidden=_stated(image),
        context=text.max_position_embeddings,
        vocab_size=text.vocab_size,
        text_width=text.hidden_size,
        text_layers=text.num_hidden_layers // repeats[1],
        text_heads=text.num_attention_heads,
        text_hidden=_stated(text),
        width=model.projection_dim,
        activation=text.hidden_act,
        image_repeat=repeats[0],
        text_repeat=repeats[1],
        resize=resize,
        interpolation=RESAMPLING[int(images.get("resample", 3))],
        mean=tuple(images["image_mean"]),
        std=tuple(images["image_std"]),
    )


def _stated(tower: Any) -> int:
    """Width inside the feed-forward; 0 where it is four times the tower's."""
    return 0 if tower.intermediate_size == 4 * tower.hidden_size else int(tower.intermediate_size)


def _repeats(folder: Path) -> tuple[int, int]:
    """How often layers repeat, by vistill.json; 1 where there is none."""
    path = folder / SIDE
    if not path.is_file():
        return 1, 1
    model = json.loads(path.read_text("utf-8"))["model"]
    return int(model["image_repeat"]), int(model["text_repeat"])


def _load_tokenizer(source: str) -> Tokenizer:
    """The tokenizer of a CLIP folder or hub name, without padding and truncation. Raises ConfigError.

    A folder's tokenizer.json is taken as it stands: `transformers` would put its own normaliser in.
    """
    path = Path(source) / "tokenizer.json"
    if path.is_file():
        tokenizer = Tokenizer.from_file(str(path))
    else:
        repair_torchvision()
        from transformers import AutoTokenizer

        try:
            loaded: Any = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise ConfigError(f"tokenizer of {source!r}: {str(error).splitlines()[0][:300]}") from error
        tokenizer = Tokenizer.from_str(loaded.backend_tokenizer.to_str())
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def _end_mark(text: Any) -> int:
    """Where a text tower takes its vector. Old checkpoints say 2 and mean the largest id."""
    return text.vocab_size - 1 if text.eos_token_id == 2 else int(text.eos_token_id)
