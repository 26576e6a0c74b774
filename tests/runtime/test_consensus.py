"""The consensus head against its formula, and as a captioner uses it."""

import math
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tests.runtime.conftest import random_head, tiny_manifest

from vistill.errors import BundleError
from vistill.runtime import consensus
from vistill.runtime.bundle import OPTIONAL, open_bundle, write_bundle
from vistill.runtime.consensus import UNSEEN, ConsensusHead, fourier, hashed, n_grams, words
from vistill.runtime.pipelines import Captioner


def test_the_consensus_is_its_formula() -> None:
    head = random_head()
    features = np.random.default_rng(1).standard_normal((2, len(head.mean))).astype("f4")
    caption = "A dog, a dog runs!"
    tokens = ["a", "dog", "a", "dog", "runs"]
    vector = np.zeros(len(head.grams))
    for n in range(1, 5):
        grams = Counter(tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1))
        found = {}
        for gram, times in grams.items():
            key = next(iter(n_grams([" ".join(gram)])[0]))  # one word with blanks: the same bytes
            found[key] = times * float(head.idf[key % len(head.idf)]) * 3.0 / 254
        norm = math.sqrt(sum(value**2 for value in found.values()))
        for key, value in found.items():
            vector[(key >> 8) % len(head.grams)] += value / norm / 4
    x = (features - head.mean) @ head.projection.astype(float)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    waves = np.cos(x @ head.frequencies.astype(float) + head.phases) * math.sqrt(2 / len(head.phases))
    random = np.c_[waves, np.full(2, 0.3)]
    expected = random @ (head.weights * head.weight_scale.astype(float))
    wanted = expected @ (head.grams * head.gram_scale.astype(float)).T @ vector
    found_rows = head.expect(features)
    for row, value in zip(found_rows, wanted, strict=True):
        assert head.consensus(row, [caption]) == pytest.approx([value], rel=1e-4)
    assert head.consensus(found_rows[0], ["", "..."]) == [0.0, 0.0]


@given(st.text(max_size=40))
def test_any_text_has_a_vector(text: str) -> None:
    head = random_head()
    places, weights = hashed(words(text), head.idf, 3.0, len(head.grams))
    assert len(places) == len(weights)
    assert np.isfinite(weights).all()
    assert float(weights @ weights) <= 4 * (1 / 4) ** 2 + 1e-5, "each order has at most the norm 1/4"


def test_what_was_never_seen_counts_for_the_norm_alone() -> None:
    idf = np.full(128, UNSEEN, np.uint8)
    places, weights = hashed(["a", "dog"], idf, 3.0, 64)
    assert len(places) == len(weights) == 0
    key = next(iter(n_grams(["dog"])[0]))
    idf[key % len(idf)] = 254
    _, weights = hashed(["a", "dog"], idf, 3.0, 64)
    assert weights == pytest.approx([1 / math.sqrt(2) / 4])


def test_random_features_are_the_kernel() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((4, 6)).astype("f4")
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    frequencies = (rng.standard_normal((6, 20000)) * math.sqrt(2)).astype("f2")
    waves = fourier(x, frequencies, rng.uniform(0, 2 * math.pi, 20000).astype("f4"))[:, :-1]
    apart = ((x[:, None] - x[None]) ** 2).sum(-1)
    np.testing.assert_allclose(waves @ waves.T, np.exp(-apart), atol=0.03)


def test_a_head_is_the_same_after_a_file_and_others_are_refused() -> None:
    head = random_head()
    again = ConsensusHead.from_bytes(head.to_bytes(), "x")
    for name, array in vars(head).items():
        assert np.array_equal(array, getattr(again, name)), name
    for wrong in (b"", b"PK", head.to_bytes()[:-40], np.arange(3).tobytes()):
        with pytest.raises(BundleError, match="x: is no consensus head"):
            ConsensusHead.from_bytes(wrong, "x")
    for name, array in (
        ("grams", head.grams[:-1]),
        ("weights", head.weights[:-1]),
        ("mean", head.mean[:-1]),
        ("projection", head.projection[:, :-1]),
        ("idf", head.idf[:0]),
    ):
        with pytest.raises(ValueError, match="do not belong together"):
            random_head(**{name: array})
    with pytest.raises(BundleError, match="phases is float64, not float32"):
        ConsensusHead.from_bytes(random_head(phases=head.phases.astype("f8")).to_bytes(), "x")


Save = Callable[[ConsensusHead], Path]


