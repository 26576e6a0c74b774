"""From texts to the token ids that a text tower reads: the only such function, used by training too.

A tokenizer takes texts as people write them (its own normaliser folds case and spaces) and names its marks:
`<bos>`, `<eos>` of vistill's vocabularies, `<|startoftext|>`, `<|endoftext|>` of CLIP's.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from vistill.errors import ConfigError

MARKS = (("<bos>", "<eos>"), ("<|startoftext|>", "<|endoftext|>"), ("<start_of_text>", "<end_of_text>"))


def text_marks(tokenizer: Tokenizer) -> tuple[int, int]:
    """Ids of the tokens that begin and end a text. Raises ConfigError if the vocabulary has none."""
    for begin, end in MARKS:
        ids = tokenizer.token_to_id(begin), tokenizer.token_to_id(end)
        if ids[0] is not None and ids[1] is not None:
            return ids[0], ids[1]
    known = ", ".join(" ".join(pair) for pair in MARKS)
    raise ConfigError(f"the tokenizer has no marks of begin and end of a text; known are {known}")


def readable(text: str) -> str:
    """`text` with `?` for lone surrogates, as of a word of the command line that is not UTF-8."""
    return text.encode("utf-8", "replace").decode()


def encode_texts(tokenizer: Tokenizer, texts: Sequence[str], context: int) -> NDArray[np.int64]:
    """Texts -> ids int64 [B, T], T <= context, filled with 0 on the right.

    Each text stands between its marks; one that is too long is cut before its end mark. An empty text is its
    two marks. Truncation, padding and marks that the tokenizer would add itself are not used.
    """
    begin, end = text_marks(tokenizer)
    if context < 2:
        raise ConfigError(f"context={context}: a text takes at least its two marks")
    if tokenizer.truncation is not None or tokenizer.padding is not None:
        tokenizer = Tokenizer.from_str(tokenizer.to_str())  # the caller's own stays as it is
        tokenizer.no_truncation()
        tokenizer.no_padding()
    encoded = tokenizer.encode_batch_fast([readable(text) for text in texts], add_special_tokens=False)
    rows = [[begin, *row.ids[: context - 2], end] for row in encoded]
    out = np.zeros((len(rows), max(map(len, rows), default=2)), np.int64)
    for place, row in zip(out, rows, strict=True):
        place[: len(row)] = row
    return out
