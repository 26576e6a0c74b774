"""What a caption says, read with rules: noun phrases, and who does what to which of them.

No parser is downloaded. A first pass over the captions learns which words are nouns and which are forms of
a verb (`learn`); a second reads each caption from left to right (`read`). The rules fit captions ("A man in a
red shirt is riding a bike .") and give up quietly on what is longer.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from vistill.data import questions_words as words

_WORD = re.compile(r"'s|[a-z0-9]+(?:[-'][a-z0-9]+)*|[,;.:]")
_POSSESSIVE = re.compile(r"\s*'s\b")
_JOINED = re.compile(r"\b(?:" + "|".join(sorted(words.JOINED, key=len, reverse=True)) + r")\b")
_MARKS = frozenset(",;.:")
_FUNCTION = words.PREPOSITIONS | words.CONJUNCTIONS | words.BE | words.AUXILIARIES | _MARKS
_STARTS_PHRASE = words.ARTICLES | words.QUANTITIES | words.OTHER | frozenset(words.NUMBERS)
_OUTSIDE_PHRASE = _FUNCTION | words.PRONOUNS | words.ADVERBS
_MODIFIERS = (
    _STARTS_PHRASE | words.COLOURS | words.ADJECTIVES | words.SHADES | words.PATTERNS | frozenset(["'s"])
)

NOUN_SHARE = 0.4  # a noun ends its phrase at least so often; "young" does at 2%, "rock" at 55%


@dataclass(frozen=True)
class Lexicon:
    """What was learned: `nouns` as they are written, `verbs` from each form to its -ing form."""

    nouns: frozenset[str]
    verbs: dict[str, str]
    counts: dict[str, int]


@dataclass(frozen=True)
class Phrase:
    """A noun phrase. `head` is singular and one name for one thing; `number` is None where it is not said.

    `start` is the place of its first word, `bare` is true if nothing stood before the noun.
    """

    head: str
    plural: bool
    number: int | None
    colours: tuple[str, ...]
    patterned: bool
    bare: bool
    article: str
    start: int


@dataclass(frozen=True)
class Action:
    """Somebody does something: `verb` in -ing form, `subject` and `object` as places in `Reading.phrases`."""

    verb: str
    subject: int | None
    preposition: str
    object: int | None


@dataclass(frozen=True)
class Reading:
    """A caption as it was understood; `relations` are (phrase, preposition, phrase) side by side."""

    tokens: tuple[str, ...]
    phrases: tuple[Phrase, ...]
    actions: tuple[Action, ...]
    relations: tuple[tuple[int, str, int], ...]


@dataclass(frozen=True)
class _Item:
    """One piece of a caption: kind is phrase, verb, be, preposition, and, clause or other."""

    kind: str
    word: str = ""
    phrase: int = -1
    finite: bool = False


def split_words(caption: str) -> list[str]:
    """Lower-case words and marks; a preposition of several words is one, a possessive 's stands alone."""
    text = _POSSESSIVE.sub(" 's", caption.lower().replace("’", "'"))
    return _WORD.findall(_JOINED.sub(lambda found: words.JOINED[found.group()], text))


def learn(captions: Iterable[str]) -> Lexicon:
    """Learn nouns and verbs: a noun is followed by a word of grammar, a verb has an -ing form."""
    counts: Counter[str] = Counter()
    ends: Counter[str] = Counter()
    for caption in captions:
        tokens = split_words(caption)
        counts.update(tokens)
        for place, token in enumerate(tokens):
            after = tokens[place + 1] if place + 1 < len(tokens) else "."
            if after in _FUNCTION or after in words.ADVERBS or (after.endswith("ing") and len(after) > 4):
                ends[token] += 1
    verbs: dict[str, str] = {}
    for token, count in sorted(counts.items()):
        if token.endswith("ing") and len(token) > 4 and count > 1 and token not in words.THINGS_IN_ING:
            verbs[token] = words.SAME_VERB.get(token, token)
            for form in _forms(token, counts):
                verbs.setdefault(form, verbs[token])
    nouns = frozenset(
        token
        for token, count in counts.items()
        if ends[token] >= NOUN_SHARE * count and (token.isalpha() or "-" in token)
        if token not in _MODIFIERS and token not in _OUTSIDE_PHRASE and verbs.get(token) != token
    )
    return Lexicon(nouns, verbs, dict(counts))


