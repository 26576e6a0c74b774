"""Questions out of captions: what is read, what is asked, and above all what is not."""

import pytest

from vistill.data import questions_words as words
from vistill.data.questions import KINDS, MORE, ask, count, count_people, largest, plural, read_scene
from vistill.data.questions_parse import Lexicon, learn, read, split_words

# Captions in the manner of Flickr8k from which the words are learned: every verb in -ing and in another form.
VERBS = {
    "running": ("runs", "run"),
    "jumping": ("jumps", "jump"),
    "riding": ("rides", "ride"),
    "playing": ("plays", "play"),
    "holding": ("holds", "hold"),
    "wearing": ("wears", "wear"),
    "sitting": ("sits", "sit"),
    "standing": ("stands", "stand"),
    "chasing": ("chases", "chase"),
    "throwing": ("throws", "throw"),
    "swimming": ("swims", "swim"),
    "watching": ("watches", "watch"),
    "looking": ("looks", "look"),
    "carrying": ("carries", "carry"),
    "lying": ("lies", "lie"),
}
NOUNS = """dog man woman boy girl person ball bike snow grass beach park field water shirt hat lake stick rock
street pool horse helmet jacket guitar bench kid tennis""".split()


@pytest.fixture(scope="module")
def lexicon() -> Lexicon:
    captions = [
        f"A man is {verb} in the park . A man {forms[0]} a ball . Two men {forms[1]} on the grass ."
        for verb, forms in VERBS.items()
    ]
    captions += [f"The {noun} is on the {noun} . Three {plural(noun)} , a {noun} ." for noun in NOUNS]
    captions += [
        "A young man in pants and shorts and jeans .",
        "A small dog .",
        "A big dog .",
        "A young dog .",
    ]
    captions += ["Three men , two boys and girls in the men of the boys .", "Some men , boys and girls ."] * 9
    return learn(captions * 2)


def asked(lexicon: Lexicon, *captions: str) -> dict[str, str]:
    """{question: answer} of a picture with these captions."""
    found = list(ask(read_scene(0, captions, lexicon)))
    assert all(question.kind in KINDS and question.picture == 0 for question in found)
    assert len({question.text for question in found}) == len(found)
    return {question.text: question.answer for question in found}


def test_nouns_and_verbs_are_learned(lexicon: Lexicon) -> None:
    assert {"dog", "dogs", "park", "snow"} <= lexicon.nouns
    assert not {"young", "small", "runs", "running", "the", "red"} & lexicon.nouns
    for verb, forms in VERBS.items():
        assert [lexicon.verbs.get(form) for form in (verb, *forms)] == [verb] * 3


def test_words_are_split_and_joined() -> None:
    assert split_words("A dog's ball , in front of the boys .") == [
        "a", "dog", "'s", "ball", ",", "in-front-of", "the", "boys", ".",
    ]  # fmt: skip
    assert split_words("") == []
    assert split_words("Ünï\u0000 ☃ 3 dogs") == ["n", "3", "dogs"]


@pytest.mark.parametrize(
    ("caption", "heads"),
    [
        ("A small black and white dog runs .", [("dog", 1, ("black", "white"))]),
        ("Two brown dogs run on the beach .", [("dog", 2, ("brown",)), ("beach", 1, ())]),
        ("A group of men stand in snow .", [("man", None, ()), ("snow", 1, ())]),
        ("A pair of men stand .", [("man", 2, ())]),
        ("A boy in red jumps .", [("boy", 1, ())]),
        (
            "A girl in pink shorts runs on grass .",
            [("girl", 1, ()), ("shorts", 1, ("pink",)), ("grass", 1, ())],
        ),
        ("A man 's red hat", [("hat", 1, ("red",))]),
        ("The 3 dogs and another dog", [("dog", 3, ()), ("dog", 1, ())]),
    ],
)
def test_phrases(
    lexicon: Lexicon, caption: str, heads: list[tuple[str, int | None, tuple[str, ...]]]
) -> None:
    found = [(p.head, p.number, p.colours) for p in read(caption, lexicon).phrases]
    assert [item for item in found if item[0] in {head for head, _, _ in heads}] == heads


@pytest.mark.parametrize(
    ("caption", "wanted"),
    [
        ("A man in a red shirt is riding a bike .", [("riding", "man", "", "bike")]),
        ("A man wearing a hat rides a horse .",
         [("wearing", "man", "", "hat"), ("riding", "man", "", "horse")]),
        ("A woman watches a dog running in the snow .",
         [("watching", "woman", "", "dog"), ("running", "dog", "in", "snow")]),
        ("A boy runs while a girl sits on a bench .",
         [("running", "boy", "", None), ("sitting", "girl", "on", "bench")]),
        ("A man and a woman stand on the beach .", [("standing", None, "on", "beach")]),
        ("A dog", []),
    ],
)  # fmt: skip
def test_actions(
    lexicon: Lexicon, caption: str, wanted: list[tuple[str, str | None, str, str | None]]
) -> None:
    reading = read(caption, lexicon)

    def head(place: int | None) -> str | None:
        return None if place is None else reading.phrases[place].head

    assert [(a.verb, head(a.subject), a.preposition, head(a.object)) for a in reading.actions] == wanted


