"""A batch and its teacher's answers, joined by row and view: numpy records to padded tensors."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset as Table
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor

from vistill.data.collate import Batch, Item, locate, mirror_words, pad_texts
from vistill.data.text import encode
from vistill.distill.answers import Answer, Teacher, Text, check_able
from vistill.distill.cache import CacheConfig, TeacherCache, view_of
from vistill.distill.teachers_common import tokenizer_hash
from vistill.errors import DataError
from vistill.models.tokens import PAD
from vistill.runtime.image import AugmentSpec

Answers = Callable[[Sequence[Item]], list[Answer]]
"""The answer to each item's view, from a cache or asked at once."""


@dataclass(frozen=True)
class TopK:
    """The teacher's K likeliest tokens after each position: ids int64 and logp float32 [B, C, T - 1, K]."""

    ids: Tensor
    logp: Tensor


@dataclass(frozen=True)
class Taught:
    """What the teacher says of a batch; None where it was not asked.

    tokens int64 [B, C, T]: the teacher's captions as the student spells them, `<bos> ... <eos>` and padding.
    of_gold belongs to `batch.tokens`, of_tokens to `tokens`. hidden [B, N, D]; embedding [B, E].
    """

    tokens: Tensor | None = None
    of_gold: TopK | None = None
    of_tokens: TopK | None = None
    hidden: Tensor | None = None
    embedding: Tensor | None = None


def kept_answers(cache: TeacherCache, splits: Sequence[str]) -> Answers:
    """Answers read from a cache; rows go on from one split to the next.

    One view was kept: it answers for every view; else each answers for itself.
    """
    views = cache.config.views
    sizes = [cache.splits[split] for split in splits]

    def read(items: Sequence[Item]) -> list[Answer]:
        places = [locate(sizes, item.row) for item in items]
        return [
            _turned(cache.read(splits[part], row, item.view if views > 1 else 0), item, views)
            for item, (part, row) in zip(items, places, strict=True)
        ]

    return read


def online_answers(teacher: Teacher, table: Table, config: CacheConfig) -> Answers:
    """Answers asked of the teacher in the step: the same as from a cache of `config`, and nothing kept."""
    check_able(teacher, config.ask)

    def ask(items: Sequence[Item]) -> list[Answer]:
        images, gold = [], []
        for item in items:
            row = table[item.row]
            image, mirrored = view_of(row["image"], row["key"], item.view if config.views > 1 else 0, config)
            images.append(image)
            gold.append([mirror_words(text) if mirrored else text for text in row["captions"]])
        answers = teacher.answer(images, gold, config.ask)
        return [_turned(answer, item, config.views) for answer, item in zip(answers, items, strict=True)]

    return ask


def _turned(answer: Answer, item: Item, views: int) -> Answer:
    """The answer to the clean picture, if that is the only view, for a mirrored one: left is right there."""
    if views > 1 or not item.mirrored:
        return answer
    return replace(answer, captions=tuple(map(mirror_words, answer.captions)))


def join(
    batch: Batch, answers: Sequence[Answer], tokenizer: Tokenizer, *, wants: Collection[str], longest: int
) -> Taught:
    """The answers to a batch as tensors on its device; `wants` of captions, top_k, hidden, embedding.

    With top_k the student has the teacher's tokenizer and takes its captions as they were written, token by
    token; else they are spelt anew; at most `longest` ids of each. Raises DataError where ids do not fit.
    """
    device = batch.tokens.device
    tokens, of_tokens, of_gold = None, None, None
    if "top_k" in wants:
        if any(answer.gold for answer in answers):
            pairs = zip(answers, batch.items, strict=True)
            of_gold = _top_k([[answer.gold[i] for i in item.shown] for answer, item in pairs], batch.tokens)
        if any(answer.generated for answer in answers):
            ids = [[text.ids[:longest].tolist() for text in answer.generated] for answer in answers]
            tokens = pad_texts(ids).to(device)
            of_tokens = _top_k([answer.generated for answer in answers], tokens)
    elif "captions" in wants:
        ids = [[encode(tokenizer, text, longest) for text in answer.captions] for answer in answers]
        tokens = pad_texts(ids).to(device)
    return Taught(
        tokens=tokens,
        of_gold=of_gold,
        of_tokens=of_tokens,
        hidden=_stacked([a.hidden for a in answers], device) if "hidden" in wants else None,
        embedding=_stacked([a.embedding for a in answers], device) if "embedding" in wants else None,
    )