def _forms(ing: str, counts: Counter[str]) -> list[str]:
    """The plain form and the form in -s of a verb, as far as the captions use them: running -> run, runs."""
    stem = ing[:-3]
    doubled = len(stem) > 2 and stem[-1] == stem[-2]
    candidates = [stem[:-1]] * doubled + [stem + "e", stem] + [stem[:-1] + "ie"] * stem.endswith("y")
    pairs = [(base, _third(base)) for base in candidates]
    for pair in sorted(pairs, key=lambda pair: counts[pair[0]] < 2):  # "watch", before "watche" by "watches"
        found = [form for form in pair if counts[form] > 1]
        if found:
            return found
    return []


def _third(base: str) -> str:
    """The form in -s of a verb: he runs, carries, watches."""
    return base + "es" if base.endswith("o") else with_s(base)


def with_s(word: str) -> str:
    """A word with its ending -s as it is spelt: dogs, boxes, ladies."""
    if word.endswith("y") and word[-2:-1] not in "aeiou":
        return word[:-1] + "ies"
    return word + ("es" if word.endswith(("s", "sh", "ch", "x", "z")) else "s")


def animate(head: str) -> bool:
    """Whether it is a person or an animal."""
    return head in words.PEOPLE or head in words.ANIMALS


def singular(word: str, lexicon: Lexicon) -> tuple[str, bool]:
    """The singular of a noun under its one name, and whether the word is a plural."""
    if word in words.IRREGULAR:
        one = words.IRREGULAR[word]
        return words.SAME.get(one, one), one != word or word in words.PLURAL_ONLY
    if word.endswith("s") and not word.endswith("ss"):
        for one in (word[:-3] + "y" if word.endswith("ies") else "", word[:-2], word[:-1]):
            fits = not (one == word[:-2] and not word.endswith("es"))
            if fits and len(one) > 1 and lexicon.counts.get(one, 0) > 1 and one not in _FUNCTION:
                return words.SAME.get(one, one), True
    return words.SAME.get(word, word), False


def read(caption: str, lexicon: Lexicon) -> Reading:
    """Read one caption."""
    tokens = split_words(caption)
    phrases: list[Phrase] = []
    items: list[_Item] = []
    place = 0
    while place < len(tokens):
        token = tokens[place]
        if _is_verb(tokens, place, items, phrases, lexicon):
            items.append(_Item("verb", lexicon.verbs[token], finite=not token.endswith("ing")))
            place += 1
        elif token in _OUTSIDE_PHRASE:
            items.append(_function_item(token))
            place += 1
        else:
            place = _read_phrase(tokens, place, items, phrases, lexicon)
    actions, relations = _link(items, phrases)
    return Reading(tuple(tokens), tuple(phrases), tuple(actions), tuple(relations))


def _function_item(token: str) -> _Item:
    if token in words.PREPOSITIONS:
        return _Item("preposition", token)
    if token in words.BE:
        return _Item("be", token)
    if token in words.CLAUSE_STARTS or token in (";", "."):
        return _Item("clause", token)
    return _Item("and" if token in ("and", ",") else "other", token)


