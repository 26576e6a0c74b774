"""The Embedder on a tiny bundle, against numpy."""

import json
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.tiny_embedder import (
    CONTEXT,
    LOGIT_SCALE,
    WIDTH,
    image_vector,
    text_vector,
    tiny_manifest,
    write_tiny_embedder,
    write_tiny_files,
)

import vistill
from vistill.errors import BundleError, ConfigError, ImageError
from vistill.runtime.bundle import open_bundle, write_bundle
from vistill.runtime.embedder import Embedder, Label
from vistill.runtime.image import Limits, preprocess
from vistill.runtime.pipelines import Captioner


def picture(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (5, 6, 3), np.uint8))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_embedder(tmp_path_factory.mktemp("embedder") / "bundle")


@pytest.fixture(scope="module")
def embedder(bundle: Path) -> Embedder:
    return Embedder(bundle, threads=1)


def test_pictures_equal_numpy_in_any_form_and_batch(bundle: Path, tmp_path: Path) -> None:
    pictures = [picture(seed) for seed in range(7)]
    buffer = BytesIO()
    pictures[0].save(buffer, "PNG")
    (tmp_path / "a.png").write_bytes(buffer.getvalue())
    sources = [*pictures, buffer.getvalue(), tmp_path / "a.png", str(tmp_path / "a.png")]
    for batch_size in (1, 3, 100):
        embedder = Embedder(bundle, threads=2, batch_size=batch_size)
        found = embedder.images(iter(sources))
        assert found.dtype == np.float32
        assert found.shape == (10, WIDTH)
        wanted = [image_vector(preprocess(source, embedder.preprocess)) for source in sources]
        np.testing.assert_allclose(found, wanted, atol=1e-5)
        np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    pixels = np.stack([preprocess(source, embedder.preprocess) for source in pictures])
    np.testing.assert_allclose(embedder.image_arrays(pixels), found[:7], atol=1e-6)
    with pytest.raises(ValueError, match="pixels must be float32"):
        embedder.image_arrays(pixels[:, :, :2])


def test_texts_keep_their_order_whatever_their_length(bundle: Path) -> None:
    texts = ["a photo of a dog", "", "Cat", "a red cat", "dog", "zebra", "a " * 50, "blue green red"]
    for batch_size in (1, 3, 100):
        found = Embedder(bundle, threads=1, batch_size=batch_size).texts(texts)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, [text_vector(text) for text in texts], atol=1e-5)
    np.testing.assert_allclose(found[6], text_vector(" ".join("a" * (CONTEXT - 2))), atol=1e-5)


def test_nothing_gives_an_empty_array(embedder: Embedder) -> None:
    assert embedder.images([]).shape == (0, WIDTH)
    assert embedder.texts([]).shape == (0, WIDTH)
    assert embedder.classify([], ["dog"]) == []


def test_a_broken_picture_raises_or_is_told(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff nothing")
    sources = [picture(0), tmp_path / "broken.jpg", picture(1), b"", picture(2), tmp_path / "absent.jpg"]
    embedder = Embedder(bundle, threads=2, batch_size=2)
    with pytest.raises(ImageError):
        embedder.images(sources)
    told: list[tuple[int, str]] = []
    found = embedder.images(sources, on_error=lambda i, error: told.append((i, error.reason)))
    assert [i for i, _ in told] == [1, 3, 5]
    assert told[2][1] == "missing"
    assert np.isnan(found[[1, 3, 5]]).all()
    wanted = [image_vector(preprocess(picture(seed), embedder.preprocess)) for seed in range(3)]
    np.testing.assert_allclose(found[[0, 2, 4]], wanted, atol=1e-5)
    labels = embedder.classify(sources, ["dog", "cat"], on_error=lambda i, error: None)
    assert [len(one) for one in labels] == [2, 0, 2, 0, 2, 0]


def test_limits_hold(bundle: Path) -> None:
    with pytest.raises(ImageError, match="too_many_pixels"):
        Embedder(bundle, limits=Limits(max_pixels=10)).images([picture(0)])


def test_labels_are_a_softmax_over_scaled_cosines(embedder: Embedder) -> None:
    names = ["dog", "cat", "red"]
    texts = np.array([text_vector(f"a photo of {name}") for name in names])
    for seed, found in enumerate(embedder.classify([picture(seed) for seed in range(3)], names)):
        cosines = texts @ image_vector(preprocess(picture(seed), embedder.preprocess))
        shares = np.exp(LOGIT_SCALE * cosines.astype(np.float64))
        shares /= shares.sum()
        order = np.argsort(-shares)
        assert [label.text for label in found] == [names[i] for i in order]
        np.testing.assert_allclose([label.score for label in found], shares[order], rtol=1e-3)
    (other,) = embedder.classify([picture(0)], names, template="{}")
    assert other != embedder.classify([picture(0)], names)[0]
    assert embedder.classify([picture(0)], ["dog"])[0] == [Label("dog", 1.0)]


def test_a_wrong_question_is_refused(embedder: Embedder, bundle: Path) -> None:
    with pytest.raises(ConfigError, match="at least one label"):
        embedder.classify([picture(0)], [])
    with pytest.raises(ConfigError, match="template='a photo'"):
        embedder.classify([picture(0)], ["dog"], template="a photo")
    for wrong in ({"threads": 0}, {"batch_size": 0}, {"threads": "2"}, {"batch_size": 1.5}):
        with pytest.raises(ConfigError, match="at least 1"):
            Embedder(bundle, **wrong)


def test_what_can_be_no_picture_and_no_text_is_refused(embedder: Embedder) -> None:
    for one in ("a.jpg", b"x", picture(0), 3):
        for call in (embedder.images, lambda one: embedder.classify(one, ["dog"])):
            with pytest.raises(TypeError, match=f"must come as a list.*, got {type(one).__name__}"):
                call(one)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="a picture must be bytes, a path or a PIL image, got NoneType"):
        embedder.images([picture(0), None], on_error=print)  # type: ignore[list-item]
    for text in ("a dog", b"a dog", None):
        with pytest.raises(TypeError, match=f"texts must come as a list.*, got {type(text).__name__}"):
            embedder.texts(text)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="a text must be a str, got int"):
        embedder.texts(["a dog", 3])  # type: ignore[list-item]
    with pytest.raises(TypeError, match=r"labels must come as a list.*, got str"):
        embedder.classify([picture(0)], "dog")
    with pytest.raises(TypeError, match="a label must be a str, got NoneType"):
        embedder.classify([picture(0)], ["dog", None])  # type: ignore[list-item]


