"""Parameter groups and the schedule."""

import math
from itertools import pairwise

import pytest
from tests.tiny import tiny_captioner

from vistill.errors import ConfigError
from vistill.train.freeze import FreezePolicy, freeze, parameter_table
from vistill.train.optim import OptimConfig, build_optimizer, build_schedule


def test_every_learning_parameter_is_in_one_group_at_its_rate() -> None:
    model = tiny_captioner()
    freeze(model, FreezePolicy("last-2"))
    groups = build_optimizer(model, OptimConfig(lr=1e-3, encoder_lr=1e-4)).param_groups
    found = [id(p) for group in groups for p in group["params"]]
    assert sorted(found) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    tower = {id(p) for p in model.tower.parameters()}
    for group in groups:
        assert {id(p) in tower for p in group["params"]} == {group["name"].startswith("encoder")}
        assert group["lr"] == (1e-4 if group["name"].startswith("encoder") else 1e-3)
        if group["weight_decay"]:
            assert all(p.dim() > 1 for p in group["params"])
    undecayed = {id(p) for group in groups if not group["weight_decay"] for p in group["params"]}
    assert id(model.decoder.embed.weight) in undecayed


def test_the_schedule_rises_and_falls_to_its_end() -> None:
    optimizer = build_optimizer(tiny_captioner(), OptimConfig(lr=1.0, encoder_lr=1.0))
    schedule = build_schedule(optimizer, OptimConfig(warmup=0.1, final=0.02), steps=100)
    rates = []
    for _ in range(100):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert rates[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
    assert rates[10] == pytest.approx(1.0)
    assert rates[55] == pytest.approx(0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * 0.5)))
    assert all(a > b for a, b in pairwise(rates[10:]))
    assert schedule.get_last_lr()[0] == pytest.approx(0.02)


@pytest.mark.parametrize(
    ("policy", "stages"),
    [("frozen", "all"), ("last-1", "but one"), ("last-3", "but three"), ("full", "none")],
)
def test_policies_freeze_stages_from_below(policy: str, stages: str) -> None:
    model = tiny_captioner()
    total = len(model.tower.stages)
    frozen = freeze(model, FreezePolicy(policy))
    assert frozen == {"all": total, "but one": total - 1, "but three": total - 3, "none": 0}[stages]
    for number, stage in enumerate(model.tower.stages):
        flags = {p.requires_grad for m in stage.modules for p in m.parameters()}
        assert flags <= {number >= frozen}
    assert all(p.requires_grad for p in [*model.mapper.parameters(), *model.decoder.parameters()])


def test_freezing_again_lets_go() -> None:
    model = tiny_captioner("test_vit")
    freeze(model, FreezePolicy("frozen"))
    assert {name: learning for name, _, learning in parameter_table(model)}["tower"] == 0
    freeze(model, FreezePolicy("full"))
    assert all(total == learning for _, total, learning in parameter_table(model))


@pytest.mark.parametrize("policy", ["half", "last-", "last-x", "last--1"])
def test_unknown_policies_are_named(policy: str) -> None:
    with pytest.raises(ConfigError, match=r"trainer\.encoder"):
        FreezePolicy(policy)


def test_more_stages_than_there_are() -> None:
    with pytest.raises(ConfigError, match="only"):
        freeze(tiny_captioner(), FreezePolicy("last-99"))


def test_wrong_settings_name_the_key() -> None:
    with pytest.raises(ConfigError, match="encoder_lr"):
        OptimConfig(encoder_lr=-1)
    with pytest.raises(ConfigError, match="warmup"):
        OptimConfig(warmup=1.0)
