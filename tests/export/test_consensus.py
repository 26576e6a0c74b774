"""Fitting the consensus head: the ridge regression that it claims to be, and the export that keeps it."""

import json
from pathlib import Path

import numpy as np
import pytest
from tests.tiny import build_data, tiny_captioner

pytest.importorskip("torch")

import torch

from vistill.data.text import TokenizerConfig, train_tokenizer
from vistill.errors import ConfigError
from vistill.export import consensus
from vistill.export.common import ExportConfig
from vistill.export.consensus import fit
from vistill.export.run import export_captioner
from vistill.models.checkpoint import save_captioner
from vistill.runtime.consensus import fourier, hashed, projected, words
from vistill.runtime.pipelines import Captioner

TEXTS = [
    [f"a {colour} {thing} {place}", f"the {thing} is {colour}"]
    for colour in ("red", "green", "blue")
    for thing in ("dog", "circle", "car", "boat")
    for place in ("on the left", "in the grass")
]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANDOM": 48, "ROWS": 512, "TABLE": 4096, "REDUCED": 49, "RIDGE": 0.01}.items():
        monkeypatch.setattr(consensus, name, value)


@pytest.mark.usefixtures("small")
def test_it_is_ridge_regression() -> None:
    captions = [[words(text) for text in texts] for texts in TEXTS]
    features = np.random.default_rng(0).standard_normal((len(captions), 6)).astype("f4")
    head = fit(features, captions)
    seen = projected(features, head.mean, head.projection.astype("f4"))
    x = fourier(seen, head.frequencies, head.phases).astype(float)
    targets = np.zeros((len(captions), 512))
    for row, texts in zip(targets, captions, strict=True):
        for text in texts:
            places, weights = hashed(text, head.idf, float(head.most_idf[0]), 512)
            np.add.at(row, places, weights / len(texts))
    solved = np.linalg.solve(x.T @ x + 0.01 * np.eye(49), x.T @ targets)
    expected = head.expect(features)
    wanted, found = [], []
    for i in range(len(captions)):
        for other in (TEXTS[i][0], TEXTS[i - 5][0]):
            places, weights = hashed(words(other), head.idf, float(head.most_idf[0]), 512)
            wanted.append(float((x[i] @ solved)[places] @ weights))
            found += head.consensus(expected[i], [other])
    np.testing.assert_allclose(found, wanted, atol=0.02)  # int8
    assert np.mean(wanted[::2]) > 2 * np.mean(wanted[1::2]), "people agree with what is said of the picture"


@pytest.mark.usefixtures("small")
def test_a_feature_that_hardly_varies_leaves_the_others_their_digits() -> None:
    captions = [[words(text) for text in texts] for texts in TEXTS]
    features = np.random.default_rng(0).standard_normal((len(captions), 6)).astype("f4")
    features[:, 5] *= 1e-6
    head = fit(features, captions)
    found = projected(features, head.mean, head.projection.astype("f4"))
    z = (features - features.mean(0)) / np.r_[features[:, :5].std(0), 0.01 * features.std(0).mean()]
    z = z.astype(float) / np.linalg.norm(z, axis=1, keepdims=True)
    np.testing.assert_allclose(found @ found.T, z @ z.T, atol=2e-3)  # all components: angles stay


def test_words_of_one_picture_alone_are_not_learnt() -> None:
    idf, most = consensus._idf([[["a", "dog"]], [["a", "cat"]], [["a", "cat"]]])
    assert most == pytest.approx(np.log(3))
    steps = {word: idf[hashed_key(word)] for word in ("a", "cat", "dog")}
    assert steps["dog"] == 255
    assert steps["a"] == 0
    assert steps["cat"] == round(np.log(3 / 2) / np.log(3) * 254)


def hashed_key(word: str) -> int:
    from vistill.runtime.consensus import n_grams

    return next(iter(n_grams([word])[0])) & (consensus.TABLE - 1)


@pytest.mark.slow
@pytest.mark.usefixtures("small")
def test_an_export_with_a_head(tmp_path: Path) -> None:
    data = build_data(tmp_path)
    texts = ["a red circle on the left", "there is one blue square on the right", "a green white circle"]
    tokenizer = train_tokenizer(texts, TokenizerConfig(min_count=1))
    torch.manual_seed(0)
    provenance = {"config": {"generation": {"max_new_tokens": 8}}}
    save_captioner(
        tmp_path / "model", tiny_captioner(vocab=tokenizer.get_vocab_size()), tokenizer, provenance
    )
    config = ExportConfig(data=data, consensus="train", num_beams=4, max_cider_drop=100)
    manifest = export_captioner(tmp_path / "model", tmp_path / "bundle", config)
    assert manifest.files["consensus"].bytes == (tmp_path / "bundle" / "consensus.npz").stat().st_size
    assert json.loads((tmp_path / "bundle" / "manifest.json").read_text())["files"]["consensus"]
    assert manifest.provenance["consensus"]["split"] == "train"
    captioner = Captioner(tmp_path / "bundle")
    assert captioner._parts.consensus is not None
    with pytest.raises(ConfigError, match="consensus=train needs data"):
        ExportConfig(consensus="train")
    nothing = ExportConfig(data=data, consensus="test")
    with pytest.raises(Exception, match="test"):
        export_captioner(tmp_path / "model", tmp_path / "none", nothing)
    assert not (tmp_path / "none").exists()
