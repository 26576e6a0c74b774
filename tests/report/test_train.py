"""Reading what a run left, the rule of the verdict on drawn curves, and the page."""

import importlib
import io
import json
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.report.test_page import EVIL, read

from vistill.errors import DataError
from vistill.report.train import (
    Curve,
    Run,
    Sample,
    change,
    judge,
    make_curve,
    read_csv,
    read_run,
    scores,
    warnings,
    without_folders,
)
from vistill.report.train_page import POINTS, build_page, histogram_chart, sections_of, smooth, thin

SETTINGS = {
    "name": "tiny",
    "out": "/somewhere/runs",
    "datamodule": {"path": "/data/built/shapes"},
    "trainer": {"max_epochs": 3, "seed": 5},
}


def over_steps(name: str, value: Callable[[float], float], last: int = 1000, every: int = 10) -> Curve:
    """value(share of the run) at every so many steps."""
    steps = tuple(range(every, last + 1, every))
    return Curve(name, steps, tuple(value(step / last) for step in steps))


def curves(dev: Sequence[float], **train: Callable[[float], float]) -> dict[str, Curve]:
    """Dev scores at equal distances up to step 1000, and curves train/NAME."""
    steps = tuple(1000 * (i + 1) // len(dev) for i in range(len(dev)))
    found = {"dev/CIDEr": Curve("dev/CIDEr", steps, tuple(dev))}
    return found | {f"train/{name}": over_steps(f"train/{name}", value) for name, value in train.items()}


def falls(share: float) -> float:
    return 5 - 2 * share


def flat(share: float) -> float:
    return 3.0


def rises(share: float) -> float:
    return 0.2 + 0.3 * share


@pytest.mark.parametrize(
    ("dev", "train", "kind"),
    [
        ([20, 30, 28, 25], {"loss": falls}, "over-fitting"),
        ([20, 30, 28, 25], {"loss": flat}, "fell"),
        ([20, 30, 28, 25], {"loss": rises}, "fell"),
        ([20, 30, 28, 25], {}, "fell"),
        ([20, 30, 28, 25], {"loss": falls, "reward": rises}, "reward hacking"),
        ([20, 30, 28, 25], {"loss": falls, "reward": flat}, "fell"),
        ([30, 25], {"loss": falls}, "over-fitting"),
        ([20, 25, 30], {"loss": falls}, "rising"),
        ([20, 29.8, 30], {"loss": falls}, "level"),
        ([20, 30, 29.6, 29.5], {"loss": falls}, "level"),
        ([30], {"loss": falls}, "unknown"),
        ([30, math.nan], {"loss": falls}, "unknown"),
        ([], {"loss": falls}, "unknown"),
    ],
)
def test_the_rule(dev: list[float], train: dict[str, Callable[[float], float]], kind: str) -> None:
    assert judge(curves(dev, **train)).kind == kind


def test_the_verdict_tells_its_figures() -> None:
    text = judge(curves([20, 30, 28, 25], loss=falls)).text
    for wanted in ("best 30.00 at step 500", "last 25.00 at step 1,000", "falling by 23"):
        assert wanted in text
    assert judge({}).kind == "unknown"


def test_the_change_is_between_the_interval_of_the_best_and_the_last() -> None:
    found = curves([20, 30, 28, 25], loss=lambda share: 4 - share)
    # means over steps 260..500 and 760..1000: 3.62 and 3.12
    assert change(found["train/loss"], found["dev/CIDEr"], 1) == pytest.approx((3.12 - 3.62) / 3.62)
    assert change(found["train/loss"], found["dev/CIDEr"], 3) is None
    assert change(Curve("x", (1,), (1.0,)), found["dev/CIDEr"], 1) is None
    negative = over_steps("train/self_critical", lambda share: -0.1 - share)
    assert (change(negative, found["dev/CIDEr"], 1) or 0) < 0  # further below zero is a fall


def test_noise_alone_gives_no_over_fitting() -> None:
    rng = np.random.default_rng(0)
    kinds = {
        judge(curves(30 + rng.normal(0, 0.15, 6), loss=lambda share: 3 + rng.normal(0, 0.1))).kind
        for _ in range(50)
    }
    assert kinds <= {"level", "rising"}


def from_the_start(*dev: float, metric: str = "dev/CIDEr") -> dict[str, Curve]:
    """Dev scores from step 0 on, and a train loss that falls."""
    steps = tuple(1000 * i // (len(dev) - 1) for i in range(len(dev)))
    return {metric: Curve(metric, steps, dev), "train/loss": over_steps("train/loss", falls)}


@pytest.mark.parametrize(
    ("dev", "kind"),
    [
        ([30, 20, 25], "no gain"),
        ([30, 29.8, 29.6], "level"),
        ([10, 30, 25], "over-fitting"),
        ([10, 30], "rising"),
        ([0, 0, 0], "level"),
    ],
)
def test_the_model_that_training_starts_from_counts(dev: list[float], kind: str) -> None:
    assert judge(from_the_start(*dev)).kind == kind


@pytest.mark.parametrize(
    ("metric", "others", "titles"),
    [
        ("dev/mean_of_kinds", ["accuracy", "colour"], ["mean_of_kinds", "Kinds of question"]),
        ("dev/r10", ["text_to_image_r1", "spearman"], ["r10", "Recall", "spearman"]),
        ("dev/CIDEr", ["BLEU-1", "BLEU-2", "repetition"], ["CIDEr", "Other scores", "Variety"]),
    ],
)
def test_every_task_is_judged_by_the_score_that_best_is_chosen_by(
    metric: str, others: list[str], titles: list[str]
) -> None:
    found = from_the_start(10, 30, 25, metric=metric)
    for name in others:
        found[f"dev/{name}"] = Curve(f"dev/{name}", (0, 500, 1000), (1.0, 2.0, 3.0))
    run = Run(Path("runs/x"), {"trainer": {}}, found)
    assert run.main == metric
    assert judge(found, run.main).kind == "over-fitting"
    assert scores(found, run.main)[others[0]] == {"first": 1, "best": 2, "last": 3}
    panels = [panel.title for _, _, made in sections_of(found, metric)[:1] for panel in made]
    assert panels == titles
    told = Run(Path("runs/x"), {"trainer": {}}, found, best={"reached": {"by": others[0]}})
    assert told.main == f"dev/{others[0]}", "best/ itself says by what it was chosen"


def test_scores_then_best_and_now() -> None:
    found = curves([20, 30, 25])
    found["dev/BLEU-4"] = Curve("dev/BLEU-4", found["dev/CIDEr"].steps, (5.0, 6.0, 7.0))
    assert scores(found) == {
        "CIDEr": {"first": 20, "best": 30, "last": 25},
        "BLEU-4": {"first": 5, "best": 6, "last": 7},
    }
    assert scores({}) == {}


def test_losses_that_are_no_numbers_are_told() -> None:
    found = {"train/loss": Curve("train/loss", (10, 20, 30), (1.0, math.nan, math.inf))}
    assert warnings(found) == ["train/loss is no finite number at 2 of 3 points, first at step 20."]
    assert warnings(curves([1, 2], loss=falls)) == []


def test_of_a_step_logged_twice_the_later_counts() -> None:
    assert make_curve("a", [(10, 1.0), (20, 2.0), (10, 3.0)]) == Curve("a", (10, 20), (3.0, 2.0))


def write_run(folder: Path) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(SETTINGS))
    return folder


def test_tensorboard_events_of_a_resumed_run(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="events need the train extra")
    from torch.utils.tensorboard import SummaryWriter

    folder = write_run(tmp_path / "run")
    pixels = np.zeros((3, 8, 6), np.float32)
    pixels[0] = 1
    for part, steps in enumerate([(10, 20, 30), (30, 40)]):
        with SummaryWriter(str(folder / "logs"), filename_suffix=f".{part}") as board:
            for step in steps:
                board.add_scalar("train/loss", 5 - part - step / 100, step)
            board.add_scalar("dev/CIDEr", 20 + part, steps[-1])
            board.add_image("dev/a.jpg", pixels, steps[-1])
            board.add_histogram("weights/decoder", np.array([0.0, 1.0, 1.0, 2.0]) + part, steps[-1], bins=4)
            board.add_histogram("weights/decoder/embed.weight", np.ones(3), steps[-1])
            board.add_text("dev/a.jpg", f"caption {part}\n\n*A red thing .*", steps[-1])
    run = read_run(folder)
    assert run.curves["train/loss"].steps == (10, 20, 30, 40)
    assert run.curves["train/loss"].values == pytest.approx((4.9, 4.8, 3.7, 3.6))
    assert run.curves["dev/CIDEr"].values == (20, 21)
    (sample,) = run.samples
    assert (sample.key, sample.reference) == ("a.jpg", "A red thing .")
    assert sample.captions == ((30, "caption 0"), (40, "caption 1"))
    assert Image.open(io.BytesIO(sample.picture)).getpixel((0, 0)) == (255, 0, 0)
    assert run.best == {}
    assert list(run.weights) == ["decoder"], "single tensors are TensorBoard's alone"
    first, last = run.weights["decoder"]
    assert (first.step, last.step) == (30, 40)
    assert first.edges == pytest.approx((0, 0.5, 1, 1.5, 2))
    assert first.counts == (1, 0, 2, 1)
    chart = histogram_chart("decoder", run.weights["decoder"])
    assert "step 30" in chart.body
    assert "step 40" in chart.body


def test_files_of_a_resumed_run(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    for part, (place, steps) in enumerate([("", (0, 30)), ("resumed-1", (30, 40))]):
        logs = folder / "logs" / place
        (logs / "pictures").mkdir(parents=True)
        rows = [f"{step},{20 + part},{5 - part}" for step in steps]
        (logs / "metrics.csv").write_text("\n".join(["step,dev/CIDEr,train/loss", *rows]) + "\n")
        os.utime(logs / "metrics.csv", (part, part))
        Image.new("RGB", (4, 4), (9, 9, 9)).save(logs / "pictures" / "0.jpg")
        lines = [
            {
                "step": s,
                "key": "a",
                "caption": f"said {s}.{part}",
                "reference": "people",
                "picture": "pictures/0.jpg",
            }
            for s in steps
        ]
        (logs / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 9')
        counted = [{"step": s, "name": "weights/tower", "counts": [s], "edges": [0, 1 + part]} for s in steps]
        (logs / "histograms.jsonl").write_text("".join(json.dumps(line) + "\n" for line in counted))
    run = read_run(folder)
    assert run.curves["dev/CIDEr"] == Curve("dev/CIDEr", (0, 30, 40), (20, 21, 21))
    (sample,) = run.samples
    assert sample.captions == ((0, "said 0.0"), (30, "said 30.1"), (40, "said 40.1"))
    assert sample.reference == "people"
    assert sample.picture[:2] == b"\xff\xd8"
    assert [one.edges for one in run.weights["tower"]] == [(0, 1), (0, 2), (0, 2)]
    page = read(build_page(run, judge(run.curves, run.main)))
    assert {"before training", "said 0.0", "step 40", "said 40.1"} <= set(page.text)
    anchors = {attributes["id"] for _, attributes in page.elements if "id" in attributes}
    assert {"weights", "samples"} <= anchors


def test_lightning_csv(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="Lightning is in the train extra")
    importlib.import_module("vistill.train")  # lets Lightning load beside any torchvision
    from lightning.pytorch.loggers import CSVLogger

    folder = write_run(tmp_path / "run")
    logger = CSVLogger(str(folder), name="logs", version="")
    logger.log_metrics({"train/loss": 4.0, "epoch": 0}, step=10)
    logger.log_metrics({"dev/CIDEr": 30.5}, step=15)
    logger.log_metrics({"train/loss": 3.0, "epoch": 0}, step=20)
    logger.save()
    found = read_run(folder)
    assert found.curves["train/loss"] == Curve("train/loss", (10, 20), (4.0, 3.0))
    assert found.curves["dev/CIDEr"] == Curve("dev/CIDEr", (15,), (30.5,))


def test_what_is_no_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no config\.json"):
        read_run(tmp_path)
    run = write_run(tmp_path / "run")
    with pytest.raises(DataError, match="neither TensorBoard"):
        read_run(run)
    (run / "logs").mkdir()
    (run / "logs" / "metrics.csv").write_text("step,train/loss\n")
    with pytest.raises(DataError, match="nothing was logged"):
        read_run(run)
    (run / "logs" / "metrics.csv").write_text("step,train/loss\n1,2.5\n2,x\n")
    with pytest.raises(DataError, match="line 3"):
        read_csv(run / "logs" / "metrics.csv")
    (run / "config.json").write_text('{"format": 1, "kind": "captioner"}')
    with pytest.raises(DataError, match="above best/"):
        read_run(run)


def a_run(text: str = "plain") -> Run:
    found = curves([20, 30, 25], loss=falls, grad_norm=flat)
    found["dev/BLEU-4"] = Curve("dev/BLEU-4", found["dev/CIDEr"].steps, (5.0, 6.0, 7.0))
    for name in ("lr-AdamW/rest", "lr-AdamW/rest-no-decay", "epoch", f"odd{text}"):
        found[name] = over_steps(name, rises)
    samples = [Sample(text, f"people {text}", ((1, f"then {text}"), (2, "between"), (3, f"now {text}")))]
    return Run(Path("runs/tiny"), SETTINGS, found, samples, {"git": "abc", "reached": {"step": 2}})


def test_the_page_shows_every_curve_once_and_the_ends_of_the_samples() -> None:
    run = a_run()
    page = read(build_page(run, judge(run.curves)))
    text = " ".join(page.text)
    for wanted in (
        "over-fitting",
        "CIDEr",
        "BLEU-4",
        "grad_norm",
        "oddplain",
        "then plain",
        "now plain",
        "abc",
    ):
        assert wanted in text
    assert "between" not in text
    assert "/somewhere" not in text
    assert "shapes" in text
    anchors = {attributes["id"] for _, attributes in page.elements if "id" in attributes}
    links = {str(attributes["href"])[1:] for tag, attributes in page.elements if tag == "a"}
    assert links <= anchors >= {"dev", "losses", "rates", "gradients", "rest", "samples"}
    panels = [panel for _, _, made in sections_of(run.curves) for panel in made]
    shown = [panel.title for panel in panels]
    assert shown == ["CIDEr", "Other scores", "loss", "Learning rates", "Gradient norms", "oddplain"]


def test_equal_rates_share_a_line() -> None:
    panels = {panel.title: panel for _, _, made in sections_of(a_run().curves) for panel in made}
    assert panels["Learning rates"].body.count("<polyline") == 1
    assert "rest, rest-no-decay" in panels["Learning rates"].body


def test_text_of_the_data_is_escaped() -> None:
    run = a_run(EVIL)
    html = build_page(run, judge(run.curves))
    assert "<script" not in html
    assert f"then {EVIL}" in "".join(read(html).text)


def test_a_run_before_its_first_validation() -> None:
    run = Run(Path("runs/new"), {"trainer": {}}, {"train/loss": Curve("train/loss", (9,), (4.0,))})
    text = " ".join(read(build_page(run, judge(run.curves))).text)
    assert "unknown" in text
    assert "Run new" in text


def test_smoothing_keeps_a_straight_line_and_the_mean_of_noise() -> None:
    straight = [2.0 * i for i in range(100)]
    np.testing.assert_allclose(smooth(straight)[5:-5], straight[5:-5])
    noise = np.random.default_rng(0).normal(size=400).tolist()
    assert np.std(smooth(noise)) < 0.3 * np.std(noise)
    assert smooth([3.0, 5.0]) == [3.0, 5.0]


def test_thinning_averages_neighbours() -> None:
    steps, values = list(range(2 * POINTS)), [float(i % 2) for i in range(2 * POINTS)]
    xs, ys = thin(steps, values)
    assert len(xs) == POINTS
    assert set(ys) == {0.5}
    assert (xs[0], xs[-1]) == (0.5, 2 * POINTS - 1.5)
    assert thin([1, 2], [3.0, 4.0]) == ([1.0, 2.0], [3.0, 4.0])


def test_paths_lose_what_lies_before_their_names() -> None:
    assert without_folders({"a": {"path": "/x/y", "lr": 0.1}, "out": "", "name": "/x"}) == {
        "a": {"path": "y", "lr": 0.1},
        "out": "",
        "name": "/x",
    }
