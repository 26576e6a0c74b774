"""Yes/no questions, one yes for each no of the same words: whoever does not look is right half of the time.

No caption tells what is not there. "no" is said of things that people name whenever they see them (measured:
of the pictures where one caption names it, how many have a second) and that nothing in the captions makes
likely (measured: how often it is in a picture of which a caption says that word).
"""

import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from vistill.data import questions_words as words
from vistill.data.questions import VOTES, Question, Scene, article, askable, largest, plural

KIND = "yes/no"
SALIENT = 0.5  # of the pictures where one caption names a thing, so many must have a second that does
LIKELY = 0.25  # a word with which a thing comes so often makes its absence doubtful
COMMON = 1.5  # and so much oftener than without it: a dog is in every third of these pictures
SAME_WORDS = 0.03  # share of the yes/no questions that may have the same words, where there are many
SEEN = 5  # pictures that a word needs before it tells anything


@dataclass(frozen=True)
class Presence:
    """Which things may be asked for, and for each the words that make it likely."""

    asked: frozenset[str]
    suspects: dict[str, frozenset[str]]
    uncountable: frozenset[str]


def learn_presence(scenes: Sequence[Scene], least: int) -> Presence:
    """Learn from the captions of many pictures; a thing needs two votes in `least` pictures."""
    once: Counter[str] = Counter()
    twice: Counter[str] = Counter()
    seen: Counter[str] = Counter()
    both: Counter[tuple[str, str]] = Counter()
    articles: Counter[str] = Counter()
    single: Counter[str] = Counter()
    for scene in scenes:
        heads, tokens = scene.heads, scene.tokens
        once.update(heads.keys())
        twice.update(head for head, votes in heads.items() if votes >= VOTES)
        seen.update(tokens)
        both.update((head, token) for head in heads if askable(head) for token in tokens)
        for reading in scene.readings:
            for phrase in reading.phrases:
                single[phrase.head] += not phrase.plural
                articles[phrase.head] += phrase.article in ("a", "an")
    asked = frozenset(
        head
        for head, votes in twice.items()
        if votes >= least and votes >= SALIENT * once[head] and askable(head)
        if head not in words.UNGENDERED and (head not in words.GAMES or head == "frisbee")
    )
    suspects: dict[str, set[str]] = {head: set() for head in asked}
    for (head, token), number in both.items():
        likely = max(LIKELY, COMMON * once[head] / len(scenes))
        if head in asked and seen[token] >= SEEN and number >= likely * seen[token]:
            suspects[head].add(token)
    uncountable = frozenset(head for head in asked if articles[head] < 0.2 * single[head])
    return Presence(asked, {head: frozenset(found) for head, found in suspects.items()}, uncountable)


def ask_yes_no(
    scenes: Sequence[Scene], questions: Iterable[Question], presence: Presence, draw: random.Random
) -> list[Question]:
    """Balanced questions about the pictures of one split: is it there, has it the colour, does it do so."""
    found: dict[str, tuple[list[int], list[int]]] = {}
    for text, picture, true in (
        *_there(scenes, presence),
        *_coloured(scenes, questions),
        *_doing(scenes, questions),
    ):
        found.setdefault(text, ([], []))[not true].append(picture)
    balanced = []
    sizes = {text: min(len(right), len(wrong)) for text, (right, wrong) in found.items()}
    filled = sum(map(bool, sizes.values()))
    most = largest(sizes.values(), max(SAME_WORDS, min(1.0, 2 / max(filled, 1))))
    for text, (right, wrong) in sorted(found.items()):
        number = min(sizes[text], most)
        for answer, pictures in (("yes", right), ("no", wrong)):
            chosen = sorted(draw.sample(pictures, number))
            balanced += [Question(picture, KIND, text, answer, text) for picture in chosen]
    return balanced


Fact = tuple[str, int, bool]  # question, picture, whether yes is right


def _there(scenes: Sequence[Scene], presence: Presence) -> Iterator[Fact]:
    """Whether a thing is there."""
    for head in sorted(presence.asked):
        text = _there_text(head, presence)
        for scene in scenes:
            votes = scene.heads[head]
            if votes >= VOTES:
                yield text, scene.picture, True
            elif not votes and _absent(scene, head, presence):
                yield text, scene.picture, False


def _there_text(head: str, presence: Presence) -> str:
    if head in words.PLURAL_ONLY:
        return f"are there any {plural(head)}?"
    return f"is there any {head}?" if head in presence.uncountable else f"is there {article(head)} {head}?"


def _absent(scene: Scene, head: str, presence: Presence) -> bool:
    """Whether no word of any caption says or suggests that it is there."""
    if scene.tokens & (presence.suspects[head] | {head, plural(head)}):
        return False
    people = {name for name in scene.heads if name in words.PEOPLE}
    return head not in words.PEOPLE or not people & (
        words.UNGENDERED | words.ASKED_PEOPLE.get(head, frozenset())
    )


def _coloured(scenes: Sequence[Scene], questions: Iterable[Question]) -> Iterator[Fact]:
    """Whether a thing has a colour, of pictures whose captions agree on a colour of the ball."""
    tokens = {scene.picture: scene.tokens for scene in scenes}
    told: dict[str, list[tuple[int, str]]] = {}
    for question in questions:
        if question.kind == "colour":
            told.setdefault(question.text.removeprefix("what color "), []).append(
                (question.picture, question.answer)
            )
    for rest, pictures in sorted(told.items()):
        for colour in sorted({answer for _, answer in pictures}):
            text = f"{rest.removesuffix('?')} {colour}?"
            for picture, answer in pictures:
                if answer == colour:
                    yield text, picture, True
                elif not _near(answer, colour) and colour not in tokens[picture]:
                    yield text, picture, False


def _near(one: str, other: str) -> bool:
    if " and " in one or " and " in other:  # what is black and white is black, too
        return True
    return any(one in group and other in group for group in words.NEAR_COLOURS)


def _doing(scenes: Sequence[Scene], questions: Iterable[Question]) -> Iterator[Fact]:
    """Whether somebody does it, for what is not done at the same time as something else."""
    readings = {scene.picture: scene.readings for scene in scenes}
    for question in questions:
        if question.kind != "activity" or question.answer not in words.APART:
            continue
        done = {action.verb for reading in readings[question.picture] for action in reading.actions}
        subject = question.text.removeprefix("what ").removesuffix(" doing?")
        yield f"{subject} {question.answer}?", question.picture, True
        for verb in sorted(words.APART - {question.answer}):
            if not any(verb == other or frozenset([verb, other]) in words.NOT_APART for other in done):
                yield f"{subject} {verb}?", question.picture, False
