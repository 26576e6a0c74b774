"""An answerer's checkpoint -> a bundle of kind `answerer`, or an error with the figures and no bundle."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor, nn

from vistill.data.asked import open_asked
from vistill.export.common import (
    ExportConfig,
    Report,
    chosen_search,
    described,
    name_of,
    publish,
    quantized,
    refuse_consensus,
    refuse_existing,
    refuse_for,
    working_folder,
)
from vistill.export.onnx import export_vision, plain_attention, turned, write_graph
from vistill.export.parity import likeliest
from vistill.files import best_of
from vistill.metrics.vqa_baselines import Asked
from vistill.models.answerer import AnyAnswerer, PromptedStepper, of_questions
from vistill.models.folder import read_config
from vistill.models.language import KeyValue
from vistill.models.loading import ANSWERERS, load_answerer
from vistill.models.lora import merge_lora
from vistill.models.prefix import PrefixCaptioner
from vistill.models.tokens import BOS, EOS, PAD, UNK
from vistill.runtime.bundle import ANSWERER, FILES, Manifest
from vistill.runtime.decode import GenerationConfig, Stepper, generate
from vistill.runtime.image import Preprocess, preprocess
from vistill.runtime.prompts import answer_text, ask_mark, left_padded, prompt_ids
from vistill.runtime.sessions import DecoderSession, PromptSession, VisionSession, name_pairs, of_pictures

BATCH = 16
NOISE = 8  # pictures to check on where there is no data

Floats = NDArray[np.float32]
Start = Callable[[Floats, Sequence[int], list[list[int]]], Stepper]
"""(pixels [P, 3, H, W], the picture of each question, prompts) -> a stepper that awaits `<ask>`."""


class PromptGraph(nn.Module):
    """tokens [B, T] with offset [B] of padding on the left -> past key and value of each layer, flat."""

    def __init__(self, model: AnyAnswerer) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor, offset: Tensor, cross: list[KeyValue]) -> list[Tensor]:
        past = self.model.decoder.prefill(tokens, turned(self.model, cross), offset)
        return [part for pair in past for part in pair]


class StepGraph(nn.Module):
    """One decoding step after prompts of which the first offset [B] positions are padding."""

    def __init__(self, model: AnyAnswerer) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, tokens: Tensor, offset: Tensor, cross: list[KeyValue], past: list[KeyValue]
    ) -> tuple[Tensor, list[Tensor]]:
        logits, present = self.model.step(tokens, turned(self.model, cross), past, offset)
        return logits, [part for pair in present for part in pair]


def export_text(model: AnyAnswerer, prompt: Path, decoder: Path) -> None:
    """Write both graphs of the decoder: any number of questions B, rows C, positions T."""
    empty = model.decoder.empty_past(1)
    layers, (_, _, heads, _, width) = len(empty), empty[0][0].shape
    patches = model.mapper.length
    # Sizes that differ from each other and from 1, so that the exporter takes none of them for fixed.
    b, c, t = 3, 2, 5

    def pairs(*shapes: tuple[int, ...]) -> list[tuple[Tensor, ...]]:
        return [tuple(torch.zeros(shape) for shape in shapes) for _ in range(layers)]

    cross = pairs((b, heads, width, patches), (b, heads, patches, width))
    past = pairs((b, c, heads, t, width), (b, c, heads, t, width))
    batch, rows, time = (torch.export.Dim(name) for name in "BCT")
    of_cross = [({0: batch}, {0: batch})] * layers
    given = ["tokens", "offset", *name_pairs("cross", layers)]
    offset = torch.zeros(b, dtype=torch.int64)
    axes = {0: batch, 1: rows, 3: time}
    with plain_attention(model):
        write_graph(
            PromptGraph(model),
            (torch.zeros(b, t, dtype=torch.int64), offset, cross),
            ({0: batch, 1: time}, {0: batch}, of_cross),
            given,
            name_pairs("past", layers),
            prompt,
        )
        write_graph(
            StepGraph(model),
            (torch.zeros(b, c, dtype=torch.int64), offset, cross, past),
            ({0: batch, 1: rows}, {0: batch}, of_cross, [(axes, axes)] * layers),
            [*given, *name_pairs("past", layers)],
            ["logits", *name_pairs("present", layers)],
            decoder,
        )


@dataclass(frozen=True)
class Photo:
    """A picture to compare on: how to get it preprocessed [3, H, W], its prompts and what is right."""

    load: Callable[[], Floats]
    prompts: list[list[int]]
    asked: list[Asked]
    """Empty if nobody knows the answers."""


@dataclass(frozen=True)
class AnswerParity:
    """Figures of a comparison. Accuracies are on the scale 0 to 100, and None without answers."""

    questions: int
    token_agreement: float
    """Share of positions of the checkpoint's answers where both rank the same next token first."""
    same_answers: float
    """Share of questions that both answer alike."""
    accuracy_checkpoint: float | None = None
    accuracy_bundle: float | None = None

    @property
    def accuracy_drop(self) -> float:
        """Points of accuracy lost; 0 where it was not measured."""
        if self.accuracy_checkpoint is None or self.accuracy_bundle is None:
            return 0.0
        return self.accuracy_checkpoint - self.accuracy_bundle


