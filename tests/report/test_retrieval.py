"""Retrieval evaluated: whose vectors, which scores, what the page shows."""

import json
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("datasets")
pytest.importorskip("torch")

import torch
from tests.tiny import build_data
from tests.tiny_embedder import write_tiny_embedder

from vistill.data.dataset import open_split
from vistill.data.text import TokenizerConfig, train_tokenizer
from vistill.errors import DataError
from vistill.metrics.retrieval import retrieval_scores
from vistill.models.dual import DualConfig, DualEncoder, TextConfig, save_dual
from vistill.models.vision import VisionConfig
from vistill.report.retrieval import (
    BATCH,
    Side,
    open_sides,
    prediction_lines,
    retrieve,
    to_json,
)
from vistill.report.retrieval_page import markdown, render_retrieval
from vistill.runtime.embedder import Embedder

PICTURES = 40


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_data(tmp_path_factory.mktemp("retrieval"), train=6, dev=PICTURES)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_embedder(tmp_path_factory.mktemp("embedder") / "bundle")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    captions = [text for texts in open_split(data, "train")["captions"] for text in texts]
    tokenizer = train_tokenizer(captions, TokenizerConfig(min_count=1))
    torch.manual_seed(0)
    text = TextConfig(vocab_size=tokenizer.get_vocab_size(), context=12, width=16, layers=1, heads=2)
    vision = VisionConfig(name="test_efficientnet", image_size=64)
    folder = tmp_path_factory.mktemp("run") / "mine" / "best"
    save_dual(folder, DualEncoder(DualConfig(vision, text, width=24)), tokenizer, {})
    return folder


