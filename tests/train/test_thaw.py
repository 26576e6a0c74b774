"""Parts thaw at their step, also when the run was stopped before or after it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

import vistill.train  # noqa: F401  # first: makes Lightning importable
from vistill.errors import ConfigError
from vistill.train.thaw import Thaw, ThawConfig

L = pytest.importorskip("lightning")


def test_what_is_frozen_depends_on_the_step_alone() -> None:
    config = ThawConfig(encoder=4, decoder=2)
    frozen = [sorted(config.frozen(step)) for step in range(6)]
    both = ["decoder", "encoder"]
    assert frozen == [both, both, ["encoder"], ["encoder"], [], []]
    assert ThawConfig().frozen(0) == frozenset()
    assert ThawConfig(encoder=-1).frozen(10**9) == {"encoder"}


def test_wrong_steps_are_named() -> None:
    with pytest.raises(ConfigError, match=r"trainer\.thaw\.decoder=-2"):
        ThawConfig(decoder=-2)


class _Model(nn.Module):
    def __init__(self, mapper: bool = True) -> None:
        super().__init__()
        self.tower = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
        self.mapper = nn.Linear(4, 4) if mapper else nn.Identity()
        self.decoder = nn.Linear(4, 1)


class _Module(L.LightningModule):
    def __init__(self, model: _Model) -> None:
        super().__init__()
        self.model = model
        self.seen: list[tuple[int, dict[str, bool]]] = []

    def training_step(self, batch: torch.Tensor, index: int) -> torch.Tensor:
        model = self.model
        flags = {
            part: next(iter(getattr(model, part).parameters())).requires_grad for part in ("tower", "decoder")
        }
        self.seen.append((self.trainer.global_step, flags))
        return model.decoder(model.mapper(model.tower(batch))).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        learning = [p for p in self.model.parameters() if p.requires_grad]
        return torch.optim.AdamW(learning, lr=0.1, weight_decay=0.5)


def _module(mapper: bool = True) -> _Module:
    torch.manual_seed(0)
    return _Module(_Model(mapper))


def _fit(module: _Module, config: ThawConfig, steps: int, resume: Path | None = None, **settings: Any) -> Any:
    trainer = L.Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[Thaw(config)],
        **settings,
    )
    # every batch is the same: a plain loader does not go on where it was, and that is not what is tested here
    data = torch.randn(2, 4, generator=torch.Generator().manual_seed(1)).repeat(8, 1)
    trainer.fit(module, DataLoader(data, batch_size=2), ckpt_path=resume, weights_only=True)
    return trainer


def _weights(module: _Module) -> dict[str, torch.Tensor]:
    return {name: t.clone() for name, t in module.model.state_dict().items()}


def test_parts_learn_from_their_step_on() -> None:
    module, config = _module(), ThawConfig(encoder=5, decoder=3)
    start = _weights(module)
    _fit(module, config, 3)
    assert [flags for _, flags in module.seen] == [{"tower": False, "decoder": False}] * 3
    now = _weights(module)
    assert torch.equal(now["tower.0.weight"], start["tower.0.weight"]), "not even weight decay moves it"
    assert torch.equal(now["decoder.weight"], start["decoder.weight"])
    assert not torch.equal(now["mapper.weight"], start["mapper.weight"])
    assert all(p.requires_grad for p in module.parameters()), "after the run all is as it was"

    module = _module()
    _fit(module, config, 7)
    assert [step for step, flags in module.seen if flags["decoder"]] == [3, 4, 5, 6]
    assert [step for step, flags in module.seen if flags["tower"]] == [5, 6]
    assert not torch.equal(_weights(module)["tower.0.weight"], start["tower.0.weight"])


def test_steps_are_those_of_the_optimiser() -> None:
    module = _module()
    _fit(module, ThawConfig(encoder=2), 4, accumulate_grad_batches=2)
    assert [step for step, flags in module.seen if flags["tower"]] == [2, 2, 3, 3]


def test_what_was_frozen_before_stays_frozen() -> None:
    module = _module()
    module.model.tower[0].requires_grad_(False)
    start = _weights(module)
    _fit(module, ThawConfig(encoder=2), 5)
    now = _weights(module)
    assert torch.equal(now["tower.0.weight"], start["tower.0.weight"])
    assert not torch.equal(now["tower.1.weight"], start["tower.1.weight"])
    assert not module.model.tower[0].weight.requires_grad


@pytest.mark.parametrize("stop", [2, 4, 6])
def test_a_resumed_run_is_exact(tmp_path: Path, stop: int) -> None:
    config = ThawConfig(encoder=4, decoder=3)
    whole = _module()
    _fit(whole, config, 8)
    first = _module()
    _fit(first, config, stop).save_checkpoint(tmp_path / "last.ckpt")
    second = _module()
    _fit(second, config, 8, resume=tmp_path / "last.ckpt")
    assert [step for step, _ in second.seen] == list(range(stop, 8))
    assert second.seen == whole.seen[stop:]
    for name, value in _weights(second).items():
        assert torch.equal(value, _weights(whole)[name]), name


def test_a_part_that_is_not_there_is_named() -> None:
    module = _module()
    del module.model.decoder
    with pytest.raises(ConfigError, match=r"trainer\.thaw\.decoder=2: this model has no decoder"):
        Thaw(ThawConfig(decoder=2)).on_fit_start(L.Trainer(logger=False), module)
    Thaw(ThawConfig(encoder=2)).on_fit_start(L.Trainer(logger=False), module)


def test_a_schedule_that_learns_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="nothing that learns in the first step"):
        _fit(_module(mapper=False), ThawConfig(encoder=2, decoder=2), 3)