def export_answerer(
    checkpoint: Path,
    out: Path,
    config: ExportConfig,
    *,
    name: str = "",
    licence: str = "unknown",
    replace_existing: bool = False,
    report: Report = lambda stage, done, total: None,
) -> Manifest:
    """Write the bundle `out`; nothing appears there unless every check has passed.

    Without `config.data` the check runs on random pictures and words. Raises BundleError as
    `export_captioner` does.
    """
    refuse_existing(out, replace_existing)
    refuse_consensus(config, "an answerer")
    checkpoint = best_of(checkpoint)
    model, tokenizer, spec = load_answerer(checkpoint)
    if isinstance(model, PrefixCaptioner):
        merge_lora(model.decoder.language)
    provenance = read_config(checkpoint, *ANSWERERS).get("provenance", {})
    search = chosen_search(provenance, config)
    photos = check_photos(config, spec, tokenizer, model.config.decoder.context - search.max_new_tokens)
    with working_folder(out, replace_existing) as scratch:
        files = {role: scratch / file for role, file in FILES[ANSWERER].items()}
        report("graphs", 0, 2)
        export_vision(model, files["vision"])
        report("graphs", 1, 2)
        export_text(model, files["prompt"], files["decoder"])
        report("graphs", 2, 2)
        tokenizer.save(str(files["tokenizer"]))
        if config.precision == "int8":
            files |= quantized(files, ["prompt", "decoder"], config, spec, report)
        parity = compare_answers(
            torch_start(model),
            onnx_start(files["vision"], files["prompt"], files["decoder"], config.threads),
            photos,
            tokenizer,
            search,
            lambda done: report("check", done, len(photos)),
        )
        refuse(parity, config)
        manifest = Manifest(
            name=name or name_of(checkpoint, provenance),
            preprocess=spec,
            generation=search,
            special_tokens={"pad": PAD, "bos": BOS, "eos": EOS, "unk": UNK, "ask": ask_mark(tokenizer)},
            context=model.config.decoder.context,
            licence=licence,
            **described(checkpoint, model, provenance, parity, config),
            kind=ANSWERER,
        )
        return publish(manifest, files, scratch, out)


def torch_start(model: AnyAnswerer) -> Start:
    """Steppers of the checkpoint."""

    @torch.inference_mode()
    def start(pixels: Floats, owner: Sequence[int], prompts: list[list[int]]) -> Stepper:
        cross = model.decoder.cross_kv(model.vision(torch.from_numpy(pixels)))
        return PromptedStepper(model, of_questions(cross, owner), prompts)

    return start


def onnx_start(vision: Path, prompt: Path, decoder: Path, threads: int | None = None) -> Start:
    """Steppers of exported graphs."""
    eyes = VisionSession(vision.read_bytes(), threads, str(vision))
    reader = PromptSession(prompt.read_bytes(), threads, str(prompt))
    tongue = DecoderSession(decoder.read_bytes(), threads, str(decoder))

    def start(pixels: Floats, owner: Sequence[int], prompts: list[list[int]]) -> Stepper:
        cross = of_pictures(eyes.run(pixels), np.array(owner))
        return tongue.start(cross, reader.run(*left_padded([one[:-1] for one in prompts]), cross))

    return start


