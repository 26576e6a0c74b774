"""The prefix captioner: what a tower sees becomes the first embeddings of a causal language model.

    pixels -> tower -> patches [B, N, D_in] -> mapper -> prefix [B, P, D] -> language model -> <bos> and text

The language model is any causal one of `transformers` (GPT-2, OPT, LLaMA ...) and reads the prefix through
`inputs_embeds`, then the embedded tokens; it is untouched inside and saved in its own format. TinyViT-21M
with DistilGPT-2 is `mapper.kind=linear` on every patch; ClipCap (Mokady et al., arXiv 2111.09734) is `mlp` or
`transformer` with `length` embeddings of the pooled features.

The prefix is the same for all C captions or beams of a picture, so it runs through the language model once:
its keys and values are what `Captioner` calls cross keys and values, and `PrefixDecoder` answers to the same
calls as `vistill.models.language.Decoder`.
"""

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from vistill.errors import ConfigError
from vistill.models.adopt import HostedDecoder, to_rows
from vistill.models.language import NEVER, KeyValue
from vistill.models.lora import LoraConfig, add_lora
from vistill.models.mapper import EncoderLayer
from vistill.models.tokens import BOS, EOS, NEVER_GENERATED, PAD
from vistill.models.torchvision_repair import repair_torchvision
from vistill.models.vision import VisionConfig, VisionTower

MAPPERS = ("none", "linear", "mlp", "transformer")
FEATURES = ("grid", "pooled")
TUNES = ("full", "lora", "frozen")

# What `transformers` writes into a configuration and what does not describe the network.
_NOT_SETTINGS = (
    "model_type",
    "architectures",
    "transformers_version",
    "_name_or_path",
    "dtype",
    "torch_dtype",
)


@dataclass(frozen=True)
class PrefixMapperConfig:
    """From the tower's features to the prefix; its width is the language model's."""

    kind: str = "linear"
    """`none` (widths must be equal), `linear`, `mlp` (one hidden layer, GELU) or `transformer`."""
    features: str = "grid"
    """`grid` maps every patch, `pooled` their mean."""
    length: int = 0
    """Embeddings in the prefix; 0: one for each patch (`grid`) or one (`pooled`)."""
    hidden: int = 0
    """Width of the hidden layer of `mlp`; 0: half the width of its output, at least the model's."""
    layers: int = 2
    """Layers of `transformer`."""
    heads: int = 8
    """Attention heads of `transformer`."""
    dropout: float = 0.1
    """Dropout on the features and inside `transformer`."""

    def __post_init__(self) -> None:
        if self.kind not in MAPPERS:
            raise ConfigError(f"model.mapper.kind={self.kind!r}: use {', '.join(MAPPERS)}")
        if self.features not in FEATURES:
            raise ConfigError(f"model.mapper.features={self.features!r}: use {', '.join(FEATURES)}")
        for name in ("length", "hidden"):
            if getattr(self, name) < 0:
                raise ConfigError(f"model.mapper.{name}={getattr(self, name)}: must not be negative")
        if min(self.layers, self.heads) < 1:
            raise ConfigError("model.mapper: layers and heads must be at least 1")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"model.mapper.dropout={self.dropout}: must be in [0, 1)")
        if self.features == "grid" and self.length and self.kind != "transformer":
            raise ConfigError(
                f"model.mapper.length={self.length}: only kind=transformer turns a grid into a given number "
                f"of embeddings; use it, features=pooled or length=0"
            )


@dataclass(frozen=True)
class LanguageConfig:
    """The language model; what its weights start from is chosen by whoever builds the captioner."""

    kind: str = "gpt2"
    """`model_type` of a causal language model of `transformers`."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Its own settings, as n_layer=6; DistilGPT-2 is gpt2 with n_layer=6."""
    vocab_size: int = 0
    """Entries of the vocabulary; 0 takes the tokenizer's size."""
    context: int = 40
    """Longest text in tokens, with the begin and end marks, without the prefix."""
    blocked: tuple[int, ...] = ()
    """Ids that are never generated, besides `<pad>`, `<bos>` and `<unk>`."""
    tune: str = "full"
    """What of it learns: all of it (`full`), `lora` beside it, or nothing (`frozen`)."""
    lora: LoraConfig = field(default_factory=LoraConfig)
    bits: int = 0
    """8 or 4 quantise the frozen weights with bitsandbytes, which needs a GPU; 0 leaves them as they are."""
    checkpointing: bool = False
    """Compute activations again in the backward pass: less memory, more time."""
    named: bool = False
    """A checkpoint names the folder or hub name of weights that do not learn, with their hash, and holds no
    copy; always so with `bits`."""
    source: str = ""
    """That folder or hub name, filled in."""
    weights: str = ""
    """sha256 of its weight files, filled in."""

    def __post_init__(self) -> None:
        if self.context < 2:
            raise ConfigError(f"model.decoder.context={self.context}: must be at least 2")
        if self.tune not in TUNES:
            raise ConfigError(f"model.decoder.tune={self.tune!r}: use {', '.join(TUNES)}")
        if self.bits not in (0, 4, 8):
            raise ConfigError(f"model.decoder.bits={self.bits}: use 8, 4 or 0")
        for name in ("bits", "named"):
            if getattr(self, name) and self.tune == "full":
                raise ConfigError(
                    f"model.decoder.{name}={getattr(self, name)}: the weights must not change, set tune to "
                    f"frozen or lora"
                )


