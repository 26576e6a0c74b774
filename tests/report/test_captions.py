"""Captioning rows, scoring them and what is written about it, with a model that says what it is told."""

import io
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vistill.errors import DataError, ImageError
from vistill.metrics.caption import score_captions
from vistill.report.captions import (
    caption_rows,
    coco_results,
    fingerprint,
    measure_speed,
    prediction_lines,
    score_run,
    to_json,
)
from vistill.report.captions_page import build_page
from vistill.report.generate import Caption, Model
from vistill.report.page import render
from vistill.runtime.decode import GenerationConfig
from vistill.runtime.image import read_image

COLOURS = ("red", "green", "blue", "black", "white")


def picture(colour: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (40, 30), colour).save(buffer, "PNG")
    return buffer.getvalue()


def rows(count: int = 10) -> list[dict[str, Any]]:
    colours = [COLOURS[i % len(COLOURS)] for i in range(count)]
    return [
        {
            "key": f"{i}.png",
            "image": picture(colour),
            "captions": [f"A {colour} <wall> .", f"there is a {colour} wall number {i}"],
        }
        for i, colour in enumerate(colours)
    ]


class Speaker:
    """Says the colour of the picture, and remembers the sizes of its batches."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def __call__(self, images: Sequence[bytes]) -> list[Caption]:
        self.batches.append(len(images))
        found = []
        for image in images:
            pixel = read_image(image).getpixel((0, 0))
            name = min(COLOURS, key=lambda c: sum(abs(a - b) for a, b in zip(pixel, rgb(c), strict=True)))
            found.append(Caption(f"a {name} wall with a cow", -0.5))
        return found


def rgb(colour: str) -> tuple[int, int, int]:
    red, green, blue = Image.new("RGB", (1, 1), colour).getpixel((0, 0))
    return red, green, blue


def model(speaker: Speaker | None = None) -> Model:
    return Model(speaker or Speaker(), "bundle", GenerationConfig(), "f" * 64, {"size": [4, 4]})


def test_every_picture_gets_its_own_caption_whatever_the_batch() -> None:
    speaker, done = Speaker(), []
    run = caption_rows(model(speaker), rows(), batch_size=4, progress=done.append)
    assert speaker.batches == [4, 4, 2]
    assert done == [4, 8, 10]
    assert run.keys == [f"{i}.png" for i in range(10)]
    assert run.captions == [f"a {COLOURS[i % 5]} wall with a cow" for i in range(10)]
    assert run.references == [row["captions"] for row in rows()]
    assert run.seconds > 0


def test_the_fingerprint_sees_keys_pictures_captions_and_order() -> None:
    base = rows(4)
    for size in (1, 3):
        assert caption_rows(model(), rows(4), batch_size=size).fingerprint == fingerprint(base)
    changes: list[list[dict[str, Any]]] = [
        base[::-1],
        base[:3],
        [base[0] | {"key": "other.png"}, *base[1:]],
        [base[0] | {"image": picture("grey")}, *base[1:]],
        [base[0] | {"captions": base[0]["captions"][:1]}, *base[1:]],
    ]
    prints = {fingerprint(changed) for changed in changes}
    assert len(prints | {fingerprint(base)}) == len(changes) + 1


def test_rows_that_cannot_be_scored_are_named() -> None:
    with pytest.raises(DataError, match="no picture"):
        caption_rows(model(), [], batch_size=2)
    broken = [*rows(2), {"key": "bare.png", "image": picture("red"), "captions": []}]
    with pytest.raises(DataError, match=r"bare\.png"):
        caption_rows(model(), broken, batch_size=2)
    broken = [*rows(2), {"key": "cut.png", "image": picture("red")[:40], "captions": ["a wall"]}]
    with pytest.raises(DataError, match=r"cut\.png") as error:
        caption_rows(model(), broken, batch_size=8)
    assert isinstance(error.value.__cause__, ImageError)


def test_figures_are_those_of_the_metrics_times_100() -> None:
    run = caption_rows(model(), rows(), batch_size=4)
    scored = score_run(run)
    expected = score_captions(
        dict(zip(run.keys, run.captions, strict=True)), dict(zip(run.keys, run.references, strict=True))
    )
    assert set(scored.figures) == set(expected.corpus) >= {"BLEU-4", "ROUGE-L", "CIDEr"}
    for name, figure in scored.figures.items():
        assert figure["value"] == pytest.approx(100 * expected.corpus[name])
        assert figure["low"] <= figure["value"] <= figure["high"]
        np.testing.assert_allclose(scored.pictures[name], 100 * expected.per_picture[name])
    assert scored.variety["vocabulary"] == {"model": 9, "people": 7}
    assert scored.variety["repetition"]["model"] == 0


def test_predictions_and_coco_results() -> None:
    run = caption_rows(model(), rows(3), batch_size=4)
    scored = score_run(run)
    lines = [json.loads(line) for line in prediction_lines(scored)]
    assert [line["key"] for line in lines] == run.keys
    assert lines[0]["references"] == rows(1)[0]["captions"]
    assert lines[2]["scores"]["CIDEr"] == pytest.approx(scored.pictures["CIDEr"][2], abs=1e-3)
    assert coco_results(run)[0] == {"image_id": "0.png", "caption": "a red wall with a cow"}
    numbered = [row | {"key": str(i + 7)} for i, row in enumerate(rows(2))]
    assert [r["image_id"] for r in coco_results(caption_rows(model(), numbered, batch_size=2))] == [7, 8]


def test_metrics_say_what_was_measured_on_what() -> None:
    scored = score_run(caption_rows(model(), rows(), batch_size=4))
    metrics = json.loads(json.dumps(to_json(scored, model(), "my-model", "shapes", "dev")))
    assert metrics["data"] == {
        "name": "shapes",
        "split": "dev",
        "pictures": 10,
        "references": 20,
        "fingerprint": scored.run.fingerprint,
    }
    assert metrics["model"]["sha256"] == "f" * 64
    assert metrics["generation"]["num_beams"] == GenerationConfig().num_beams
    assert "rerank" not in metrics["generation"]
    left_out = to_json(scored, replace(model(), rerank=False), "my-model", "shapes", "dev")
    assert left_out["generation"]["rerank"] is False
    assert metrics["environment"]["python"]
    assert metrics["pictures_per_second"] > 0


def test_the_page_shows_best_worst_and_words_that_nobody_said() -> None:
    data = rows()
    data[3]["captions"] = ["two dogs", "dogs at play"]  # the model says "a black wall with a cow"
    scored = score_run(caption_rows(model(), data, batch_size=4))
    page = build_page(scored, data, to_json(scored, model(), "m", "shapes", "dev"), pictures=2)
    best, worst, sample = page.galleries
    assert (best.name, worst.name, sample.name) == ("best", "worst", "sample")
    assert worst.cards[0].key == "3.png"
    assert {"wall", "cow", "black"} == set(worst.cards[0].unseen)
    assert {"cow"} == set(best.cards[0].unseen)
    assert best.cards[0].scores["CIDEr"] >= best.cards[1].scores["CIDEr"] > 0
    html = render(page)
    assert html.count("data:image/jpeg;base64,") == 6
    assert "a red &lt;wall&gt;" in html.lower()
    assert "<wall>" not in html


def test_the_time_of_a_picture_is_that_of_one_alone() -> None:
    speaker = Speaker()
    found = measure_speed(replace(model(speaker), threads=3), rows(), 4)
    assert speaker.batches == [1] * 6  # two to warm up
    assert found is not None
    assert (found.pictures, found.threads) == (4, 3)
    assert 0 < found.low_ms <= found.median_ms <= found.high_ms
    assert found.cpu_ms > 0
    assert measure_speed(model(speaker), rows(), 0) is None
    assert measure_speed(model(), rows(1), 9).pictures == 1


def test_metrics_say_how_large_and_how_fast() -> None:
    scored = score_run(caption_rows(model(), rows(), batch_size=4))
    large = replace(model(), parameters=7, bytes=28, trained=({"seed": 3},))
    metrics = to_json(scored, large, "m", "shapes", "dev", measure_speed(large, rows(), 2))
    assert (metrics["model"]["parameters"], metrics["model"]["bytes"]) == (7, 28)
    assert metrics["model"]["trained"] == [{"seed": 3}]
    assert metrics["speed"]["pictures"] == 2
    assert to_json(scored, large, "m", "shapes", "dev")["speed"] is None


def test_a_model_that_does_not_tell_how_sure_it_is() -> None:
    quiet = replace(model(), caption=lambda images: [Caption("a wall", None) for _ in images])
    lines = prediction_lines(score_run(caption_rows(quiet, rows(2), batch_size=2)))
    assert [json.loads(line)["model_score"] for line in lines] == [None, None]


def test_the_page_of_one_picture() -> None:
    scored = score_run(caption_rows(model(), rows(1), batch_size=4))
    page = build_page(scored, rows(1), to_json(scored, model(), "m", "shapes", "dev"), pictures=24)
    assert [len(gallery.cards) for gallery in page.galleries] == [1, 1, 1]
    assert "drawn again" not in render(page)  # one picture has no interval
