"""Checkpoint folders: round trip, and a named error for each thing that can be wrong with one."""

import json
from pathlib import Path

import pytest
import torch
from tests.tiny import tiny_captioner

from vistill.data.text import TokenizerConfig, train_tokenizer
from vistill.errors import BundleError
from vistill.models.checkpoint import load_captioner, save_captioner, weights_hash


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    tokenizer = train_tokenizer(["a red dog runs", "a blue dog sits"] * 4, TokenizerConfig(min_count=1))
    folder = tmp_path / "best"
    save_captioner(folder, tiny_captioner(vocab=tokenizer.get_vocab_size()), tokenizer, {"note": "tiny"})
    return folder


def test_round_trip(saved: Path) -> None:
    model, tokenizer, config, preprocess = load_captioner(saved)
    torch.manual_seed(0)
    again = tiny_captioner(vocab=tokenizer.get_vocab_size())
    assert weights_hash(model.state_dict()) == weights_hash(again.state_dict())
    assert config == again.config
    assert preprocess.size == (64, 64)
    assert tokenizer.decode(tokenizer.encode("a red dog").ids) == "a red dog"
    assert not model.training


def test_saving_again_replaces_the_folder_and_leaves_nothing_behind(saved: Path) -> None:
    model, tokenizer, _, _ = load_captioner(saved)
    save_captioner(saved, model, tokenizer, {"note": "second"})
    assert json.loads((saved / "config.json").read_text())["provenance"] == {"note": "second"}
    assert [p.name for p in saved.parent.iterdir()] == ["best"]


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_missing_file_is_named(saved: Path, file: str) -> None:
    (saved / file).unlink()
    with pytest.raises(BundleError, match=file):
        load_captioner(saved)


def test_a_cut_weight_file_is_named(saved: Path) -> None:
    weights = saved / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(BundleError, match=r"model\.safetensors does not fit"):
        load_captioner(saved)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"format": 99}, "format 99"),
        ({"kind": "dual"}, "'dual'"),
        ({"model": {"vision": {"nme": "x"}, "mapper": {}, "decoder": {}}}, "nme"),
    ],
)
def test_a_foreign_config_is_refused(saved: Path, change: dict[str, object], says: str) -> None:
    path = saved / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(BundleError, match=says):
        load_captioner(saved)


def test_the_hash_sees_values_names_and_shapes() -> None:
    base = {"a": torch.arange(4.0), "b": torch.zeros(2)}
    assert weights_hash(base) == weights_hash(dict(reversed(base.items())))
    assert weights_hash(base) != weights_hash({**base, "a": torch.arange(4.0) + 1e-6})
    assert weights_hash(base) != weights_hash({**base, "a": torch.arange(4.0).view(2, 2)})
