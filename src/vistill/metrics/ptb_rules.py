"""Rules of the caption tokeniser: what is one token, as regular expressions.

Each rule is (characters it may start with, token, what has to follow and is not part of it). They were worked
out against the answers of the Java tool to single characters, all short strings over small alphabets, all
strings of up to four letters before a full stop, random strings, and captions; see docs/metrics.md.
"""

from vistill.metrics import ptb_chars


def _class(*tables: str) -> str:
    """Inside of a regular-expression class for tables of hexadecimal ranges."""
    ranges = (part.partition("-") for table in tables for part in table.split())
    return "".join(f"\\u{low:0>4}-\\u{high or low:0>4}" for low, _, high in ranges)


def _any(words: str) -> str:
    return "(?:" + "|".join(sorted(words.split(), key=len, reverse=True)) + ")"


_LETTERS, _DIGITS, _MARKS = _class(ptb_chars.LETTER), _class(ptb_chars.DIGIT), _class(ptb_chars.MARK)
_L, _D, _A = f"[{_LETTERS}]", f"[{_DIGITS}]", f"[{_LETTERS}{_DIGITS}]"
_AL, _AD = "[A-Za-z]", "[A-Za-z0-9]"
_SOFT = "\u00ad"  # soft hyphen: may stand in a word and is then dropped
_ACCENTED = "&[aeiouAEIOU](?:acute|grave|uml);"
_W, _WD = (
    f"(?:[{_LETTERS}{_MARKS}{_SOFT}]|{_ACCENTED})",
    f"(?:[{_LETTERS}{_MARKS}{_DIGITS}{_SOFT}]|{_ACCENTED})",
)
_Q = "(?:['\u2019\x92]|&apos;)"  # apostrophe
_Q_START = "['\u2019\x92&]"
_QUOTE = "(?:['\u2019\x92`\u2018\u201b\x91]|&apos;)"  # anything that people type for an apostrophe
_HYPHEN = "[-_\u058a\u2010\u2011]"

# tokens that end in a full stop; those of the second list only before anything but a word that goes on
_ABBREVIATIONS = """adj adm adv alex assoc asst atty ave brig capt cf cie cmdr col cpl dept det dr drs
elec ens ft gen gov govs hon insp invt jos lieut lt maj messrs mfg mlle mme mr mrs ms msgr mt mtg natl pfc
ph pres prof profs pvt rep reps rev sen sens sfc sgt spc st ste supt supts treas vs wm"""
_ENDING_ABBREVIATIONS = """al ala apr ariz assn aug bhd bldg blvd bros calif co colo conn corp cos ct dak
dec esq est etc ext feb fla fri ga inc ind intl jan jr jul jun kan kans ky ltd mar md mich minn mo mon
mont neb nev nov oct okla penn ph.d plc ppte ppty pte ptes pty ptys rd rt sep sept seq sq sr sys tel tenn
thu thurs tue tues univ va vt wed wis wisc wyo"""
_ENDING_TITLE_CASE_ABBREVIATIONS = "Ark Az Del Ill La Mass Miss Ore Pa Tex Wash"
_ABBREVIATIONS_BEFORE_A_NUMBER = "art ca fig figs no nos op pp prop"

# words that are one token in spite of their apostrophe, or because of it; in the first list it must be the
# ASCII one
_ASCII_APOSTROPHE_WORDS = "li'l e'er cap'n ev'ry nat'l c'mon nor'easter s'mores"
_APOSTROPHE_WORDS = "ne'er o'er o'o c'est somethin' dunkin' ol' 'em 'cause 'til 'till 'n' d'ye"

# "vitamin C. The ..." : a single letter before one of these does not keep its full stop
_SENTENCE_STARTS = """A About According After An As At But Earlier He Her Here However If In It Last Many
More Mr\\. Ms\\. Now Once One Other Our She Since So Some Such That The Their Then There These They This
We What When While Yet You"""

