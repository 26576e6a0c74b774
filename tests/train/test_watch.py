"""What a run shows: norms, histograms and samples as they are, the model before training, loggers."""

import json
import os
import random
import sqlite3
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import ImageFont
from tests.killing import run_and_kill
from tests.tiny import build_data
from tests.tiny_questions import build_questions
from torch import nn

from vistill.errors import ConfigError
from vistill.report.train import judge, read_run
from vistill.report.train_page import build_page
from vistill.train.callbacks import ScoreDev
from vistill.train.module import TrainModule
from vistill.train.optim import OptimConfig
from vistill.train.watch import (
    COLUMNS,
    SIDE,
    VALUES,
    Sample,
    TrackioLogger,
    build_loggers,
    drawn,
    gradient_norm,
    sample_grid,
    wrapped,
)

WORDS = (
    "model=tiny",
    "logger=csv",
    "datamodule.batch_size=4",
    "datamodule.tokenizer.min_count=1",
    "datamodule.views=1",
    "trainer.checkpoint_every=1",
    "generation.max_new_tokens=8",
)


def command(folder: Path, name: str, *words: str, data: str = "built") -> list[str]:
    paths = (f"out={folder}", f"name={name}", f"datamodule.path={folder}/{data}")
    return [sys.executable, "-m", "vistill", "train", *WORDS, *paths, *words]


def run(command: list[str], **environment: str) -> str:
    told = os.environ | environment
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=told)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stderr


def test_the_norm_is_that_of_all_gradients_that_are_there() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1), nn.Linear(1, 1))
    assert gradient_norm(model.parameters()) is None
    model[:2](torch.ones(4, 3)).sum().backward()
    gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    norm = gradient_norm(model.parameters())
    assert norm is not None
    assert float(norm) == pytest.approx(float(torch.cat(gradients).norm()))


def test_of_a_large_tensor_some_values_are_drawn_evenly() -> None:
    values = drawn(torch.arange(5 * VALUES, dtype=torch.float64))
    assert len(values) <= VALUES
    assert values.mean() == pytest.approx(2.5 * VALUES, rel=1e-3)
    assert drawn(torch.tensor([[1.0, 2.0], [3.0, 4.0]])).tolist() == [1, 2, 3, 4]
    assert drawn(torch.tensor([], dtype=torch.float32)).tolist() == []


def test_lines_hold_whole_words_and_fit() -> None:
    font = ImageFont.load_default(13)
    text = "a man in a red jacket jumps " * 5 + "W" * 60
    rows = wrapped(text, SIDE, font)
    assert " ".join(rows) == text
    assert all(font.getlength(row) <= SIDE for row in rows[:-1])
    assert rows[-1] == "W" * 60, "a word that is too wide stands alone"
    assert wrapped("", SIDE, font) == [""]


def test_the_grid_shows_every_picture_with_its_texts() -> None:
    colours = [(250, 0, 0), (0, 250, 0), (0, 0, 250), (250, 250, 0), (0, 250, 250)]
    samples = [
        Sample(str(i), np.full((64, 48, 3), colour, np.uint8), "a reference", "then", "now")
        for i, colour in enumerate(colours)
    ]
    grid = sample_grid(samples)
    assert grid.shape[2] == 3
    assert grid.shape[1] // SIDE == COLUMNS
    shown = {tuple(pixel) for pixel in grid.reshape(-1, 3).tolist()}
    assert set(colours) <= shown
    assert samples[0].lines() == [("before", "then"), ("now", "now"), ("", "a reference")]
    assert Sample("", grid, "r", "same", "same").lines() == [("now", "same"), ("", "r")]
    silent = sample_grid([Sample("0", samples[0].pixels, "", "", "")])
    assert not {(138, 90, 0), (11, 79, 179)} & {tuple(pixel) for pixel in silent.reshape(-1, 3).tolist()}
    assert (138, 90, 0) in shown, "what was said before has its colour"


@pytest.mark.parametrize("kind", ["wandb", "trackio"])
def test_a_logger_that_is_not_there_is_named(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, kind, None)
    with pytest.raises(ConfigError, match=rf"pip install 'vistill\[{kind}\]'"):
        build_loggers(kind, tmp_path, "run", {})
    assert not list(tmp_path.iterdir())


def test_trackio_is_told_no_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    made = SimpleNamespace(log=lambda *a, **k: calls.append((a, k)), finish=lambda: calls.append("finish"))

    def init(**told: Any) -> Any:
        calls.append(told)
        return made

    monkeypatch.setitem(sys.modules, "trackio", SimpleNamespace(init=init))  # type: ignore[arg-type]
    settings = {"out": "/home/somebody/runs", "datamodule": {"path": "/secret/built"}, "trainer": {"seed": 3}}
    logger, _ = build_loggers("trackio", tmp_path, "run", settings)
    assert isinstance(logger, TrackioLogger)
    logger.log_metrics({"train/loss": 2.0}, 10)
    logger.log_metrics({"dev/CIDEr": 3.0}, 12)
    logger.finalize("success")
    start, *logged, end = calls
    assert (start["name"], start["resume"]) == ("run", "allow")
    assert start["config"] == {"out": "runs", "datamodule": {"path": "built"}, "trainer": {"seed": 3}}
    assert logged == [(({"train/loss": 2.0},), {"step": 10}), (({"dev/CIDEr": 3.0},), {"step": 12})]
    assert end == "finish"