def test_a_text_with_a_lone_surrogate_is_one_with_a_question_mark(embedder: Embedder) -> None:
    odd, plain = embedder.texts(["a d\udcffog", "a d?og"])
    assert (odd == plain).all()


def test_the_hash_tells_models_apart(bundle: Path, tmp_path: Path) -> None:
    same = Embedder(Path(shutil.copytree(bundle, tmp_path / "same")))
    assert same.hash == Embedder(bundle).hash
    manifest = open_bundle(bundle).manifest
    files = {role: bundle / entry.file for role, entry in manifest.files.items()}
    squashed = replace(manifest, preprocess=replace(manifest.preprocess, resize="crop"))
    write_bundle(tmp_path / "other", squashed, files, card="")
    assert Embedder(tmp_path / "other").hash != same.hash


def test_another_kind_of_bundle_is_told(bundle: Path, tiny_bundle: Path) -> None:
    with pytest.raises(BundleError, match="kind 'captioner'; here 'embedder' is needed"):
        Embedder(tiny_bundle)
    with pytest.raises(BundleError, match="kind 'embedder'; here 'captioner' is needed"):
        Captioner(bundle)


def test_without_a_packaged_model_a_folder_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("vistill.runtime.bundle.PACKAGED", tmp_path)
    with pytest.raises(BundleError, match=r"holds no embedder .* name a bundle folder"):
        Embedder()


def test_parts_that_do_not_fit_are_told(tmp_path: Path) -> None:
    files = write_tiny_files(tmp_path)
    spec = tiny_manifest().preprocess
    for name, manifest, words in (
        ("size", replace(tiny_manifest(), preprocess=replace(spec, size=(5, 5))), "preprocess.size is"),
        ("width", replace(tiny_manifest(), width=7), "width is 7"),
    ):
        write_bundle(tmp_path / name, manifest, files, card="")
        with pytest.raises(BundleError, match=words):
            Embedder(tmp_path / name).texts(["a"])
    write_bundle(tmp_path / "turned", tiny_manifest(), files | {"text": files["vision"]}, card="")
    with pytest.raises(BundleError, match="they differ in pixels, tokens"):
        Embedder(tmp_path / "turned").texts(["a"])


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("width", 0, "width must be a whole number from 1"),
        ("context", 1, "context must be a whole number from 2"),
        ("context", None, "context must be a whole number"),
        ("logit_scale", 0, "logit_scale must be a number above 0"),
        ("logit_scale", float("nan"), "logit_scale must be a number above 0"),
        ("logit_scale", True, "logit_scale must be a number above 0"),
        ("generation", {}, "unknown key 'generation'"),
    ],
)
def test_a_broken_manifest_is_told_by_key(
    bundle: Path, tmp_path: Path, key: str, value: object, words: str
) -> None:
    copy = Path(shutil.copytree(bundle, tmp_path / "copy"))
    raw = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps(raw | {key: value}))
    with pytest.raises(BundleError, match=words):
        open_bundle(copy)


def test_many_threads_may_share_one(bundle: Path) -> None:
    embedder = Embedder(bundle, threads=1)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda seed: embedder.images([picture(seed)])[0], range(16)))
    np.testing.assert_allclose(found, embedder.images([picture(seed) for seed in range(16)]), atol=1e-6)


def test_the_package_names_it_lazily() -> None:
    assert vistill.Embedder is Embedder
    assert vistill.Label is Label
    code = (
        "import sys, vistill; assert 'numpy' not in sys.modules; vistill.Embedder; "
        "heavy = {'torch', 'transformers', 'timm', 'onnx'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
