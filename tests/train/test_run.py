"""A run killed at any step and resumed ends with the weights of one that was never stopped."""

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tests.killing import run_and_kill
from tests.tiny import build_data

from vistill.train.run import changed

WORDS = (
    "model=tiny",
    "logger=none",
    "datamodule.batch_size=4",
    "datamodule.tokenizer.min_count=1",
    "trainer.max_epochs=3",
    "trainer.checkpoint_every=1",
    "trainer.ema=0.9",
    "trainer.encoder=last-4",
    "generation.max_new_tokens=8",
)
OBJECTIVES = {
    "cross-entropy": ("objective.bag_of_words=0.1", "datamodule.views=2"),
    "self-critical": ("objective=self-critical", "objective.samples=2", "datamodule.views=0"),
}


def _command(folder: Path, name: str, *words: str) -> list[str]:
    paths = (
        f"out={folder}",
        f"name={name}",
        f"datamodule.path={folder}/built",
        f"datamodule.cache={folder}/views",
    )
    code = "from vistill.cli.main import main; main()"
    return [sys.executable, "-c", code, "train", *WORDS, *paths, *words]


def _run(command: list[str]) -> str:
    """What it printed."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("objective", list(OBJECTIVES))
def test_killed_runs_end_like_whole_ones(tmp_path: Path, objective: str) -> None:
    build_data(tmp_path)
    words = OBJECTIVES[objective]
    _run(_command(tmp_path, "whole", *words))
    draw = random.Random(objective)
    kills, resume = 0, ""
    for _ in range(3):
        extra = ("--resume",) if resume else ()
        command = _command(tmp_path, "killed", *words, *extra)
        kills += run_and_kill(command, tmp_path / "killed" / "last.ckpt", draw.randint(2, 7))
        resume = "yes"
    assert kills >= 2, "the run was over before it could be killed"
    _run(_command(tmp_path, "killed", *words, "--resume"))

    states = [
        torch.load(tmp_path / name / "last.ckpt", weights_only=True, map_location="cpu")
        for name in ("whole", "killed")
    ]
    assert states[0]["global_step"] == states[1]["global_step"] == 18
    assert len(states[0]["state_dict"]) > 50
    for part in ("state_dict", "current_model_state"):
        for name, tensor in states[0][part].items():
            assert torch.equal(tensor, states[1][part][name]), f"{part}: {name} differs"
    reached = [
        json.loads((tmp_path / name / "best" / "config.json").read_text())["provenance"]["reached"]
        for name in ("whole", "killed")
    ]
    assert reached[0] == reached[1]
    published = (tmp_path / "whole" / "best" / "config.json").read_text()
    assert str(tmp_path) not in published, "somebody's paths would be published with the model"


@pytest.mark.slow
def test_settings_that_changed_are_named() -> None:
    before = {"name": "a", "optim": {"lr": 1e-3, "warmup": 0.1}, "prefix": None, "gone": 1}
    after = {"name": "a", "optim": {"lr": 2e-3, "warmup": 0.1}, "prefix": {"width": 3}}
    assert changed(before, after) == [
        "optim.lr: 0.001 -> 0.002",
        "prefix: None -> {'width': 3}",
        "gone: 1 -> None",
    ]
    assert changed(before, before) == []


def test_a_folder_is_not_trained_over_and_nothing_is_resumed_from_nothing(tmp_path: Path) -> None:
    build_data(tmp_path)
    done = subprocess.run(_command(tmp_path, "run", "--resume"), capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "there is no" in done.stderr
    _run(_command(tmp_path, "run", "trainer.max_epochs=1"))
    done = subprocess.run(_command(tmp_path, "run"), capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "add --resume" in done.stderr
    more = _command(tmp_path, "run", "trainer.max_epochs=1", "--resume")
    again = subprocess.run(more, capture_output=True, text=True, check=True)
    assert "other settings" not in again.stderr
    again = subprocess.run([*more, "optim.lr=0.5"], capture_output=True, text=True, check=True)
    assert "other settings than it began with: optim.lr: 0.0004 -> 0.5" in again.stderr


@pytest.mark.slow
def test_a_run_that_was_stopped_before_its_first_checkpoint_begins_again(tmp_path: Path) -> None:
    build_data(tmp_path)
    command = _command(tmp_path, "run", "trainer.max_epochs=1")
    _run(command)
    last = tmp_path / "run" / "last.ckpt"
    whole = torch.load(last, weights_only=True)["state_dict"]
    last.unlink()  # best/ may be there before it
    again = subprocess.run([*command, "--resume"], capture_output=True, text=True, check=True)
    assert "was stopped before its first last.ckpt; it begins again" in again.stderr
    found = torch.load(last, weights_only=True)["state_dict"]
    assert all(torch.equal(tensor, found[name]) for name, tensor in whole.items())


@pytest.mark.slow
def test_a_second_stage_shows_the_kept_features_of_the_first(tmp_path: Path) -> None:
    """Averaging weights must not touch the frozen stages, or their kept features are no longer theirs."""
    build_data(tmp_path)
    _run(_command(tmp_path, "first", "trainer.max_epochs=1", "datamodule.views=2"))
    second = ("objective=self-critical", "objective.samples=2", f"init_from={tmp_path}/first/best")
    _run(_command(tmp_path, "second", "trainer.max_epochs=1", "datamodule.views=2", *second))
    assert (tmp_path / "second" / "best" / "model.safetensors").is_file()


@pytest.mark.slow
def test_a_dry_run_keeps_nothing(tmp_path: Path) -> None:
    build_data(tmp_path)
    printed = _run(_command(tmp_path, "dry", "trainer.fast_dev_run=true"))
    assert not (tmp_path / "dry").exists()
    assert f"{tmp_path}/dry/best" not in printed
    kept = _run(_command(tmp_path, "kept", "trainer.max_epochs=1"))
    assert kept.splitlines()[-1] == f"{tmp_path}/kept/best"


@pytest.mark.slow
def test_tensorboard_shows_losses_rates_scores_and_pictures(tmp_path: Path) -> None:
    build_data(tmp_path)
    words = ("logger=tensorboard", "trainer.max_epochs=2", "objective.bag_of_words=0.1")
    _run(_command(tmp_path, "shown", *words))
    events = EventAccumulator(str(tmp_path / "shown" / "logs"), size_guidance={"histograms": 0})
    events.Reload()
    tags = events.Tags()
    assert {"train/loss", "train/cross_entropy", "train/bag_of_words", "dev/CIDEr", "dev/BLEU-4"} <= set(
        tags["scalars"]
    )
    assert {"lr-AdamW/encoder", "lr-AdamW/rest"} <= set(tags["scalars"])
    assert [event.step for event in events.Scalars("dev/CIDEr")] == [6, 12]
    assert len(tags["images"]) == 9
    assert all(tag == "samples" or tag.startswith("dev/") for tag in tags["images"])
    norms = {name: events.Scalars(f"grad_norm/{name}")[0].value for name in ("total", "mapper", "decoder")}
    assert norms["total"] ** 2 >= norms["mapper"] ** 2 + norms["decoder"] ** 2 > 0
    counted = events.Histograms("weights/decoder")
    assert [event.step for event in counted] == [6, 12]
    table = events.Histograms("weights/decoder/embed.weight")[-1].histogram_value
    best = load_file(tmp_path / "shown" / "best" / "model.safetensors")["decoder.embed.weight"]
    assert table.num == best.numel()
    assert not any(tag.startswith("weights/tower") and "stem" in tag for tag in tags["histograms"]), (
        "is frozen"
    )
