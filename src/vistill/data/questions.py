"""Questions with answers from the captions of one picture, in the manner of COCO-QA.

Ren, Kiros and Zemel, "Exploring models and data for image question answering" (NIPS 2015), turn single
captions into questions with a parser. Here all captions of a picture vote: an answer needs two of them and a
caption that says otherwise drops the question. Kinds: object, number, colour, location, activity, yes/no.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from vistill.data import questions_words as words
from vistill.data.questions_parse import Action, Lexicon, Phrase, Reading, animate, read, with_s

VOTES = 2  # captions that must give an answer
VOTES_ONE = 3  # captions that must speak of a single thing before it counts as one
VOTES_ALONE = 4  # captions that must speak of a single person: others stand in backgrounds

MORE = -1  # a count of "three girls and some boys": it agrees with no other count

KINDS = ("object", "number", "colour", "location", "activity", "yes/no")


@dataclass(frozen=True)
class Question:
    """A question about picture `picture` (a row); `frame` is what a blind guess may go by, see `balance`."""

    picture: int
    kind: str
    text: str
    answer: str
    frame: str


@dataclass(frozen=True)
class Scene:
    """The captions of one picture, read: how many of them name each thing, and all their words."""

    picture: int
    readings: tuple[Reading, ...]
    heads: Counter[str]
    tokens: frozenset[str]

    def phrases(self, head: str) -> Iterator[list[Phrase]]:
        """For each caption that names `head`: its phrases with that head."""
        for reading in self.readings:
            found = [phrase for phrase in reading.phrases if phrase.head == head]
            if found:
                yield found


def read_scene(picture: int, captions: Iterable[str], lexicon: Lexicon) -> Scene:
    """Read the captions of one picture; one that two people wrote alike counts once."""
    readings = tuple(read(caption, lexicon) for caption in dict.fromkeys(captions))
    heads = Counter(head for reading in readings for head in {phrase.head for phrase in reading.phrases})
    return Scene(
        picture, readings, heads, frozenset(token for reading in readings for token in reading.tokens)
    )


def ask(scene: Scene) -> Iterator[Question]:
    """All safe questions about a picture but yes/no ones, which need other pictures too."""
    yield from numbers(scene)
    yield from colours(scene)
    yield from objects(scene)
    yield from subjects(scene)
    yield from locations(scene)
    yield from activities(scene)


# -- numbers


def numbers(scene: Scene) -> Iterator[Question]:
    """How many there are: captions agree, and none of them tells another number."""
    people = [total for reading in scene.readings if (total := count_people(reading)) != 0]
    answer = _agreed(people, VOTES, VOTES_ALONE)
    if answer:
        yield _number(scene, "person", answer)
    for head in sorted(scene.heads):
        if head == "person" or not askable(head) or head in words.NOT_COUNTED | words.PLURAL_ONLY:
            continue
        if head in words.PLACES:
            continue
        told = [count(reading, head) for reading in scene.readings]
        alone = VOTES_ONE if head in words.PEOPLE or head in words.ANIMALS else VOTES_ALONE
        answer = _agreed([value for value in told if value != 0], VOTES, alone)
        if answer and (head not in words.PEOPLE or _people_fit(scene, head, told, answer)):
            yield _number(scene, head, answer)


def _number(scene: Scene, head: str, answer: int) -> Question:
    text = f"how many {plural(head)} are there?"
    return Question(scene.picture, "number", text, words.NUMBER_NAMES[answer], text)


def _agreed(told: Sequence[int | None], votes: int, votes_one: int) -> int | None:
    """The one number that enough captions tell and none contradicts; None (some) contradicts one."""
    known = {value for value in told if value is not None}
    if len(known) != 1:
        return None
    (answer,) = known
    enough = votes_one if answer == 1 else votes
    if answer not in words.NUMBER_NAMES or told.count(answer) < enough or (answer == 1 and None in told):
        return None
    return answer


def _people_fit(scene: Scene, head: str, told: Sequence[int | None], answer: int) -> bool:
    """Whether captions that call these people something else speak of as many people."""
    if head not in words.ASKED_PEOPLE:
        return False
    totals = [count_people(reading) for reading in scene.readings]
    return all(value == answer or total == answer for value, total in zip(told, totals, strict=True))


def count(reading: Reading, head: str) -> int | None:
    """How many of `head` a caption speaks of; None where it does not say, MORE where it does in part."""
    return _count([phrase for phrase in reading.phrases if phrase.head == head], reading)


def count_people(reading: Reading) -> int | None:
    """How many people a caption speaks of; None and MORE as for `count`."""
    return _count([phrase for phrase in reading.phrases if phrase.head in words.PEOPLE], reading)


def _count(phrases: Sequence[Phrase], reading: Reading) -> int | None:
    if not phrases:
        return 0
    unknown = [phrase.number is None or phrase.head in words.COLLECTIVES for phrase in phrases]
    if any(unknown):
        return None if all(unknown) else MORE
    tokens = [*reading.tokens, "."]
    for place, token in enumerate(tokens[:-1]):
        follows = tokens[place + 1]
        if token in words.OTHER and follows not in {word for phrase in phrases for word in spellings(phrase)}:
            return None  # "and another", "the other jumps"
    return sum(phrase.number or 0 for phrase in phrases)


def spellings(phrase: Phrase) -> tuple[str, str]:
    """The head of a phrase in singular and plural."""
    return phrase.head, plural(phrase.head)


# -- colours


def colours(scene: Scene) -> Iterator[Question]:
    """What color it is: captions that tell a colour tell the same one, and there is one ball."""
    alone = all(count_people(reading) in (0, 1) for reading in scene.readings)
    for head in sorted(scene.heads):
        if not askable(head) or head in words.PEOPLE or head in words.NO_COLOUR:
            continue
        mentions = list(scene.phrases(head))
        told = [tuple(sorted(p.colours)) for found in mentions for p in found if p.colours]
        if len(set(told)) != 1 or len(told[0]) > 2 or len(told) < VOTES:
            continue
        if any(len(found) > 1 or found[0].patterned for found in mentions):
            continue
        many = {found[0].plural and found[0].head not in words.PLURAL_ONLY for found in mentions}
        if len(many) > 1 or (head not in words.ANIMALS and not alone and worn(scene, head)):
            continue
        yield colour_question(scene, head, many.pop(), " and ".join(told[0]))


def colour_question(scene: Scene, head: str, many: bool, answer: str) -> Question:
    """The question for the colour of `head`, spelled "color" as most people here write it."""
    name, verb = _be(head, many)
    return Question(scene.picture, "colour", f"what color {verb} the {name}?", answer, f"color {head}")


def worn(scene: Scene, head: str) -> bool:
    """Whether a caption says that a person has it on: with several people there may be several."""
    for reading in scene.readings:
        for left, preposition, right in reading.relations:
            owner, thing = reading.phrases[left], reading.phrases[right]
            if thing.head == head and owner.head in words.PEOPLE and preposition in ("in", "with"):
                return True
        for action in reading.actions:
            held = action.verb in ("wearing", "holding", "carrying", "having")
            if held and action.object is not None and reading.phrases[action.object].head == head:
                return True
    return False


# -- what somebody does something to, and who does it


def objects(scene: Scene) -> Iterator[Question]:
    """What somebody does it to: most captions that tell it tell the same, and none contradicts."""
    told: dict[tuple[str, str], list[tuple[str, Phrase, Phrase]]] = {}
    for reading in scene.readings:
        seen = set()
        for action in reading.actions:
            pair = _pair(reading, action)
            preposition = action.preposition or words.IMPLIED.get(action.verb, "")
            key = (action.verb, "in" if preposition in words.LIKE_IN else preposition)
            if pair is not None and key not in seen:
                seen.add(key)
                told.setdefault(key, []).append((preposition, *pair))
    for (verb, joint), rows in sorted(told.items()):
        answer = _winner(Counter(thing.head for _, _, thing in rows))
        if answer is None or not _object_fits(scene, verb, joint, answer):
            continue
        fitting = [row for row in rows if row[2].head == answer]
        preposition = min(Counter(row[0] for row in fitting).items(), key=lambda pair: (-pair[1], pair[0]))[0]
        subject = name_subject(scene, [who for _, who, _ in rows])
        if subject is not None:
            text = f"what {subject} {verb} {preposition.replace('-', ' ')}".rstrip() + "?"
            yield Question(scene.picture, "object", text, answer, f"{verb} {joint}")


def _winner(votes: Counter[str]) -> str | None:
    """The thing with the most votes, two at least, unless another one contradicts it."""
    if not votes:
        return None
    (answer, most), *others = sorted(votes.items(), key=lambda pair: (-pair[1], pair[0]))
    fits = all(number < most and together(answer, other) for other, number in others)
    return answer if most >= VOTES and fits else None


def _pair(reading: Reading, action: Action) -> tuple[Phrase, Phrase] | None:
    """(subject, object) of an action that can be asked for; None for others."""
    if action.subject is None or action.object is None or action.verb in words.NO_OBJECT:
        return None
    if action.preposition not in words.ASKED_PREPOSITIONS:
        return None
    who, thing = reading.phrases[action.subject], reading.phrases[action.object]
    return (who, thing) if animate(who.head) and thing.head not in words.PEOPLE else None


def _object_fits(scene: Scene, verb: str, preposition: str, thing: str) -> bool:
    """Whether a thing can be the answer: no vague one, and of clothes only if no others are named."""
    if not askable(thing):
        return False
    if verb != "wearing" or preposition:
        return True
    others = {
        reading.phrases[right].head
        for reading in scene.readings
        for left, joint, right in reading.relations
        if joint == "in" and reading.phrases[left].head in words.PEOPLE
    }
    alone = all(count_people(reading) in (0, 1) for reading in scene.readings)
    return alone and others <= {thing, *words.PLACES, *words.VAGUE}


def subjects(scene: Scene) -> Iterator[Question]:
    """Who does it ("who is riding the bike?", "what is running through the snow?")."""
    told: dict[tuple[str, str, str, bool], list[str]] = {}
    for reading in scene.readings:
        for action in reading.actions:
            pair = _pair(reading, action)
            if pair is not None and not pair[0].plural and pair[0].number == 1 and askable(pair[1].head):
                preposition = action.preposition or words.IMPLIED.get(action.verb, "")
                key = (action.verb, preposition, pair[1].head, pair[1].plural)
                told.setdefault(key, []).append(pair[0].head)
    for (verb, preposition, thing, many), heads in sorted(told.items()):
        named = {head for head in heads if head not in words.UNGENDERED}
        if len(named) != 1:
            continue
        answer = named.pop()
        person = answer in words.PEOPLE
        if heads.count(answer) < VOTES or not (person or set(heads) == {answer}):
            continue
        if person and not (answer in words.GENDERS and _only(scene, answer)):
            continue
        if not person and any(count(reading, answer) not in (0, 1) for reading in scene.readings):
            continue
        word = "who" if person else "what"
        done = f"{verb} {preposition.replace('-', ' ')}".rstrip()
        object_name = plural(thing) if many else thing
        text = f"{word} is {done} the {object_name}?"
        yield Question(scene.picture, "object", text, answer, f"{word} {verb}")


def _only(scene: Scene, person: str) -> bool:
    """Whether all people of the captions may be this one person."""
    fits = words.ASKED_PEOPLE[person] | words.UNGENDERED
    people = {head for head in scene.heads if head in words.PEOPLE}
    return people <= fits and all(count_people(reading) in (0, 1) for reading in scene.readings)


def name_subject(scene: Scene, found: Sequence[Phrase]) -> str | None:
    """Return "is the dog" or "are the dogs" for a subject; None if nobody knows who is meant."""
    heads = Counter(phrase.head for phrase in found)
    head = min(heads, key=lambda name: (-heads[name], name))
    family = words.ASKED_PEOPLE.get(head, frozenset([head]))
    person = head in words.PEOPLE
    if person and any(name not in words.PEOPLE for name in heads):
        return None
    if not person and len(heads) > 1:
        return None
    if person and not all(name in family or name in words.UNGENDERED for name in heads):
        head = "person"
    many = {phrase.plural for phrase in found if phrase.head == head} or {False}
    if len(many) > 1 or head in words.COLLECTIVES:
        return None
    if many == {True}:
        return f"are the {plural(head)}"
    told = [count_people(reading) if head == "person" else count(reading, head) for reading in scene.readings]
    return f"is the {head}" if all(value in (0, 1) for value in told) else None


# -- where and doing what


def locations(scene: Scene) -> Iterator[Question]:
    """Where somebody is: the place that most captions name, unless another place contradicts it."""
    votes: Counter[str] = Counter()
    for reading in scene.readings:
        votes.update(places(reading))
    if not votes:
        return
    (answer, most), *others = sorted(votes.items(), key=lambda pair: (-pair[1], pair[0]))
    if most < VOTES or any(
        number == most or (number > 1 and not together(answer, place)) for place, number in others
    ):
        return
    for subject in main_subjects(scene):
        yield Question(scene.picture, "location", f"where {subject}?", answer, "where")


def places(reading: Reading) -> set[str]:
    """The places where a caption says that somebody is."""
    found = set()
    links = [
        (preposition, right)
        for left, preposition, right in reading.relations
        if preposition not in words.THROWN or animate(reading.phrases[left].head)
    ]
    links += [
        (action.preposition, action.object)
        for action in reading.actions
        if action.object is not None and action.verb not in words.LOOKING
    ]
    for preposition, right in links:
        head = reading.phrases[right].head
        if head in words.PLACES and preposition in words.PLACE_PREPOSITIONS.get(
            words.PLACES[head], frozenset()
        ):
            found.add(head)
    return found


def together(one: str, other: str) -> bool:
    """Whether one can be in both places at once."""
    return any(one in group and other in group for group in words.PLACE_GROUPS)


def main_subjects(scene: Scene) -> list[str]:
    """How a question names whoever is the first to be named in two captions or more."""
    first: dict[str, list[Phrase]] = {}
    for reading in scene.readings:
        if reading.phrases:
            phrase = reading.phrases[0]
            if animate(phrase.head):
                first.setdefault(phrase.head, []).append(phrase)
    names = [name_subject(scene, found) for _, found in sorted(first.items()) if len(found) >= VOTES]
    return [name for name in names if name is not None]


def activities(scene: Scene) -> Iterator[Question]:
    """What somebody does: what most captions say of it, whatever they call a person."""
    doings = _doings(scene)
    for head, found in sorted(doings.items()):
        same = [head] if head in words.ANIMALS else [name for name in doings if name in words.PEOPLE]
        votes = _verbs(found)
        total: Counter[str] = sum((_verbs(doings[name]) for name in same), Counter())
        verb, most = min(votes.items(), key=lambda pair: (-pair[1], pair[0]))
        if most < VOTES or any(total[verb] <= number for other, number in total.items() if other != verb):
            continue
        answer = _activity(verb, found)
        subject = name_subject(scene, [phrase for rows in found for _, phrase, _ in rows])
        if answer is not None and subject is not None:
            yield Question(scene.picture, "activity", f"what {subject} doing?", answer, f"doing {head}")


def _verbs(found: Sequence[Sequence["Doing"]]) -> Counter[str]:
    """How many captions tell each verb."""
    return Counter(verb for rows in found for verb in {verb for verb, _, _ in rows})


Doing = tuple[str, Phrase, tuple[str, str, bool] | None]  # verb, subject, (preposition, object, plural)


def _doings(scene: Scene) -> dict[str, list[list[Doing]]]:
    """For each animate subject, caption by caption: what it does, wearing and the like left out."""
    found: dict[str, list[list[Doing]]] = {}
    for reading in scene.readings:
        doings: dict[str, list[Doing]] = {}
        for action in reading.actions:
            if action.subject is None or action.verb in words.NO_ACTIVITY:
                continue
            who = reading.phrases[action.subject]
            target = None
            if action.object is not None:
                thing = reading.phrases[action.object]
                target = (action.preposition, thing.head, thing.plural)
            if animate(who.head):
                doings.setdefault(who.head, []).append((action.verb, who, target))
        for head, rows in doings.items():
            found.setdefault(head, []).append(rows)
    return found


def _activity(verb: str, found: Sequence[Sequence[Doing]]) -> str | None:
    """The answer for a verb: itself, or with its object where it says little without ("riding a bike")."""
    if verb not in words.VERBS_WITH_OBJECT:
        return None if verb in words.DULL_VERBS else verb
    targets = Counter(
        target
        for doings in found
        for target in {target for name, _, target in doings if name == verb and target is not None}
    )
    good = [(t, n) for t, n in targets.items() if n >= VOTES and t[0] == "" and askable(t[1])]
    if len(good) != 1 or len({t[1] for t in targets if t[0] == ""}) > 1:
        return None
    (_, thing, many), _ = good[0]
    if many:
        return f"{verb} {plural(thing)}"
    plain = thing in words.MASS or (verb == "playing" and thing in words.GAMES)
    return f"{verb} {thing}" if plain else f"{verb} {article(thing)} {thing}"


# -- words and counts


def largest(counts: Iterable[int], share: float) -> int:
    """The largest n of which groups cut to n hold at most `share` of what is left each; 0 if none is."""
    sizes = sorted(counts)
    for most in range(sizes[-1] if sizes else 0, 0, -1):
        if most <= share * sum(min(most, size) for size in sizes):
            return most
    return 0


def askable(head: str) -> bool:
    """Whether a thing can be asked for, or be an answer: something to see, with a plain name."""
    return head not in words.VAGUE and len(head) > 2 and head.isascii()


def plural(head: str) -> str:
    """The plural of a noun as people write it."""
    if head in words.PLURAL_ONLY:
        return head
    return words.PLURALS[head] if head in words.PLURALS else with_s(head)


def article(head: str) -> str:
    """The article "a" or "an", by spelling."""
    return "an" if head[0] in "aeio" or head.startswith("umbrella") else "a"


def _be(head: str, many: bool) -> tuple[str, str]:
    if head in words.PLURAL_ONLY:
        return head, "are"
    return (plural(head), "are") if many else (head, "is")