def test_what_captions_agree_on_is_asked(lexicon: Lexicon) -> None:
    found = asked(
        lexicon,
        "A black dog is chasing a red ball in the snow .",
        "A black dog chases a red ball .",
        "A dog chases a ball in the snow .",
        "The dog runs .",
        "A black dog",
    )
    assert found["how many dogs are there?"] == "one"
    assert found["what color is the dog?"] == "black"
    assert found["what color is the ball?"] == "red"
    assert found["what is the dog chasing?"] == "ball"
    assert found["what is chasing the ball?"] == "dog"
    assert found["where is the dog?"] == "snow"
    assert found["what is the dog doing?"] == "chasing a ball"


def test_people_and_their_names(lexicon: Lexicon) -> None:
    found = asked(
        lexicon,
        "A man is riding a bike on the street .",
        "A man rides a bicycle down a street .",
        "A person in a helmet rides a bike .",
        "A man on a bike .",
    )
    assert found["what is the man riding?"] == "bike"
    assert found["who is riding the bike?"] == "man"
    assert found["what is the man doing?"] == "riding a bike"
    assert found["how many people are there?"] == "one"
    assert found["where is the man?"] == "street"


@pytest.mark.parametrize(
    ("captions", "never"),
    [
        (["A black dog runs .", "A brown dog runs ."], "what color is the dog?"),  # they disagree
        (["A black dog runs .", "A dog runs .", "A dog ."], "what color is the dog?"),  # one vote only
        (["A black dog and a brown dog .", "A black dog ."], "what color is the dog?"),  # which dog?
        (["A spotted black dog .", "A black dog ."], "what color is the dog?"),
        (["A black man sits .", "A black man sits ."], "what color is the man?"),  # nobody asks that
        (["Two men in a red shirt .", "A man in a red shirt ."], "what color is the shirt?"),  # whose?
        (["Two dogs run .", "Three dogs run .", "Two dogs ."], "how many dogs are there?"),
        (["A dog runs .", "A dog runs on grass .", "A dog and another jump ."], "how many dogs are there?"),
        (
            ["A man and some boys .", "A man .", "A man sits .", "A man stands ."],
            "how many people are there?",
        ),
        (["A man rides a bike .", "A man rides a horse ."], "what is the man riding?"),
        (["A man throws a rock into the lake .", "A boy throws a rock into a lake ."], "where is the man?"),
        (["A man is looking at a lake .", "A man looks at the lake ."], "where is the man?"),
        (["A dog on the street .", "A dog on the beach ."], "where is the dog?"),
        (
            ["A man sits .", "A man is sitting .", "A man stands .", "A boy stands ."],
            "what is the man doing?",
        ),
        (["A man plays .", "A man is playing ."], "what is the man doing?"),  # "playing" says nothing
    ],
)
def test_unsafe_questions_are_not_asked(lexicon: Lexicon, captions: list[str], never: str) -> None:
    assert never not in asked(lexicon, *captions)


def test_equal_captions_count_once(lexicon: Lexicon) -> None:
    assert asked(lexicon, *["A black dog runs in the snow ."] * 5) == {}


def test_counts_know_what_they_do_not_know(lexicon: Lexicon) -> None:
    counts = {
        "Three girls and a boy run .": (3, 4),
        "Three girls and some boys .": (3, MORE),
        "A group of girls .": (None, None),
        "A dog runs .": (0, 0),
        "The crowd": (0, None),
    }
    for caption, (girls, people) in counts.items():
        reading = read(caption, lexicon)
        assert (count(reading, "girl"), count_people(reading)) == (girls, people), caption


@pytest.mark.parametrize(
    "caption", ["", ".", "a", "the the the", "of of , and 's", "☃", "two", "a " * 500, "in in"]
)
def test_odd_captions_are_read_without_fuss(lexicon: Lexicon, caption: str) -> None:
    assert asked(lexicon, caption, caption + " .", "dog " + caption) == {}


def test_largest_share() -> None:
    assert largest([10, 10], 0.5) == 10
    assert largest([100, 10, 10], 0.5) == 20
    assert largest([100], 0.5) == 0
    assert largest([], 0.5) == 0
    for counts in ([7, 3, 1], [50, 40, 3, 2], [5, 5, 5]):
        most = largest(counts, 0.4)
        assert most <= 0.4 * sum(min(most, n) for n in counts), "nobody has more than the share"
        assert all(n > 0.4 * sum(min(n, c) for c in counts) for n in range(most + 1, max(counts) + 1))


def test_word_lists_are_consistent() -> None:
    assert set(words.ASKED_PEOPLE) <= words.PEOPLE
    assert not words.PEOPLE & words.ANIMALS
    assert set(words.PLACES.values()) <= set(words.PLACE_PREPOSITIONS)
    assert not set(words.PLACES) & words.VAGUE, "a place that may not be an answer"
    assert {place for group in words.PLACE_GROUPS for place in group} <= set(words.PLACES)
    assert all(pair <= words.APART for pair in words.NOT_APART)
    assert not words.NO_ACTIVITY & words.VERBS_WITH_OBJECT
    assert not set(words.SAME) & set(words.SAME.values()) - {
        one for one, two in words.SAME.items() if one == two
    }
