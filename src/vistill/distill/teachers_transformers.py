"""Teachers in `transformers` with a picture encoder and a decoder that reads it: ViT-GPT2 and its kin, BLIP.

What their answers are:
    text        <bos>, tokens, <eos> under vistill's ids (teachers_pretrained.py): gold captions as students
                read them, generated ones as the model wrote them; padding is on the right and masked
    top_k       the decoder's distribution, none of the rules that guide its generation applied; needs a
                tokenizer with a fast form
    hidden      the encoder's last hidden state [N, D], the class token first where there is one, before any
                projection to the decoder's width
    pooled      its mean over all N
    embedding   VisionEncoderDecoder: that mean (the encoder's own pooling layer is untrained in many public
                checkpoints); BLIP: the class token
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from vistill.distill.answers import Answer, Ask, Text, check_able
from vistill.distill.teachers_common import (
    MOST_LOGITS,
    array,
    as_text,
    check_length,
    check_top_k,
    pad_right,
    top_k,
)
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
from vistill.models.pretrained import Marks, marks_of
from vistill.models.torchvision_repair import repair_torchvision


@dataclass(frozen=True)
class Wiring:
    """How one architecture is used; the rest is common.

    encode: pixels [B, 3, H, W] -> hidden [B, N, D]. embed: hidden -> [B, E].
    logits: (hidden [R, N, D], ids int64 [R, T], mask [R, T]) -> [R, T, V].
    generate: (hidden, settings) -> what `generate` returns, each text after one begin mark.
    """

    marks: Marks
    vocab_size: int
    positions: int
    encode: Callable[[Tensor], Tensor]
    embed: Callable[[Tensor], Tensor]
    logits: Callable[[Tensor, Tensor, Tensor], Tensor]
    generate: Callable[[Tensor, Mapping[str, Any]], Any]


class EncoderTeacher:
    """`VisionEncoderDecoderModel` or `BlipForConditionalGeneration` from a local folder or a hub name.

    Pictures go through the checkpoint's own image processor in its Pillow form. Raises ConfigError if the
    checkpoint cannot be loaded or is incomplete.
    """

    def __init__(self, source: str, architecture: str, device: str = "cpu") -> None:
        repair_torchvision()
        from transformers import AutoImageProcessor, AutoTokenizer

        self.model, weights = load_model(source, architecture, device)
        self.tokenizer = load_part(AutoTokenizer, source)
        self.processor = load_part(AutoImageProcessor, source, backend="pil")
        self.device = device
        self.wiring = WIRINGS[architecture](self.model, self.tokenizer)
        self.words = words_of(self.tokenizer, self.wiring.marks, self.wiring.vocab_size)
        token_by_token = {"top_k"} if self.words.ours is not None else set()
        self.can = frozenset({"captions", "hidden", "embedding"} | token_by_token)
        self.identity = identify(
            architecture, source, weights, self.model, self.words.ours or self.tokenizer,
            self.words.vocab_size, image_settings(self.processor),
        )  # fmt: skip

    @torch.inference_mode()
    def answer(self, images: Sequence[Image.Image], gold: Sequence[Sequence[str]], ask: Ask) -> list[Answer]:
        """See `Teacher.answer`. ConfigError for what it has not or cannot make."""
        check_able(self, ask)
        check_top_k(ask, self.wiring.vocab_size)
        if not images:
            return []
        pixels = self.processor(images=list(images), return_tensors="pt")["pixel_values"]
        hidden = self.wiring.encode(pixels.to(self.device, self.model.dtype))
        generated: list[list[Ids]] = [[] for _ in images]
        if ask.captions:
            check_length(ask, self.wiring.positions)
            generated = search(
                images,
                ask,
                self.wiring.marks,
                lambda rows, settings: self.wiring.generate(hidden[rows], settings),
            )
        known = self._gold_ids(gold, ask)
        spoken = [[self.words.outward(row) for row in rows] for rows in generated]
        texts = self._texts([a + b for a, b in zip(known, spoken, strict=True)], hidden, ask)
        embedding = self.wiring.embed(hidden)
        return [
            Answer(
                captions=captions_of(self.tokenizer, generated[i]),
                gold=tuple(texts[i][: len(known[i])]),
                generated=tuple(texts[i][len(known[i]) :]),
                hidden=_hidden(hidden[i], ask.hidden),
                embedding=array(embedding[i]) if ask.embedding else None,
            )
            for i in range(len(images))
        ]

    def _gold_ids(self, gold: Sequence[Sequence[str]], ask: Ask) -> list[list[Ids]]:
        if not (ask.top_k and ask.gold):
            return [[] for _ in gold]
        longest = min(ask.longest, self.wiring.positions + 1)
        return [[self.words.gold(text, longest) for text in of] for of in gold]

    def _texts(self, ids: list[list[Ids]], hidden: Tensor, ask: Ask) -> list[list[Text]]:
        """Texts of each picture, vistill's ids; their top K in as few forwards as MOST_LOGITS allows."""
        cut = [[row[: ask.longest] for row in rows] for rows in ids]
        flat = [row for rows in cut for row in rows]
        if not ask.top_k or not flat:
            return [[as_text(row) for row in rows] for rows in cut]
        pictures = torch.tensor([i for i, rows in enumerate(cut) for _ in rows], device=hidden.device)
        step = max(1, MOST_LOGITS // (max(map(len, flat)) * self.wiring.vocab_size))
        found: list[Text] = []
        for start in range(0, len(flat), step):
            part = flat[start : start + step]
            tokens = pad_right([self.words.inward(row[:-1]) for row in part], self.wiring.marks.pad)
            lengths = torch.tensor([len(row) - 1 for row in part])
            mask = (torch.arange(tokens.shape[1]) < lengths[:, None]).long()
            logits = self.wiring.logits(
                hidden[pictures[start : start + step]], tokens.to(self.device), mask.to(self.device)
            )
            top, logp = self.words.outward_top(top_k(logits, ask.top_k))
            found += [as_text(row, (top[r], logp[r])) for r, row in enumerate(part)]
        rest = iter(found)
        return [[next(rest) for _ in rows] for rows in cut]


def encoder_decoder(model: Any, tokenizer: Any) -> Wiring:
    """Wiring of VisionEncoderDecoderModel: any vision encoder, any decoder with cross-attention."""
    from transformers.modeling_outputs import BaseModelOutput

    marks, decoder = marks_of(model, tokenizer), model.config.decoder

    def logits(hidden: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        out: Tensor = model(
            encoder_outputs=BaseModelOutput(last_hidden_state=hidden),
            decoder_input_ids=ids,
            decoder_attention_mask=mask,
            use_cache=False,
        ).logits
        return out

    def generate(hidden: Tensor, wanted: Mapping[str, Any]) -> Any:
        return model.generate(
            encoder_outputs=BaseModelOutput(last_hidden_state=hidden),
            attention_mask=torch.ones(hidden.shape[:2], dtype=torch.long, device=hidden.device),
            decoder_start_token_id=marks.begin,
            eos_token_id=list(marks.ends),
            pad_token_id=marks.pad,
            **wanted,
        )

    return Wiring(
        marks=marks,
        vocab_size=decoder.vocab_size,
        positions=getattr(decoder, "max_position_embeddings", 2**31),
        encode=lambda pixels: model.encoder(pixel_values=pixels).last_hidden_state,
        embed=lambda hidden: hidden.mean(1),
        logits=logits,
        generate=generate,
    )


def blip(model: Any, tokenizer: Any) -> Wiring:
    """Wiring of BlipForConditionalGeneration."""
    marks, text = marks_of(model, tokenizer), model.config.text_config

    def logits(hidden: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        out: Tensor = model.text_decoder(
            input_ids=ids, attention_mask=mask, encoder_hidden_states=hidden, use_cache=False
        ).logits
        return out

    def generate(hidden: Tensor, wanted: Mapping[str, Any]) -> Any:
        begin = torch.full((len(hidden), 1), marks.begin, device=hidden.device)
        return model.text_decoder.generate(
            input_ids=begin,
            attention_mask=torch.ones_like(begin),
            encoder_hidden_states=hidden,
            encoder_attention_mask=torch.ones(hidden.shape[:2], dtype=torch.long, device=hidden.device),
            eos_token_id=list(marks.ends),
            pad_token_id=marks.pad,
            **wanted,
        )

    return Wiring(
        marks=marks,
        vocab_size=text.vocab_size,
        positions=text.max_position_embeddings,
        encode=lambda pixels: model.vision_model(pixel_values=pixels).last_hidden_state,
        embed=lambda hidden: hidden[:, 0],
        logits=logits,
        generate=generate,
    )


WIRINGS: dict[str, Callable[[Any, Any], Wiring]] = {
    "VisionEncoderDecoderModel": encoder_decoder,
    "BlipForConditionalGeneration": blip,
}


def _hidden(hidden: Tensor, kind: str) -> NDArray[np.float32] | None:
    return None if kind == "none" else array(hidden if kind == "all" else hidden.mean(0))
