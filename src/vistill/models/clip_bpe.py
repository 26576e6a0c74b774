"""CLIP's byte-level BPE through `tokenizers`, from the list of merges that OpenAI published.

The reference first repairs a text with ftfy and `html.unescape`. What of that is a matter of single
characters (curly quotes, ligatures, control characters) is done here by the normaliser; the rest is not:
mojibake, HTML entities, full-width letters and terminal codes stay as they are.
"""

import gzip
import zlib
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from vistill.errors import ConfigError

MARKS = ("<|startoftext|>", "<|endoftext|>")
MERGES = 48894
"""Of the published list, which is longer, CLIP uses so many."""

WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"

_REPAIRS = (
    ("[\u0000-\u0008\u000b\u000e-\u001f\u007f\u206a-\u206f\ufeff\ufff9-\ufffc]", ""),
    ("[\u02bc\u2018-\u201b]", "'"),
    ("[\u201c-\u201f]", '"'),
    ("\ufb00", "ff"), ("\ufb01", "fi"), ("\ufb02", "fl"), ("\ufb03", "ffi"), ("\ufb04", "ffl"),
    ("[\ufb05\ufb06]", "st"), ("[\u0132\u0133]", "ij"), ("\u0149", "\u02bcn"),
    ("[\u01c4-\u01c6]", "d\u017e"), ("[\u01c7-\u01c9]", "lj"), ("[\u01ca-\u01cc]", "nj"),
    ("[\u01f1-\u01f3]", "dz"),
)  # fmt: skip


def read_merges(path: Path) -> list[tuple[str, str]]:
    """The merges of `bpe_simple_vocab_16e6.txt.gz` in their order. Raises ConfigError for another file."""
    try:
        lines = gzip.decompress(path.read_bytes()).decode("utf-8").split("\n")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: CLIP's list of merges cannot be read: {error}") from error
    pairs = [tuple(line.split()) for line in lines[1 : 1 + MERGES]]
    merges = [(pair[0], pair[1]) for pair in pairs if len(pair) == 2]
    if len(merges) != MERGES:
        raise ConfigError(f"{path}: expected {MERGES} merges, found {len(merges)}; it is not CLIP's list")
    return merges


def tokenizer_of_merges(merges: list[tuple[str, str]]) -> Tokenizer:
    """Merges -> tokenizer: 256 bytes, the same at the end of a word, one entry a merge, then both marks."""
    kept = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]  # bytes that stand for themselves
    letters = [*map(chr, kept), *(chr(256 + n) for n in range(256 - len(kept)))]
    entries = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(pair) for pair in merges)]
    tokenizer = Tokenizer(
        models.BPE(
            {entry: i for i, entry in enumerate(entries)},
            merges,
            continuing_subword_prefix="",
            end_of_word_suffix="</w>",
        )
    )
    repairs: list[Any] = [normalizers.Replace(Regex(found), text) for found, text in _REPAIRS]
    # Greek has a letter of its own for an s that ends a word; lower-casing letter by letter misses it.
    sigma = normalizers.Replace(Regex(r"(?<=\p{L})\u03a3(?!\p{L})"), "\u03c2")
    spaces = normalizers.Replace(Regex(r"\s+"), " ")
    tokenizer.normalizer = normalizers.Sequence(
        [*repairs, normalizers.NFC(), spaces, sigma, normalizers.Lowercase()]
    )
    split = pre_tokenizers.Split(Regex(WORDS), behavior="removed", invert=True)
    bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, bytes_only])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(MARKS))
    ids = [(mark, tokenizer.token_to_id(mark)) for mark in MARKS]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{MARKS[0]} $A {MARKS[1]}", special_tokens=ids
    )
    return tokenizer