def _stacked(states: Sequence[NDArray[np.float32] | None], device: torch.device) -> Tensor:
    return torch.from_numpy(np.stack([state for state in states if state is not None])).to(device)


def _top_k(texts: Sequence[Sequence[Text]], tokens: Tensor) -> TopK:
    """Kept log-probabilities laid out as `tokens` [B, C, T]; where nothing is kept, ids 0..K-1 at log 0."""
    B, C, T = tokens.shape
    K = next(text.top_ids.shape[1] for rows in texts for text in rows if text.top_ids is not None)
    ids = np.broadcast_to(np.arange(K), (B, C, T - 1, K)).copy()
    logp = np.full((B, C, T - 1, K), -np.inf, np.float32)
    of = tokens.cpu().numpy()
    for b, picture in enumerate(texts):
        for c, text in enumerate(picture):
            assert text.top_ids is not None
            assert text.top_logp is not None
            n = int((of[b, c] != PAD).sum())
            if not np.array_equal(text.ids[:n], of[b, c, :n]):
                raise DataError(
                    "the teacher's token ids are not those of the batch: it spells captions with another "
                    "tokenizer, or cut them shorter"
                )
            ids[b, c, : n - 1], logp[b, c, : n - 1] = text.top_ids[: n - 1], text.top_logp[: n - 1]
    return TopK(torch.from_numpy(ids).to(tokens.device), torch.from_numpy(logp).to(tokens.device))


def open_cache(
    folder: Path,
    data: Path,
    splits: Sequence[str],
    *,
    wants: Collection[str],
    tokenizer: Tokenizer,
    longest: int,
    views: int,
    seed: int,
    augment: AugmentSpec,
    leave_out: bool = False,
) -> TeacherCache:
    """The finished cache in `folder`, after a look that a student can learn from it and at every byte of it.

    `wants` are the answers that its losses need; `longest` is the student's longest text; `views` (0: drawn
    anew), `seed` and `augment` say what it is shown; `leave_out`: pictures without an answer are not.
    Raises DataError with the reason.
    """
    cache = TeacherCache.open(folder)
    cache.check_bytes()
    kept = cache.config
    cache.check(
        data=data,
        wants=wants,
        tokenizer=tokenizer_hash(tokenizer) if "top_k" in wants else None,
        views=views if kept.views > 1 else 1,
        seed=seed,
        augment=augment,
    )
    reasons = []
    reasons += [f"it holds no split {split!r}" for split in splits if split not in cache.splits]
    cut = cache.shortest_cut(splits) if "top_k" in wants else None
    if cut is not None and cut < longest:
        reasons.append(
            f"gold captions were cut to {cut} tokens and the student reads up to {longest}: ask again with a "
            "larger --longest (no teacher reads more than its context), or leave such captions out"
        )
    if kept.views > 1 and views == 0:
        reasons.append(f"it holds {kept.views} views of its own: set datamodule.views={kept.views}")
    if kept.views == 1 and views != 1 and "hidden" in wants and kept.ask.hidden == "all":
        reasons.append("its patches are those of the clean picture: set datamodule.views=1 or keep views")
    if kept.views == 1 and views != 1 and "top_k" in wants and augment.flip:
        reasons.append(
            "its log-probabilities are those of the clean picture's words, left and right among them: "
            "set datamodule.views=1 or datamodule.augment.flip=0, or keep views"
        )
    if (problems := cache.problems(splits)) and not leave_out:
        reasons.append(
            f"{len(problems)} records have no answer, the first: {problems[0].where}: {problems[0].reason}; "
            "ask again with the words of the run and --retry-problems, or set "
            "datamodule.leave_out_unanswered=true"
        )
    if reasons:
        raise DataError(f"{folder}: does not fit: {'; '.join(reasons)}")
    return cache