def check_photos(config: ExportConfig, spec: Preprocess, tokenizer: Tokenizer, longest: int) -> list[Photo]:
    """Pictures with questions to compare on: of the data set, else noise and random words."""
    if config.data is None:
        rng = np.random.default_rng(0)
        words, ask = tokenizer.get_vocab_size(), ask_mark(tokenizer)

        def noise() -> Photo:
            pixels = rng.standard_normal((3, *spec.size), np.float32)
            lengths = rng.integers(0, longest - 1, 3)
            prompts = [[BOS, *rng.integers(UNK, words, n).tolist(), ask] for n in lengths]
            return Photo(lambda: pixels, prompts, [])

        return [noise() for _ in range(NOISE)]
    part = open_asked(config.data, config.split)
    count = min(config.check_pictures or len(part.asked), len(part.asked))

    def photo(row: int) -> Photo:
        prompts = [prompt_ids(tokenizer, one.question, longest) for one in part.asked[row]]
        return Photo(lambda: preprocess(part.table[row]["image"], spec), prompts, part.asked[row])

    return [photo(row) for row in range(count)]


def compare_answers(
    checkpoint: Start,
    bundle: Start,
    photos: Sequence[Photo],
    tokenizer: Tokenizer,
    search: GenerationConfig,
    progress: Callable[[int], object] = lambda done: None,
) -> AnswerParity:
    """Answer every question with both and compare; `progress` is told the number of pictures done."""
    ask = ask_mark(tokenizer)
    positions = agreed = same = questions = 0
    right = np.zeros(2)
    for start in range(0, len(photos), BATCH):
        batch = photos[start : start + BATCH]
        pixels = np.stack([photo.load() for photo in batch])
        owner = [place for place, photo in enumerate(batch) for _ in photo.prompts]
        prompts = [prompt for photo in batch for prompt in photo.prompts]
        asked = [one for photo in batch for one in photo.asked]
        found = []
        for begin in (checkpoint, bundle):
            stepper = begin(pixels, owner, prompts)
            some = generate(stepper, len(prompts), bos=ask, eos=EOS, config=search)
            found.append([one[0].tokens for one in some])
        told = [likeliest(begin(pixels, owner, prompts), found[0], ask) for begin in (checkpoint, bundle)]
        lengths = np.array([len(answer) + 1 for answer in found[0]])  # the end mark is a token too
        counted = np.arange(told[0].shape[1]) < lengths[:, None]
        positions += int(counted.sum())
        agreed += int(((told[0] == told[1]) & counted).sum())
        same += sum(one == other for one, other in zip(*found, strict=True))
        questions += len(prompts)
        for which, answers in enumerate(found):
            texts = [answer_text(tokenizer, tokens) for tokens in answers] if asked else []
            right[which] += sum(one.accuracy(text) for one, text in zip(asked, texts, strict=True))
        progress(start + len(batch))
    parity = AnswerParity(questions, agreed / positions, same / questions)
    if not all(photo.asked for photo in photos):
        return parity
    before, after = (100 * right / questions).tolist()
    return replace(parity, accuracy_checkpoint=before, accuracy_bundle=after)


def refuse(parity: AnswerParity, config: ExportConfig) -> None:
    """Raise BundleError, with the figures, if a bundle falls too far below its checkpoint."""
    reasons = []
    if parity.token_agreement < config.min_agreement:
        reasons.append(
            f"{100 * parity.token_agreement:.2f}% of the tokens agree with the checkpoint's, fewer than "
            f"{100 * config.min_agreement:g}%"
        )
    if parity.accuracy_drop > config.max_accuracy_drop:
        reasons.append(
            f"accuracy falls from {parity.accuracy_checkpoint:.2f} to {parity.accuracy_bundle:.2f}, "
            f"more than {config.max_accuracy_drop:g}"
        )
    refuse_for(reasons, f"{parity.questions} questions")
