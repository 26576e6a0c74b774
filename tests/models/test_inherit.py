"""Inherited weights, on models of every kind that has layers here."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vistill.errors import ConfigError
from vistill.models.captioner import Captioner, CaptionerConfig
from vistill.models.inherit import every_nth, inherit, principal_table, stacks
from vistill.models.language import Decoder, DecoderConfig
from vistill.models.mapper import MapperConfig
from vistill.models.torchvision_repair import repair_torchvision
from vistill.models.vision import VisionConfig, create_timm

repair_torchvision()


def test_twelve_layers_to_six_are_those_of_distilbert() -> None:
    assert every_nth(12, 6) == (0, 2, 4, 7, 9, 11)
    assert every_nth(6, 3) == (0, 3, 5)
    assert every_nth(5, 1) == (0,)


@given(st.integers(1, 60), st.data())
def test_layers_are_spread_over_all(larger: int, data: st.DataObject) -> None:
    smaller = data.draw(st.integers(1, larger))
    picks = every_nth(larger, smaller)
    assert len(picks) == len(set(picks)) == smaller
    assert list(picks) == sorted(picks)
    assert picks[0] == 0
    assert smaller == 1 or picks[-1] == larger - 1
    gaps = [after - before for before, after in pairwise(picks)]
    assert not gaps or max(gaps) - min(gaps) <= 1


@pytest.mark.parametrize(("larger", "smaller"), [(3, 4), (3, 0)])
def test_impossible_numbers_of_layers(larger: int, smaller: int) -> None:
    with pytest.raises(ConfigError, match=f"{smaller} layers cannot be taken of {larger}"):
        every_nth(larger, smaller)


def _decoder(layers: int, **other: Any) -> Decoder:
    settings = {"vocab_size": 20, "width": 16, "heads": 2, "context": 10, "dropout": 0.0, **other}
    return Decoder(DecoderConfig(layers=layers, **settings))


def test_a_decoder() -> None:
    big, small = _decoder(4, context=14), _decoder(2)
    state = inherit(big.state_dict(), small.state_dict())
    small.load_state_dict(state, strict=True)
    for ours, theirs in ((0, 0), (1, 3)):
        for (name, a), (_, b) in zip(
            small.layers[ours].named_parameters(), big.layers[theirs].named_parameters(), strict=True
        ):
            assert torch.equal(a, b), name
    assert torch.equal(small.embed.weight, big.embed.weight)
    assert torch.equal(small.position.weight, big.position.weight[:10])
    with torch.no_grad():
        small.embed.weight.zero_()
    assert big.embed.weight.abs().sum() > 0, "the larger model keeps its weights"


def test_inheriting_all_layers_is_the_same_model() -> None:
    big, same = _decoder(3).eval(), _decoder(3).eval()
    same.load_state_dict(inherit(big.state_dict(), same.state_dict()))
    tokens, memory = torch.randint(1, 20, (1, 2, 5)), torch.randn(1, 4, 16)
    with torch.inference_mode():
        assert torch.equal(big(tokens, big.cross_kv(memory)), same(tokens, same.cross_kv(memory)))


def test_gpt2() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = {"vocab_size": 20, "n_embd": 16, "n_head": 2}
    big = GPT2LMHeadModel(GPT2Config(n_layer=4, n_positions=32, **sizes))
    small = GPT2LMHeadModel(GPT2Config(n_layer=2, n_positions=16, **sizes))
    small.load_state_dict(inherit(big.state_dict(), small.state_dict()), strict=True)
    assert torch.equal(small.transformer.h[1].mlp.c_fc.weight, big.transformer.h[3].mlp.c_fc.weight)
    assert torch.equal(small.transformer.wpe.weight, big.transformer.wpe.weight[:16])


def test_vit_blocks() -> None:
    big: Any = create_timm("test_vit", download=False, size=64)
    state = {**big.state_dict()}
    assert stacks(state) == {"blocks": 6}
    few = {name: t for name, t in state.items() if not name.startswith(("blocks.3", "blocks.4", "blocks.5"))}
    found = inherit(state, few)
    assert found.keys() == few.keys()
    for i, source in enumerate((0, 3, 5)):
        assert torch.equal(found[f"blocks.{i}.attn.qkv.weight"], state[f"blocks.{source}.attn.qkv.weight"])


def _captioner(layers: int, mapper: int) -> Captioner:
    return Captioner(
        CaptionerConfig(
            VisionConfig(name="test_efficientnet", image_size=64),
            MapperConfig(layers=mapper),
            DecoderConfig(vocab_size=20, width=16, layers=layers, heads=2, context=12),
        )
    )


def test_a_whole_captioner_with_its_tower() -> None:
    big, small = _captioner(3, 2), _captioner(1, 1)
    small.load_state_dict(inherit(big.state_dict(), small.state_dict(), {"decoder.layers": [2]}), strict=True)
    assert torch.equal(small.decoder.layers[0].feed.into.weight, big.decoder.layers[2].feed.into.weight)
    assert torch.equal(small.mapper.layers[0].qkv.weight, big.mapper.layers[0].qkv.weight)
    pixels = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(small.tower.eval()(pixels), big.tower.eval()(pixels))


@pytest.mark.parametrize(
    ("other", "says"),
    [
        ({"width": 8}, r"embed.weight: \(20, 16\) in the larger model, \(20, 8\)"),
        ({"vocab_size": 21}, r"embed.weight: \(20, 16\) in the larger model, \(21, 16\)"),
        ({"context": 20}, r"position.weight: \(10, 16\) in the larger model, \(20, 16\)"),
    ],
)
def test_other_widths_are_refused(other: dict[str, int], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        inherit(_decoder(4).state_dict(), _decoder(2, **other).state_dict())


def test_another_kind_of_model_and_bad_picks_are_refused() -> None:
    big, small = _decoder(4).state_dict(), _decoder(2).state_dict()
    with pytest.raises(ConfigError, match=r"extra: the larger model has no extra"):
        inherit(big, {**small, "extra": torch.zeros(1)})
    with pytest.raises(ConfigError, match=r"no list of layers 'h'"):
        inherit(big, small, {"h": [0, 1]})
    for wanted in ([0], [0, 4]):
        with pytest.raises(ConfigError, match="does not pick 2 of 4 layers"):
            inherit(big, small, {"layers": wanted})
    with pytest.raises(ConfigError, match="4 layers cannot be taken of 2"):
        inherit(small, big)


def test_a_narrow_table_keeps_who_is_alike() -> None:
    torch.manual_seed(0)
    wide = torch.randn(50, 3) @ torch.randn(3, 12) + 5  # three directions, and what all rows share
    small = principal_table(wide, torch.randn(50, 4) * 0.02)
    assert small.shape == (50, 4)
    assert float(small.norm()) == pytest.approx(0.02 * 200**0.5, rel=0.3)
    exact = "donot_use_mm_for_euclid_dist"
    distances = [torch.cdist(table, table, compute_mode=exact) for table in (wide, small)]
    torch.testing.assert_close(*(d / d.max() for d in distances), rtol=1e-3, atol=1e-4)
    for other in (torch.zeros(49, 4), torch.zeros(50, 13)):
        with pytest.raises(ConfigError, match="cannot start"):
            principal_table(wide, other)
