"""What teachers from `transformers` share: loading, identity, generation, and the ids of their texts.

Inside, a model has its own ids. What leaves it is under vistill's, as every student has them
(models/adopt.py): `<bos>` and `<eos>` around a text, and what is token i of its tokenizer is i + OFFSET. So
a student with the same vocabulary can be compared with it token by token: the teacher itself trained on, or
another language model that reads as it does.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer
from torch import Tensor

from vistill.data.text import encode
from vistill.distill.answers import Ask, TeacherIdentity
from vistill.distill.teachers_common import picture_seed, search_for, settings_hash, tokenizer_hash
from vistill.errors import ConfigError
from vistill.models.adopt import OFFSET, shift_tokenizer
from vistill.models.captioner import parameter_count
from vistill.models.checkpoint import weights_hash
from vistill.models.pretrained import Marks, first_set
from vistill.models.tokens import BOS, EOS
from vistill.runtime.decode import GenerationConfig

Ids = list[int]


@dataclass(frozen=True)
class Words:
    """A model's tokenizer, and the way from its ids to vistill's and back.

    own: the tokenizer of `transformers`. ours: the same under vistill's ids; None if it has no fast form, and
    then there are no gold texts. vocab_size: entries under vistill's ids.
    """

    own: Any
    ours: Tokenizer | None
    marks: Marks
    vocab_size: int

    def gold(self, caption: str, longest: int, never: Sequence[int] = ()) -> Ids:
        """A gold caption as a student reads it, under vistill's ids; own ids of `never` are left out.

        Cut to `longest` ids; a cut caption has no end mark.
        """
        assert self.ours is not None
        return [i for i in encode(self.ours, caption, longest) if i - OFFSET not in never]

    def outward(self, row: Ids) -> Ids:
        """A generated text, own ids [begin, ..., end if it was reached], under vistill's ids."""
        return [BOS, *(EOS if i in self.marks.ends else i + OFFSET for i in row[1:])]

    def inward(self, row: Ids) -> Ids:
        """vistill's ids as the model reads them."""
        unknown = first_set(self.own.unk_token_id, self.marks.ends[0])
        marks = (self.marks.pad, self.marks.begin, self.marks.ends[0], int(unknown))
        return [marks[i] if i < OFFSET else i - OFFSET for i in row]

    def outward_top(self, top: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Likeliest own ids int64 [..., K] and their log-probabilities, the ids under vistill's."""
        ids, logp = top
        return torch.where(ids == self.marks.ends[0], EOS, ids + OFFSET), logp


def words_of(tokenizer: Any, marks: Marks, entries: int) -> Words:
    """The words of a model with `entries` rows in its table. Raises ConfigError for an unknown vocabulary."""
    fast = getattr(tokenizer, "backend_tokenizer", None)
    ours = None if fast is None else shift_tokenizer(fast)
    return Words(tokenizer, ours, marks, entries + OFFSET)


def search(
    images: Sequence[Image.Image],
    ask: Ask,
    marks: Marks,
    generate: Callable[[slice, Mapping[str, Any]], Any],
) -> list[list[Ids]]:
    """`ask.captions` texts of each picture with their marks, best first.

    `generate(rows, settings)` runs transformers' generation for a slice of the pictures; what it returns
    holds one token before the new ones. Samples are drawn picture by picture, each with its own seed.
    """
    config = search_for(ask)
    if not config.do_sample:
        rows = generate(slice(None), generate_settings(config)).tolist()
        return _grouped([trim(row, marks.ends) for row in rows], ask.captions)
    found = []
    for i, image in enumerate(images):
        with torch.random.fork_rng(), torch.inference_mode():
            torch.manual_seed(picture_seed(config.seed, image))
            out = generate(slice(i, i + 1), generate_settings(config))
        texts = [trim(row, marks.ends) for row in out.sequences.tolist()]
        scores = sample_scores(texts, out.logits)
        found.append([texts[j] for j in np.argsort(-np.array(scores), kind="stable")])
    return found


def generate_settings(config: GenerationConfig) -> dict[str, Any]:
    """GenerationConfig in the words of transformers' `generate`, so that the same search comes out.

    Every rule is stated, also where it is off: what is left out comes from the checkpoint.
    """
    settings: dict[str, Any] = {
        "max_new_tokens": config.max_new_tokens,
        "min_new_tokens": config.min_new_tokens,
        "do_sample": config.do_sample,
        "num_beams": 1 if config.do_sample else config.num_beams,
        "num_return_sequences": config.num_return,
        "no_repeat_ngram_size": config.no_repeat_ngram,
        "repetition_penalty": config.repetition_penalty,
    }
    if config.do_sample:
        settings |= {"temperature": config.temperature, "top_k": config.top_k, "top_p": config.top_p}
        settings |= {"return_dict_in_generate": True, "output_logits": True}
    elif config.num_beams > 1:
        settings |= {"length_penalty": config.length_penalty, "early_stopping": True}
    return settings


def sample_scores(texts: Sequence[Ids], logits: Sequence[Tensor]) -> list[float]:
    """sum(log p) of sampled texts (one mark before them) from the raw logits [R, V] of each step."""
    steps = torch.stack([step.float().log_softmax(-1).cpu() for step in logits], dim=1)  # [R, T, V]
    return [
        float(steps[r, torch.arange(len(text) - 1), torch.tensor(text[1:])].sum())
        for r, text in enumerate(texts)
    ]


def trim(row: Ids, ends: Sequence[int]) -> Ids:
    """The begin mark and what follows up to the first end mark, which stays; the first id never ends it."""
    for place, token in enumerate(row[1:], start=1):
        if token in ends:
            return row[: place + 1]
    return row


def captions_of(tokenizer: Any, ids: Sequence[Ids]) -> tuple[str, ...]:
    """Texts without their marks."""
    return tuple(tokenizer.decode(row[1:], skip_special_tokens=True).strip() for row in ids)


def load_model(source: str, architecture: str, device: str) -> tuple[Any, str]:
    """A transformers model in evaluation mode, and the sha256 of its weights.

    Weights that the checkpoint lacks would be random: ConfigError, unless they are of a pooling layer, which
    is not used here and not hashed.
    """
    import transformers

    model, info = load_part(getattr(transformers, architecture), source, output_loading_info=True)
    missing = set(info["missing_keys"])
    needed = sorted(name for name in missing if ".pooler." not in name)
    if needed:
        raise ConfigError(
            f"teacher {source!r}: the checkpoint lacks {len(needed)} weights of {architecture}, "
            f"the first is {needed[0]!r}"
        )
    state = {name: value for name, value in model.state_dict().items() if name not in missing}
    model.generation_config.max_length = None  # the limit is always stated in new tokens
    return model.to(device).eval().requires_grad_(False), weights_hash(state)


def load_part(loader: Any, source: str, **settings: Any) -> Any:
    """`loader.from_pretrained(source)` without remote code; what it raises comes out as ConfigError."""
    try:
        return loader.from_pretrained(source, trust_remote_code=False, **settings)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise ConfigError(
            f"teacher {source!r}: {loader.__name__} cannot load it: {str(error).strip() or repr(error)}"
        ) from error


def identify(
    kind: str, source: str, weights: str, model: Any, tokenizer: Any, vocab_size: int, treats: Any
) -> TeacherIdentity:
    """Identity of a transformers teacher; `treats` are the settings of its preprocessing."""
    fast = tokenizer if isinstance(tokenizer, Tokenizer) else getattr(tokenizer, "backend_tokenizer", None)
    if fast is None:  # a tokenizer in Python alone
        tokens = settings_hash(
            {
                "vocab": tokenizer.get_vocab(),
                "special": {k: str(v) for k, v in tokenizer.special_tokens_map.items()},
            }
        )
    else:
        tokens = tokenizer_hash(fast)
    return TeacherIdentity(
        kind=kind,
        name=Path(source).resolve().name if Path(source).is_dir() else source,
        weights=weights,
        preprocess=settings_hash({"image": treats}),
        tokenizer=tokens,
        vocab_size=vocab_size,
        details={"parameters": parameter_count([model])},
    )


def image_settings(processor: Any) -> dict[str, Any]:
    """Settings of an image processor that change pixels; the names of its class and of its form do not."""
    named = ("image_processor_type", "processor_class", "transformers_version")
    return {
        key: value
        for key, value in processor.to_dict().items()
        if key not in named and not key.startswith("_") and value is not None
    }


def _grouped(rows: list[Ids], size: int) -> list[list[Ids]]:
    return [rows[i : i + size] for i in range(0, len(rows), size)]