def _is_verb(
    tokens: Sequence[str], place: int, items: Sequence[_Item], phrases: Sequence[Phrase], lexicon: Lexicon
) -> bool:
    """Whether the word at `place`, which is in no phrase yet, is a verb here."""
    token = tokens[place]
    if token not in lexicon.verbs or token in _OUTSIDE_PHRASE:
        return False
    before = items[-1].kind if items else "clause"
    after = tokens[place + 1] if place + 1 < len(tokens) else "."
    content_follows = after not in _OUTSIDE_PHRASE and after not in _STARTS_PHRASE
    if token.endswith("ing"):
        return not (before in ("preposition", "clause") and content_follows and after in lexicon.nouns)
    if before == "phrase":
        return True
    verb_seen = any(item.kind == "verb" for item in items)
    return before in ("other", "and") and verb_seen and not content_follows


def _read_phrase(
    tokens: Sequence[str], place: int, items: list[_Item], phrases: list[Phrase], lexicon: Lexicon
) -> int:
    """Read the noun phrase that starts at `place`; return the place after it."""
    end = place
    while end < len(tokens) and not _phrase_ends(tokens, place, end, lexicon):
        end += 1
    end = max(end, place + 1)
    if end < len(tokens) - 1 and tokens[end - 1] in words.OF_WORDS and tokens[end] == "of":
        inner = end + 1
        stop = inner
        while stop < len(tokens) and not _phrase_ends(tokens, inner, stop, lexicon):
            stop += 1
        if stop > inner:
            phrase = _phrase(tokens, inner, stop, lexicon)
            if phrase is not None:
                number = phrase.number if tokens[end - 1] in ("piece", "pile", "body", "pair") else None
                if tokens[end - 1] == "pair" and phrase.head not in words.PLURAL_ONLY:
                    number = 2 if phrase.plural else None
                phrases.append(replace(phrase, number=number, start=place, article=tokens[place]))
                items.append(_Item("phrase", phrase=len(phrases) - 1))
            return stop
    phrase = _phrase(tokens, place, end, lexicon)
    if phrase is None:
        items.append(_Item("other", tokens[end - 1]))
    else:
        phrases.append(phrase)
        items.append(_Item("phrase", phrase=len(phrases) - 1))
    return end


def _phrase_ends(tokens: Sequence[str], start: int, place: int, lexicon: Lexicon) -> bool:
    """Whether a phrase that began at `start` is over before the word at `place`."""
    token = tokens[place]
    last = tokens[place - 1] if place > start else ""
    after = tokens[place + 1] if place + 1 < len(tokens) else "."
    if token in ("and", ","):  # "a black and white dog"
        return not (last in words.COLOURS and after in words.COLOURS)
    if token in _OUTSIDE_PHRASE:
        return True
    if not last:
        return False
    if token in _STARTS_PHRASE:  # "the three dogs", but "throws the boy a ball"
        return last not in _STARTS_PHRASE
    after_noun = last in lexicon.nouns and last not in _MODIFIERS
    if lexicon.verbs.get(token) == token or (token in lexicon.verbs and token.endswith("ing")):
        return after_noun or after in _OUTSIDE_PHRASE or after in _STARTS_PHRASE
    if token in lexicon.verbs and after_noun:
        return _agrees(tokens, start, place, after, lexicon)
    if token in lexicon.verbs and last in words.COLOURS and start and tokens[start - 1] == "in":
        return True  # "a boy in red jumps"
    return after_noun and token.endswith("ed") and token not in lexicon.nouns and token not in words.COLOURS


def _agrees(tokens: Sequence[str], start: int, place: int, after: str, lexicon: Lexicon) -> bool:
    """Whether a word that may be a verb or a noun ("jumps", "waves", "run") is a verb after this noun."""
    head, plural = singular(tokens[place - 1], lexicon)
    third = tokens[place].endswith("s") and not tokens[place].endswith("ss")
    if third:
        follows = after in _OUTSIDE_PHRASE or after in _STARTS_PHRASE
        if follows and start and tokens[start - 1] in words.PREPOSITIONS:
            return True  # "a girl in pink shorts runs on": the subject stands before
        many = any(token in words.NUMBERS and token != "one" for token in tokens[start:place])
        return not plural and not many and (animate(head) or follows)
    return plural or (animate(head) and start > 1 and tokens[start - 1] == "and")  # "a man and a woman dance"


