"""Caption tokeniser that gives the tokens of the usual Java evaluation tools without Java.

The reference is `pycocoevalcap.tokenizer.ptbtokenizer`: Stanford PTBTokenizer 3.4.1 with `-preserveLines -lowerCase`, then
the tokens in PUNCTUATION are removed. The rules below were worked out from what that tool answers (its source was not
used); docs/metrics.md says on what and how well the two agree.

How it works: at each position every rule that may start there is tried and the longest match wins. A plain word between
blanks, which is nearly all of a caption, takes a short cut.
"""

import re

from vistill.metrics import ptb_chars

# Removed after tokenising, as pycocoevalcap does. It compares with lower-cased tokens, so its "-LRB-" never matches and
# brackets stay in the output as "-lrb-"; scores are only comparable if we keep them too.
PUNCTUATION = frozenset(['"', "''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"])


def _class(*tables: str) -> str:
    """Inside of a regular-expression class for tables of hexadecimal ranges."""
    ranges = (part.partition("-") for table in tables for part in table.split())
    return "".join(f"\\u{low:0>4}-\\u{high or low:0>4}" for low, _, high in ranges)


_LETTER = _class(ptb_chars.LETTER)
_DIGIT = _class(ptb_chars.DIGIT)
_MARK = _class(ptb_chars.MARK)
_SYMBOL = _class(ptb_chars.SYMBOL)

_L = f"[{_LETTER}]"
_D = f"[{_DIGIT}]"
_A = f"[{_LETTER}{_DIGIT}]"
_W = f"[{_LETTER}{_MARK}]"
_WD = f"[{_LETTER}{_MARK}{_DIGIT}]"
_APOS = "['\\x92\u2019]"
_BLANK = "[ \\t\u00a0\u2000-\u200a\u3000]"

# Abbreviations that keep their full stop, by what has to be so. Found by asking the Java tool about every string of up to
# five letters and a vocabulary of captions.
_ABBREVIATIONS = """adj adm adv al ala alex apr ariz assn assoc asst atty aug ave bhd bldg blvd brig bros calif capt cf cie
cmdr co col colo conn corp cos cpl ct dak dec dept det dr drs elec ens esq est etc ext feb fla fri ft ga gen gov govs hon inc
ind insp intl invt jan jos jr jul jun kan kans ky lieut lt ltd maj mar md messrs mich minn mlle mme mo mon mont mr mrs ms msgr
mt natl neb nev nov oct okla penn pfc ph plc pres prof profs pvt rd rep reps rev rt sen sens sep sept seq sfc sgt spc sq sr st
ste supt supts sys tel tenn thu thurs treas tue tues univ va vs vt wed wis wisc wm wyo mfg mtg ppte ppty pte ptes pty ptys"""
_CAPITALISED_ABBREVIATIONS = "ark az del ill la mass miss ore pa tex wash"
_NUMBER_ABBREVIATIONS = "art ca fig figs no nos op pp prop"

_SPLIT = frozenset(["cannot", "gonna", "gotta", "gimme", "lemme", "wanna"])


def _any(words: str) -> str:
    return "(?:" + "|".join(sorted(words.split(), key=len, reverse=True)) + ")"


def _any_case(words: str) -> str:
    return f"(?i:{_any(words)})"


_INITIALS = f"{_L}(?:\\.{_L})*\\."  # U.S.
_THING = f"(?:[dolDOL]{_APOS}{_A})?{_A}+"
_NUMBER = f"(?:{_D}*(?:[.:,\u00ad\u066b\u066c]{_D}+)+|{_D}+)"
_SLASHED = f"{_A}+(?:-{_L}+)*(?:/{_A}+(?:-{_A}+)*){{1,2}}"
_URL_END = r"[^ \t\n\f\r\"<>|.!?(){},-]"

