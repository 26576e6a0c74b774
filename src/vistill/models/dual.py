"""The retriever: a picture tower and a text tower into one space, where cosine says what belongs together.

    pixels -> ImageTower (any timm tower, projection)  -> [B, E], unit norm
    tokens -> TextTower (small transformer), text_head -> [B, E], unit norm

Either tower is trained on its own against a teacher's vectors, or both together. Texts become tokens by
`runtime.texts.encode_texts`; `models.clip.ClipDual` answers to the same calls.
"""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor, nn

from vistill.errors import BundleError, ConfigError
from vistill.files import replacing
from vistill.models.adopt import shift_tokenizer
from vistill.models.folder import load_weights, read_config, write_config
from vistill.models.mapper import EncoderLayer
from vistill.models.sentence import SentenceEncoder
from vistill.models.tokens import PAD
from vistill.models.vision import VisionConfig, VisionTower
from vistill.runtime.image import Preprocess

KIND = "dual-encoder"
FIRST_SCALE = math.log(1 / 0.07)  # of CLIP (Radford et al., arXiv 2103.00020)
LARGEST_SCALE = 100.0


@dataclass(frozen=True)
class TextConfig:
    """Size of the text tower. MiniLM-L6 is width 384, 6 layers, 12 heads."""

    vocab_size: int = 0
    """Entries of the vocabulary; 0 takes the tokenizer's size."""
    context: int = 40
    """Longest text in tokens, with the begin and end marks."""
    width: int = 128
    """Width of the residual stream."""
    layers: int = 4
    """Layers with weights of their own."""
    heads: int = 4
    """Attention heads of each layer."""
    repeat: int = 1
    """How often each layer runs in a row, with the same weights: the depth is layers x repeat."""
    dropout: float = 0.1
    """Dropout on embeddings and on every residual branch."""

    def __post_init__(self) -> None:
        if min(self.width, self.layers, self.heads, self.repeat) < 1 or self.context < 2:
            raise ConfigError(
                "model.text: width, layers, heads and repeat must be at least 1, context at least 2"
            )
        if self.width % self.heads:
            raise ConfigError(f"model.text.width={self.width} is not a multiple of heads={self.heads}")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"model.text.dropout={self.dropout}: must be in [0, 1)")


@dataclass(frozen=True)
class DualConfig:
    """The two towers and the space they share."""

    vision: VisionConfig = field(default_factory=VisionConfig)
    text: TextConfig = field(default_factory=TextConfig)
    width: int = 384
    """Width of the embedding; a tower that learns a teacher's vectors has the teacher's."""
    hidden: int = 0
    """Width of a hidden layer between the picture's pooled features and its embedding; 0: none."""
    dropout: float = 0.1
    """Dropout on the picture's pooled features."""

    def __post_init__(self) -> None:
        if self.width < 1 or self.hidden < 0:
            raise ConfigError("model: width must be at least 1 and hidden 0 or more")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"model.dropout={self.dropout}: must be in [0, 1)")


class ImageTower(nn.Module):
    """Pictures to unit vectors: tower, mean over patches, norm, projection."""

    def __init__(self, config: DualConfig, *, pretrained: bool = False) -> None:
        super().__init__()
        self.tower = VisionTower(config.vision, pretrained=pretrained)
        self.norm = nn.LayerNorm(self.tower.width)
        self.dropout = nn.Dropout(config.dropout)
        if config.hidden:
            into, out = nn.Linear(self.tower.width, config.hidden), nn.Linear(config.hidden, config.width)
            self.project: nn.Module = nn.Sequential(into, nn.GELU(), out)
        else:
            self.project = nn.Linear(self.tower.width, config.width)

    def forward(self, pixels: Tensor, start: int = 0) -> Tensor:
        """pixels [B, 3, H, W] (or the output of `tower.trunk(pixels, start)`) -> [B, E], each of length 1."""
        pooled = self.norm(self.tower(pixels, start).mean(1))
        return F.normalize(self.project(self.dropout(pooled)), dim=-1)


class TextTower(nn.Module):
    """Token ids to one vector a text: bidirectional pre-norm layers, then the mean over the real tokens."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        if config.vocab_size < 1:
            raise ConfigError("model.text.vocab_size=0: set it to the size of the tokenizer first")
        self.config = config
        self.embed = nn.Embedding(config.vocab_size, config.width)
        self.position = nn.Embedding(config.context, config.width)
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(
            EncoderLayer(config.width, config.heads, config.dropout) for _ in range(config.layers)
        )
        self.norm = nn.LayerNorm(config.width)
        nn.init.normal_(self.embed.weight, std=0.02)
        nn.init.normal_(self.position.weight, std=0.02)

    def states(self, tokens: Tensor) -> Tensor:
        """tokens int64 [B, T], PAD on the right -> [B, T, D]; states of padding mean nothing."""
        real = (tokens != PAD)[:, None, None, :]  # [B, 1, 1, T]: nobody looks at padding
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.dropout(self.embed(tokens) + self.position(positions))
        for layer in self.layers:
            for _ in range(self.config.repeat):
                x = layer(x, real)
        out: Tensor = self.norm(x)
        return out

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens int64 [B, T], T <= context, PAD on the right -> [B, D], whatever the padding."""
        real = (tokens != PAD).unsqueeze(-1).to(self.embed.weight.dtype)
        return (self.states(tokens) * real).sum(1) / real.sum(1).clamp(min=1)


