"""A captioner that answers questions: the same network, whose text begins with the question.

`<bos> question <ask> answer <eos>` is one row of tokens. Questions of a batch differ in length, so they are
filled on the left: positions count from the first real token, and what was filled in is never attended to.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from vistill.errors import ConfigError
from vistill.models.adopt import vocabulary_tables
from vistill.models.captioner import Captioner
from vistill.models.language import KeyValue
from vistill.models.prefix import PrefixCaptioner, described_language
from vistill.runtime.prompts import left_padded

AnyAnswerer = Captioner | PrefixCaptioner


class PromptedStepper:
    """`vistill.runtime.decode.Stepper` over B questions whose prompts were read but for their last token.

    `generate` is handed that last token as `bos`. cross: keys and values of each question's picture.
    """

    @torch.inference_mode()
    def __init__(self, model: AnyAnswerer, cross: list[KeyValue], prompts: Sequence[Sequence[int]]) -> None:
        device = cross[0][0].device
        tokens, offset = left_padded([prompt[:-1] for prompt in prompts])
        self.model = model
        self.cross = cross
        self.offset = torch.from_numpy(offset).to(device)
        self.past = model.decoder.prefill(torch.from_numpy(tokens).to(device), cross, self.offset)

    @torch.inference_mode()
    def step(self, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
        """tokens [B, C] -> logits [B, C, V] of the next position."""
        ids = torch.from_numpy(np.ascontiguousarray(tokens)).to(self.offset.device)
        logits, self.past = self.model.step(ids, self.cross, self.past, self.offset)
        out: NDArray[np.float32] = logits.float().cpu().numpy()
        return out

    @torch.inference_mode()
    def reorder(self, rows: NDArray[np.int64]) -> None:
        """New row (b, c) continues old row (b, rows[b, c]); rows [B, C2]."""
        index = torch.from_numpy(np.ascontiguousarray(rows)).to(self.offset.device)
        batch = torch.arange(index.shape[0], device=index.device).unsqueeze(1)
        self.past = [(key[batch, index], value[batch, index]) for key, value in self.past]


def of_questions(cross: list[KeyValue], owner: Sequence[int]) -> list[KeyValue]:
    """Keys and values of pictures [P, ...] -> of questions [B, ...]; question b is about picture owner[b]."""
    index = torch.tensor(owner, device=cross[0][0].device)
    return [(key[index], value[index]) for key, value in cross]


@torch.no_grad()
def grow_vocabulary(model: AnyAnswerer, size: int) -> AnyAnswerer:
    """The same network with `size` tokens; new ones begin as the mean of all, a little apart.

    A model that has that many already comes back as it is; a prefix captioner is changed in place.
    `decoder.new_rows` tells how many are new. Raises ConfigError for a language model that does not learn.
    """
    had = model.config.decoder.vocab_size
    if size <= had:
        return model
    if isinstance(model, PrefixCaptioner):
        return _grow_language(model, size)
    decoder = dataclasses.replace(model.config.decoder, vocab_size=size)
    grown = Captioner(dataclasses.replace(model.config, decoder=decoder))
    state = model.state_dict()
    table, bias = state["decoder.embed.weight"], state["word_bias"]
    rows = nn.init.normal_(torch.empty(size - had, table.shape[1]), std=0.02) + table.mean(0)
    state["decoder.embed.weight"] = torch.cat((table, rows))
    state["word_bias"] = torch.cat((bias, torch.full((size - had,), -5.0)))
    grown.load_state_dict(state)
    grown.decoder.new_rows = size - had
    return grown.train(model.training)


def _grow_language(model: PrefixCaptioner, size: int) -> PrefixCaptioner:
    had, decoder = model.config.decoder.vocab_size, model.config.decoder
    if decoder.tune != "full":
        raise ConfigError(
            f"prefix.decoder.tune={decoder.tune}: the data has {size - had} tokens that this language model "
            "lacks, and it could not learn them; use tune=full"
        )
    language = model.decoder.language
    language.resize_token_embeddings(size, mean_resizing=False)
    for table in vocabulary_tables(language):
        table[had:] = nn.init.normal_(torch.empty_like(table[had:]), std=0.02) + table[:had].mean(0)
    bias = torch.full((size - had,), -5.0)
    model.word_bias = nn.Parameter(torch.cat((model.word_bias.detach(), bias)))
    model.config = dataclasses.replace(model.config, decoder=described_language(decoder, language))
    model.decoder.new_rows = size - had
    return model
