"""Batches: in order, in bounded memory, decoding beside the model, broken pictures set aside."""

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vistill.archive.batch import Pixels, caption_paths, decode_ahead
from vistill.errors import ImageError
from vistill.runtime.image import Limits, Preprocess


@dataclass(frozen=True)
class FakeCaption:
    text: str
    score: float


class FakeCaptioner:
    """Says how grey a picture is, and remembers the batches it saw."""

    preprocess = Preprocess((4, 4), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))

    def __init__(self) -> None:
        self.batches: list[int] = []

    def caption_arrays(self, pixels: Pixels, num_return: int) -> list[list[FakeCaption]]:
        self.batches.append(len(pixels))
        return [
            [FakeCaption(f"grey {255 * p.mean():.0f}", -float(i)) for i in range(num_return)] for p in pixels
        ]


def make(folder: Path, count: int) -> list[str]:
    paths = []
    for index in range(count):
        path = folder / f"{index:03}.png"
        if index % 5 == 3:
            path.write_bytes(b"rubbish")
        else:
            Image.new("L", (5, 4), index).save(path)
        paths.append(str(path))
    return paths


@pytest.mark.parametrize("count", [0, 1, 3, 4, 5, 23])
@pytest.mark.parametrize("workers", [1, 3])
def test_results_are_complete_and_in_order(tmp_path: Path, count: int, workers: int) -> None:
    captioner = FakeCaptioner()
    paths = make(tmp_path, count)
    results = [r for batch in caption_paths(captioner, paths, 4, workers) for r in batch]
    assert [r.path for r in results] == paths
    for index, result in enumerate(results):
        if index % 5 == 3:
            assert result.error is not None
            assert result.error.reason == "not_an_image"
            assert result.captions == ()
        else:
            assert result.error is None
            assert result.captions == ((f"grey {index}", 0.0),)
    good = sum(index % 5 != 3 for index in range(count))
    assert captioner.batches == [4] * (good // 4) + [good % 4] * (good % 4 > 0)


def test_several_captions_and_limits(tmp_path: Path) -> None:
    path = make(tmp_path, 1)
    ((result,),) = caption_paths(FakeCaptioner(), path, num_return=3)
    assert result.captions == (("grey 0", 0.0), ("grey 0", -1.0), ("grey 0", -2.0))
    ((result,),) = caption_paths(FakeCaptioner(), path, limits=Limits(max_pixels=19))
    assert result.error is not None
    assert result.error.reason == "too_many_pixels"


def test_failures_alone_do_not_pile_up(tmp_path: Path) -> None:
    drawn = 0

    def endless() -> Iterator[str]:
        nonlocal drawn
        while True:
            drawn += 1
            yield str(tmp_path / "absent.jpg")

    first = next(caption_paths(FakeCaptioner(), endless(), batch_size=4))
    assert {r.error.reason for r in first if r.error} == {"missing"}
    assert drawn <= 40


def test_memory_is_bounded() -> None:
    """However slow the consumer: no more arrays alive than the window, and paths drawn only as needed."""
    alive, most, lock = 0, 0, threading.Lock()
    drawn = 0

    def paths() -> Iterator[str]:
        nonlocal drawn
        for index in range(200):
            drawn = index + 1
            yield str(index)

    def read(path: str) -> Pixels:
        nonlocal alive, most
        with lock:
            alive += 1
            most = max(most, alive)
        return np.zeros(1, np.float32)

    for count, _ in enumerate(decode_ahead(paths(), read, workers=3, ahead=8), 1):
        time.sleep(0.0005)
        with lock:
            alive -= 1
        assert drawn <= count + 8
    assert count == 200
    assert most <= 8


def test_decoding_goes_on_while_the_model_works() -> None:
    """While the consumer holds the first result, the next ones get decoded."""
    decoded = [threading.Event() for _ in range(4)]

    def read(path: str) -> Pixels:
        decoded[int(path)].set()
        return np.zeros(1, np.float32)

    stream = decode_ahead(["0", "1", "2", "3"], read, workers=1, ahead=3)
    next(stream)
    assert decoded[1].wait(5)
    assert decoded[2].wait(5)
    assert not decoded[3].wait(0.05)  # beyond the window
    assert [p for p, _ in stream] == ["1", "2", "3"]


def test_other_errors_stop_the_run_and_its_threads() -> None:
    def read(path: str) -> Pixels:
        if path == "2":
            raise RuntimeError("a fault of ours")
        if path == "1":
            raise ImageError("corrupt", path)
        return np.zeros(1, np.float32)

    before = threading.active_count()
    stream = decode_ahead(map(str, range(100)), read, workers=2, ahead=4)
    seen = [(path, isinstance(outcome, ImageError)) for path, outcome in (next(stream), next(stream))]
    assert seen == [("0", False), ("1", True)]
    with pytest.raises(RuntimeError, match="ours"):
        next(stream)
    assert threading.active_count() == before


def test_leaving_early_stops_the_threads(tmp_path: Path) -> None:
    before = threading.active_count()
    stream = caption_paths(FakeCaptioner(), make(tmp_path, 30), 2, 2)
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before