class DualEncoder(nn.Module):
    """Pictures and texts to unit vectors in one space."""

    def __init__(self, config: DualConfig, *, pretrained: bool = False) -> None:
        super().__init__()
        self.config = config
        self.image = ImageTower(config, pretrained=pretrained)
        self.text = TextTower(config.text)
        self.text_head = nn.Linear(config.text.width, config.width)
        self.logit_scale = nn.Parameter(torch.tensor(FIRST_SCALE))

    @property
    def context(self) -> int:
        """Longest text in tokens."""
        return self.config.text.context

    @property
    def image_side(self) -> tuple[nn.Module, ...]:
        """The modules that pictures go through."""
        return (self.image,)

    @property
    def text_side(self) -> tuple[nn.Module, ...]:
        """The modules that texts go through."""
        return self.text, self.text_head

    def image_states(self, pixels: Tensor, start: int = 0) -> Tensor:
        """pixels as for `encode_image` -> the tower's patch features [B, N, D]."""
        states: Tensor = self.image.tower(pixels, start)
        return states

    def text_states(self, tokens: Tensor) -> Tensor:
        """tokens int64 [B, T] -> [B, T, D]; states of padding mean nothing."""
        return self.text.states(tokens)

    def encode_image(self, pixels: Tensor, start: int = 0) -> Tensor:
        """pixels [B, 3, H, W] (or the output of `image.tower.trunk(pixels, start)`) -> [B, E], unit norm."""
        embedding: Tensor = self.image(pixels, start)
        return embedding

    def encode_text(self, tokens: Tensor) -> Tensor:
        """tokens int64 [B, T], 0 on the right -> [B, E], unit norm."""
        return F.normalize(self.text_head(self.text(tokens)), dim=-1)

    def scale(self) -> Tensor:
        """What cosines are multiplied with to be logits: exp(logit_scale), at most 100 as in CLIP."""
        return self.logit_scale.exp().clamp(max=LARGEST_SCALE)

    def forward(self, pixels: Tensor, tokens: Tensor, start: int = 0) -> tuple[Tensor, Tensor]:
        """Both sides at once: ([B, E], [B, E])."""
        return self.encode_image(pixels, start), self.encode_text(tokens)


def starting_tokenizer(encoder: SentenceEncoder) -> Tokenizer:
    """The word pieces of a sentence encoder under vistill's vocabulary, for a student that learns from it.

    What was piece i is piece i + 4; ids 0 to 3 are `<pad> <bos> <eos> <unk>`. Its normaliser stays: texts
    are given as people write them.
    """
    return shift_tokenizer(encoder.tokenizer)


def save_dual(folder: Path, model: DualEncoder, tokenizer: Tokenizer, provenance: dict[str, Any]) -> None:
    """Write config.json, model.safetensors and tokenizer.json; the folder appears at once, replacing an
    older one."""
    with replacing(folder) as temporary:
        write_config(temporary, KIND, model.config, provenance)
        weights = {name: t.detach().cpu().contiguous() for name, t in model.state_dict().items()}
        save_file(weights, temporary / "model.safetensors")
        tokenizer.save(str(temporary / "tokenizer.json"))


def load_dual(folder: Path | str) -> tuple[DualEncoder, Tokenizer, Preprocess]:
    """Read the folder; the model comes in evaluation mode on the CPU. Raises BundleError, naming the file."""
    folder = Path(folder)
    raw = read_config(folder, KIND)
    try:
        config = _config(raw["model"])
        preprocess = Preprocess.from_dict(raw["preprocess"])
    except (KeyError, TypeError, ConfigError) as error:
        raise BundleError(f"{folder / 'config.json'}: {error!r} does not describe a {KIND}") from error
    model = DualEncoder(config)
    load_weights(model, folder)
    tokenizer_file = folder / "tokenizer.json"
    if not tokenizer_file.is_file():
        raise BundleError(f"{tokenizer_file} is missing: the checkpoint is incomplete")
    return model.eval(), Tokenizer.from_file(str(tokenizer_file)), preprocess


def _config(raw: dict[str, Any]) -> DualConfig:
    parts = {"vision": VisionConfig(**raw["vision"]), "text": TextConfig(**raw["text"])}
    return DualConfig(**{**raw, **parts})
