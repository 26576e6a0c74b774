"""The folder of a prefix captioner: round trip, and a named error for each thing that can be wrong."""

import json
from pathlib import Path

import pytest
import torch
from tests.models.test_adopt import TEXTS
from tests.models.test_prefix import SETTINGS

from vistill.data.text import TokenizerConfig, train_tokenizer
from vistill.errors import BundleError
from vistill.models.prefix import LanguageConfig, PrefixCaptioner, PrefixConfig, PrefixMapperConfig
from vistill.models.prefix_checkpoint import load_prefix_captioner, save_prefix_captioner
from vistill.models.vision import VisionConfig


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    tokenizer = train_tokenizer(TEXTS, TokenizerConfig(min_count=1))
    torch.manual_seed(0)
    config = PrefixConfig(
        VisionConfig(name="test_efficientnet", image_size=64),
        PrefixMapperConfig(kind="mlp"),
        LanguageConfig(
            settings=SETTINGS["gpt2"], vocab_size=tokenizer.get_vocab_size(), context=12, blocked=(5,)
        ),
    )
    save_prefix_captioner(tmp_path / "best", PrefixCaptioner(config), tokenizer, {"note": "tiny"})
    return tmp_path / "best"


def test_round_trip(saved: Path) -> None:
    model, tokenizer, config, preprocess = load_prefix_captioner(saved)
    assert not model.training
    assert (config.decoder.context, config.decoder.blocked, preprocess.size) == (12, (5,), (64, 64))
    save_prefix_captioner(saved, model, tokenizer, {"note": "again"})
    again, _, config_again, _ = load_prefix_captioner(saved)
    assert config_again == config
    pixels, tokens = torch.randn(1, 3, 64, 64), torch.randint(0, 8, (1, 2, 5))
    with torch.inference_mode():
        assert torch.equal(model(pixels, tokens), again(pixels, tokens))
    assert [path.name for path in saved.parent.iterdir()] == ["best"], "nothing is left behind"


def test_transformers_opens_the_language_model_on_its_own(saved: Path) -> None:
    from transformers import AutoModelForCausalLM

    theirs = AutoModelForCausalLM.from_pretrained(saved / "language")
    model, _, _, _ = load_prefix_captioner(saved)
    for (name, a), (_, b) in zip(
        theirs.named_parameters(), model.decoder.language.named_parameters(), strict=True
    ):
        assert torch.equal(a, b), name
    assert theirs.config.eos_token_id == 2


@pytest.mark.parametrize(
    "file", ["config.json", "model.safetensors", "tokenizer.json", "language/config.json"]
)
def test_a_missing_file_is_named(saved: Path, file: str) -> None:
    (saved / file).unlink()
    with pytest.raises(BundleError, match=file):
        load_prefix_captioner(saved)


def test_cut_weights_are_named(saved: Path) -> None:
    for name in ("language/model.safetensors", "model.safetensors"):
        whole = (saved / name).read_bytes()
        (saved / name).write_bytes(whole[:-100])
        with pytest.raises(BundleError, match=name.split("/")[0]):
            load_prefix_captioner(saved)
        (saved / name).write_bytes(whole)


def test_another_kind_and_other_settings_are_refused(saved: Path) -> None:
    raw = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps({**raw, "kind": "captioner"}))
    with pytest.raises(BundleError, match="expected format 1, kind 'prefix-captioner'"):
        load_prefix_captioner(saved)
    raw["model"]["mapper"]["hidden"] = 7
    (saved / "config.json").write_text(json.dumps(raw))
    with pytest.raises(BundleError, match=r"mapper\.project\.0\.bias"):
        load_prefix_captioner(saved)
