"""Scoring a dual encoder on the dev split: retrieval both ways, and a text tower beside its teacher."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vistill.data.collate import Batch
from vistill.metrics.correlation import spearman
from vistill.metrics.retrieval import retrieval_scores
from vistill.models.loading import AnyDual

Vectors = NDArray[np.float32]
PAIRS = 200_000
"""Pairs of texts, drawn by a seed, whose similarities are compared."""


@dataclass(frozen=True)
class Embed:
    """What a validation step computes: the vectors of the towers that are scored."""

    image: bool
    text: bool

    def __call__(self, model: AnyDual, batch: Batch) -> dict[str, Any]:
        """{key: ([E] of the picture or None, [C, E] of its texts or None)}, float32."""
        image = model.encode_image(batch.pixels, batch.start).float().cpu().numpy() if self.image else None
        text = None
        if self.text:
            B, C, _ = batch.tokens.shape
            text = model.encode_text(batch.tokens.flatten(0, 1)).view(B, C, -1).float().cpu().numpy()
        return {
            item.key: (
                None if image is None else image[row],
                None if text is None else text[row, : len(item.texts)],
            )
            for row, item in enumerate(batch.items)
        }


@dataclass(frozen=True)
class DualScore:
    """Scores of the predictions of `Embed`; what a student's tower does not give, its teacher does."""

    images: Vectors | None = None
    """The teacher's vectors [n, E] of the dev pictures, if the student's are not scored."""
    texts: Vectors | None = None
    """The teacher's vectors [m, E] of the dev texts."""
    owner: NDArray[np.int64] | None = None
    """The picture [m] of each dev text, if pictures are looked for."""
    copied: bool = False
    """Whether the text tower is compared with `texts`."""
    aimed: bool = False
    """Whether the picture tower learns the mean of each picture's `texts` and is compared with it."""
    seed: int = 0

    def __call__(self, predictions: Mapping[str, Any]) -> dict[str, float]:
        """In hundredths: recall as `text_to_image_r1`, its mean `r10`; `spearman`, `cosine` of copied texts,
        `image_cosine` of pictures and what they aim at."""
        out: dict[str, float] = {}
        image, text = self.vectors(predictions)
        if self.copied:
            assert text is not None
            assert self.texts is not None
            out |= copy_scores(text, self.texts, self.seed)
        if self.owner is not None:
            assert image is not None
            assert text is not None
            found = retrieval_scores(image, text, self.owner)
            for way, scores in asdict(found).items():
                out |= {f"{way}_r{k}": 100 * scores[f"r{k}"] for k in (1, 5, 10)}
            out["r10"] = 100 * found.mean_r10
            if self.aimed:
                assert self.texts is not None
                out["image_cosine"] = image_cosine(image, self.texts, self.owner)
        return out

    def vectors(self, predictions: Mapping[str, Any]) -> tuple[Vectors | None, Vectors | None]:
        """What is scored: of the dev pictures [n, E] and texts [m, E], a student's or else its teacher's."""
        images = [image for image, _ in predictions.values()]
        texts = [text for _, text in predictions.values()]
        return (
            self.images if images[0] is None else np.stack(images),
            self.texts if texts[0] is None else np.concatenate(texts),
        )

    def nearest(self, predictions: Mapping[str, Any], texts: Sequence[str], count: int) -> dict[str, str]:
        """{key: the one of all dev `texts` that lies nearest} of the first `count` dev pictures."""
        image, text = self.vectors(predictions)
        assert image is not None
        assert text is not None
        best = (image[:count] @ (text / np.linalg.norm(text, axis=1, keepdims=True)).T).argmax(1)
        return {key: texts[i] for key, i in zip(predictions, best, strict=False)}


def image_cosine(image: Vectors, texts: Vectors, owner: NDArray[np.int64]) -> float:
    """Mean cosine, in hundredths, of pictures [n, E] and the mean of their texts' unit vectors [m, E]."""
    units = texts / np.linalg.norm(texts, axis=1, keepdims=True)
    aims = np.zeros(image.shape, np.float64)
    np.add.at(aims, owner, units)
    told = np.unique(owner)
    lengths = np.linalg.norm(aims[told], axis=1) * np.linalg.norm(image[told], axis=1)
    return 100 * float((np.einsum("ne,ne->n", image[told], aims[told]) / lengths).mean())


def copy_scores(student: Vectors, teacher: Vectors, seed: int) -> dict[str, float]:
    """How well [m, E] copies [m, E2], in hundredths.

    `spearman` of the similarities of pairs of texts; where the widths agree, the mean `cosine` too.
    """
    student = student / np.linalg.norm(student, axis=1, keepdims=True)
    teacher = teacher / np.linalg.norm(teacher, axis=1, keepdims=True)
    draw = np.random.default_rng(seed)
    a = draw.integers(len(student), size=PAIRS)
    b = (a + 1 + draw.integers(len(student) - 1, size=PAIRS)) % len(student)  # never a text with itself
    pairs = [np.einsum("pe,pe->p", x[a], x[b]) for x in (student, teacher)]
    out = {"spearman": 100 * spearman(*pairs)}
    if student.shape == teacher.shape:
        out["cosine"] = 100 * float(np.einsum("me,me->m", student, teacher).mean())
    return out