@pytest.mark.slow
def test_trackio_keeps_a_run_on_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("trackio", reason="pip install 'vistill[trackio]'; it asks for an older pillow")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    build_data(tmp_path)
    run(command(tmp_path, "kept", "logger=trackio", "trainer.max_epochs=2"))
    with sqlite3.connect(tmp_path / "trackio" / "vistill.db") as database:
        rows = database.execute("select run_name, step, metrics from metrics").fetchall()
        ((settings,),) = database.execute("select config from configs").fetchall()
    assert {name for name, _, _ in rows} == {"kept"}
    logged = {key: step for _, step, metrics in rows for key in json.loads(metrics)}
    assert {"dev/CIDEr", "samples", "weights/decoder"} <= logged.keys()
    assert json.loads(settings)["out"] == tmp_path.name, "no path of this machine is told"


@pytest.mark.slow
def test_the_model_before_training_is_scored_and_a_stopped_run_loses_nothing(tmp_path: Path) -> None:
    build_data(tmp_path)
    run(command(tmp_path, "first", "trainer.max_epochs=2", "optim.lr=3e-3"))
    assert 0 not in read_run(tmp_path / "first").curves["dev/CIDEr"].steps
    words = (f"init_from={tmp_path}/first/best", "trainer.max_epochs=3", "trainer.ema=0.9")
    told = run(command(tmp_path, "whole", *words))
    assert told.count("before training CIDEr") == 1
    draw, more = random.Random(3), ""
    for _ in range(2):
        extra = ("--resume",) if more else ()
        run_and_kill(
            command(tmp_path, "killed", *words, *extra), tmp_path / "killed" / "last.ckpt", draw.randint(2, 6)
        )
        more = "yes"
    told = run(command(tmp_path, "killed", *words, "--resume"))
    assert "before training" not in told

    states = [
        torch.load(tmp_path / name / "last.ckpt", weights_only=True)["state_dict"]
        for name in ("whole", "killed")
    ]
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())
    whole, killed = (read_run(tmp_path / name) for name in ("whole", "killed"))
    assert whole.curves["dev/CIDEr"].steps == (0, 6, 12, 18)
    assert whole.curves["dev/CIDEr"] == killed.curves["dev/CIDEr"]
    assert whole.main == "dev/CIDEr"
    start = json.loads((tmp_path / "first" / "best" / "config.json").read_text())["provenance"]["reached"]
    assert start["dev"]["CIDEr"] == pytest.approx(whole.curves["dev/CIDEr"].values[0], abs=1e-6)
    assert {"grad_norm/total", "grad_norm/mapper", "grad_norm/decoder"} <= set(whole.curves)
    assert [sample.captions[0][0] for sample in killed.samples] == [0] * 8
    assert [step for step, _ in whole.samples[0].captions] == [0, 6, 12, 18]
    assert whole.samples[0].picture[:2] == b"\xff\xd8"
    assert [one.step for one in whole.weights["decoder"]] == [0, 6, 12, 18]
    assert "tower" not in whole.weights
    page = build_page(whole, judge(whole.curves, whole.main))
    assert page.count("before training") == 9, "the table's column and eight samples"


def test_best_is_the_start_until_training_makes_it_better(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = iter([30.0, 20.0, 31.0])
    saved: list[dict[str, Any]] = []
    score = ScoreDev(
        tmp_path,
        lambda predictions: {"CIDEr": next(given)},
        lambda folder, model, provenance: saved.append(provenance["reached"]),
        {},
        6,
        best_by="CIDEr",
        shown=("CIDEr",),
    )
    objective: Any = SimpleNamespace(heads=nn.ModuleDict())
    module = TrainModule(nn.Linear(1, 1), objective, OptimConfig(), 18, lambda model, batch: {})
    monkeypatch.setattr(module, "log_dict", lambda *args, **kwargs: None)
    told: list[Any] = []
    logger = SimpleNamespace(log_metrics=lambda metrics, step: told.append((metrics, step)))
    for step in (0, 6, 12):
        trainer: Any = SimpleNamespace(
            sanity_checking=step == 0,
            is_global_zero=True,
            loggers=[logger],
            global_step=step,
            callback_metrics={},
            fast_dev_run=False,
            fit_loop=SimpleNamespace(epoch_loop=SimpleNamespace(batch_idx=step - 1)),
        )
        score.on_validation_epoch_end(trainer, module)
    assert told == [({"dev/CIDEr": 30.0}, 0)], "Lightning logs the others"
    assert [(one["step"], one["epoch"], one["by"]) for one in saved] == [(0, 0, "CIDEr"), (12, 2, "CIDEr")]


@pytest.mark.slow
def test_samples_of_an_answerer_are_questions(tmp_path: Path) -> None:
    data = build_questions(tmp_path, 16)
    run(command(tmp_path, "answers", "task=answer", "trainer.max_epochs=1", data=data.name))
    found = read_run(tmp_path / "answers")
    assert found.main == "dev/mean_of_kinds"
    assert {"what", "is", "where"} & {sample.reference.split()[0].lower() for sample in found.samples}
    assert "Kinds of question" in build_page(found, judge(found.curves, found.main))


@pytest.mark.slow
def test_wandb_offline(tmp_path: Path) -> None:
    pytest.importorskip("wandb", reason="wandb is an extra")
    build_data(tmp_path)
    words = ("logger=wandb", "trainer.max_epochs=2")
    run(command(tmp_path, "run", *words), WANDB_MODE="offline", WANDB_SILENT="true")
    kept = list((tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb"))
    assert len(kept) == 1
    text = kept[0].read_bytes()
    for wanted in (b"dev/CIDEr", b"train/loss", b"grad_norm/total", b"weights/decoder", b"samples"):
        assert wanted in text
    assert str(tmp_path).encode() + b"/built" not in text
    assert read_run(tmp_path / "run").curves["dev/CIDEr"].steps == (6, 12)
