"""Losses on pairs of images and texts (CLIP, CLIP-KD, DLIP): pure functions like those of losses.py.

    contrastive              InfoNCE between the images and texts of a batch
    feature_distillation     CLIP-KD: squared distance to the teacher's embeddings
    interactive_contrastive  CLIP-KD: InfoNCE between the student's and the teacher's embeddings
    contrastive_relational   CLIP-KD: KL of the similarities within a batch
    similarity_preserving    squared distance of all cosines within a batch of one side
    similarities, soft_targets, soft_contrastive   ALBEF, BLIP, DLIP: momentum encoder and queue
    image_text_matching      ALBEF, BLIP, DLIP: does this text belong to this image?

DLIP's other terms are in losses.py: its feature cosines are `embedding_regression`, its logit term is
`kl_divergence`, those of self-, cross- and decoder attention are `attention_kl(..., temperature=0.05)`.

Pair k of a batch is image k with text k, all other combinations are wrong. Embeddings [B, E] need not have
unit norm: every function here divides by it. A temperature is the inverse of CLIP's logit scale and may be a
scalar tensor that learns.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from vistill.distill.losses import embedding_regression, kl_divergence, paired


def similarities(queries: Tensor, bank: Tensor, temperature: float | Tensor) -> Tensor:
    """Cosines over the temperature, the logits of a contrastive loss: [B, E] and [M, E] -> [B, M].

    The bank is what queries are compared with: the other side of the batch, and a queue behind it if any.
    """
    return F.normalize(queries, dim=-1) @ F.normalize(bank, dim=-1).T / temperature


def contrastive(image: Tensor, text: Tensor, temperature: float | Tensor) -> Tensor:
    """InfoNCE, image to text and text to image, their mean -> scalar. image and text [B, E].

    Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision", figure 3.
    """
    logits = similarities(image, text, temperature)
    return (_first_is_first(logits) + _first_is_first(logits.T)) / 2


def _first_is_first(logits: Tensor) -> Tensor:
    """Cross-entropy of [B, B], where the k-th of the bank is right for the k-th query."""
    return F.cross_entropy(logits, torch.arange(len(logits), device=logits.device))


def feature_distillation(
    student_image: Tensor, student_text: Tensor, teacher_image: Tensor, teacher_text: Tensor
) -> Tensor:
    """Squared distance of unit embeddings to the teacher's, of images plus of texts -> scalar.

    All [B, E], the student's already projected to the teacher's E. The mean is over B and E as in the
    authors' code, to which their weight of 2000 belongs. CLIP-KD, Yang et al. 2024, "feature distillation".
    """
    image, text = F.normalize(student_image, dim=-1), F.normalize(student_text, dim=-1)
    return embedding_regression(image, F.normalize(teacher_image, dim=-1), "mse") + embedding_regression(
        text, F.normalize(teacher_text, dim=-1), "mse"
    )


def interactive_contrastive(
    student_image: Tensor,
    student_text: Tensor,
    teacher_image: Tensor,
    teacher_text: Tensor,
    temperature: float | Tensor,
) -> Tensor:
    """InfoNCE of student images to teacher texts and of student texts to teacher images, mean -> scalar.

    All [B, E], the student's already projected. CLIP-KD, Yang et al. 2024, "interactive contrastive
    learning".
    """
    student_image, teacher_text = paired("interactive_contrastive", student_image, teacher_text)
    student_text, teacher_image = paired("interactive_contrastive", student_text, teacher_image)
    to_text = _first_is_first(similarities(student_image, teacher_text, temperature))
    return (to_text + _first_is_first(similarities(student_text, teacher_image, temperature))) / 2


def contrastive_relational(
    student_image: Tensor,
    student_text: Tensor,
    teacher_image: Tensor,
    teacher_text: Tensor,
    temperature: float | Tensor,
    teacher_temperature: float | Tensor | None = None,
) -> Tensor:
    """KL(teacher || student) of which texts an image is like and the reverse, mean of both -> scalar.

    Student [B, E] and teacher [B, E2]: the widths may differ. Each has its temperature (teacher's None: the
    same). CLIP-KD, Yang et al. 2024, "contrastive relational distillation" (CRD); the half is from the
    authors' code.
    """
    own = temperature if teacher_temperature is None else teacher_temperature
    student = similarities(student_image, student_text, temperature)
    teacher = similarities(teacher_image, teacher_text, own)
    return (kl_divergence(student, teacher) + kl_divergence(student.T, teacher.T)) / 2


def similarity_preserving(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of the cosines of all pairs within a batch -> scalar.

    student [B, E] and teacher [B, E2]: the widths may differ. The form of Tung and Mori 2019,
    "Similarity-Preserving Knowledge Distillation", on unit vectors in place of normalised rows.
    """
    student, teacher = F.normalize(student, dim=-1), F.normalize(teacher, dim=-1)
    return embedding_regression(student @ student.T, teacher @ teacher.T, "mse")


def soft_targets(similarity: Tensor, alpha: float, positives: Tensor | None = None) -> Tensor:
    """alpha * softmax(similarity) + (1 - alpha) * the right ones -> [B, M], without gradient; rows sum to 1.

    similarity [B, M] of a momentum encoder, or of a teacher, to the batch and the queue behind it. positives
    [B, M] bool: which of the bank are right for a query, one or more (several captions of one picture);
    None: the k-th for the k-th. ALBEF, Li et al. 2021, "momentum distillation"; also in BLIP and in DLIP,
    which gives its student the teacher's similarities in this way.
    """
    if positives is None:
        right = torch.eye(*similarity.shape, dtype=similarity.dtype, device=similarity.device)
    else:
        right = positives.to(similarity.dtype) / positives.sum(-1, keepdim=True)
    return alpha * similarity.detach().softmax(-1) + (1 - alpha) * right


def soft_contrastive(similarity: Tensor, targets: Tensor) -> Tensor:
    """-sum targets * log softmax(similarity), averaged over queries -> scalar; one direction.

    similarity [B, M] of `similarities`, targets [B, M] of `soft_targets`. The ITA loss of ALBEF, BLIP and
    DLIP is the mean of it from image to text and from text to image.
    """
    similarity, targets = paired("soft_contrastive", similarity, targets)
    return -(targets * similarity.log_softmax(-1)).sum(-1).mean()


def image_text_matching(logits: Tensor, matched: Tensor) -> Tensor:
    """Cross-entropy of "does this text belong to this image?" -> scalar.

    logits [M, 2] (no, yes); matched [M] bool. With B right pairs and for each image a hard wrong text and for
    each text a hard wrong image M is 3 B: ALBEF, Li et al. 2021, "image-text matching"; BLIP; DLIP.
    """
    return F.cross_entropy(logits, matched.long())
