"""Guard rails: no step on a lost loss, a warning before, memory as counted by hand, patience to the step."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

import vistill.train  # noqa: F401  # first: makes Lightning importable
from vistill.errors import ConfigError
from vistill.metrics.ptb import tokenize
from vistill.train.caption import score_against
from vistill.train.guard import CheckLoss, Patience, TellMemory, WarnOfRepetition, counted

L = pytest.importorskip("lightning")

WIDTH, BATCH = 16, 4


class Module(L.LightningModule):
    """Its losses are those given, times what the model says, which begins as one."""

    def __init__(self, losses: list[float], rate: float = 0.0) -> None:
        super().__init__()
        self.losses, self.rate = losses, rate
        self.model = nn.Linear(WIDTH, WIDTH, bias=False)
        self.scale = nn.Parameter(torch.ones(()))

    def training_step(self, batch: torch.Tensor, index: int) -> torch.Tensor:
        said = self.model(batch)
        return self.scale * self.losses[self.trainer.global_step] + 0 * said.square().mean()

    def validation_step(self, batch: torch.Tensor, index: int) -> None: ...

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=self.rate)


class Scores(L.Callback):
    """Stands for ScoreDev: the n-th validation has the n-th score."""

    best_by = "CIDEr"

    def __init__(self, scores: list[float]) -> None:
        self.told = scores
        self.number = 0
        self.scores: dict[str, float] = {}

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self.scores = {self.best_by: self.told[self.number]}
        self.number += 1

    @property
    def latest(self) -> float:
        return self.scores[self.best_by]

    def state_dict(self) -> dict[str, Any]:
        return {"number": self.number}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.number = state_dict["number"]


def fit(module: Module, callbacks: list[Any], steps: int, resume: Path | None = None, **settings: Any) -> Any:
    torch.manual_seed(0)
    trainer = L.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        callbacks=callbacks,
        **settings,
    )
    data = torch.ones(BATCH * steps, WIDTH)
    loader = DataLoader(data, batch_size=BATCH)
    trainer.fit(module, loader, DataLoader(data[:BATCH]), ckpt_path=resume, weights_only=True)
    return trainer


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_lost_loss_stops_before_its_step(value: float) -> None:
    module = Module([1.0, 1.0, value, 1.0], rate=0.1)
    with pytest.raises(ConfigError, match=r"the loss is (nan|inf) in step 3.*optim\.lr=0\.004.*try 0\.0004"):
        fit(module, [CheckLoss(4e-3)], 4)
    assert module.scale.isfinite()
    assert module.trainer.global_step == 2


def test_a_lost_gradient_stops_before_its_step() -> None:
    module = Module([1.0] * 4, rate=0.1)
    module.scale.register_hook(lambda g: g * math.nan if module.trainer.global_step == 1 else g)
    with pytest.raises(ConfigError, match="the norm of the gradient is nan in step 2"):
        fit(module, [CheckLoss(4e-3)], 4)
    assert module.scale.isfinite()


def test_a_rising_loss_is_told_once_with_figures(capfd: pytest.CaptureFixture[str]) -> None:
    fit(Module([4.0] * 5 + [6.5] * 25), [CheckLoss(4e-3)], 30)
    told = capfd.readouterr().err
    assert told.count("warning: the loss rises: 4.00 in the first 5 steps, 6.50 up to step 10") == 1
    assert told.count("optim.lr=0.004 may be too high") == 1


def test_a_falling_or_noisy_loss_is_not(capfd: pytest.CaptureFixture[str]) -> None:
    fit(Module([4.0, 5.5, 4.0, 3.0, 4.0] * 6), [CheckLoss(4e-3)], 30)
    fit(Module([-0.3] * 10 + [0.1] * 20), [CheckLoss(4e-3)], 30)  # a reward in place of a loss
    assert "warning" not in capfd.readouterr().err


def test_patience_stops_after_so_many_validations_that_are_not_better() -> None:
    scores = Scores([5, 7, 6, 7, 6.9, 9, 9])
    trainer = fit(Module([1.0] * 14), [scores, Patience(scores, 3)], 14, val_check_interval=2)
    assert trainer.global_step == 10
    assert scores.number == 5


def test_patience_starts_again_with_each_better_score() -> None:
    scores = Scores([5, 4, 6, 5, 7, 6, 8])
    assert fit(Module([1.0] * 14), [scores, Patience(scores, 2)], 14, val_check_interval=2).global_step == 14


class SaveAt(L.Callback):
    """Writes a checkpoint after so many steps, and one at the end."""

    def __init__(self, folder: Path, step: int = -1) -> None:
        self.folder, self.step = folder, step

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.folder / "middle.ckpt")

    def on_train_end(self, trainer: Any, *_: Any) -> None:
        trainer.save_checkpoint(self.folder / "end.ckpt")


@pytest.mark.parametrize("name", ["middle", "end"])
def test_patience_goes_on_where_it_was_and_a_stopped_run_stays_stopped(tmp_path: Path, name: str) -> None:
    def run(resume: Path | None = None) -> tuple[int, int]:
        scores = Scores([5, 7, 6, 7, 6.9, 9, 9])
        callbacks = [scores, Patience(scores, 3), SaveAt(tmp_path, -1 if resume else 7)]
        trainer = fit(Module([1.0] * 14), callbacks, 14, resume, val_check_interval=2)
        return trainer.global_step, scores.number

    assert run() == (10, 5)
    assert run(tmp_path / f"{name}.ckpt") == (10, 5)


def test_memory_is_that_of_parameters_gradients_moments_and_kept_activations(
    capfd: pytest.CaptureFixture[str],
) -> None:
    module = Module([1.0] * 3)
    learning = 4 * (WIDTH * WIDTH + 1)
    sizes = counted(module, averaged=True)
    assert sizes == {
        "parameters": learning,
        "gradients": learning,
        "moments": 2 * learning,
        "averaged": learning,
    }
    module.model.requires_grad_(False)
    assert counted(module, averaged=False) == {"parameters": learning, "gradients": 4, "moments": 8}
    module.model.requires_grad_(True)
    memory = TellMemory(averaged=False)
    fit(module, [memory], 3)
    # the input of the layer and what it says, which is squared; some scalars
    kept = sum(memory.kept.values())
    assert 2 * 4 * BATCH * WIDTH <= kept <= 2 * 4 * BATCH * WIDTH + 64
    assert (
        capfd.readouterr().err.count("memory in MB: parameters 0 + gradients 0 + moments 0 + activations")
        == 1
    )


def test_captions_that_repeat_themselves_are_told(capfd: pytest.CaptureFixture[str]) -> None:
    references = {str(n): ["a dog runs on the grass"] for n in range(10)}
    good = {str(n): "a dog runs on the grass" for n in range(10)}
    bad = {**good, "3": "a dog dog runs", "4": "a dog and a dog and a dog"}
    assert any(a == b for a, b in zip(tokenize(bad["3"]), tokenize(bad["3"])[1:], strict=False))
    scores = Scores([0.0])
    scores.scores = score_against(references, good)
    assert scores.scores["repetition"] == 0
    assert scores.scores["distinct-2"] == pytest.approx(100 * 5 / 50)
    trainer = L.Trainer(accelerator="cpu", logger=False)
    WarnOfRepetition(scores).on_validation_epoch_end(trainer, None)  # type: ignore[arg-type]
    assert "repeat" not in capfd.readouterr().err
    scores.scores = score_against(references, bad)
    WarnOfRepetition(scores).on_validation_epoch_end(trainer, None)  # type: ignore[arg-type]
    assert "20% of the captions repeat" in capfd.readouterr().err
