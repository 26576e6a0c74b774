"""The tokeniser against what the Java tool answered, and against the tool itself where there is one."""

import json
import random
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.metrics import corpora, java_ptb, make_ptb_golden, measure_ptb_chars

from vistill.metrics import ptb_chars
from vistill.metrics.ptb import PUNCTUATION, tokenize
from vistill.metrics.ptb_rules import SPLIT_WORDS

needs_java = pytest.mark.skipif(not java_ptb.available(), reason=java_ptb.WHY_NOT)


def differing(texts: list[str], tokens: list[str]) -> list[tuple[str, str, str]]:
    """(text, tokens of Java, our tokens) where they differ."""
    ours = [" ".join(tokenize(text)) for text in texts]
    return [(t, java, our) for t, java, our in zip(texts, tokens, ours, strict=True) if java != our]


def test_golden_file() -> None:
    pairs = [json.loads(line) for line in make_ptb_golden.GOLDEN.read_text().splitlines()]
    assert len(pairs) > 500
    assert differing([text for text, _ in pairs], [tokens for _, tokens in pairs]) == []


def test_golden_file_is_of_these_texts() -> None:
    pairs = [json.loads(line) for line in make_ptb_golden.GOLDEN.read_text().splitlines()]
    assert [text for text, _ in pairs] == make_ptb_golden.texts()


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("A man can't cross, can he?", "a man ca n't cross can he"),
        ("The dog's T-shirt (red)", "the dog 's t-shirt -lrb- red -rrb-"),
        ("", ""),
        ("first line\nsecond", "first line second"),
        ("3 1/2 miles", "3\u00a01/2 miles"),
        ("a 😀 b", "a b"),
    ],
)
def test_what_users_meet(text: str, tokens: str) -> None:
    assert " ".join(tokenize(text)) == tokens


@given(st.text())
def test_any_text_gives_clean_tokens(text: str) -> None:
    for token in tokenize(text):
        assert token
        assert token not in PUNCTUATION
        assert not re.search(r"[ \n\r\v\f\u0085\u2028\u2029]", token)


@given(st.lists(st.from_regex(r"[a-z]{2,9}", fullmatch=True).filter(lambda word: word not in SPLIT_WORDS)))
def test_plain_words_stay(words: list[str]) -> None:
    assert tokenize(" ".join(words)) == words
    assert tokenize(" ".join(words).upper() + " .") == words


@given(st.text(max_size=30), st.sampled_from("\n\r\v\f\u0085\u2028\u2029"), st.text(max_size=30))
def test_a_line_break_is_a_blank(left: str, line_break: str, right: str) -> None:
    assert tokenize(left + line_break + right) == tokenize(f"{left} {right}")


@pytest.mark.parametrize(
    "text", ["a@" * 3000, "<a " * 3000, "(" * 9000, "1-" * 4000, "a%" * 4000, "http://" * 2000]
)
def test_long_odd_texts_do_not_hang(text: str) -> None:
    assert tokenize(text)  # quadratic rules would take minutes here


@needs_java
def test_java_on_the_golden_texts() -> None:
    pairs = [json.loads(line) for line in make_ptb_golden.GOLDEN.read_text().splitlines()]
    assert java_ptb.tokenize([text for text, _ in pairs]) == [tokens for _, tokens in pairs]


@needs_java
def test_java_on_random_texts() -> None:
    rng = random.Random(1)
    texts = [make_ptb_golden.random_text(rng) for _ in range(3000)]
    assert differing(texts, java_ptb.tokenize(texts)) == []


@needs_java
@pytest.mark.slow
def test_java_on_every_character() -> None:
    stored = {name: getattr(ptb_chars, name).strip() for name in ("LETTER", "DIGIT", "MARK", "SYMBOL")}
    assert measure_ptb_chars.measure() == stored


@needs_java
@pytest.mark.slow
@pytest.mark.data
@pytest.mark.parametrize("name", corpora.TEXTS)
def test_java_on_real_texts(name: str, data_root: Path) -> None:
    texts = corpora.TEXTS[name](data_root)
    assert len(texts) > 5000
    assert differing(texts, java_ptb.tokenize(texts)) == []
