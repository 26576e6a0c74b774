"""Any other picture-to-text model of `transformers` as a teacher: GIT, LLaVA, SmolVLM, Qwen-VL, ...

What AutoModelForImageTextToText loads. A model with a chat template is told what to do by a prompt; one
without gets the picture alone. Its processor makes one set of inputs for each picture; sets of the same
shapes go through the model together, so no padding ever stands between a picture and its text.

What the answers are:
    text        <bos>, tokens, <eos> under vistill's ids (teachers_pretrained.py); what stands in the place of
                <bos> inside is the last token of the prompt: there is no begin mark of its own
    top_k       of decoder-only models whose inputs beside the picture are token ids alone, and whose
                tokenizer has a fast form
    hidden, embedding: none, since every such model hides its encoder elsewhere
"""

import inspect
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from vistill.distill.answers import Answer, Ask, Text, check_able
from vistill.distill.teachers_common import MOST_LOGITS, as_text, check_top_k, pad_right, top_k
from vistill.distill.teachers_pretrained import (
    Ids,
    captions_of,
    identify,
    image_settings,
    load_model,
    load_part,
    search,
    words_of,
)
from vistill.errors import ConfigError
from vistill.models.pretrained import Marks, first_set
from vistill.models.torchvision_repair import repair_torchvision

PROMPT = "Describe this picture in one short sentence."
BEGINS_ALONE = ("git",)
"""Models whose text starts from the begin mark alone, without any ids from the processor."""
TEXT_KEYS = ("input_ids", "attention_mask", "mm_token_type_ids")
"""Inputs with one entry a token whose value for a token of text is known: its id, 1, 0."""

Inputs = dict[str, Tensor]


