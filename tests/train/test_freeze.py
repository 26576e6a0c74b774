"""What learns under each policy, that nothing else moves, and what a LoRA run leaves behind."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.killing import run_and_kill
from tests.models.test_lora import captioner as prefix_captioner
from tests.tiny import build_data, tiny_captioner, tiny_config
from tests.train.test_run import _command, _run

from vistill.errors import ConfigError
from vistill.models.answerer import grow_vocabulary
from vistill.models.captioner import Captioner
from vistill.models.lora import Lora, LoraConfig, merged
from vistill.train.freeze import FreezePolicy, freeze, parameter_table, policy_of
from vistill.train.optim import OptimConfig, build_optimizer
from vistill.train.run import TrainerConfig


def learning(model: torch.nn.Module, part: str) -> set[str]:
    """Names inside a part, without the numbers of its parameters' modules' own parts."""
    return {name for name, p in getattr(model, part).named_parameters() if p.requires_grad}


def frozen_by(name: str, model: Any = None) -> Any:
    model = tiny_captioner("test_vit") if model is None else model
    freeze(model, TrainerConfig(freeze=name).policy())
    return model


def test_last_layer_is_the_last_block_of_the_tower_and_of_the_decoder() -> None:
    model = frozen_by("last-layer")
    blocks = [stage.name for stage in model.tower.stages]
    assert blocks[-1] == "norm"
    last = blocks[-2]
    assert last.startswith("blocks.")
    assert {
        name.rpartition(".")[0].removeprefix("net.")[: len(last)] for name in learning(model, "tower")
    } == {
        last,
        "norm",
    }
    assert {name[:8] for name in learning(model, "decoder")} == {"layers.1"}
    assert all(p.requires_grad for p in model.mapper.parameters())


def test_last_n_takes_so_many_of_both() -> None:
    model = frozen_by("last-2")
    assert {name[:8] for name in learning(model, "decoder")} == {"layers.0", "layers.1"}
    blocks = {".".join(n.split(".")[1:3]) for n in learning(model, "tower") if "blocks" in n}
    assert len(blocks) == 2


def test_cross_attention_alone() -> None:
    model = frozen_by("cross-attention")
    assert not learning(model, "tower")
    names = learning(model, "decoder")
    assert names
    assert all(".cross." in name or ".norm_cross." in name for name in names)
    assert not model.word_bias.requires_grad


def test_lora_is_in_every_dense_layer_and_the_rest_is_frozen() -> None:
    model = frozen_by("lora")
    found = {name for name, module in model.named_modules() if isinstance(module, Lora)}
    dense = (
        "attention.qkv",
        "attention.out",
        "cross.q",
        "cross.key_value",
        "cross.out",
        "feed.into",
        "feed.out",
    )
    assert found == {f"decoder.layers.{n}.{name}" for n in range(2) for name in dense}
    assert all(".down." in name or ".up." in name for name in learning(model, "decoder"))


def test_all_is_all() -> None:
    assert all(total == learns for _, total, learns in parameter_table(frozen_by("all")))


def test_a_prefix_captioner_has_layers_but_no_cross_attention() -> None:
    model = frozen_by("last-layer", prefix_captioner("opt"))
    names = learning(model, "decoder")
    assert names
    assert all(".layers.1." in name for name in names)
    lora = frozen_by("lora", prefix_captioner("gpt2"))
    assert any(isinstance(module, Lora) for module in lora.modules())
    assert not isinstance(lora.decoder.language.lm_head, Lora)
    with pytest.raises(ConfigError, match="reads pictures as a prefix"):
        frozen_by("cross-attention", prefix_captioner("gpt2"))
    with pytest.raises(ConfigError, match=r"prefix\.decoder\.tune says already"):
        frozen_by("lora", prefix_captioner("gpt2", tune="frozen"))


@pytest.mark.parametrize("name", ["last-layer", "cross-attention", "lora", "all"])
def test_a_step_moves_what_learns_and_nothing_else(name: str) -> None:
    torch.manual_seed(0)
    model = frozen_by(name).train()
    pixels, tokens = torch.randn(2, 3, 64, 64), torch.randint(4, 20, (2, 2, 6))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    learns = {key for key, p in model.named_parameters() if p.requires_grad}
    optimizer = build_optimizer(model, OptimConfig(lr=0.01, encoder_lr=0.01, weight_decay=0.5))
    for _ in range(2):  # the first half of a LoRA moves when the second has
        model(pixels, tokens).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    moved = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert moved <= learns
    assert {key for key in learns - moved if key != "word_bias" and "position" not in key} == set()


def test_rows_of_new_words_learn_while_the_table_is_frozen() -> None:
    torch.manual_seed(0)
    model = grow_vocabulary(Captioner(tiny_config()), 25).train()
    frozen_by("cross-attention", model)
    table = model.decoder.embed.weight
    before = table.detach().clone()
    optimizer = build_optimizer(model, OptimConfig(lr=0.01, weight_decay=0.5))
    for _ in range(3):
        model(torch.randn(2, 3, 64, 64), torch.randint(4, 25, (2, 2, 6))).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert torch.equal(table[:20], before[:20])
    assert (table[20:] != before[20:]).all()
    decoder = {name: learns for name, _, learns in parameter_table(model)}["decoder"]
    cross = sum(p.numel() for module in model.decoder.cross_attention for p in module.parameters())
    assert decoder == cross + 5 * 16
    assert model.decoder.embed.weight.requires_grad


def test_the_parameter_table_counts_the_whole() -> None:
    rows = {name: (total, learns) for name, total, learns in parameter_table(frozen_by("last-layer"))}
    model = tiny_captioner("test_vit")
    assert rows["all"][0] == sum(p.numel() for p in model.parameters())
    assert rows["all"][1] == sum(rows[name][1] for name in ("tower", "mapper", "decoder"))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"freeze": "half"}, "trainer.freeze='half': use last-layer, cross-attention, lora, all or last-N"),
        ({"freeze": "last-0"}, "trainer.freeze='last-0'"),
        ({"freeze": "lora", "encoder": "last-2"}, "so does trainer.encoder=last-2: set one of them to ''"),
        ({"freeze": "lora", "decoder": "lora"}, "so does trainer.decoder=lora"),
        ({"decoder": "first-2"}, "trainer.decoder='first-2'"),
        ({"encoder": "last-0"}, "trainer.encoder='last-0'"),
    ],
)
def test_unknown_and_contradicting_names_are_errors(settings: dict[str, str], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        TrainerConfig(**settings)  # type: ignore[arg-type]


def test_without_a_name_the_axes_say() -> None:
    lora = LoraConfig(rank=2)
    assert policy_of("", "", "", lora) == FreezePolicy("frozen", "full", lora)
    assert policy_of("", "last-2", "last-1", lora) == FreezePolicy("last-2", "last-1", lora)
    assert policy_of("last-3", "", "", lora) == FreezePolicy("layers-3", "last-3", lora)


def test_more_layers_than_there_are() -> None:
    with pytest.raises(ConfigError, match="the decoder has only 2 layers"):
        freeze(tiny_captioner(), FreezePolicy(decoder="last-3"))
    with pytest.raises(ConfigError, match="the tower has only"):
        freeze(tiny_captioner(), FreezePolicy("layers-30"))


def test_inside_merged_the_model_is_plain_and_speaks_the_same() -> None:
    torch.manual_seed(0)
    model = frozen_by("lora").eval()
    for module in model.modules():
        if isinstance(module, Lora):
            torch.nn.init.normal_(module.up.weight, std=0.3)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    pixels, tokens = torch.randn(2, 3, 64, 64), torch.randint(4, 20, (2, 2, 6))
    with torch.inference_mode():
        expected = model(pixels, tokens)
        with merged(model.decoder):
            assert set(model.state_dict()) == set(tiny_captioner("test_vit").state_dict())
            torch.testing.assert_close(model(pixels, tokens), expected, rtol=1e-4, atol=1e-5)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert set(model.state_dict()) == set(before)


@pytest.mark.slow
def test_a_lora_run_resumes_exactly_and_keeps_a_plain_model(tmp_path: Path) -> None:
    build_data(tmp_path)
    _run(_command(tmp_path, "start", "trainer.max_epochs=1", "trainer.encoder=frozen"))
    words = (
        f"init_from={tmp_path}/start/best", "trainer.encoder=", "trainer.freeze=lora", "trainer.lora.rank=2",
        "trainer.lora.dropout=0.1", "trainer.thaw.decoder=4", "optim.lr=1e-2",
    )  # fmt: skip
    _run(_command(tmp_path, "whole", *words))
    command = _command(tmp_path, "killed", *words)
    assert run_and_kill(command, tmp_path / "killed" / "last.ckpt", 5)
    _run([*command, "--resume"])
    states = [torch.load(tmp_path / run / "last.ckpt", weights_only=True) for run in ("whole", "killed")]
    assert any(".down.weight" in name for name in states[0]["state_dict"])
    for name, tensor in states[0]["state_dict"].items():
        assert torch.equal(tensor, states[1]["state_dict"][name]), name
    start, best = (load_file(tmp_path / run / "best" / "model.safetensors") for run in ("start", "whole"))
    assert start.keys() == best.keys(), "a plain model"
    changed = {name for name in start if not torch.equal(start[name], best[name])}
    assert changed
    assert all(name.startswith(("mapper.", "decoder.layers.")) for name in changed)