# (pattern, what has to follow). As in the Java tool, what has to follow counts for the length of a match.
_RULES: tuple[tuple[str, str], ...] = (
    # words; a tie goes to the earlier rule, so "cannot" is "can" before "not" and "gonna" is "gon" before "na"
    ("(?i:can)", "(?i:not)"),
    ("(?i:gon|wan)", "(?i:na)"),
    ("(?i:got)", "(?i:ta)"),
    ("(?i:lem|gim)", "(?i:me)"),
    (f"{_W}{_WD}*(?:[.!?]{_W}{_WD}*)*", ""),
    (f"{_W}{_WD}*", f"{_APOS}(?:[msdMSD]|re|ve|ll|RE|VE|LL)(?!{_WD})"),
    (f"{_L}{_A}*?", f"[nN]{_APOS}[tT]"),
    (f"{_THING}(?:[-_]{_A}+)*", ""),
    (_SLASHED, ""),
    (f"{_A}+(?:-{_A}+)*-{_INITIALS}", ""),
    (f"{_INITIALS}(?:-{_A}+)*", ""),
    ("(?i:more)", f"{_APOS}[nN]"),
    # word parts with an apostrophe
    (f"{_APOS}(?i:m|s|d|re|ve|ll)(?!{_WD})", ""),
    (f"[nN]{_APOS}[tT]", ""),
    ("'[tT]", "(?i:is|was)"),
    (
        f"(?i:{_APOS}n{_APOS}?|[ldj]{_APOS}|dunkin{_APOS}|somethin{_APOS}|ol{_APOS}|{_APOS}em|c{_APOS}mon|{_APOS}cause|{_APOS}till?)",
        "",
    ),
    (f"(?i:y{_APOS})", _L),
    (
        f"(?i:o{_APOS}clock|ma{_APOS}am|li{_APOS}l|[eno]{_APOS}er|ne{_APOS}er|nor{_APOS}easter|qu{_APOS}{_L}+|d{_APOS}ye)",
        "",
    ),
    (f"{_APOS}{_D}0s|{_APOS}{_D}{_D}", ""),
    # abbreviations
    (
        f"(?:{_any_case(_ABBREVIATIONS)}|{_any(_CAPITALISED_ABBREVIATIONS.title())}|{_any(_CAPITALISED_ABBREVIATIONS.upper())})\\.",
        "",
    ),
    (f"{_any_case(_NUMBER_ABBREVIATIONS)}\\.", f" ?{_D}"),
    ("[A-Z]+(?:&[A-Z]+)+", ""),
    ("(?i:c\\+\\+|[cf]#)", ""),
    # numbers
    (f"[-+]?{_NUMBER}", ""),
    (f"(?:{_D}+[- \u00a0])?{_D}+/{_D}+", ""),
    (f"{_D}{{1,2}}/{_D}{{1,2}}/{_D}{{2,4}}", ""),
    (f"{_D}+(?i:st|nd|rd|th)", ""),
    # addresses
    (f'https?://[^ \\t\\n\\f\\r"<>|()]+{_URL_END}', ""),
    (
        f'(?i:www\\.(?:[^ \\t\\n\\f\\r"<>|.!?(){{}},]+\\.)+[a-z]{{2,4}}(?:/[^ \\t\\n\\f\\r"<>|()]+{_URL_END})?)',
        "",
    ),
    (f'(?i:(?:[a-z0-9]+\\.)+(?:com|net|org|edu)(?:[/?][^ \\t\\n\\f\\r"<>|()]+{_URL_END})?)', ""),
    (f"[{_LETTER}{_DIGIT}._-]+@[{_LETTER}{_DIGIT}.-]+{_A}", ""),
    (f"@[A-Za-z_][A-Za-z_0-9]*|#{_L}+", ""),
    ("&(?i:amp|lt|gt|quot|apos|nbsp);", ""),
    # marks
    ("\\.\\.\\.?|\\. \\. \\.", ""),
    ("[?!]+", ""),
    ("-{2,4}|-{5,}|_+|\\*+|@+|#+", ""),
    ("``|''|[\"'`]", ""),
    ("</?[A-Za-z!?][^>\\r\\n]*>", ""),
    (f"[{_SYMBOL}!?#\\-+,.:/@()\\[\\]{{}}_*<>]", ""),
    ("(?i:us|[a-z]{1,3})?\\$", ""),
    ("[\u00a2\u00a3\u00a4\u00a5\u20a0\u20ac\x80]", ""),
    ("[\u00bc\u00bd\u00be\u2153\u2154\u2026\u2013\u2014\u2015\x96\x97]", ""),
    ("[<>]?[:;=][-o*']?[()DPpO\\\\{@|\\[\\]]", ""),
)

_COMPILED = tuple(
    re.compile(f"({body})" + (f"(?={after_group})" if (after_group := f"({after})") and after else ""))
    for body, after in _RULES
)
_PLAIN = re.compile(r"[A-Za-z]+(?![^ \n])")


def _longest(text: str, at: int) -> int:
    best, end = 0, at
    for rule in _COMPILED:
        found = rule.match(text, at)
        if found:
            reach = found.end(found.lastindex or 1)
            if reach > best:
                best, end = reach, found.end()
    return end


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
    "&amp;": "&",
    "&lt;": "<",
    "&gt;": ">",
    "&quot;": "''",
    "&nbsp;": "",
    "\u00ad": "-",
    "\u2026": "...",
    "\u2013": "--",
    "\u2014": "--",
    "\u2015": "--",
    "\x96": "--",
    "\x97": "--",
    "---": "--",
    "----": "--",
    ". . .": "...",
}


def _normalise(token: str) -> str:
    if token in _REWRITE:
        return _REWRITE[token]
    token = token.replace("\u00ad", "").replace("\u2019", "'").replace(" ", "\u00a0")
    return token.replace("(", "-lrb-").replace(")", "-rrb-").lower()


def tokenize(text: str) -> list[str]:
    tokens: list[str] = []
    at = 0
    while at < len(text):
        plain = _PLAIN.match(text, at)
        if plain and plain.group().lower() not in _SPLIT:
            tokens.append(plain.group().lower())
            at = plain.end()
            continue
        end = _longest(text, at)
        if end > at:
            token = _normalise(text[at:end])
            if token and token not in PUNCTUATION:
                tokens.append(token)
            at = end
        else:
            at += 1
    return tokens
