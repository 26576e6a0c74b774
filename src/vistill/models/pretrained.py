"""Public captioners of `transformers` as models to train, use and export: VisionEncoderDecoder and BLIP.

    pixels -> tower (its encoder) -> mapper (its projection, if it has one) -> decoder (its language model)

The network inside is the one of `transformers`, untouched, so that what is saved is again a folder that its
`from_pretrained` opens. `PretrainedCaptioner` answers to the same calls as `models.captioner.Captioner`.

**Ids.** Outside, ids are vistill's: 0 to 3 are `<pad> <bos> <eos> <unk>` and what is token i of the model's
own tokenizer is i + 4. They are mapped at the door, no table grows: ids 0 to 3 go in as its own marks,
and of its logits the one of its end mark moves to `<eos>`. `<pad>`, `<bos>`, `<unk>` and the place where the
end mark stood are blocked, so the softmax over V + 4 ids is the model's own.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from tokenizers import Tokenizer
from torch import Tensor, nn

from vistill.errors import BundleError, ConfigError
from vistill.files import replacing
from vistill.models.adopt import OFFSET, HostedDecoder, require_all_weights, shift_tokenizer, to_rows
from vistill.models.clip_tower import RESAMPLING, resize_of
from vistill.models.folder import FORMAT, SIDE
from vistill.models.language import KeyValue
from vistill.models.tokens import EOS
from vistill.models.torchvision_repair import repair_torchvision
from vistill.models.vision import Stage, VisionTower
from vistill.runtime.image import Preprocess

KIND = "pretrained-captioner"
ARCHITECTURES = ("VisionEncoderDecoderModel", "BlipForConditionalGeneration")

_BLOCKED = -1e9  # as of what a caption never holds in `Captioner.step`
# Names of what reads the picture in a layer of a decoder, in the architectures of `transformers`.
_CROSS = ("crossattention", "ln_cross_attn", "encoder_attn", "encoder_attn_layer_norm")


@dataclass(frozen=True)
class PretrainedVision:
    """Its encoder."""

    name: str
    """Its `model_type`."""
    image_size: int
    """Side of its pictures in pixels."""


@dataclass(frozen=True)
class PretrainedText:
    """Its decoder."""

    name: str
    """Its `model_type`."""
    vocab_size: int
    """Entries of its vocabulary and the four marks."""
    context: int
    """Longest text in tokens, with the begin and end marks."""


@dataclass(frozen=True)
class PretrainedConfig:
    """What a public captioner is; read from it, not to be chosen."""

    architecture: str
    vision: PretrainedVision
    decoder: PretrainedText


@dataclass(frozen=True)
class Marks:
    """Own ids that begin, end and fill a text; several may end it."""

    begin: int
    ends: tuple[int, ...]
    pad: int


class PretrainedTower(VisionTower):
    """The encoder in stages: pixels [B, 3, H, W] -> states [B, N, D], a class token first if it has one."""

    def __init__(self, net: Any, width: int) -> None:
        nn.Module.__init__(self)  # the network is there already
        self.net = net
        self.stages = cut_encoder(net)
        self.width = width


class PretrainedMapper(nn.Module):
    """What stands between encoder and decoder: a projection, or nothing. [B, N, D_in] -> [B, N, D]."""

    def __init__(self, project: nn.Module, width: int, length: int) -> None:
        super().__init__()
        self.project = project
        self.width = width
        self.length = length

    def forward(self, features: Tensor) -> Tensor:
        out: Tensor = self.project(features)
        return out


class PretrainedDecoder(HostedDecoder):
    """A language model with cross-attention, with the calls of `models.language.Decoder`.

    Its tables are under its own ids.
    """

    own: Tensor

    def __init__(self, language: Any, marks: Marks, unknown: int) -> None:
        super().__init__(language)
        self.end = marks.ends[0]
        own = torch.tensor([marks.pad, marks.begin, self.end, unknown])
        self.register_buffer("own", own, persistent=False)  # [4], for ids 0 to 3

    @property
    def cross_attention(self) -> list[nn.Module]:
        """What reads the picture, with the norms of its own."""
        return [part for layer in self.layers for name, part in layer.named_children() if name in _CROSS]

    def cross_kv(self, memory: Tensor) -> list[KeyValue]:
        """memory [B, N, D] -> for each layer its (key, value) [B, h, N, d], which all captions share."""
        # They do not depend on the text: one token of it makes the model fill its cache.
        first = self.own[1].expand(memory.shape[0], 1)
        cache = _cache([], [])
        self.language(input_ids=first, encoder_hidden_states=memory, past_key_values=cache, use_cache=True)
        return [(layer.keys, layer.values) for layer in cache.cross_attention_cache.layers]

    def forward(self, tokens: Tensor, cross: list[KeyValue]) -> Tensor:
        """Teacher forcing: tokens [B, C, T] -> logits [B, C, T, V + 4]. Padding stands on the right."""
        logits, _ = self._run(tokens, cross, [])
        return logits

    def step(
        self, tokens: Tensor, cross: list[KeyValue], past: list[KeyValue]
    ) -> tuple[Tensor, list[KeyValue]]:
        """One position: tokens [B, C], past (key, value) [B, C, h, T, d] -> logits [B, C, V + 4] and past."""
        logits, present = self._run(tokens.unsqueeze(2), cross, past)
        return logits.squeeze(2), present

    def _run(
        self, tokens: Tensor, cross: list[KeyValue], past: list[KeyValue]
    ) -> tuple[Tensor, list[KeyValue]]:
        """tokens [B, C, T] after past (key, value) [B, C, h, S, d] -> logits [B, C, T, V + 4], new past."""
        b, c, t = tokens.shape
        ids = torch.where(tokens < OFFSET, self.own[tokens.clamp(max=OFFSET - 1)], tokens - OFFSET)
        cache = _cache(
            [(key.flatten(0, 1), value.flatten(0, 1)) for key, value in past],
            [(to_rows(key, c), to_rows(value, c)) for key, value in cross],
        )
        logits = self.language(
            input_ids=ids.reshape(b * c, t),
            # says that there is a picture, and of how many patches; what they are is in the cache
            encoder_hidden_states=cross[0][0].new_zeros(b * c, cross[0][0].shape[2], 1),
            past_key_values=cache,
            use_cache=True,
        ).logits.view(b, c, t, -1)
        never = torch.full_like(logits[..., :1], _BLOCKED)
        before, end, after = logits.split((self.end, 1, logits.shape[-1] - self.end - 1), dim=-1)
        marks = [end if i == EOS else never for i in range(OFFSET)]
        present = [
            (layer.keys.unflatten(0, (b, c)), layer.values.unflatten(0, (b, c)))
            for layer in cache.self_attention_cache.layers
        ]
        return torch.cat([*marks, before, never, after], dim=-1), present


class PretrainedCaptioner(nn.Module):
    """Pictures to captions. `start` counts the stages of the tower that the input has been through.

    `whole` is the model of `transformers`, of which tower, mapper and decoder are the parts. images, words:
    its image processor and tokenizer, which are saved with it.
    """

    word_bias: Tensor  # there is none: training refuses `objective.bag_of_words`

    def __init__(self, whole: Any, images: Any, words: Any) -> None:
        super().__init__()
        self.beside = (whole, images, words)  # a tuple: its modules are registered below, part by part
        blip = hasattr(whole, "text_decoder")
        net = whole.vision_model if blip else whole.encoder
        language = whole.text_decoder if blip else whole.decoder
        marks = marks_of(whole, words)
        if len(marks.ends) > 1:
            raise ConfigError(f"{len(marks.ends)} tokens end its texts, only one can")
        unknown = words.unk_token_id
        self.decoder = PretrainedDecoder(language, marks, marks.ends[0] if unknown is None else unknown)
        self.config = PretrainedConfig(
            type(whole).__name__,
            PretrainedVision(net.config.model_type, _side(net.config.image_size)),
            PretrainedText(
                language.config.model_type, self.decoder.embed.num_embeddings + OFFSET, _positions(language)
            ),
        )
        size = self.config.vision.image_size
        with torch.no_grad():
            states = net.eval()(pixel_values=torch.zeros(1, 3, size, size)).last_hidden_state
        self.tower: VisionTower = PretrainedTower(net, states.shape[2])
        project = getattr(whole, "enc_to_dec_proj", None)
        width = states.shape[2] if project is None else project.out_features
        self.mapper = PretrainedMapper(project or nn.Identity(), width, states.shape[1])

    def vision(self, pixels: Tensor, start: int = 0) -> Tensor:
        """pixels [B, 3, H, W] (or the output of `tower.trunk(pixels, start)`) -> memory [B, N, D]."""
        memory: Tensor = self.mapper(self.tower(pixels, start))
        return memory

    def forward(self, pixels: Tensor, tokens: Tensor, start: int = 0) -> Tensor:
        """pixels as for `vision`, tokens [B, C, T] -> logits [B, C, T, V + 4] of the token after each."""
        logits: Tensor = self.decoder(tokens, self.decoder.cross_kv(self.vision(pixels, start)))
        return logits

    def step(
        self, tokens: Tensor, cross: list[KeyValue], past: list[KeyValue]
    ) -> tuple[Tensor, list[KeyValue]]:
        """One decoding step, `PretrainedDecoder.step`."""
        return self.decoder.step(tokens, cross, past)


def cut_encoder(net: Any) -> list[Stage]:
    """Cut an encoder of `transformers` into embeddings and layers, the last one with the norm after it.

    ViT, DeiT, BLIP's and Swin; another one is a single stage.
    """
    kind = type(net).__name__
    if kind not in ("ViTModel", "DeiTModel", "BlipVisionModel", "SwinModel"):
        return [Stage("all", (net,), lambda pixels: net(pixel_values=pixels).last_hidden_state)]
    layers = next(list(module) for module in net.modules() if isinstance(module, nn.ModuleList))
    norm = net.post_layernorm if kind == "BlipVisionModel" else net.layernorm
    given: list[Sequence[Any]] = [()] * len(layers)  # to each layer besides the states
    if kind == "SwinModel":
        height, width = net.embeddings.patch_grid
        given = [((-(-height // 2**i), -(-width // 2**i)),) for i in range(len(layers))]

    def run_of(layer: nn.Module, more: Sequence[Any], last: bool) -> Any:
        def run(states: Tensor) -> Tensor:
            out = _first(layer(states, *more))
            normed: Tensor = norm(out) if last else out
            return normed

        return run

    return [
        Stage("embeddings", (net.embeddings,), lambda pixels: _first(net.embeddings(pixels))),
        *(
            Stage(f"layers.{i}", (layer, norm) if last else (layer,), run_of(layer, given[i], last))
            for i, layer in enumerate(layers)
            for last in [i == len(layers) - 1]
        ),
    ]


def marks_of(model: Any, tokenizer: Any) -> Marks:
    """The marks of a VisionEncoderDecoderModel or BLIP. Raises ConfigError if it does not name them."""
    if hasattr(model, "text_decoder"):  # BLIP's texts begin with [DEC] and end with [SEP]
        text = model.config.text_config
        begin, end, pad = text.bos_token_id, text.sep_token_id, text.pad_token_id
    else:
        settings, decoder = model.generation_config, model.config.decoder
        begin = first_set(
            settings.decoder_start_token_id,
            getattr(model.config, "decoder_start_token_id", None),
            decoder.bos_token_id,
            tokenizer.bos_token_id,
            tokenizer.cls_token_id,
        )
        end = first_set(
            settings.eos_token_id, decoder.eos_token_id, tokenizer.eos_token_id, tokenizer.sep_token_id
        )
        pad = first_set(
            settings.pad_token_id, getattr(model.config, "pad_token_id", None), tokenizer.pad_token_id
        )
    ends = tuple(end) if isinstance(end, list | tuple) else (end,)
    if begin is None or None in ends:
        raise ConfigError("its configuration names no token that begins or ends a text")
    return Marks(int(begin), tuple(int(e) for e in ends), int(ends[0] if pad is None else pad))


def load_pretrained_captioner(source: Path | str) -> tuple[PretrainedCaptioner, Tokenizer, Preprocess]:
    """A captioner of a local folder or hub name, in evaluation mode on the CPU, float32.

    No code from the folder or the hub is run. Raises BundleError if there is no such model, weights are
    missing in it, or its preprocessing is not one that `Preprocess` describes.
    """
    repair_torchvision()
    import transformers
    from transformers import AutoConfig, AutoImageProcessor, AutoTokenizer

    place = str(source)
    try:
        found: Any = AutoConfig.from_pretrained(place, trust_remote_code=False)
        architecture = (found.architectures or [found.model_type])[0]
        if architecture not in ARCHITECTURES:
            raise ConfigError(f"{architecture} is none of {', '.join(ARCHITECTURES)}")
        loaded: Any = getattr(transformers, architecture).from_pretrained(
            place, dtype=torch.float32, trust_remote_code=False, output_loading_info=True
        )
        whole, info = loaded
        # an encoder's own pooling, which captioning has no use for, is missing in many public checkpoints
        missing = [name for name in info["missing_keys"] if ".pooler." not in name]
        require_all_weights({**info, "missing_keys": missing}, place)
        words: Any = AutoTokenizer.from_pretrained(place, trust_remote_code=False)
        images: Any = AutoImageProcessor.from_pretrained(place, backend="pil", trust_remote_code=False)
        if not hasattr(words, "backend_tokenizer"):
            raise ConfigError("its tokenizer has no tokenizer.json (fast) form")
        model = PretrainedCaptioner(whole, images, words)
        preprocess = _preprocess(images.to_dict())
        side = model.config.vision.image_size
        if preprocess.size != (side, side):
            raise ConfigError(f"its pictures are made {preprocess.size[0]} wide, its encoder wants {side}")
        tokenizer = shift_tokenizer(words.backend_tokenizer)
        if tokenizer.get_vocab_size() > model.config.decoder.vocab_size:
            raise ConfigError("its tokenizer has more entries than its decoder: not a pair")
    except (OSError, ValueError, TypeError, RuntimeError, KeyError, SafetensorError, ConfigError) as error:
        text = str(error).strip() or repr(error)
        raise BundleError(f"captioner {place!r}: {text.splitlines()[0][:300]}") from error
    return model.eval(), tokenizer, preprocess


def save_pretrained_captioner(folder: Path, model: PretrainedCaptioner, provenance: dict[str, Any]) -> None:
    """Write a folder that `transformers` opens; it appears at once, replacing an older one."""
    with replacing(folder) as temporary:
        for part in model.beside:
            part.save_pretrained(temporary)
        about = {"format": FORMAT, "kind": KIND, "provenance": provenance}
        (temporary / SIDE).write_text(json.dumps(about, indent=2) + "\n")


def first_set(*values: Any) -> Any:
    """The first value that is not None, or None."""
    return next((value for value in values if value is not None), None)


def _preprocess(images: dict[str, Any]) -> Preprocess:
    """What an image processor does. Raises ConfigError for what `Preprocess` cannot express."""
    resize, side = resize_of(images)
    scale = images.get("rescale_factor", 1 / 255)
    if abs(255 * scale - 1) > 1e-6:
        raise ConfigError(f"its image processor rescales by {scale}, only 1/255 is supported")
    mean, std = tuple(images["image_mean"]), tuple(images["image_std"])
    return Preprocess((side, side), mean, std, resize, RESAMPLING[int(images.get("resample", 3))])


def _cache(past: list[KeyValue], cross: list[KeyValue]) -> Any:
    """The cache of `transformers` over keys and values [R, h, S, d] of the text and of the picture."""
    from transformers import DynamicCache, EncoderDecoderCache
    from transformers.cache_utils import DynamicLayer

    halves: Any = (DynamicCache(), DynamicCache())
    for half, pairs in zip(halves, (past, cross), strict=True):
        for key, value in pairs:
            layer: Any = DynamicLayer()
            layer.lazy_initialization(key, value)
            layer.keys, layer.values = key, value  # `update` would copy them
            half.layers.append(layer)
    return EncoderDecoderCache(*halves)


def _positions(language: Any) -> int:
    """Longest text that a decoder can count."""
    most = getattr(language.config, "max_position_embeddings", 512)
    # RoBERTa and its kin count from the id of their padding on
    offsets = [m.padding_idx + 1 for m in language.modules() if hasattr(m, "position_embeddings")
               and isinstance(getattr(m, "padding_idx", None), int)]  # fmt: skip
    return int(most) - (offsets[0] if offsets else 0)


def _side(size: Any) -> int:
    """The side of a square, given as one number or two. Raises ConfigError for another shape."""
    sides = set(size) if isinstance(size, list | tuple) else {size}
    if len(sides) > 1:
        raise ConfigError(f"its pictures are {size}, only squares are supported")
    return int(sides.pop())


def _first(out: Any) -> Tensor:
    """The states of what a layer returns, alone or before others."""
    states: Tensor = out[0] if isinstance(out, tuple) else out
    return states
