"""Teachers made by vistill: a checkpoint, an ensemble of checkpoints, an exported bundle.

What their answers are:
    hidden      the memory that the decoder reads (tower and mapper), [N, D]; of an ensemble those of its
                members side by side, [N, sum of D]
    embedding   the mean of that memory over the patches
    top_k       the decoder's own distribution, of an ensemble the mean of the members' probabilities. While
                captions are made <pad>, <bos> and <unk> are forbidden (to each member, before the mean is
                taken); here they keep their probabilities, except that a bundle's graph forbids them always.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from tokenizers import Tokenizer
from torch import Tensor

from vistill.data.collate import pad_texts
from vistill.data.text import encode
from vistill.distill.answers import Answer, Ask, TeacherIdentity, Text, check_able
from vistill.distill.teachers_common import (
    MOST_LOGITS,
    array,
    as_text,
    check_length,
    check_top_k,
    pad_right,
    picture_seed,
    search_for,
    settings_hash,
    tokenizer_hash,
    top_k,
)
from vistill.errors import ConfigError
from vistill.models.captioner import TorchStepper, parameter_count
from vistill.models.checkpoint import weights_hash
from vistill.models.compiled import Run, compile_trunk
from vistill.models.loading import AnyCaptioner, load_model
from vistill.models.tokens import BOS, EOS, PAD
from vistill.runtime.bundle import CAPTIONER, open_kind
from vistill.runtime.consensus import open_head, to_choose_from
from vistill.runtime.decode import GenerationConfig, Hypothesis, Stepper, generate
from vistill.runtime.image import Preprocess, to_array
from vistill.runtime.pipelines import check_fit
from vistill.runtime.sessions import TOWER_MEAN, DecoderSession, VisionSession

Ids = list[int]


@dataclass(frozen=True)
class Member:
    """One checkpoint of an ensemble."""

    name: str
    model: AnyCaptioner
    preprocess: Preprocess
    tokenizer: Tokenizer
    tower: Run | None = None
    """The compiled tower, if there is one."""

    def memory(self, images: Sequence[Image.Image], device: str) -> Tensor:
        """RGB pictures -> memory [B, N, D]."""
        pixels = np.stack([to_array(image, self.preprocess) for image in images])
        if self.tower is None:
            return self.model.vision(torch.from_numpy(pixels).to(device))
        return self.model.vision(torch.from_numpy(self.tower(pixels)), len(self.model.tower.stages))


class CheckpointTeacher:
    """One vistill checkpoint or an ensemble of several: their probabilities are averaged at every step.

    With `compiled` the towers run in ONNX Runtime, which takes seconds to set up and pays from some hundred
    pictures on; on another device than the CPU it changes nothing. Raises BundleError for a folder that is no
    checkpoint, ConfigError if the members' tokenizers differ.
    """

    def __init__(self, folders: Sequence[Path], device: str = "cpu", *, compiled: bool = False) -> None:
        self.members = [_member(folder, device, compiled and device == "cpu") for folder in folders]
        self.device = device
        first = self.members[0]
        self.tokenizer = first.tokenizer
        for member in self.members[1:]:
            if tokenizer_hash(member.tokenizer) != tokenizer_hash(first.tokenizer):
                raise ConfigError(
                    f"ensemble: the tokenizers of {first.name!r} and {member.name!r} differ, so their "
                    f"probabilities cannot be averaged; train them with the same tokenizer"
                )
        self.context = min(member.model.config.decoder.context for member in self.members)
        self.identity = _identity(self.members)
        grids = {member.model.mapper.length for member in self.members}
        self.can = frozenset({"captions", "top_k", "embedding"} | ({"hidden"} if len(grids) == 1 else set()))

    @torch.inference_mode()
    def answer(self, images: Sequence[Image.Image], gold: Sequence[Sequence[str]], ask: Ask) -> list[Answer]:
        """See `Teacher.answer`. ConfigError for what it has not or cannot make."""
        check_able(self, ask)
        check_top_k(ask, self.identity.vocab_size)
        if not images:
            return []
        memories = [member.memory(images, self.device) for member in self.members]
        found = self._search(images, memories, ask) if ask.captions else [[] for _ in images]
        generated = [[_marked(h, ask) for h in hypotheses] for hypotheses in found]
        known = [_gold_ids(self.tokenizer, texts, ask, self.context) for texts in gold]
        texts = self._texts([a + b for a, b in zip(known, generated, strict=True)], memories, ask)
        hidden = torch.cat(memories, dim=2) if ask.hidden != "none" else None
        pooled = torch.cat([memory.mean(1) for memory in memories], dim=1)
        return [
            Answer(
                captions=tuple(_decode(self.tokenizer, h) for h in found[i]),
                gold=tuple(texts[i][: len(known[i])]),
                generated=tuple(texts[i][len(known[i]) :]),
                hidden=None if hidden is None else array(hidden[i] if ask.hidden == "all" else pooled[i]),
                embedding=array(pooled[i]) if ask.embedding else None,
            )
            for i in range(len(images))
        ]

    def _search(
        self, images: Sequence[Image.Image], memories: Sequence[Tensor], ask: Ask
    ) -> list[list[Hypothesis]]:
        config = search_for(ask)
        check_length(ask, self.context)

        def run(part: slice, settings: GenerationConfig) -> list[list[Hypothesis]]:
            parts = [memory[part] for memory in memories]
            stepper = ensemble_stepper([member.model for member in self.members], parts)
            return generate(stepper, len(parts[0]), bos=BOS, eos=EOS, config=settings)

        if not config.do_sample:
            return run(slice(None), config)
        return [  # one by one: the random numbers of a batch would depend on a picture's place in it
            _best_first(run(slice(i, i + 1), replace(config, seed=picture_seed(config.seed, image)))[0])
            for i, image in enumerate(images)
        ]

    def _texts(self, ids: list[list[Ids]], memories: Sequence[Tensor], ask: Ask) -> list[list[Text]]:
        """Texts of each picture, with the top K of the token after each id but the last."""
        if not ask.top_k or not any(ids):
            return [[as_text(row) for row in rows] for rows in ids]
        tokens = pad_texts(ids)[..., :-1].to(self.device)  # [B, C, T - 1]
        step = max(1, MOST_LOGITS // (tokens[0].numel() * self.identity.vocab_size))
        out: list[list[Text]] = []
        for start in range(0, len(ids), step):
            part = slice(start, start + step)
            logits = average_logits(
                [
                    member.model.decoder(tokens[part], member.model.decoder.cross_kv(memory[part]))
                    for member, memory in zip(self.members, memories, strict=True)
                ]
            )
            top, logp = top_k(logits, ask.top_k)  # [b, C, T - 1, K]
            out += [
                [as_text(row, (top[b, c], logp[b, c])) for c, row in enumerate(rows)]
                for b, rows in enumerate(ids[part])
            ]
        return out


class EnsembleStepper:
    """`vistill.runtime.decode.Stepper` over several: its logits are the log of their mean probabilities."""

    def __init__(self, members: Sequence[Stepper]) -> None:
        self.members = members

    def step(self, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
        """tokens [B, C] -> log-probabilities [B, C, V] of the next position."""
        logits = [torch.from_numpy(member.step(tokens)) for member in self.members]
        mean: NDArray[np.float32] = average_logits(logits).numpy()
        return mean

    def reorder(self, rows: NDArray[np.int64]) -> None:
        """New row (b, c) continues old row (b, rows[b, c]); rows [B, C2]."""
        for member in self.members:
            member.reorder(rows)


def ensemble_stepper(models: Sequence[AnyCaptioner], memories: Sequence[Tensor]) -> Stepper:
    """A stepper of one captioner or of several, each with its memory [B, N, D]."""
    steppers = [TorchStepper(model, memory) for model, memory in zip(models, memories, strict=True)]
    return steppers[0] if len(steppers) == 1 else EnsembleStepper(steppers)


def average_logits(logits: Sequence[Tensor]) -> Tensor:
    """M times logits [..., V] -> the log of the mean of their softmaxes, float32; one comes back as it is."""
    if len(logits) == 1:
        return logits[0].float()
    logp = torch.stack([one.float().log_softmax(-1) for one in logits])
    return logp.logsumexp(0) - math.log(len(logits))


class BundleTeacher:
    """A vistill bundle: captions and top K, picture by picture; its consensus head, if it has one, chooses.

    A dynamically quantised graph takes its scales from the whole batch, so in company a picture would be
    answered differently. Raises BundleError for a broken bundle.
    """

    def __init__(self, folder: Path) -> None:
        bundle = open_kind(folder, CAPTIONER)
        self.manifest = bundle.manifest
        self.vision = VisionSession(bundle.read("vision"), None, str(bundle.path("vision")))
        self.decoder = DecoderSession(bundle.read("decoder"), None, str(bundle.path("decoder")))
        self.head = open_head(bundle)
        check_fit(bundle, self.vision, self.decoder, self.head)
        self.tokenizer = bundle.tokenizer()
        self.context = self.manifest.context or 2**31
        self.can = frozenset({"captions", "top_k"})
        blank = np.zeros((1, 3, *self.manifest.preprocess.size), np.float32)
        bos = np.full((1, 1), self.manifest.special_tokens["bos"])
        self.identity = TeacherIdentity(
            kind="bundle",
            name=folder.resolve().name,
            weights=settings_hash(
                {role: file.sha256 for role, file in self.manifest.files.items() if role != "tokenizer"}
            ),
            preprocess=self.manifest.preprocess.hash(),
            tokenizer=tokenizer_hash(self.tokenizer),
            vocab_size=self.decoder.start(self.vision.run(blank)).step(bos).shape[-1],
            details={"precision": self.manifest.precision, "title": self.manifest.name},
        )

    def answer(self, images: Sequence[Image.Image], gold: Sequence[Sequence[str]], ask: Ask) -> list[Answer]:
        """See `Teacher.answer`. ConfigError for what it has not or cannot make."""
        check_able(self, ask)
        check_top_k(ask, self.identity.vocab_size)
        return [self._one(image, texts, ask) for image, texts in zip(images, gold, strict=True)]

    def _one(self, image: Image.Image, gold: Sequence[str], ask: Ask) -> Answer:
        cross = self.vision.run(to_array(image, self.manifest.preprocess)[None])
        config, tokens = search_for(ask), self.manifest.special_tokens
        found: list[Hypothesis] = []  # best first
        if ask.captions:
            check_length(ask, self.context)
            if config.do_sample:
                config = replace(config, seed=picture_seed(config.seed, image))
            found = self._search(cross, config)
        known = _gold_ids(self.tokenizer, gold, ask, self.context)
        ids = known + [_marked(h, ask, tokens["bos"], tokens["eos"]) for h in found]
        texts = [as_text(row) for row in ids]
        if ids and ask.top_k:
            top, logp = top_k(read_texts(self.decoder.start(cross), ids), ask.top_k)
            texts = [as_text(row, (top[c], logp[c])) for c, row in enumerate(ids)]
        return Answer(
            captions=tuple(_decode(self.tokenizer, h) for h in found),
            gold=tuple(texts[: len(known)]),
            generated=tuple(texts[len(known) :]),
        )

    def _search(self, cross: dict[str, Any], config: GenerationConfig) -> list[Hypothesis]:
        """`config.num_return` captions of one picture, best first; see `vistill.Captioner`."""
        tokens, several = self.manifest.special_tokens, max(config.num_beams, config.num_return) > 1
        head = self.head if several else None
        search = config if head is None else to_choose_from(config)
        stepper = self.decoder.start(cross)
        found = generate(stepper, 1, bos=tokens["bos"], eos=tokens["eos"], config=search)[0]
        if head is None:
            return _best_first(found)
        expected = head.expect(cross[TOWER_MEAN].numpy())[0]
        ranked = head.ranked(expected, [_decode(self.tokenizer, h) for h in found], [h.score for h in found])
        return [replace(found[place], score=score) for place, score in ranked[: config.num_return]]


def read_texts(stepper: Stepper, ids: Sequence[Ids]) -> Tensor:
    """Feed C texts of one picture to its stepper -> logits [C, T - 1, V] after each id but the last."""
    tokens = pad_right(ids, PAD).numpy()  # [C, T]
    steps = [np.repeat(stepper.step(tokens[None, :1, 0]), len(ids), axis=1)]  # all begin with the same mark
    stepper.reorder(np.zeros((1, len(ids)), np.int64))
    steps += [stepper.step(tokens[None, :, t]) for t in range(1, tokens.shape[1] - 1)]
    return torch.from_numpy(np.stack([step[0] for step in steps], axis=1))


def _member(folder: Path, device: str, compiled: bool) -> Member:
    model, tokenizer, preprocess = load_model(folder)
    model.requires_grad_(False)  # some towers (Swin) cannot be compiled while they could learn
    tower = compile_trunk(model.tower, preprocess.size, len(model.tower.stages)) if compiled else None
    model.to(device)
    return Member(folder.resolve().name, model, preprocess, tokenizer, tower)


def _identity(members: Sequence[Member]) -> TeacherIdentity:
    hashes = [weights_hash(member.model.state_dict()) for member in members]
    treats = [member.preprocess.hash() for member in members]
    many = len(members) > 1
    return TeacherIdentity(
        kind="ensemble" if many else "captioner",
        name="+".join(member.name for member in members),
        weights=settings_hash({"members": hashes}) if many else hashes[0],
        preprocess=settings_hash({"members": treats}) if many else treats[0],
        tokenizer=tokenizer_hash(members[0].tokenizer),
        vocab_size=members[0].model.config.decoder.vocab_size,
        details={
            "parameters": parameter_count([member.model for member in members]),
            "members": [
                {"name": m.name, "tower": m.model.config.vision.name, "weights": digest}
                for m, digest in zip(members, hashes, strict=True)
            ],
        },
    )


def _gold_ids(tokenizer: Tokenizer, texts: Sequence[str], ask: Ask, context: int) -> list[Ids]:
    if not (ask.top_k and ask.gold):
        return []
    return [encode(tokenizer, text, min(ask.longest, context + 1)) for text in texts]


def _marked(hypothesis: Hypothesis, ask: Ask, bos: int = BOS, eos: int = EOS) -> Ids:
    """Ids with marks, cut to `ask.longest`; a caption that reached the limit of tokens has no end mark."""
    ended = len(hypothesis.tokens) < ask.generation.max_new_tokens
    return [bos, *hypothesis.tokens, *([eos] if ended else [])][: ask.longest]


def _decode(tokenizer: Tokenizer, hypothesis: Hypothesis) -> str:
    return tokenizer.decode(list(hypothesis.tokens)).strip()


def _best_first(hypotheses: list[Hypothesis]) -> list[Hypothesis]:
    return sorted(hypotheses, key=lambda h: -h.score)
