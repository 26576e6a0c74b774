"""From questions about pictures to texts to learn: which view and which questions an epoch shows."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from vistill.data.collate import Item, PixelSource, mirror_words, show_view
from vistill.metrics.vqa_baselines import Asked
from vistill.models.tokens import EOS
from vistill.runtime.prompts import prompt_ids


class QuestionRows:
    """Pictures with questions; item (epoch, row) is the same however and whenever it is asked for.

    In training each picture shows one view and at most `questions` of its questions, drawn by (seed, epoch,
    row); with `questions=0` all of them, in order (validation). A text is a prompt of at most `longest` ids,
    then at most `longest_answer` of the answer with its end mark.
    """

    def __init__(
        self,
        keys: Sequence[str],
        asked: Sequence[Sequence[Asked]],
        pixels: PixelSource,
        tokenizer: Tokenizer,
        *,
        questions: int,
        longest: int,
        longest_answer: int,
        seed: int,
    ) -> None:
        self.keys = keys
        self.asked = asked
        self.pixels = pixels
        self.tokenizer = tokenizer
        self.questions = questions
        self.longest = longest
        self.longest_answer = longest_answer
        self.seed = seed

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: tuple[int, int]) -> tuple[Item, NDArray[Any]]:
        row = index[1]
        view, draw = show_view(self.pixels, self.seed, index)
        shown = list(range(len(self.asked[row])))
        if self.questions:
            shown = [int(i) for i in draw.permutation(len(shown))][: self.questions]
        texts, prompts = [], []
        for place in shown:
            asked = self.asked[row][place]
            question, answer = asked.question, spoken(asked, draw if self.questions else None)
            if view.mirrored:
                question, answer = mirror_words(question), mirror_words(answer)
            prompt = prompt_ids(self.tokenizer, question, self.longest)
            ids = self.tokenizer.encode(answer, add_special_tokens=False).ids[: self.longest_answer - 1]
            texts.append([*prompt, *ids, EOS])
            prompts.append(len(prompt))
        item = Item(
            self.keys[row], row, view.number, view.mirrored, tuple(shown), tuple(texts), tuple(prompts)
        )
        return item, view.pixels


def spoken(asked: Asked, draw: np.random.Generator | None = None) -> str:
    """The answer to learn, as it is written: of many people's one at random, else all parts by ", "."""
    if asked.people and draw is not None:
        return asked.answers[int(draw.integers(len(asked.answers)))]
    return asked.label if asked.people else ", ".join(asked.answers)