# two tokens written as one word: "cannot" is "can" before "not"
_PAIRS = (("can", "not"), ("gon", "na"), ("got", "ta"), ("wan", "na"), ("lem", "me"), ("gim", "me"))
SPLIT_WORDS = frozenset(first + second for first, second in _PAIRS)
_STOPS = (
    _ABBREVIATIONS,
    _ENDING_ABBREVIATIONS,
    _ENDING_TITLE_CASE_ABBREVIATIONS,
    _ABBREVIATIONS_BEFORE_A_NUMBER,
)
STOP_WORDS = frozenset(" ".join(_STOPS).lower().split())

_PART = f"(?:[dloDLO]{_QUOTE}{_A})?{_A}+"
_THING = f"{_PART}(?:{_HYPHEN}{_PART})*"
_WORD = f"{_W}{_WD}*(?:[.!?]{_W}{_WD}*)*"
_INITIALS = f"{_AL}(?:\\.{_AL})*\\."
_NUMBER = f"(?:{_D}*(?:[.:,\u00ad\u066b\u066c]{_D}+)+|{_D}+)"
_NOT_IN_URL = ' \\t\\n\\f\\r"<>|()'
_URL_END = f"[^{_NOT_IN_URL}.!?{{}},-]"

_RAISED = "[\u207a\u207b\u208a\u208b]?(?:[\u2070\u00b9\u00b2\u00b3\u2074-\u2079]+|[\u2080-\u2089]+)"
_BLANK = "[ \\t\\n\u00a0\u2000-\u200a\u3000]"

_Rule = tuple[str, str, str]