class Words(HTMLParser):
    """The text of a page, and how often each tag stands in it."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.texts: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def known_sides(rows: object, spoil: float) -> tuple[Side, Side, np.ndarray, np.ndarray]:
    """Sides that give random vectors, a text's near its picture's: in the order that they are asked."""
    rng = np.random.default_rng(0)
    image = rng.standard_normal((len(rows), 12)).astype(np.float32)  # type: ignore[arg-type]
    text = np.repeat(image, 2, axis=0) + spoil * rng.standard_normal((2 * len(image), 12))
    text = text.astype(np.float32)
    left = list(image)

    def see(images: Sequence[bytes]) -> np.ndarray:
        assert len(images) <= BATCH
        return np.stack([left.pop(0) for _ in images])

    return Side(see, "fake", "eyes", "0"), Side(lambda texts: text, "fake", "words", "1"), image, text


def test_scores_are_those_of_the_vectors(data: Path) -> None:
    rows = open_split(data, "dev")
    eyes, words, image, text = known_sides(rows, spoil=1.5)
    told: list[int] = []
    found = retrieve(eyes, words, rows, progress=told.append)
    owner = np.repeat(np.arange(PICTURES), 2)
    assert found.scores == retrieval_scores(image, text, owner)
    assert told == [BATCH, PICTURES]
    assert found.keys == list(rows["key"])
    assert found.texts == [text for texts in rows["captions"] for text in texts]
    figure = found.figures["text to image R@1"]
    assert figure.value == pytest.approx(100 * found.scores.text_to_image.r1)
    assert figure.low < figure.value < figure.high
    metrics = to_json(found, eyes, words, "mine", "shapes", "dev", rows)
    json.dumps(metrics)
    assert metrics["scores"]["text to image R@1"]["value"] == figure.value
    assert metrics["chance"]["text to image"]["r1"] == pytest.approx(100 / PICTURES)
    assert metrics["data"]["references"] == 2 * PICTURES
    lines = [json.loads(line) for line in prediction_lines(found)]
    assert [line["rank"] for line in lines] == found.ranks.text_to_image.tolist()
    assert lines[3] == {"key": found.keys[1], "text": found.texts[3], "rank": lines[3]["rank"]}


def test_folds_search_among_their_own(data: Path) -> None:
    rows = open_split(data, "dev")
    whole = retrieve(*known_sides(rows, 1.5)[:2], rows)
    eyes, words, image, text = known_sides(rows, 1.5)
    found = retrieve(eyes, words, rows, folds=4)
    assert found.scores == retrieval_scores(image, text, found.owner, folds=4)
    assert found.scores.text_to_image.r5 > whole.scores.text_to_image.r5
    figure = found.figures["image to text R@5"]
    assert figure.value == pytest.approx(100 * found.scores.image_to_text.r5)
    assert found.ranks.text_to_image.max() <= 10
    assert found.chance.text_to_image.r1 == pytest.approx(0.1)
    metrics = to_json(found, eyes, words, "mine", "shapes", "dev", rows)
    assert "mean of 4 folds" in render_retrieval(found, rows, metrics, examples=3)


def test_the_page_shows_queries_pictures_and_chance(data: Path) -> None:
    rows = open_split(data, "dev")
    eyes, words, *_ = known_sides(rows, 1.5)
    found = retrieve(eyes, words, rows)
    metrics = to_json(found, eyes, words, "a <model>", "shapes", "dev", rows)
    page = Words(render_retrieval(found, rows, metrics, examples=4))
    assert page.tags.count("img") == 4 * 5 + 4
    assert page.tags.count("script") == 0
    text = " ".join(page.texts)
    assert "a <model> on shapes, dev" in text
    assert "text to image, chance" in text
    assert text.count("rank of its picture") == 4
    assert "its picture" in text
    table = markdown(found, metrics)
    assert f"| text to image | {100 * found.scores.text_to_image.r1:.1f} |" in table
    assert "| image to text, chance |" in table
    few = rows.select(range(3))
    eyes, words, *_ = known_sides(few, 0.0)
    found = retrieve(eyes, words, few)
    assert found.scores.text_to_image.r1 == 1
    metrics = to_json(found, eyes, words, "m", "shapes", "dev", few)
    assert Words(render_retrieval(found, few, metrics, examples=50)).tags.count("img") == 6 * 3 + 3


def test_what_cannot_be_ranked_is_refused(data: Path) -> None:
    rows = open_split(data, "dev")
    eyes, words, *_ = known_sides(rows, 1.0)
    narrow = Side(lambda texts: np.ones((len(texts), 3), np.float32), "fake", "narrow", "2")
    with pytest.raises(DataError, match="eyes gives 12 numbers a picture, narrow 3 a text"):
        retrieve(eyes, narrow, rows)
    bare = rows.map(lambda row: {"captions": []})
    with pytest.raises(DataError, match="no caption to search with"):
        retrieve(eyes, words, bare)
    broken = rows.select(range(2)).map(lambda row: {"image": b"nothing"})
    from_bytes = Side(Embedder(write_tiny_embedder(data / "e")).images, "bundle", "e", "3")
    with pytest.raises(DataError, match=r"a picture out of .* cannot be decoded"):
        retrieve(from_bytes, words, broken)


def test_a_bundle_is_scored_with_its_own_texts(data: Path, bundle: Path) -> None:
    rows = open_split(data, "dev")
    eyes, words = open_sides(str(bundle), threads=1)
    assert eyes.hash == words.hash == Embedder(bundle).hash
    assert eyes.to_dict()["kind"] == "bundle"
    found = retrieve(eyes, words, rows)
    embedder = Embedder(bundle, threads=1)
    np.testing.assert_allclose(found.image, embedder.images(rows["image"]), atol=1e-5)
    np.testing.assert_allclose(found.text, embedder.texts(found.texts), atol=1e-5)


def test_a_checkpoint_is_found_in_its_run_and_may_be_joined(data: Path, checkpoint: Path) -> None:
    rows = open_split(data, "dev").select(range(5))
    run = checkpoint.parent
    eyes, words = open_sides(str(run), threads=1)
    assert (eyes.kind, words.kind) == ("dual-encoder", "dual-encoder-text")
    assert eyes.parameters is not None
    alone = retrieve(eyes, words, rows)
    np.testing.assert_allclose(np.linalg.norm(alone.image, axis=1), 1, atol=1e-5)
    twice = retrieve(*open_sides(f"{run}+{run}"), rows)  # the same one twice ranks alike
    assert twice.image.shape[1] == 48
    assert twice.scores == alone.scores
