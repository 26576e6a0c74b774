"""What a run of captions or answers begins with, where no checkpoint is given."""

import dataclasses
from pathlib import Path
from typing import TypeVar

from tokenizers import Tokenizer

from vistill.errors import ConfigError
from vistill.models.adopt import load_language, source_hash
from vistill.models.captioner import Captioner, CaptionerConfig
from vistill.models.language import DecoderConfig
from vistill.models.prefix import LanguageConfig, PrefixCaptioner, PrefixConfig

Sized = TypeVar("Sized", DecoderConfig, LanguageConfig)


def with_language(prefix: PrefixConfig, source: str) -> tuple[PrefixCaptioner, Tokenizer]:
    """A prefix captioner around the language model of a folder or hub name, and its tokenizer.

    Raises ConfigError if there is no such model.
    """
    language, tokenizer, blocked = load_language(source, prefix.decoder.bits)
    decoder = dataclasses.replace(prefix.decoder, blocked=blocked)
    if decoder.named or decoder.bits:
        place = str(Path(source).resolve()) if Path(source).is_dir() else source
        decoder = dataclasses.replace(decoder, source=place, weights=source_hash(place))
    start = dataclasses.replace(prefix, decoder=decoder)
    return PrefixCaptioner(start, pretrained=True, language=language), tokenizer


def from_nothing(
    model: CaptionerConfig, prefix: PrefixConfig | None, tokenizer: Tokenizer
) -> Captioner | PrefixCaptioner:
    """A new captioner, or prefix captioner if there are settings of one, for this vocabulary.

    Raises ConfigError if the settings name a smaller vocabulary.
    """
    if prefix is not None:
        start = dataclasses.replace(prefix, decoder=_sized(prefix.decoder, tokenizer))
        return PrefixCaptioner(start, pretrained=True)
    plain = dataclasses.replace(model, decoder=_sized(model.decoder, tokenizer))
    return Captioner(plain, pretrained=True)


def _sized(decoder: Sized, tokenizer: Tokenizer) -> Sized:
    """`decoder` with the tokenizer's vocabulary, unless it names a larger one. Raises ConfigError."""
    size = decoder.vocab_size or tokenizer.get_vocab_size()
    if size < tokenizer.get_vocab_size():
        raise ConfigError(
            f"model.decoder.vocab_size={size}: the tokenizer has {tokenizer.get_vocab_size()} entries"
        )
    return dataclasses.replace(decoder, vocab_size=size)
