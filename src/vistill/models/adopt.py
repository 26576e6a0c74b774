"""Public language models under vistill's vocabulary.

Everywhere in vistill ids 0 to 3 are `<pad> <bos> <eos> <unk>`. A public language model has its own marks in
its own places (GPT-2 has a single one for begin and end), so `adopt` puts four rows before its tables and
moves the ids of its tokenizer up by `OFFSET`: what was token i is token i + OFFSET, with the same embedding
and the same logit. The new rows start as copies of the model's own marks.
"""

import hashlib
import importlib.util
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from vistill.errors import ConfigError
from vistill.models.language import KeyValue
from vistill.models.tokens import BOS, EOS, PAD, SPECIAL
from vistill.models.torchvision_repair import repair_torchvision
from vistill.runtime.prompts import ASK

OFFSET = len(SPECIAL)


class HostedDecoder(nn.Module):
    """A language model of `transformers` that is to answer the calls of `models.language.Decoder`."""

    def __init__(self, language: Any) -> None:
        super().__init__()
        self.language = language
        self.new_rows = 0  # as in `models.language.Decoder`

    @property
    def embed(self) -> nn.Embedding:
        """The table of input embeddings [V, D]."""
        table: nn.Embedding = self.language.get_input_embeddings()
        return table

    @property
    def layers(self) -> list[nn.Module]:
        """The layers of the language model, the first one first."""
        count = self.language.config.num_hidden_layers
        lists = (module for module in self.language.modules() if isinstance(module, nn.ModuleList))
        return list(next(layers for layers in lists if len(layers) == count))

    def empty_past(self, batch: int, captions: int = 1) -> list[KeyValue]:
        """The past before the first step: tensors of length T = 0."""
        settings = self.language.config
        heads = getattr(settings, "num_key_value_heads", None) or settings.num_attention_heads
        size = getattr(settings, "head_dim", None) or settings.hidden_size // settings.num_attention_heads
        empty = self.embed.weight.new_zeros(batch, captions, heads, 0, size)
        return [(empty, empty) for _ in range(settings.num_hidden_layers)]


def to_rows(shared: Tensor, captions: int) -> Tensor:
    """A picture's [B, h, P, d] for each of its captions: [B * C, h, P, d]."""
    return shared.unsqueeze(1).expand(-1, captions, -1, -1, -1).flatten(0, 1)


def load_language(source: str, bits: int = 0) -> tuple[Any, Tokenizer, tuple[int, ...]]:
    """A causal language model of a local folder or hub name, adopted: (model, tokenizer, blocked ids).

    A model whose tokenizer begins with vistill's special tokens comes as it is. The blocked ids go into
    `LanguageConfig.blocked`. Code from the folder or the hub is never run. `bits` (8 or 4) quantises its
    dense layers. Raises ConfigError if there is no such model, weights are missing in it, its tokenizer has
    no fast form, or there is no GPU to quantise for.
    """
    repair_torchvision()
    from transformers import AutoModelForCausalLM, AutoTokenizer

    how = _quantised(bits) if bits else {}
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source, dtype=torch.float32, trust_remote_code=False, output_loading_info=True, **how
        )
        language, info = loaded
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ConfigError(f"language model {source!r}: {str(error).splitlines()[0][:300]}") from error
    require_all_weights(info, source)
    if not hasattr(tokenizer, "backend_tokenizer"):
        raise ConfigError(f"language model {source!r}: its tokenizer has no tokenizer.json (fast) form")
    fast: Tokenizer = tokenizer.backend_tokenizer
    if all(fast.id_to_token(i) == token for i, token in enumerate(SPECIAL)):
        return language.eval(), fast, ()
    return adopt(language, fast)


def _quantised(bits: int) -> dict[str, Any]:
    """What `from_pretrained` needs to be told. Raises ConfigError where bitsandbytes cannot run."""
    if not torch.cuda.is_available():
        raise ConfigError(
            f"model.decoder.bits={bits}: 8- and 4-bit weights need a CUDA GPU and there is none here; "
            f"use bits=0, or a smaller language model"
        )
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ConfigError(
            f"model.decoder.bits={bits} needs bitsandbytes: pip install bitsandbytes accelerate"
        )
    from transformers import BitsAndBytesConfig  # imports bitsandbytes, which is slow and noisy

    config = BitsAndBytesConfig(load_in_8bit=bits == 8, load_in_4bit=bits == 4)
    return {"quantization_config": config, "device_map": {"": torch.cuda.current_device()}}


def source_hash(source: str) -> str:
    """sha256 over the weight files of a local folder, or of a hub name that has been loaded before.

    Raises ConfigError if there are none.
    """
    folder = Path(source)
    if not folder.is_dir():
        from huggingface_hub import snapshot_download

        folder = Path(snapshot_download(source, local_files_only=True))
    files = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))
    if not files:
        raise ConfigError(f"language model {source!r}: there are no weights in {folder}")
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def require_all_weights(info: dict[str, Any], where: str) -> None:
    """ConfigError, naming them, if `from_pretrained` had to invent weights (`output_loading_info`)."""
    absent = sorted({*map(str, info.get("missing_keys", ())), *map(str, info.get("mismatched_keys", ()))})
    if absent:
        more = f" and {len(absent) - 3} more" if len(absent) > 3 else ""
        raise ConfigError(f"{where}: holds no fitting weights for {', '.join(absent[:3])}{more}")