class PromptedTeacher:
    """A model of AutoModelForImageTextToText from a local folder or a hub name.

    `prompt` is the user's message of a chat model, or the whole text before the caption of a model without
    chat template. Raises ConfigError if the model cannot be loaded or its processor refuses the prompt.
    """

    def __init__(self, source: str, architecture: str, device: str = "cpu", prompt: str = "") -> None:
        repair_torchvision()
        from transformers import AutoProcessor

        self.model, weights = load_model(source, architecture, device)
        self.processor = load_part(AutoProcessor, source, backend="pil")
        self.tokenizer = self.processor.tokenizer
        self.device = device
        self.text = _whole_prompt(self.processor, prompt)
        config, settings = self.model.config, self.model.generation_config
        end = first_set(settings.eos_token_id, self.tokenizer.eos_token_id, self.tokenizer.sep_token_id)
        if end is None:
            raise ConfigError(f"teacher {source!r}: its configuration names no token that ends a text")
        ends = tuple(end) if isinstance(end, list | tuple) else (end,)
        pad = first_set(settings.pad_token_id, self.tokenizer.pad_token_id, ends[0])
        self.begin = first_set(
            settings.bos_token_id, self.tokenizer.bos_token_id, self.tokenizer.cls_token_id
        )
        try:
            probe = self._inputs(Image.new("RGB", (64, 64), (127, 127, 127)))
        except (ValueError, TypeError, IndexError, KeyError) as error:
            raise ConfigError(
                f"teacher {source!r}: its processor refuses a picture with the text {self.text!r}: {error}"
            ) from error
        before = probe["input_ids"][0, -1] if "input_ids" in probe else self.begin
        self.marks = Marks(int(before), ends, int(pad))
        # a text that holds the placeholder of a picture would ask for a second picture
        placeholders = (getattr(config, name, None) for name in ("image_token_id", "image_token_index"))
        self.never = sorted({int(token) for token in placeholders if token is not None})
        self.keeps_few = "logits_to_keep" in inspect.signature(self.model.forward).parameters
        self.vocab_size = int(self.model.get_output_embeddings().weight.shape[0])
        self.words = words_of(self.tokenizer, self.marks, self.vocab_size)
        token_by_token = self.words.ours is not None and _reads_text(config, probe)
        self.can = frozenset({"captions", "top_k"} if token_by_token else {"captions"})
        self.identity = identify(
            architecture, source, weights, self.model, self.words.ours or self.tokenizer,
            self.words.vocab_size,
            {**image_settings(self.processor.image_processor), "prompt": self.text},
        )  # fmt: skip

    @torch.inference_mode()
    def answer(self, images: Sequence[Image.Image], gold: Sequence[Sequence[str]], ask: Ask) -> list[Answer]:
        """See `Teacher.answer`. ConfigError for what it has not or cannot make."""
        check_able(self, ask)
        check_top_k(ask, self.vocab_size)
        inputs = [self._inputs(image) for image in images]
        generated: list[list[Ids]] = [[] for _ in images]
        for places in _same_shapes(inputs) if ask.captions else []:
            group = [inputs[i] for i in places]
            found = search(
                [images[i] for i in places],
                ask,
                self.marks,
                partial(self._generate, group),
            )
            for place, rows in zip(places, found, strict=True):
                generated[place] = rows
        return [
            self._answer(inputs[i], generated[i], gold[i] if ask.gold and ask.top_k else (), ask)
            for i in range(len(images))
        ]

    def _answer(self, inputs: Inputs, generated: Sequence[Ids], gold: Sequence[str], ask: Ask) -> Answer:
        known = [self.words.gold(text, ask.longest, self.never) for text in gold]
        rows = [*known, *(self.words.outward(row)[: ask.longest] for row in generated)]
        texts = self._texts(inputs, rows, ask.top_k) if ask.top_k and rows else [as_text(row) for row in rows]
        return Answer(
            captions=captions_of(self.tokenizer, generated),
            gold=tuple(texts[: len(known)]),
            generated=tuple(texts[len(known) :]),
        )

    def _inputs(self, image: Image.Image) -> Inputs:
        text = {"text": self.text} if self.text else {}
        made = self.processor(images=image, return_tensors="pt", **text)
        inputs = {key: value for key, value in made.items() if isinstance(value, Tensor)}
        if "input_ids" not in inputs and self.model.config.model_type in BEGINS_ALONE:
            inputs["input_ids"] = torch.tensor([[self.begin]])
        return {
            key: value.to(self.device, self.model.dtype if value.is_floating_point() else None)
            for key, value in inputs.items()
        }

    def _generate(self, group: Sequence[Inputs], rows: slice, settings: Mapping[str, Any]) -> Any:
        """Generation for pictures of the same shapes; of the prompt only its last token stays in the ids."""
        joined = _join(group[rows])
        never = {*self.never, *(self.model.generation_config.suppress_tokens or ())}
        out = self.model.generate(
            **joined,
            eos_token_id=list(self.marks.ends),
            pad_token_id=self.marks.pad,
            suppress_tokens=sorted(never) or None,
            **settings,
        )
        ids = out if isinstance(out, Tensor) else out.sequences
        prompt = joined.get("input_ids")
        if self.model.config.is_encoder_decoder:
            ids = ids[:, 1:]
        elif prompt is not None and torch.equal(ids[: len(prompt), : prompt.shape[1]], prompt[: len(ids)]):
            ids = ids[:, prompt.shape[1] :]
        ids = torch.cat((ids.new_full((len(ids), 1), self.marks.begin), ids), dim=1)
        if isinstance(out, Tensor):
            return ids
        out.sequences = ids
        return out

    def _texts(self, inputs: Inputs, rows: Sequence[Ids], k: int) -> list[Text]:
        """Texts of one picture, vistill's ids, with the top K of the token after each but the last."""
        prompt = inputs["input_ids"].shape[1]
        most = max(map(len, rows)) - 1
        step = max(1, MOST_LOGITS // ((prompt + most) * self.vocab_size))
        found: list[Text] = []
        for start in range(0, len(rows), step):
            part = rows[start : start + step]
            own = [self.words.inward(row[1:-1]) for row in part]
            after = pad_right(own, self.marks.pad).to(self.device)  # [R, T - 2]
            joined = _join([inputs] * len(part))
            for key, value in (("input_ids", after), ("attention_mask", 1), ("mm_token_type_ids", 0)):
                if key in joined:
                    tail = value if isinstance(value, Tensor) else torch.full_like(after, value)
                    joined[key] = torch.cat((joined[key], tail.to(joined[key].dtype)), dim=1)
            keep = after.shape[1] + 1
            fewer = {"logits_to_keep": keep} if self.keeps_few else {}
            logits = self.model(**joined, **fewer, use_cache=False).logits[:, -keep:]
            ids, logp = self.words.outward_top(top_k(logits, k))
            found += [as_text(row, (ids[r], logp[r])) for r, row in enumerate(part)]
        return found


def _whole_prompt(processor: Any, prompt: str) -> str:
    """What stands before the caption: the chat with the prompt in it, or the prompt as it is."""
    if not getattr(processor, "chat_template", None):
        return prompt
    content = [{"type": "image"}, {"type": "text", "text": prompt or PROMPT}]
    whole: str = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
    )
    return whole


def _reads_text(config: Any, probe: Inputs) -> bool:
    """Whether a text can be put behind the prompt: all that has an entry a token is understood."""
    if config.is_encoder_decoder or "input_ids" not in probe:
        return False
    length = probe["input_ids"].shape
    return all(key in TEXT_KEYS for key, value in probe.items() if value.shape == length)


def _same_shapes(inputs: Sequence[Inputs]) -> list[list[int]]:
    """Places of inputs that have the same keys and shapes, in order of first appearance."""
    groups: dict[Any, list[int]] = {}
    for place, one in enumerate(inputs):
        shapes = tuple((key, tuple(value.shape)) for key, value in sorted(one.items()))
        groups.setdefault(shapes, []).append(place)
    return list(groups.values())


def _join(inputs: Sequence[Inputs]) -> Inputs:
    """Inputs of single pictures as one batch: every tensor goes on along its first axis."""
    return {key: torch.cat([one[key] for one in inputs]) for key in inputs[0]}
