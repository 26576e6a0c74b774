"""DAQUAR's scores, by hand and with a small WordNet of our own."""

import sys
from types import ModuleType
from typing import ClassVar

import pytest

from vistill.errors import ConfigError, DataError
from vistill.metrics.wups import answer_set, equality, score_sets, wordnet_similarity, wups


def near(a: str, b: str) -> float:
    """A small similarity: chair and stool are near synonyms, chair and table are furniture."""
    table = {frozenset(("chair", "stool")): 0.95, frozenset(("chair", "table")): 0.5}
    return 1.0 if a == b else table.get(frozenset((a, b)), 0.0)


def test_answer_set() -> None:
    assert answer_set("Book, scissor,tape_dispenser ,") == ("book", "scissor", "tape_dispenser")
    assert answer_set("  ") == ()


@pytest.mark.parametrize(
    ("predicted", "true", "at_09", "at_00"),
    [
        ("chair", "chair", 1, 1),
        ("stool", "chair", 0.95, 0.95),
        ("table", "chair", 0.05, 0.5),
        ("lamp", "chair", 0, 0),
        ("chair, table", "table, chair", 1, 1),
        ("chair", "chair, table", 0.05, 0.5),  # forth 1, back 1 * s(chair, table)
        ("chair, stool", "chair", 0.95, 0.95),
        ("table, table", "chair", 0.0025, 0.25),
        ("", "chair", 0, 0),
        ("", "", 1, 1),
    ],
)
def test_wups_by_hand(predicted: str, true: str, at_09: float, at_00: float) -> None:
    sets = answer_set(predicted), answer_set(true)
    assert wups(*sets, near, 0.9) == pytest.approx(at_09)
    assert wups(*sets, near, 0.0) == pytest.approx(at_00)
    assert wups(*sets, equality, 0.0) == (set(sets[0]) == set(sets[1]))


def test_scores() -> None:
    truth = {"image3#0": "desk", "image3#1": "chair, table", "image4#0": "chair"}
    scores = score_sets({"image3#1": "table,chair", "image4#0": "Stool"}, truth, near)
    assert scores == pytest.approx({"accuracy": 0.5, "WUPS@0.9": 0.975, "WUPS@0.0": 0.975})
    assert score_sets({"image3#0": "desk"}, truth) == {"accuracy": 1.0}
    with pytest.raises(DataError, match="question 'image9#0' is not in the data set"):
        score_sets({"image9#0": "x"}, truth)
    with pytest.raises(DataError, match="no answer to score"):
        score_sets({}, truth)


class _Sense:
    def __init__(self, path: str) -> None:
        self.path = path.split("/")

    def wup_similarity(self, other: "_Sense") -> float | None:
        if self.path[0] != other.path[0]:
            return None  # as nltk, where no common ancestor is
        common = sum(1 for a, b in zip(self.path, other.path, strict=False) if a == b)
        return 2 * common / (len(self.path) + len(other.path))


class _WordNet:
    NOUN = "n"
    senses: ClassVar = {
        "chair": ["thing/furniture/seat/chair", "person/leader/chair"],
        "stool": ["thing/furniture/seat/stool"],
        "boss": ["person/leader/boss"],
    }

    def ensure_loaded(self) -> None:
        pass

    def synsets(self, word: str, pos: str) -> list[_Sense]:
        assert pos == self.NOUN
        return [_Sense(path) for path in self.senses.get(word, [])]


def _install(monkeypatch: pytest.MonkeyPatch, wordnet: object) -> None:
    nltk, corpus = ModuleType("nltk"), ModuleType("nltk.corpus")
    corpus.wordnet = wordnet  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "nltk", nltk)
    monkeypatch.setitem(sys.modules, "nltk.corpus", corpus)


def test_the_nearest_senses_of_a_wordnet_count(monkeypatch: pytest.MonkeyPatch) -> None:
    _install(monkeypatch, _WordNet())
    similarity = wordnet_similarity()
    assert similarity("chair", "stool") == pytest.approx(0.75)
    assert similarity("boss", "chair") == pytest.approx(2 / 3)
    assert similarity("stool", "boss") == 0
    assert similarity("tape_dispenser", "tape_dispenser") == 1
    assert similarity("tape_dispenser", "chair") == 0


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nltk", None)
    monkeypatch.setitem(sys.modules, "nltk.corpus", None)
    with pytest.raises(ConfigError, match="pip install nltk"):
        wordnet_similarity()

    class Empty(_WordNet):
        def ensure_loaded(self) -> None:
            raise LookupError("Resource wordnet not found")

    _install(monkeypatch, Empty())
    with pytest.raises(ConfigError, match=r"nltk\.downloader wordnet"):
        wordnet_similarity()