_WORDS: tuple[_Rule, ...] = (
    # cannot, gonna: two tokens
    *((f"[{first[0]}{first[0].upper()}]", f"(?ai:{first})", f"(?ai:{second})") for first, second in _PAIRS),
    # dog, end.Start; then dog before 's; then "dog." before a comma; then do before n't
    (_W, _WORD, ""),
    (_W, _WORD, f"{_Q}(?ai:[msd]|re|ve|ll)"),
    (_W, f"{_WORD}\\.", "[,;:]"),
    ("[a-zA-Z\u00ad]", "[a-zA-Z\u00ad]*[a-mo-zA-MO-Z]\u00ad*", f"[nN]{_QUOTE}[tT]"),
    # t-shirt, a_b, O'Brien-x
    (_A, _THING, ""),
    (_A, f"{_THING}\\.", "[,;:]"),
    # and/or, 1/2-inch
    (_AD, f"{_AD}+(?:-{_AL}+){{0,2}}(?:\\\\?/{_AD}+(?:-{_AL}+){{0,2}}){{1,2}}", ""),
    # vitamin C. The
    (_AL, _AL, f"\\.{_BLANK}+{_any(_SENTENCE_STARTS)}{_BLANK}"),
    # AT&T
    ("[A-Z]", "[A-Z]+(?:(?:\\+|&|&amp;)[A-Z]+)+", ""),
    ("[A-Z]", "[A-Z]+(?:(?:\\+|&|&amp;)[A-Z]+)+\\.", "[,;:]"),
    # 0.7.x
    (_AD, "[A-Za-z]*[0-9][A-Za-z0-9]*(?:\\.[A-Za-z0-9]+)*\\.[xX]", f"(?:[!?.,]|{_BLANK})"),
    ("[cCfF]", "(?ai:c\\+\\+|[cf]#)", ""),
    ("[sS]", "(?ai:s&ls)", ""),
)
_APOSTROPHES: tuple[_Rule, ...] = (
    # 's, n't, 'tis; a curly apostrophe asks for less than a straight one
    ("'", "'(?ai:[msd]|re|ve|ll)", "[^a-zA-Z]"),
    (_Q_START, f"(?!'){_Q}(?ai:[msd]|re|ve|ll)", ""),
    ("[nN]", f"[nN]{_QUOTE}[tT]", ""),
    ("'", "'[tT]", "(?ai:is|was)"),
    # d', y'all, N'djamena, rock 'n roll, Hawai'i
    ("[dljDLJ]", f"[dljDLJ]{_Q}", ""),
    ("[yY]", f"[yY]{_Q}", _L),
    ("[nA-HJ-XZ]", f"[nA-HJ-XZ]{_QUOTE}{_L}{_L}+", ""),
    ("'", "'[nN]", _BLANK),
    (_Q_START, f"(?!'){_Q}[nN]", ""),
    (_L, f"{_L}+[aeiouyAEIOUY]{_QUOTE}[aeiouA-Z]{_L}*", ""),
    ("[a-zA-Z]", f"(?ai:{_any(_ASCII_APOSTROPHE_WORDS)})", ""),
    ("['\u2019\x92&a-zA-Z]", f"(?ai:{_any(_APOSTROPHE_WORDS)})".replace("'", _Q), ""),
    # '90s, '85
    (_Q_START, f"{_Q}[2-9]0[sS]", ""),
    (_Q_START, f"{_Q}[0-9]{{2}}", _BLANK),
)
_TITLE = _any(_ENDING_TITLE_CASE_ABBREVIATIONS) + "|" + _any(_ENDING_TITLE_CASE_ABBREVIATIONS.upper())
_SHORT_FORMS: tuple[_Rule, ...] = (
    # Mr., etc., No. 5
    ("[a-zA-Z]", f"(?ai:{_any(_ABBREVIATIONS)})\\.", ""),
    ("[a-zA-Z]", f"(?:(?ai:{_any(_ENDING_ABBREVIATIONS)})|{_TITLE})\\.".replace("ph.d", "ph\\.d"), "(?s:..)"),
    ("[a-zA-Z]", f"(?ai:{_any(_ABBREVIATIONS_BEFORE_A_NUMBER)})\\.", f"[ \u00a0]?{_D}"),
)
_DOTTED: tuple[_Rule, ...] = (
    # 1.5-inch, pre-U.S., U.S.-led
    (_AD, f"{_AD}[A-Za-z0-9.,{_SOFT}]*(?:-[A-Za-z0-9{_SOFT}]+)+", ""),
    (_AD, f"{_AD}[A-Za-z0-9.,]*(?:-{_AD}+)+\\.", "[,;:]"),
    (_AD, f"{_AD}[A-Za-z0-9.,]*(?:-{_AD}+)*-{_AL}\\.(?:{_AL}\\.)+", ""),
    (_AL, f"{_INITIALS}(?:-{_AD}+)*", ""),
)
_GAP = "[- \u00a0]"
_NUMBERS: tuple[_Rule, ...] = (
    # -1,000.5 and 12:30; 3 1/2; 12/25/2010; telephone numbers; superscripts
    (f"[-+.:,{_SOFT}\u066b\u066c{_DIGITS}]", f"[-+]?{_NUMBER}", ""),
    (_D, f"(?:{_D}{{1,4}}{_GAP})?{_D}{{1,4}}[/\u2044]{_D}{{1,4}}", ""),
    ("[0-9]", "[0-9]{1,2}[-/][0-9]{1,2}[-/][0-9]{2,4}", ""),
    ("[+0-9]", f"\\+?(?:[0-9]{{2,4}}{_GAP})?[0-9]{{2,4}}{_GAP}[0-9]{{3,4}}{_GAP}?[0-9]{{3,5}}", ""),
    ("\\(", f"\\([0-9]{{2,3}}\\)[ \u00a0]?[0-9]{{3,4}}{_GAP}?[0-9]{{3,5}}", ""),
    ("[\u207a\u207b\u208a\u208b\u00b2\u00b3\u00b9\u2070-\u2089]", _RAISED, ""),
)
_HOST = f"(?:[^{_NOT_IN_URL}.{{}}\u00a0]+\\.)*[^{_NOT_IN_URL}.{{}}\u00a0]+"
_HOST_START = f"[^{_NOT_IN_URL}`'!{{}}$,-_]"
_TAG_NAME = "[A-Za-z][A-Za-z0-9_:.-]*"
_TAG_WORD = f"[ \\t]+{_TAG_NAME}(?:[ \\t]*=[ \\t]*(?:\"[^\"]*\"|'[^']*'))?"
_ADDRESSES: tuple[_Rule, ...] = (
    # http://foo.com/bar, www.foo.com, foo.com/bar, a@b.com, @user, #tag, <br />, &amp;
    ("[hH]", f"(?ai:https?)://[^{_NOT_IN_URL}{{}}]+{_URL_END}", ""),
    (
        "[wW]",
        f"(?ai:www)\\.(?:[^{_NOT_IN_URL}.!?{{}},]+\\.)+[a-zA-Z]{{2,4}}(?:/[^{_NOT_IN_URL}]+{_URL_END})?",
        "",
    ),
    (
        _HOST_START,
        f"(?:[^{_NOT_IN_URL}`'!{{}}$,-_]+\\.)+(?:com|net|org|edu)(?:/[^{_NOT_IN_URL}]+{_URL_END})?",
        "",
    ),
    ("[<a-zA-Z0-9]", f"<?[a-zA-Z0-9][^{_NOT_IN_URL}{{}}\u00a0]*@{_HOST}>?", ""),
    ("@", "@[A-Za-z_][A-Za-z_0-9]*", ""),
    ("#", f"#{_W}+", ""),
    (
        "<",
        f"<{_TAG_NAME}(?:{_TAG_WORD})*[ \\t]*/?[ \\t]*>|</{_TAG_NAME}[ \\t]*>|<[!?][A-Za-z-][^>\\r\\n]*>",
        "",
    ),
    ("&", "&(?ai:amp|lt|gt|quot|apos|nbsp|mdash|ndash|md|ht|tl|lr|ur|qc|ql|qr|odq|cdq|#[0-9]+);", ""),
)
_CURLY = "`\u2018-\u201f\u2039\u203a\u00ab\u00bb\x91-\x94"
_EYE = "[-^x=~<>']"
_MARKS_AND_SIGNS: tuple[_Rule, ...] = (
    # blanks; runs of one mark, quotation marks, anything else alone
    ("[\u00a0\u2000-\u200a\u3000]", "[ \\t\u00a0\u2000-\u200a\u3000]+", ""),
    ("\\.", "\\.{3,5}|\\. \\. \\.", ""),
    ("[?!]", "[?!]+", ""),
    ("-", "-{5,}|-{2,4}", ""),
    ("[_*@#]", "_+|\\*+|@+|#+", ""),
    ("[<>]", "<<|>>", ""),
    ("\\\\", "(?:\\\\\\*)+", ""),
    (f"[{_CURLY}'\"]", f"[{_CURLY}]{{1,2}}|''|[\"']", ""),
    ("[.!?#\\-+,:/\u2044()\\[\\]{}<>]", ".", ""),
    (f"[{_class(ptb_chars.SYMBOL)}]", ".", ""),
    ("[$A-Z]", "[A-Z]{0,3}\\$", ""),
    ("[\u00a2\u00a3\u00a4\u20ac\u20a0\x80\u00bc-\u00be\u2153\u2154\u2026\u2013-\u2015\x96\x97]", ".", ""),
    # :-) and ^_^
    ("[<>:;=]", "[<>]?[:;=][-o*']?[()DPdpO\\\\{@|\\[\\]]", "[^a-zA-Z0-9]"),
    ("[-^x=~<>']", f"{_EYE}_{_EYE}", ""),
    ("\\(", f"\\({_EYE}[_.]?{_EYE}\\)|\\([\\^x=~<>']-[\\^x=~<>'`]\\)", ""),
)

RULES: tuple[_Rule, ...] = (
    *_WORDS,
    *_APOSTROPHES,
    *_ADDRESSES,
    *_SHORT_FORMS,
    *_DOTTED,
    *_NUMBERS,
    *_MARKS_AND_SIGNS,
)