def adopt(language: Any, tokenizer: Tokenizer) -> tuple[Any, Tokenizer, tuple[int, ...]]:
    """Put the special tokens first: (the same model, changed; a new tokenizer; ids never to be generated).

    Blocked are the model's own marks, now ordinary ids, and rows that no token of the tokenizer names.
    """
    old = language.get_input_embeddings().num_embeddings
    if tokenizer.get_vocab_size() > old:
        entries = tokenizer.get_vocab_size()
        raise ConfigError(f"the tokenizer has {entries} entries, the language model only {old}: not a pair")
    marks = language.config
    eos = _first(marks.eos_token_id)
    bos = _first(marks.bos_token_id)
    eos = bos if eos is None else eos
    if eos is None:
        raise ConfigError("the language model's config names neither a begin nor an end mark")
    rows = [eos, eos if bos is None else bos, eos, eos]
    language.resize_token_embeddings(old + OFFSET, mean_resizing=False)
    for table in vocabulary_tables(language):
        with torch.no_grad():
            before = table[:old].clone()
            table[OFFSET:] = before
            table[:OFFSET] = before[rows]
    for config in (language.config, language.generation_config):
        config.pad_token_id, config.bos_token_id, config.eos_token_id = PAD, BOS, EOS
    shifted = shift_tokenizer(tokenizer)
    own = [token_id for token_id, token in shifted.get_added_tokens_decoder().items() if token.special]
    unnamed = range(tokenizer.get_vocab_size() + OFFSET, old + OFFSET)
    blocked = sorted({eos + OFFSET, *own, *unnamed} - set(range(OFFSET)))
    return language.eval(), shifted, tuple(blocked)


def shift_tokenizer(tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer with `<pad> <bos> <eos> <unk>` as ids 0 to 3 and every other id OFFSET higher.

    A token of it that has one of these names is renamed. Marks that it adds around a text, cutting and
    padding are left out: vistill adds its own. Raises ConfigError for an unknown kind of vocabulary.
    """
    raw = json.loads(tokenizer.to_str())
    if not isinstance(raw["model"].get("vocab"), dict | list):
        raise ConfigError(f"a tokenizer of kind {raw['model'].get('type')!r} cannot be moved")
    _rename(raw, lambda token: f"{token}[own]" if token in SPECIAL else token)
    vocab = raw["model"]["vocab"]
    if isinstance(vocab, dict):
        moved = {token: i + OFFSET for token, i in vocab.items()}
        raw["model"]["vocab"] = {**{token: i for i, token in enumerate(SPECIAL)}, **moved}
    else:
        raw["model"]["vocab"] = [*([token, 0.0] for token in SPECIAL), *vocab]
        if raw["model"].get("unk_id") is not None:
            raw["model"]["unk_id"] += OFFSET
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    ours = [{"id": i, "content": token, **flags} for i, token in enumerate(SPECIAL)]
    theirs = [{**token, "id": token["id"] + OFFSET} for token in raw["added_tokens"]]
    raw["added_tokens"] = [*ours, *theirs]
    if (raw.get("post_processor") or {}).get("type") != "ByteLevel":
        raw["post_processor"] = None
    raw["truncation"] = raw["padding"] = None
    return Tokenizer.from_str(json.dumps(raw))


def reads_its_own_way(tokenizer: Tokenizer) -> bool:
    """Whether a tokenizer came with a language model; those that vistill trains part texts at blanks."""
    parts: Any = json.loads(tokenizer.to_str())["pre_tokenizer"] or {}
    return parts.get("type") not in ("WhitespaceSplit", "Split")


def with_ask_mark(tokenizer: Tokenizer, blocked: Sequence[int]) -> Tokenizer:
    """The tokenizer with the mark `<ask>`, under the id of one of the language model's own marks.

    blocked: the ids that `adopt` tells, which are never generated. The tables of the model stay as they are.
    A tokenizer that has the mark comes back. Raises ConfigError if no id is free.
    """
    if tokenizer.token_to_id(ASK) is not None:
        return tokenizer
    named = next((own for i in blocked if (own := tokenizer.id_to_token(i)) is not None), None)
    if named is None:
        raise ConfigError(f"the language model has no mark of its own that could be {ASK}")
    raw = json.loads(tokenizer.to_str())
    _rename(raw, lambda token: ASK if token == named else token)
    return Tokenizer.from_str(json.dumps(raw))


def _rename(raw: dict[str, Any], name: Callable[[str], str]) -> None:
    """Give the entries of a tokenizer's JSON new names, in the vocabulary and among the added tokens."""
    vocab = raw["model"]["vocab"]
    if isinstance(vocab, dict):
        raw["model"]["vocab"] = {name(token): i for token, i in vocab.items()}
    else:
        raw["model"]["vocab"] = [[name(token), score] for token, score in vocab]
    for token in raw["added_tokens"]:
        token["content"] = name(token["content"])


def _first(ids: Any) -> int | None:
    """The first of one, several or no ids."""
    return ids[0] if isinstance(ids, list | tuple) else ids


def vocabulary_tables(language: Any) -> list[Tensor]:
    """Every table with a row for each entry of the vocabulary, tied ones once."""
    output = language.get_output_embeddings()
    tables = [language.get_input_embeddings().weight]
    if output is not None:
        tables += [output.weight] + ([output.bias] if output.bias is not None else [])
    return list({table.data_ptr(): table for table in tables}.values())
