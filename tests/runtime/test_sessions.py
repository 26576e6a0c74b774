"""Sessions against the tiny model recomputed in numpy without a cache."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from vistill.errors import BundleError
from vistill.runtime.sessions import DecoderSession, VisionSession


@pytest.fixture(scope="module")
def sessions(tiny_files: dict[str, Path]) -> tuple[VisionSession, DecoderSession]:
    vision = VisionSession(tiny_files["vision"].read_bytes(), threads=1)
    return vision, DecoderSession(tiny_files["decoder"].read_bytes(), threads=1)


def pictures(count: int) -> np.ndarray:
    return np.random.default_rng(5).standard_normal((count, 3, 4, 4)).astype(np.float32) * 0.3


def test_the_decoder_describes_itself(sessions: tuple[VisionSession, DecoderSession]) -> None:
    decoder = sessions[1]
    assert (decoder.layers, decoder.heads, decoder.head_width) == (1, 2, 4)


def test_steps_and_reorders_equal_numpy(
    sessions: tuple[VisionSession, DecoderSession],
    tiny_reference: Callable[[np.ndarray, list[int]], np.ndarray],
) -> None:
    vision, decoder = sessions
    pixels = pictures(2)
    stepper = decoder.start(vision.run(pixels))
    logits = stepper.step(np.array([[1], [1]]))
    assert logits.dtype == np.float32
    assert logits.shape == (2, 1, 12)
    texts = [[[1]], [[1]]]
    rng = np.random.default_rng(1)
    for captions in (3, 3, 2, 4):
        for b in range(2):
            for c, text in enumerate(texts[b]):
                np.testing.assert_allclose(logits[b, c], tiny_reference(pixels[b], text), atol=1e-4)
        rows = rng.integers(0, len(texts[0]), (2, captions))
        words = rng.integers(4, 12, (2, captions))
        stepper.reorder(rows)
        texts = [[[*texts[b][rows[b, c]], int(words[b, c])] for c in range(captions)] for b in range(2)]
        logits = stepper.step(words)


def test_two_texts_at_once_do_not_meet(sessions: tuple[VisionSession, DecoderSession]) -> None:
    vision, decoder = sessions
    cross = vision.run(pictures(1))
    one, other = decoder.start(cross), decoder.start(cross)
    first = one.step(np.array([[1]]))
    np.testing.assert_array_equal(first, other.step(np.array([[1]])))
    one.step(np.array([[5]]))
    third = decoder.start(cross)
    for word in (1, 5):
        third.step(np.array([[word]]))
    np.testing.assert_array_equal(one.step(np.array([[7]])), third.step(np.array([[7]])))


def test_pictures_can_be_forgotten(
    sessions: tuple[VisionSession, DecoderSession],
    tiny_reference: Callable[[np.ndarray, list[int]], np.ndarray],
) -> None:
    vision, decoder = sessions
    pixels = pictures(4)
    stepper = decoder.start(vision.run(pixels))
    stepper.step(np.full((4, 1), 1))
    stepper.keep(np.array([1, 3]))
    logits = stepper.step(np.array([[5], [6]]))
    np.testing.assert_allclose(logits[0, 0], tiny_reference(pixels[1], [1, 5]), atol=1e-4)
    np.testing.assert_allclose(logits[1, 0], tiny_reference(pixels[3], [1, 6]), atol=1e-4)


def test_keeping_the_order_moves_nothing(sessions: tuple[VisionSession, DecoderSession]) -> None:
    vision, decoder = sessions
    stepper = decoder.start(vision.run(pictures(2)))
    stepper.step(np.array([[1], [1]]))
    before = stepper.past
    stepper.reorder(np.array([[0], [0]]))
    assert stepper.past is before


def test_what_is_no_graph_is_refused_by_name(tiny_files: dict[str, Path]) -> None:
    with pytest.raises(BundleError, match=r"x\.onnx: onnxruntime .* cannot run it"):
        VisionSession(b"not a graph", name="x.onnx")
    with pytest.raises(BundleError, match="differ in"):
        VisionSession(tiny_files["decoder"].read_bytes(), name="x.onnx")
    with pytest.raises(BundleError, match=r"x\.onnx: it has no input past_key\.0"):
        DecoderSession(tiny_files["vision"].read_bytes(), name="x.onnx")
