"""The Captioner on the tiny bundle, against a search written out by hand."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import vistill
from vistill.errors import BundleError, ConfigError, ImageError
from vistill.runtime.image import preprocess
from vistill.runtime.pipelines import Caption, Captioner

WORDS = ("<pad>", "<bos>", "<eos>", "<unk>", "a", "dog", "cat", "runs", "sits", "on", "the", "grass")


def picture(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (5, 6, 3), np.uint8))


@pytest.fixture(scope="module")
def captioner(tiny_bundle: Path) -> Captioner:
    return Captioner(tiny_bundle, threads=1)


def test_greedy_captions_equal_a_loop_in_numpy(
    tiny_bundle: Path, tiny_reference: Callable[[np.ndarray, list[int]], np.ndarray]
) -> None:
    greedy = Captioner(tiny_bundle, threads=1, num_beams=1, length_penalty=0.0)
    for seed in range(4):
        pixels = preprocess(picture(seed), greedy.preprocess)
        text, score = [1], 0.0
        while len(text) < 7:
            logits = tiny_reference(pixels, text)
            p = logits - np.log(np.exp(logits - logits.max()).sum()) - logits.max()
            if len(text) == 1:
                p[2] = -np.inf
            score += p.max()
            if p.argmax() == 2:
                break
            text.append(int(p.argmax()))
        found = greedy.caption([picture(seed)])[0][0]
        words = [WORDS[i] for i in text[1:] if i > 3]
        assert found.text == " ".join(words)
        assert found.score == pytest.approx(score, abs=1e-3)


def test_one_picture_gives_text_and_a_list_gives_a_list(captioner: Captioner, tmp_path: Path) -> None:
    image = picture(0)
    text = captioner(image)
    assert isinstance(text, str)
    buffer = BytesIO()
    image.save(buffer, "PNG")
    (tmp_path / "a.png").write_bytes(buffer.getvalue())
    sources = [image, buffer.getvalue(), tmp_path / "a.png", str(tmp_path / "a.png")]
    assert captioner(sources) == [text] * 4
    assert captioner(iter(sources[:2])) == [text] * 2
    assert captioner([]) == []


def test_batches_do_not_change_captions(tiny_bundle: Path, captioner: Captioner) -> None:
    pictures = [picture(seed) for seed in range(7)]
    small = Captioner(tiny_bundle, threads=2, batch_size=2).caption(pictures)
    for one, other in zip(small, captioner.caption(pictures), strict=True):
        assert one[0].text == other[0].text
        assert one[0].score == pytest.approx(other[0].score, abs=1e-5)
    assert len({one[0].text for one in small}) > 1  # they are not all the same picture


def test_n_best_captions_come_sorted(captioner: Captioner) -> None:
    (found,) = captioner.caption([picture(3)], num_return=5)  # more than the bundle's three beams
    assert len(found) == 5
    assert all(isinstance(one, Caption) for one in found)
    assert [one.score for one in found] == sorted((one.score for one in found), reverse=True)
    pixels = preprocess(picture(3), captioner.preprocess)[None]
    assert captioner.caption_arrays(pixels, num_return=5) == [found]


def test_the_shipped_model_captions_a_photo_alike_alone_and_beside_others(
    shipped_bundle: Path, root: Path
) -> None:
    photos = sorted((root / "samples").glob("*.jpg"))
    together = Captioner(shipped_bundle, threads=1).caption(photos)
    alone = [Captioner(shipped_bundle, threads=1).caption([photo])[0] for photo in photos]
    for one, other in zip(together, alone, strict=True):
        assert one[0].text == other[0].text
        assert one[0].score == pytest.approx(other[0].score, abs=1e-3)
    assert len({one[0].text for one in together}) > 1


def test_the_shipped_model_keeps_its_size(shipped_bundle: Path) -> None:
    assert sum(path.stat().st_size for path in shipped_bundle.iterdir()) <= 25e6


def test_many_threads_may_share_a_captioner(tiny_bundle: Path) -> None:
    shared = Captioner(tiny_bundle, threads=1)
    pictures = [picture(seed) for seed in range(12)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(shared, pictures))
    assert found == [Captioner(tiny_bundle, threads=1)(image) for image in pictures]


def test_wrong_arrays_and_settings_are_refused(tiny_bundle: Path, captioner: Captioner) -> None:
    with pytest.raises(ValueError, match="must be float32"):
        captioner.caption_arrays(np.zeros((1, 3, 5, 4), np.float32))
    with pytest.raises(ValueError, match="must be float32"):
        captioner.caption_arrays(np.zeros((1, 3, 4, 4)))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="num_beams=0"):
        Captioner(tiny_bundle, num_beams=0)
    with pytest.raises(ConfigError, match="max_new_tokens=11: this model can write at most 10"):
        Captioner(tiny_bundle, max_new_tokens=11)
    assert Captioner(tiny_bundle, max_new_tokens=10, min_new_tokens=10)(picture(0))  # to the last position
    with pytest.raises(ConfigError, match=r"unknown setting in \['beams'\]"):
        Captioner(tiny_bundle, beams=3, num_beams=2)
    for name, value, wanted in (
        ("num_beams", "3", "an integer"),
        ("num_beams", 2.5, "an integer"),
        ("length_penalty", None, "a number"),
        ("do_sample", "no", "True or False"),
    ):
        with pytest.raises(ConfigError, match=f"{name}={value!r}: must be {wanted}"):
            Captioner(tiny_bundle, **{name: value})
    assert Captioner(tiny_bundle, num_beams=np.int64(2), length_penalty=1).generation.num_beams == 2
    for threads in (0, 257, 100_000):
        with pytest.raises(ConfigError, match=f"threads={threads}: must be at least 1 and at most 256"):
            Captioner(tiny_bundle, threads=threads)
    with pytest.raises(ConfigError, match="batch_size=0"):
        Captioner(tiny_bundle, batch_size=0)
    for name, wrong in (("threads", "2"), ("threads", 2.0), ("batch_size", None), ("batch_size", 1.5)):
        with pytest.raises(ConfigError, match=f"{name}={wrong!r}: must be at least 1"):
            Captioner(tiny_bundle, **{name: wrong})
    for wrong in ("2", 1.5):
        with pytest.raises(ConfigError, match=f"num_return={wrong!r}: must be an integer"):
            captioner.caption([picture(0)], num_return=wrong)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="num_return=0: must be at least 1"):
        captioner.caption([picture(0)], num_return=0)


def test_what_can_be_no_picture_is_refused(captioner: Captioner, tmp_path: Path) -> None:
    encoded = BytesIO()
    picture(0).save(encoded, "PNG")
    name = tmp_path / "a.png"
    name.write_bytes(encoded.getvalue())
    single = (str(name), name, encoded.getvalue(), picture(0))
    with name.open("rb") as file:
        for one in (*single, bytearray(encoded.getvalue()), memoryview(b"x"), encoded, file, 3):
            with pytest.raises(TypeError, match=f"must come as a list.*, got {type(one).__name__}"):
                captioner.caption(one)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="must come as a list"):
            captioner(file)
        for odd in (file, np.zeros((4, 4, 3), np.uint8), bytearray(encoded.getvalue()), None):
            with pytest.raises(TypeError, match=f"bytes, a path or a PIL image, got {type(odd).__name__}"):
                captioner([picture(0), odd])  # type: ignore[list-item]
    with pytest.raises(TypeError, match="got ndarray"):
        captioner(np.zeros((4, 4, 3), np.uint8))
    with pytest.raises(TypeError, match="got ndarray"):
        captioner(np.zeros((0, 4, 3), np.uint8))


def test_a_broken_picture_is_an_image_error(captioner: Captioner) -> None:
    with pytest.raises(ImageError):
        captioner(b"not a picture")


@pytest.mark.parametrize(
    ("path", "value", "problem"),
    [
        (("preprocess", "size"), [5, 4], "the vision graph takes"),
        (("special_tokens", "eos"), 12, "beyond the decoder's 12 tokens"),
    ],
)
def test_parts_that_do_not_fit_are_told(
    tiny_bundle: Path, tmp_path: Path, path: tuple[str, str], value: object, problem: str
) -> None:
    copy = Path(shutil.copytree(tiny_bundle, tmp_path / "copy"))
    raw = json.loads((copy / "manifest.json").read_text())
    raw[path[0]][path[1]] = value
    (copy / "manifest.json").write_text(json.dumps(raw))
    with pytest.raises(BundleError, match=problem):
        Captioner(copy, threads=1)(picture(0))


def test_a_missing_model_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BundleError, match="no such bundle folder"):
        Captioner(tmp_path / "absent")
    monkeypatch.setattr("vistill.runtime.bundle.PACKAGED", tmp_path / "absent")
    with pytest.raises(BundleError, match="holds no captioner"):
        Captioner()


def test_importing_vistill_loads_nothing_and_the_captioner_loads_no_torch() -> None:
    code = (
        "import sys; before = set(sys.modules); import vistill; "
        "new = {m for m in set(sys.modules) - before if not m.startswith('vistill')}; print(sorted(new)); "
        "from vistill import Captioner; print(Captioner.__name__, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["[]", "Captioner False"]


def test_an_unknown_name_of_the_package_is_an_attribute_error() -> None:
    assert vistill.Captioner is Captioner
    assert "Captioner" in dir(vistill)
    with pytest.raises(AttributeError, match="Captionist"):
        vistill.Captionist  # noqa: B018