def _phrase(tokens: Sequence[str], start: int, end: int, lexicon: Lexicon) -> Phrase | None:
    """The phrase of the words from `start` to `end`; None if it has no noun."""
    written = tokens[end - 1]
    if written in _MODIFIERS or written.isdigit():
        return None
    before = list(tokens[start : end - 1])
    if "'s" in before:  # "the dog 's mouth" has one mouth, of no colour that is told
        before = ["the", *before[before.index("'s") + 1 :]]
    head, plural = singular(written, lexicon)
    number: int | None = None if plural else 1
    for token in before:
        if token in words.NUMBERS:
            number = words.NUMBERS[token]
        elif token.isdigit() and len(token) < 3:
            number = int(token) if plural else number
        elif token in words.QUANTITIES or token == "no":
            number = None
    if head in words.PLURAL_ONLY:
        number = 1
    colours = tuple(words.COLOUR_NAMES.get(token, token) for token in before if token in words.COLOURS)
    return Phrase(
        head=head,
        plural=plural,
        number=number,
        colours=tuple(dict.fromkeys(colours)),
        patterned=any(token in words.PATTERNS for token in before),
        bare=not before,
        article=before[0] if before and before[0] in _STARTS_PHRASE else "",
        start=start,
    )


def _link(
    items: Sequence[_Item], phrases: Sequence[Phrase]
) -> tuple[list[Action], list[tuple[int, str, int]]]:
    """Find the subject and the object of each verb, and the phrases that a preposition joins."""
    actions: list[Action] = []
    relations: list[tuple[int, str, int]] = []
    subject: int | None = None
    joined = False
    for place, item in enumerate(items):
        before = items[place - 1] if place else _Item("clause")
        after = [*items[place + 1 : place + 4], *[_Item("other")] * 3]
        if item.kind == "clause":
            subject, joined = None, False
        elif item.kind == "and":
            seen = any(other.kind == "verb" for other in items[:place])
            if after[0].kind == "phrase" and seen and after[1].kind in ("verb", "be"):
                subject, joined = None, False  # "a boy runs and a girl watches"
            elif after[0].kind == "phrase" and not seen and item.word == "and":
                joined = True  # "a boy and a girl run"
        elif item.kind == "phrase":
            if subject is None and before.kind != "preposition":
                subject = item.phrase
            if after[0].kind == "preposition" and after[1].kind == "phrase":
                relations.append((item.phrase, after[0].word, after[1].phrase))
        elif item.kind == "verb":
            doer = _subject(item, before, items[: max(place - 1, 0)], subject, joined, phrases)
            preposition, target = _object(after)
            actions.append(Action(item.word, doer, preposition, target))
    return actions, relations


def _subject(
    item: _Item,
    before: _Item,
    earlier: Sequence[_Item],
    subject: int | None,
    joined: bool,
    phrases: Sequence[Phrase],
) -> int | None:
    """Who does it: the subject of the clause, or somebody named right before ("sees a dog running")."""
    if before.kind == "preposition":
        return None  # "by jumping", "after running"
    beside = before.kind == "phrase" and before.phrase != subject and not item.finite
    if beside and animate(phrases[before.phrase].head):
        return before.phrase if earlier and earlier[-1].kind != "preposition" else None
    if joined and (item.finite or before.kind == "be"):
        return None
    return subject


def _object(after: Sequence[_Item]) -> tuple[str, int | None]:
    """What it is done to: (preposition or "", phrase) from the pieces after a verb."""
    first, second, _ = after[:3]
    if first.kind == "phrase":
        return "", first.phrase
    if first.kind == "preposition" and second.kind == "phrase":
        return first.word, second.phrase
    if first.word in words.ADVERBS and second.kind == "preposition" and after[2].kind == "phrase":
        return second.word, after[2].phrase
    return "", None