@dataclass(frozen=True)
class PrefixConfig:
    """The three parts of a prefix captioner."""

    vision: VisionConfig = field(default_factory=VisionConfig)
    mapper: PrefixMapperConfig = field(default_factory=PrefixMapperConfig)
    decoder: LanguageConfig = field(default_factory=LanguageConfig)


class PrefixMapper(nn.Module):
    """Features [B, N, D_in] -> prefix [B, P, D].

    Raises ConfigError where `none` has to change the width and where the heads do not divide it.
    """

    def __init__(self, config: PrefixMapperConfig, in_width: int, width: int, patches: int) -> None:
        super().__init__()
        self.config = config
        pooled = config.features == "pooled"
        self.width = width
        self.length = config.length or (1 if pooled else patches)
        self.dropout = nn.Dropout(config.dropout)
        out = width * (self.length if pooled and config.kind != "transformer" else 1)
        if config.kind == "none":
            if in_width != out:
                raise ConfigError(
                    f"model.mapper.kind=none: the tower is {in_width} wide and the prefix "
                    f"{self.length if pooled else 1} x {width}; use linear"
                )
            self.project: nn.Module = nn.Identity()
        elif config.kind == "mlp":
            hidden = config.hidden or max(width, out // 2)
            self.project = nn.Sequential(nn.Linear(in_width, hidden), nn.GELU(), nn.Linear(hidden, out))
        else:
            self.project = nn.Linear(in_width, out)
        if config.kind == "transformer":
            if width % config.heads:
                raise ConfigError(f"model.mapper.heads={config.heads} does not divide the width {width}")
            # learnt queries are read out where the number of embeddings is given, else the patches themselves
            queries = self.length if pooled or config.length else 0
            self.query = nn.Parameter(torch.randn(queries, width) * 0.02)
            self.position = nn.Parameter(torch.randn(1 if pooled else patches, width) * 0.02)
            self.layers = nn.ModuleList(
                EncoderLayer(width, config.heads, config.dropout) for _ in range(config.layers)
            )
            self.norm = nn.LayerNorm(width)

    def forward(self, features: Tensor) -> Tensor:
        x = features.mean(1, keepdim=True) if self.config.features == "pooled" else features
        x = self.project(self.dropout(x))
        if self.config.kind != "transformer":
            return x.reshape(x.shape[0], self.length, self.width)
        queries = self.query.expand(x.shape[0], -1, -1)
        x = torch.cat((x + self.position, queries), dim=1)
        for layer in self.layers:
            x = layer(x)
        out: Tensor = self.norm(x[:, -self.length :])
        return out


class PrefixDecoder(HostedDecoder):
    """A causal language model behind a prefix, with the calls of `vistill.models.language.Decoder`.

    Questions of a batch are filled on the left, between the prefix and their first token.

    `checkpointing` computes activations again in the backward pass. `transformers` keeps no keys and values
    then, so while it learns the prefix runs once for each caption and `cross_kv` hands on its embeddings.
    """

    def __init__(self, language: Any, *, checkpointing: bool = False) -> None:
        super().__init__(language)
        self.checkpointing = checkpointing
        if checkpointing:  # under its old name in transformers 5.0
            enable = getattr(language, "activation_checkpointing_enable", None)
            (enable or language.gradient_checkpointing_enable)({"use_reentrant": False})

    @property
    def cross_attention(self) -> list[nn.Module]:
        """None: pictures are read as a prefix."""
        return []

    def cross_kv(self, memory: Tensor) -> list[KeyValue]:
        """Prefix [B, P, D] -> for each layer its (key, value) [B, h, P, d], which all captions share."""
        if self._checkpoints():
            return [(memory, memory)]
        # no logits are wanted of it; those of one position cost nothing, and any wrapper passes this call on
        cache = self.language(inputs_embeds=memory, use_cache=True, logits_to_keep=1).past_key_values
        return [(layer.keys, layer.values) for layer in cache.layers]

    def forward(self, tokens: Tensor, cross: list[KeyValue]) -> Tensor:
        """Teacher forcing: tokens [B, C, T] -> logits [B, C, T, V]. Padding stands on the right."""
        b, c, t = tokens.shape
        if self._checkpoints():
            prefix = cross[0][0].unsqueeze(1).expand(-1, c, -1, -1).flatten(0, 1)
            embeds = torch.cat((prefix, self.embed(tokens.reshape(b * c, t))), dim=1)
            out: Tensor = self.language(inputs_embeds=embeds, use_cache=False, logits_to_keep=t).logits
            return out.view(b, c, t, -1)
        # an empty past of a caption is left out, so the prefix is copied once
        past = [(to_rows(k, c), to_rows(v, c)) for k, v in cross]
        logits, _ = self._run(self.embed(tokens.reshape(b * c, t)), past)
        return logits.view(b, c, t, -1)

    def step(
        self, tokens: Tensor, cross: list[KeyValue], past: list[KeyValue], offset: Tensor | None = None
    ) -> tuple[Tensor, list[KeyValue]]:
        """One position: tokens [B, C] and past (key, value) [B, C, h, T, d] -> logits [B, C, V], new past.

        The past holds the text alone; the prefix is put before it for each step. offset: int64 [B], how many
        of the past positions are padding on the left, as `prefill` had it.
        """
        b, c = tokens.shape
        seen = None
        if offset is not None:
            rows = offset.unsqueeze(1).expand(b, c).flatten()
            seen = _padded(rows, cross[0][0].shape[2], past[0][0].shape[3], 1)
        joined = [
            (
                torch.cat((to_rows(pk, c), k.flatten(0, 1)), 2),
                torch.cat((to_rows(pv, c), v.flatten(0, 1)), 2),
            )
            for (pk, pv), (k, v) in zip(cross, past, strict=True)
        ]
        logits, present = self._run(self.embed(tokens.reshape(b * c, 1)), joined, seen)
        length = cross[0][0].shape[2]
        text = [
            (k[:, :, length:].unflatten(0, (b, c)), v[:, :, length:].unflatten(0, (b, c))) for k, v in present
        ]
        return logits[:, -1].view(b, c, -1), text

    def prefill(self, tokens: Tensor, cross: list[KeyValue], offset: Tensor) -> list[KeyValue]:
        """The past after the first T tokens of a text: tokens [B, T] -> (key, value) [B, 1, h, T, d].

        Each row begins with offset [B] tokens of padding, which no later step attends to.
        """
        length = cross[0][0].shape[2]
        _, present = self._run(self.embed(tokens), cross, _padded(offset, length, 0, tokens.shape[1]))
        return [(k[:, :, length:].unsqueeze(1), v[:, :, length:].unsqueeze(1)) for k, v in present]

    def _checkpoints(self) -> bool:
        return self.checkpointing and self.training

    def _run(
        self, embeds: Tensor, past: list[KeyValue], seen: dict[str, Tensor] | None = None
    ) -> tuple[Tensor, list[KeyValue]]:
        """embeds [R, T, D] after past (key, value) [R, h, S, d] -> logits [R, T, V], past of length S + T.

        seen: positions and mask, where there is padding on the left.
        """
        from transformers import DynamicCache

        cache: Any = DynamicCache()
        for layer, (key, value) in enumerate(past):
            cache.update(key, value, layer)
        out = self.language(inputs_embeds=embeds, past_key_values=cache, use_cache=True, **(seen or {}))
        return out.logits, [(layer.keys, layer.values) for layer in cache.layers]


def _padded(offset: Tensor, prefix: int, first: int, count: int) -> dict[str, Tensor]:
    """What a language model has to be told of `count` tokens of texts that begin with offset [R] of padding.

    prefix: embeddings before the text. first: the place of the first of these tokens in it. Returns
    position_ids [R, count] and attention_mask [R, 1, count, prefix + first + count], to be added to scores.
    """
    places = torch.arange(first, first + count, device=offset.device)
    keys = torch.arange(-prefix, first + count, device=offset.device)
    padding = (keys >= 0) & (keys < offset[:, None])  # [R, keys]
    unseen = (keys > places[:, None]) | padding[:, None]  # [R, count, keys]
    positions = prefix + (places - offset[:, None]).clamp_min(0)
    return {"position_ids": positions, "attention_mask": (unseen * NEVER)[:, None]}


class PrefixCaptioner(nn.Module):
    """Pictures to captions. `start` counts the stages of the tower that the input has been through.

    `language` is a causal language model of `transformers` whose vocabulary begins with vistill's special
    tokens (`vistill.models.adopt` sees to that); without it one with random weights is made from the
    settings. `config` afterwards describes the model that is there. Raises ConfigError for settings that do
    not fit.
    """

    def __init__(self, config: PrefixConfig, *, pretrained: bool = False, language: Any = None) -> None:
        super().__init__()
        language = make_language(config.decoder) if language is None else language
        self.config = replace(config, decoder=described_language(config.decoder, language))
        self.tower = VisionTower(config.vision, pretrained=pretrained)
        size = config.vision.image_size
        with torch.no_grad():
            patches = self.tower.eval()(torch.zeros(1, 3, size, size)).shape[1]
        self.tower.train()
        _set_learning(language, config.decoder)
        self.decoder = PrefixDecoder(language, checkpointing=config.decoder.checkpointing)
        width = self.decoder.embed.embedding_dim
        self.mapper = PrefixMapper(config.mapper, self.tower.width, width, patches)
        self.word_bias = nn.Parameter(
            torch.full((self.config.decoder.vocab_size,), -5.0)
        )  # of the bag of words
        positions = getattr(language.config, "max_position_embeddings", None)
        needed = self.mapper.length + config.decoder.context
        if positions is not None and needed > positions:
            raise ConfigError(
                f"model.decoder: a prefix of {self.mapper.length} and a text of {config.decoder.context} "
                f"tokens are more than the {positions} positions of this language model"
            )

    def vision(self, pixels: Tensor, start: int = 0) -> Tensor:
        """pixels [B, 3, H, W] (or the output of `tower.trunk(pixels, start)`) -> prefix [B, P, D]."""
        prefix: Tensor = self.mapper(self.tower(pixels, start))
        return prefix

    def forward(self, pixels: Tensor, tokens: Tensor, start: int = 0) -> Tensor:
        """pixels as for `vision`, tokens [B, C, T] -> logits [B, C, T, V] of the token after each."""
        logits: Tensor = self.decoder(tokens, self.decoder.cross_kv(self.vision(pixels, start)))
        return logits

    def step(
        self, tokens: Tensor, cross: list[KeyValue], past: list[KeyValue], offset: Tensor | None = None
    ) -> tuple[Tensor, list[KeyValue]]:
        """One decoding step, `PrefixDecoder.step` with the tokens masked that a caption never holds."""
        logits, present = self.decoder.step(tokens, cross, past, offset)
        forbidden = torch.zeros(logits.shape[-1], device=logits.device)
        forbidden[[*NEVER_GENERATED, *self.config.decoder.blocked]] = -1e9
        return logits + forbidden, present


def make_language(config: LanguageConfig) -> Any:
    """A causal language model with random weights. Raises ConfigError for settings that make none."""
    repair_torchvision()
    from transformers import AutoConfig, AutoModelForCausalLM

    if config.vocab_size < 1:
        raise ConfigError("model.decoder.vocab_size=0: set it to the size of the tokenizer")
    marks = {"pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": EOS}
    try:
        settings = AutoConfig.for_model(
            config.kind, **{**config.settings, "vocab_size": config.vocab_size, **marks}
        )
        return AutoModelForCausalLM.from_config(settings, trust_remote_code=False)
    except ValueError as error:
        raise ConfigError(
            f"model.decoder.kind={config.kind!r}: {str(error).splitlines()[0][:200]}"
        ) from error


def _set_learning(language: Any, config: LanguageConfig) -> None:
    """Freeze what shall not learn; such weights see no dropout of their own, in training either."""
    if config.tune == "full":
        return
    for module in language.modules():
        for name in ("p", "dropout", "attention_dropout", "activation_dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
    if config.tune == "lora":
        add_lora(language, config.lora, but=language.get_output_embeddings())
    else:
        language.requires_grad_(False)


def described_language(config: LanguageConfig, language: Any) -> LanguageConfig:
    """`config` with kind, settings and vocabulary of the language model that is there."""
    settings = {k: v for k, v in language.config.to_diff_dict().items() if k not in _NOT_SETTINGS}
    vocab_size = language.get_input_embeddings().num_embeddings
    return replace(config, kind=language.config.model_type, settings=settings, vocab_size=vocab_size)
