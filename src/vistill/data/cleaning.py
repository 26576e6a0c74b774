"""Rules that clean captions, each counted: `vistill data build ... --clean RULE` runs the named ones.

Nothing here runs unless it is named. The rules run in the order of `RULES`, on captions that are already one
line with single blanks, so a change that is counted is a change of the text and not of its white space.
"""

import html
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from vistill.data.records import tidy
from vistill.errors import ConfigError

EXAMPLES = 3  # captions before and after that a report shows for each rule

LONG_WORDS = 40
"""Words above which a caption counts as long: few captioners write more, and training cuts what is longer."""

WORD = re.compile(r"\w+(?:['’-]\w+)*")
"""A run of letters, digits and inner apostrophes or hyphens: near the metrics' tokens, forty times faster."""

# A tag whose attributes, if any, have values: `a <b and c> d` is no tag.
_ATTRIBUTE = r"""\s+[\w:-]+\s*=\s*(?:"[^"]*"|'[^']*'|[^\s"'<>]+)"""
_TAG = re.compile(rf"</?([a-zA-Z][\w:-]*)(?:{_ATTRIBUTE})*\s*/?>")
_INLINE = frozenset("a b em font i small span strong sub sup u italic bold".split())
_URL = re.compile(r"\(?\b(?:https?://|www\.)[^\s)]+\)?|\(?\b[\w.+-]{1,64}@[\w-]+(?:\.[\w-]+)+\)?")
_FIGURE = re.compile(
    r"^(?i:supplementary )?(?i:fig(?:ure)?s?) ?\.? ?[SA]?\d+(?:-?[A-Za-z](?![\w]))?"  # Fig. 1-A
    r"(?: ?[-–,] ?\d+)*+"  # Figs. 2-5
    r"(?: ?[.:)|–—-]+ ?| (?=[A-Z(])|$)"  # but not: Figure 8 knot
)
_PANEL_LABEL = r"[a-h](?: ?(?:,|-|–|and|&|to) ?[a-h])*"
_PANEL = re.compile(rf" ?[(\[]{_PANEL_LABEL}[)\]](?: ?[:.–—-](?= ))?", re.IGNORECASE)
_NAME = r"[A-Z][\w'’-]+"
_CITATION = re.compile(
    r" ?\[\d+(?: ?[-–,] ?\d+)*\]"  # [12], [3, 5-7]
    rf"| ?\({_NAME}(?: et al\.?,?| (?:and|&) {_NAME},?|,) (?:19|20)\d\d[a-z]?\)"  # (Ray et al., 2018)
)
_TYPOGRAPHY = str.maketrans(
    {
        **dict.fromkeys("‘’‚‛′´`", "'"),
        **dict.fromkeys("“”„‟″«»", '"'),
        **dict.fromkeys("‐‑‒–—―−", "-"),
        "…": "...",
        "\u00ad": None,  # soft hyphen
        "\u200b": None,  # zero-width space
        "\ufeff": None,
        "\ufb00": "ff",
        "\ufb01": "fi",
        "\ufb02": "fl",
        "\ufb03": "ffi",
        "\ufb04": "ffl",
    }
)
_BEFORE_MARK = re.compile(r" ([.,;!?%)\]])(?!\w)|(?<!\d) (:)(?!\w)")
_AFTER_BRACKET = re.compile(r"([(\[]) ")
_CLITIC = re.compile(r" (n't|'(?:s|re|ve|ll|d|m))\b", re.IGNORECASE)


def _html(text: str) -> str:
    plain = _TAG.sub(lambda tag: "" if tag[1].lower() in _INLINE else " ", text)
    return html.unescape(plain)


def _typography(text: str) -> str:
    return text.translate(_TYPOGRAPHY)


def _spacing(text: str) -> str:
    return _AFTER_BRACKET.sub(r"\1", _BEFORE_MARK.sub(r"\1\2", _CLITIC.sub(r"\1", text)))


@dataclass(frozen=True)
class Rule:
    """A pure function over one caption, and the sentence that says what it changes and why."""

    apply: Callable[[str], str]
    why: str


RULES: dict[str, Rule] = {
    "html": Rule(_html, "tags removed and entities decoded: texts that were taken from web pages"),
    "urls": Rule(lambda text: _URL.sub(" ", text), "web and mail addresses removed: no picture shows them"),
    "figure_labels": Rule(
        lambda text: _FIGURE.sub("", text),
        '"Figure 4." and "Fig. 1-A:" removed at the start: the number is the paper\'s, not the picture\'s',
    ),
    "citations": Rule(
        lambda text: _CITATION.sub("", text),
        "[12] and (Ray et al., 2018) removed: they point out of the picture",
    ),
    "panels": Rule(
        lambda text: _PANEL.sub(" ", text),
        "(A) and (b, c) removed: panel letters of a compound figure, which a captioner would learn to write",
    ),
    "typography": Rule(
        _typography, "curly quotes, long dashes, ligatures and invisible signs made plain: fewer rare tokens"
    ),
    "spacing": Rule(
        _spacing, 'the blanks of tokenised text removed: "a dog \'s toy ." becomes "a dog\'s toy."'
    ),
    "lowercase": Rule(str.lower, "letters made lower-case: one word, one spelling"),
}


@dataclass
class Cleaning:
    """What the chosen rules changed so far."""

    rules: Sequence[str]
    counts: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[list[str]]] = field(default_factory=dict)  # [key, before, after]

    def __post_init__(self) -> None:
        require_rules(self.rules)
        self.rules = [name for name in RULES if name in self.rules]  # their order is ours

    def clean(self, key: str, captions: Sequence[str]) -> list[str]:
        """Return the captions of picture `key`, cleaned; counts what each rule changed."""
        return [self._clean(key, tidy(caption)) for caption in captions]

    def _clean(self, key: str, caption: str) -> str:
        for name in self.rules:
            after = tidy(RULES[name].apply(caption))
            if after != caption:
                self.counts[name] = self.counts.get(name, 0) + 1
                examples = self.examples.setdefault(name, [])
                if len(examples) < EXAMPLES:
                    examples.append([key, caption, after])
                caption = after
        return caption

    def report(self) -> dict[str, Any]:
        """Return {rule: why, captions changed, examples} of every chosen rule, for report.json."""
        return {
            name: {
                "why": RULES[name].why,
                "captions": self.counts.get(name, 0),
                "examples": [
                    dict(zip(("key", "before", "after"), example, strict=True))
                    for example in self.examples.get(name, [])
                ],
            }
            for name in self.rules
        }


def require_rules(names: Sequence[str]) -> None:
    """Raise ConfigError naming the first that is no rule."""
    for name in names:
        if name not in RULES:
            raise ConfigError(f"clean: no rule {name!r}; there are {', '.join(RULES)}")


def count_words(caption: str) -> int:
    """Return how many words a caption has."""
    return sum(1 for _ in WORD.finditer(caption))
