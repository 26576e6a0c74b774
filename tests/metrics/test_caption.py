"""All caption scores against pycocoevalcap: invented captions with odd text, and all of Flickr8k."""

import random
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from tests.metrics import corpora

from vistill.errors import DataError
from vistill.metrics.caption import NAMES, CaptionScores, score_captions
from vistill.metrics.ptb import tokenize

CAPTIONS = """A dog runs on the beach.|Two men in hats talk about the $5.00 ticket|the cat can't sleep
A woman (red coat) rides 3 1/2 miles|A sign says "Hello, World!"|犬が走る 日本|naïve café 😀 at 5½ o’clock
A man and a man and a man|A T-shirt|!!!|a|children's toys: balls, cars & AT&T phones""".replace(
    "\n", "|"
).split("|")


def pycocoevalcap(
    candidates: Mapping[str, str], references: Mapping[str, Sequence[str]]
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Corpus and per-picture scores of tokenised texts by the published code."""
    bleu = pytest.importorskip("pycocoevalcap.bleu.bleu", reason="pycocoevalcap is not installed (extra dev)")
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    theirs = {key: list(texts) for key, texts in references.items()}
    ours = {key: [text] for key, text in candidates.items()}
    corpus, pictures = bleu.Bleu(4).compute_score(theirs, ours, verbose=0)
    for metric in (Rouge(), Cider()):
        whole, single = metric.compute_score(theirs, ours)
        corpus.append(whole)
        pictures.append(single)
    named = {name: np.array(values) for name, values in zip(NAMES, pictures, strict=True)}
    return dict(zip(NAMES, map(float, corpus), strict=True)), named


def assert_equal(scores: CaptionScores, wanted: tuple[dict[str, float], dict[str, np.ndarray]]) -> None:
    assert set(scores.corpus) == set(scores.per_picture) == set(NAMES)
    for name in NAMES:
        assert scores.corpus[name] == pytest.approx(wanted[0][name], abs=1e-9), name
        np.testing.assert_allclose(scores.per_picture[name], wanted[1][name], atol=1e-9, err_msg=name)


def tokens(text: str) -> str:
    return " ".join(tokenize(text))


def check(candidates: Mapping[str, str], references: Mapping[str, Sequence[str]]) -> CaptionScores:
    """Score raw texts; compare with pycocoevalcap on the same tokens."""
    scores = score_captions(candidates, references)
    ours = {key: tokens(text) for key, text in candidates.items()}
    theirs = {key: [tokens(text) for text in references[key]] for key in candidates}
    assert_equal(scores, pycocoevalcap(ours, theirs))
    again = score_captions(ours, theirs, tokenized=True)
    assert again.corpus == scores.corpus
    return scores


@pytest.mark.parametrize("seed", range(5))
def test_equals_pycocoevalcap_on_odd_captions(seed: int) -> None:
    rng = random.Random(seed)
    pool = [*CAPTIONS, "", " ", "...", "\u00a0", "x" * 70, "word " * 80]
    references = {str(i): rng.choices(pool, k=rng.randint(1, 6)) for i in range(40)}
    candidates = {key: rng.choice([*pool, *texts]) for key, texts in references.items()}
    check(candidates, references)


def test_only_pictures_with_a_candidate_count() -> None:
    references = {"1": ["a red dog"], "2": ["a blue cat"], "3": ["a red cat"]}
    candidates = {"3": "a red cat", "1": "a dog"}
    scores = check(candidates, references)
    assert scores.keys == ("3", "1")
    assert scores.corpus == score_captions(candidates, {"1": ["a red dog"], "3": ["a red cat"]}).corpus


def test_cider_d_with_other_document_frequencies() -> None:
    references = {"1": ["a red dog"], "2": ["a blue cat"]}
    candidates = {"1": "a red dog", "2": "a blue dog"}
    own = score_captions(candidates, references, idf_references=references)
    assert own.corpus["CIDEr-D"] == own.corpus["CIDEr"]
    other = score_captions(candidates, references, idf_references={"x": ["a dog"], "y": ["cats"], "z": ["!"]})
    assert other.corpus["CIDEr"] == own.corpus["CIDEr"] != other.corpus["CIDEr-D"] > 0


def test_a_copied_reference_is_perfect_and_a_shuffle_of_pictures_changes_nothing() -> None:
    references = {str(i): [text, "something else"] for i, text in enumerate(CAPTIONS[:5])}
    candidates = {key: texts[0] for key, texts in references.items()}
    scores = score_captions(candidates, references)
    for name in ("BLEU-1", "BLEU-2", "BLEU-3", "ROUGE-L"):
        assert scores.corpus[name] == pytest.approx(1, abs=1e-6)
    turned = score_captions(dict(reversed(candidates.items())), references)
    assert turned.corpus == pytest.approx(scores.corpus, abs=1e-12)


def test_errors() -> None:
    with pytest.raises(DataError, match="no caption"):
        score_captions({}, {"1": ["a"]})
    with pytest.raises(DataError, match="'2'"):
        score_captions({"1": "a", "2": "b"}, {"1": ["a"], "2": []})


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.parametrize("kind", ["another caption", "shuffled", "cut and repeated"])
def test_equals_pycocoevalcap_on_flickr8k(kind: str, data_root: Path) -> None:
    captions = corpora.flickr8k(data_root)
    assert sum(map(len, captions.values())) == 35460
    rng = random.Random(0)
    keys = [key for key, texts in captions.items() if len(texts) > 1]
    candidates, references = {}, {}
    for key in keys:
        own = rng.randrange(len(captions[key]))
        candidates[key] = captions[key][own]
        references[key] = captions[key][:own] + captions[key][own + 1 :]
    if kind == "shuffled":
        candidates = dict(zip(keys, rng.sample(list(candidates.values()), len(keys)), strict=True))
        references = {key: captions[key] for key in keys}
    elif kind == "cut and repeated":
        for key in keys:
            words = candidates[key].split()[: rng.randrange(12)]
            candidates[key] = " ".join(words + words[-3:] * rng.randrange(3))
    check(candidates, references)