@pytest.fixture
def save(tiny_files: dict[str, Path], tmp_path: Path) -> Save:
    """Write the tiny bundle with a head."""
    names = count()

    def write(head: ConsensusHead) -> Path:
        folder = tmp_path / f"bundle{next(names)}"
        file = tmp_path / OPTIONAL["captioner"]["consensus"]
        file.write_bytes(head.to_bytes())
        write_bundle(folder, tiny_manifest(), tiny_files | {"consensus": file}, card="")
        return folder

    return write


def test_a_captioner_puts_first_what_people_would_agree_with(save: Save) -> None:
    pixels = np.random.default_rng(3).standard_normal((4, 3, 4, 4)).astype("f4")
    head = random_head()
    captioner = Captioner(save(head), num_beams=4)
    plain = Captioner(captioner.bundle.folder, num_beams=4, rerank=False)
    found, before = captioner.caption_arrays(pixels, 4), plain.caption_arrays(pixels, 4)
    expected = head.expect(captioner._parts.vision.run(pixels)["tower_mean"].numpy())
    for row, ours, theirs in zip(expected, found, before, strict=True):
        agreed = head.consensus(row, [caption.text for caption in theirs])
        scores = {c.text: c.score + consensus.WEIGHT * a for c, a in zip(theirs, agreed, strict=True)}
        assert [caption.text for caption in ours] == sorted(scores, key=lambda text: -scores[text])
        assert [caption.score for caption in ours] == pytest.approx(sorted(scores.values(), reverse=True))
    assert [row[0].text for row in found] != [row[0].text for row in before], "it has to matter here"
    assert captioner.caption_arrays(pixels) == [row[:1] for row in found], "the best of all beams"
    greedy = Captioner(captioner.bundle.folder, num_beams=1)
    assert greedy.caption_arrays(pixels)[0][0].score < 0, "there is nothing to choose from"
    drawn = Captioner(captioner.bundle.folder, do_sample=True, num_return=3).caption_arrays(pixels)
    assert all(row == sorted(row, key=lambda caption: -caption.score) for row in drawn)
    assert {len(row) for row in drawn} == {3}


def test_a_head_of_another_tower_is_told(save: Save) -> None:
    head = random_head()
    wider = random_head(mean=np.zeros(9, "f4"), projection=np.tile(head.projection[:1], (9, 1)))
    with pytest.raises(BundleError, match="reads 9 numbers of tower_mean, the vision graph gives 8"):
        Captioner(save(wider)).caption_arrays(np.zeros((1, 3, 4, 4), np.float32))


def test_a_graph_of_old_captions_but_has_nothing_for_a_head(
    tiny_files: dict[str, Path], tmp_path: Path
) -> None:
    onnx = pytest.importorskip("onnx")
    model = onnx.load(tiny_files["vision"])
    assert model.graph.output.pop().name == model.graph.node.pop().output[0] == "tower_mean"
    old, head, pixels = tmp_path / "old.onnx", tmp_path / "consensus.npz", np.zeros((1, 3, 4, 4), np.float32)
    onnx.save(model, old)
    head.write_bytes(random_head().to_bytes())
    write_bundle(
        tmp_path / "chosen", tiny_manifest(), tiny_files | {"vision": old, "consensus": head}, card=""
    )
    with pytest.raises(BundleError, match="of tower_mean, the vision graph gives none"):
        Captioner(tmp_path / "chosen").caption_arrays(pixels)
    write_bundle(tmp_path / "plain", tiny_manifest(), tiny_files | {"vision": old}, card="")
    captioner = Captioner(tmp_path / "plain")
    assert captioner.caption_arrays(pixels)[0][0].text
    with pytest.raises(BundleError, match="gives no tower_mean, which a consensus head reads; export"):
        captioner.features([Image.new("RGB", (4, 4))], ThreadPoolExecutor(1))


def test_a_damaged_head_is_told(save: Save) -> None:
    folder = save(random_head())
    bundle = open_bundle(folder)
    assert bundle.hash() != open_bundle(save(random_head(1))).hash()
    assert bundle.manifest.files["consensus"].file == "consensus.npz"
    file = folder / "consensus.npz"
    data = bytearray(file.read_bytes())
    data[100] ^= 1
    file.write_bytes(data)
    with pytest.raises(BundleError, match="does not match its checksum"):
        Captioner(folder).caption_arrays(np.zeros((1, 3, 4, 4), np.float32))
    with pytest.raises(BundleError, match="files must be"):
        replace_role(folder, "consensus", "other")


def replace_role(folder: Path, old: str, new: str) -> None:
    manifest = folder / "manifest.json"
    manifest.write_text(manifest.read_text().replace(f'"{old}": {{', f'"{new}": {{'))
    open_bundle(folder)
