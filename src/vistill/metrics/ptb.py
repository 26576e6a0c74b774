"""Caption tokeniser that gives the tokens of the usual Java evaluation tools without Java.

The reference is `pycocoevalcap.tokenizer.ptbtokenizer`: Stanford PTBTokenizer 3.4.1 with `-preserveLines
-lowerCase`, then the tokens in PUNCTUATION are removed. The rules in ptb_rules.py were worked out from what
that tool answers; docs/metrics.md says which there are and on what and how well the two agree.

At each position every rule that may start there is tried and the longest match wins, what has to follow
included; the earlier rule wins a tie. A plain word, which is most of a caption, takes a short cut.
"""

import re
from functools import lru_cache

from vistill.metrics.ptb_rules import RULES, SPLIT_WORDS, STOP_WORDS

# pycocoevalcap compares its list with lower-cased tokens, so the "-LRB-" in it never matches and brackets
# stay in the output as "-lrb-". They stay here too: scores must be comparable.
PUNCTUATION = frozenset(["''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"])

_COMPILED = tuple((re.compile(first), re.compile(f"({body})({after})")) for first, body, after in RULES)
# the short cuts: a word before a blank or a last mark, a mark before a blank, blanks
_PLAIN = re.compile(
    r"([A-Za-z]+)(?:(?=[?!,;:]?[ \n])|(\.)\n)"
    r"|(?:[?!,;:]|\.(?! ?\.))(?=[ \n])"
    r"|[ \t][ \t\xa0\u2000-\u200a\u3000]*"
)
_REWRITE = {
    "\u00bc": "1/4",
    "\u00bd": "1/2",
    "\u00be": "3/4",
    "\u2153": "1/3",
    "\u2154": "2/3",
    "\u00a2": "cents",
    "\u00a3": "#",
    "\u00a4": "$",
    "\u20ac": "$",
    "\u20a0": "$",
    "\x80": "$",
    "(": "-lrb-",
    ")": "-rrb-",
    "[": "-lsb-",
    "]": "-rsb-",
    "{": "-lcb-",
    "}": "-rcb-",
    "\u2026": "...",
    ". . .": "...",
    "....": "...",
    ".....": "...",
    "\u2013": "--",
    "\u2014": "--",
    "\u2015": "--",
    "\x96": "--",
    "\x97": "--",
    "---": "--",
    "----": "--",
    "\u00ad": "-",
    "&amp;": "&",
    "&lt;": "<",
    "&gt;": ">",
    "&nbsp;": "",
    "&apos;": "'",
    "&quot;": "''",
    "&mdash;": "--",
    "&ndash;": "--",
    "&md;": "--",
}
_LINE_BREAKS = str.maketrans(dict.fromkeys("\n\r\x0b\x0c\x85\u2028\u2029", " "))
_QUOTES = str.maketrans(
    dict.fromkeys("\u2018\u201b\u2039\x91", "`")
    | dict.fromkeys("\u2019\u203a\x92", "'")
    | dict.fromkeys("\u201c\u00ab\x93", "``")
    | dict.fromkeys('\u201d\u00bb\x94"', "''")
)
_QUOTATION = re.compile("[`'\"\u2018-\u201f\u2039\u203a\u00ab\u00bb\x91-\x94]+")
_CLITIC = re.compile(
    "(?:['\u2019\x92]|&apos;)(?ai:[msdt]|re|ve|ll)|[nN](?:['\u2019\x92`\u2018\u201b\x91]|&apos;)[tT]"
)
_COMPANY = re.compile("[A-Z]+(?:(?:\\+|&|&amp;)[A-Z]+)+$")  # AT&amp;T
_ADDRESS = re.compile("[@#/]")


def tokenize(text: str) -> list[str]:
    """Lower-cased tokens of one caption, without punctuation; [] if nothing is left.

    A token may hold a no-break space: the Java tool keeps "1 1/2" and "<br />" together that way. Line breaks
    inside a caption count as blanks. Never raises.
    """
    tokens: list[str] = []
    at, end = 0, len(text)
    text = text.translate(_LINE_BREAKS) + "\n\n"  # rules may look two characters ahead
    while at < end:
        plain = _PLAIN.match(text, at)
        if plain:
            word, stop = plain.group(1, 2)
            lower = word.lower() if word else ""
            if lower not in SPLIT_WORDS and not (stop and (len(lower) == 1 or lower in STOP_WORDS)):
                if lower:
                    tokens.append(lower)
                at = plain.end()
                continue
        after = _longest(text, at)
        if after > at:
            token = _spell(text[at:after])
            if token.strip() and token not in PUNCTUATION:
                tokens.append(token)
        at = max(after, at + 1)  # a blank or a character that no rule knows is dropped
    return tokens


@lru_cache(maxsize=4096)
def _starting_with(char: str) -> tuple[re.Pattern[str], ...]:
    return tuple(rule for first, rule in _COMPILED if first.match(char))


def _longest(text: str, at: int) -> int:
    """End of the longest match at `at`, or `at` if no rule matches."""
    best = end = at
    for rule in _starting_with(text[at]):
        found = rule.match(text, at)
        if found and found.end() > best:
            best, end = found.end(), found.end(1)
    return end


def _spell(token: str) -> str:
    """The token as the Java tool writes it."""
    if token in _REWRITE:
        return _REWRITE[token]
    if _QUOTATION.fullmatch(token):
        return token.translate(_QUOTES)
    if _CLITIC.fullmatch(token):
        return token.replace("&apos;", "'").translate(_QUOTES).lower()
    if _COMPANY.match(token):
        token = token.replace("&amp;", "&")
    token = token.lower()
    if token.startswith("&"):
        return _REWRITE.get(token, token)
    if not _ADDRESS.search(token):
        token = token.replace("\u00ad", "")
    token = token.replace(" ", "\u00a0")
    if token.startswith("<") and token.endswith(">"):
        return token
    return token.replace("(", "-lrb-").replace(")", "-rrb-")
