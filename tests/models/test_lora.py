"""LoRA, frozen and named language models, gradient checkpointing: what learns, and what is saved."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.models.test_adopt import TEXTS
from tests.models.test_prefix import SETTINGS, VOCAB
from transformers import AutoModelForCausalLM

from vistill.data.text import TokenizerConfig, train_tokenizer
from vistill.errors import BundleError, ConfigError
from vistill.models.adopt import load_language, source_hash
from vistill.models.lora import Lora, LoraConfig, merge_lora
from vistill.models.prefix import LanguageConfig, PrefixCaptioner, PrefixConfig, PrefixMapperConfig
from vistill.models.prefix_checkpoint import load_prefix_captioner, save_prefix_captioner
from vistill.models.vision import VisionConfig


def captioner(
    kind: str = "gpt2", vocab: int = VOCAB, language: Any = None, **settings: Any
) -> PrefixCaptioner:
    torch.manual_seed(0)
    decoder = LanguageConfig(kind=kind, settings=SETTINGS[kind], vocab_size=vocab, context=12)
    config = PrefixConfig(
        VisionConfig(name="test_efficientnet", image_size=64),
        PrefixMapperConfig(dropout=0.0),
        replace(decoder, **settings),
    )
    return PrefixCaptioner(config, language=language)


def batch(vocab: int = VOCAB) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    return torch.randn(2, 3, 64, 64), torch.randint(4, vocab, (2, 2, 6))


def disturb(model: PrefixCaptioner) -> None:
    """Give every LoRA something to say."""
    for module in model.modules():
        if isinstance(module, Lora):
            torch.nn.init.normal_(module.up.weight, std=0.3)


@pytest.mark.parametrize("kind", SETTINGS)
def test_lora_starts_as_nothing_and_merges_into_a_plain_model(kind: str) -> None:
    plain = captioner(kind).eval()
    model = captioner(kind, tune="lora", lora=LoraConfig(rank=2, alpha=3.0)).eval()
    model.load_state_dict(plain.state_dict(), strict=False)
    language = model.decoder.language
    for name, module in plain.decoder.language.named_modules():  # the same weights under the layer's own name
        inner = dict(language.named_modules())[name]
        if isinstance(inner, Lora):
            inner.base.load_state_dict(module.state_dict())
    with torch.inference_mode():
        torch.testing.assert_close(model(*batch()), plain(*batch()))
        disturb(model)
        learnt = model(*batch())
        assert (learnt - plain(*batch())).abs().max() > 1e-3
        merge_lora(language)
        torch.testing.assert_close(model(*batch()), learnt, rtol=1e-4, atol=1e-5)
    assert not any(isinstance(module, Lora) for module in language.modules())


@pytest.mark.parametrize("kind", SETTINGS)
@pytest.mark.parametrize("tune", ["full", "lora", "frozen"])
def test_what_learns(kind: str, tune: str) -> None:
    model = captioner(kind, tune=tune).train()
    disturb(model)
    model(*batch()).square().mean().backward()
    learning = {name for name, p in model.decoder.named_parameters() if p.requires_grad}
    moved = {name for name, p in model.decoder.named_parameters() if p.grad is not None and p.grad.any()}
    assert model.mapper.project.weight.grad is not None
    assert model.mapper.project.weight.grad.any(), "the prefix learns through the language model"
    if tune == "frozen":
        assert not learning
        assert torch.equal(model(*batch()), model(*batch())), "a frozen model has no dropout"
    elif tune == "lora":
        assert learning == {n for n, _ in model.decoder.named_parameters() if ".down." in n or ".up." in n}
        assert len(learning) == moved.__len__() > 0
        assert sum(p.numel() for p in model.decoder.parameters()) > sum(
            p.numel() for n, p in model.decoder.named_parameters() if n in learning
        )
    else:
        assert len(learning) == len(list(model.decoder.parameters()))


@pytest.mark.parametrize("kind", SETTINGS)
@pytest.mark.parametrize("tune", ["full", "frozen"])
def test_checkpointing_gives_the_same_losses_and_gradients(kind: str, tune: str) -> None:
    settings = {"attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0} if kind == "gpt2" else {}
    settings |= {"dropout": 0.0} if kind == "opt" else {}
    found = []
    for checkpointing in (False, True):
        model = captioner(
            kind, tune=tune, checkpointing=checkpointing, settings={**SETTINGS[kind], **settings}
        ).train()
        logits = model(*batch())
        logits.square().mean().backward()
        found.append(
            (logits.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None})
        )
        with torch.no_grad():  # captions are still made with a cache
            cross = model.eval().decoder.cross_kv(model.vision(batch()[0]))
        assert len(cross) == 2
        assert cross[0][0].dim() == 4
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-4, atol=1e-5)
    assert found[0][1].keys() == found[1][1].keys()
    for name, gradient in found[0][1].items():
        torch.testing.assert_close(gradient, found[1][1][name], rtol=1e-3, atol=1e-5)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A public language model of the hub's format, with a tokenizer whose marks are vistill's."""
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("hub") / "tiny-gpt2"
    tokenizer = train_tokenizer(TEXTS, TokenizerConfig(min_count=1))
    torch.manual_seed(3)
    settings = GPT2Config(vocab_size=tokenizer.get_vocab_size(), **SETTINGS["gpt2"])
    GPT2LMHeadModel(settings).save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("tune", ["lora", "frozen"])
@pytest.mark.parametrize("named", [False, True])
def test_a_saved_model_comes_back(source: Path, tmp_path: Path, tune: str, named: bool) -> None:
    place = Path(shutil.copytree(source, tmp_path / "tiny-gpt2"))
    language, tokenizer, _ = load_language(str(place))
    about = {"source": str(place), "weights": source_hash(str(place))} if named else {}
    model = captioner("gpt2", language=language, tune=tune, named=named, **about).eval()
    disturb(model)
    save_prefix_captioner(tmp_path / "best", model, tokenizer, {})
    again, _, config, _ = load_prefix_captioner(tmp_path / "best")
    assert config.decoder.tune == tune
    pixels, tokens = batch(10)
    with torch.inference_mode():
        torch.testing.assert_close(again(pixels, tokens), model(pixels, tokens))
    assert [p.requires_grad for p in again.decoder.parameters()] == [
        p.requires_grad for p in model.decoder.parameters()
    ]
    stored = tmp_path / "best" / "language"
    assert stored.exists() != named
    if not named:
        theirs = AutoModelForCausalLM.from_pretrained(stored)
        original = AutoModelForCausalLM.from_pretrained(source)
        for (name, a), (_, b) in zip(theirs.named_parameters(), original.named_parameters(), strict=True):
            assert torch.equal(a, b), name
        return
    with torch.no_grad():
        next(language.parameters()).add_(1)
    weights = place / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\1\1")
    with pytest.raises(BundleError, match="whose files have changed since"):
        load_prefix_captioner(tmp_path / "best")
    shutil.rmtree(place)
    with pytest.raises(ConfigError, match="tiny-gpt2"):
        load_prefix_captioner(tmp_path / "best")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
@pytest.mark.parametrize("bits", [8, 4])
def test_quantised_weights_need_a_gpu(source: Path, bits: int) -> None:
    with pytest.raises(ConfigError, match=rf"bits={bits}: 8- and 4-bit weights need a CUDA GPU"):
        load_language(str(source), bits)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"tune": "half"}, "tune='half': use full, lora, frozen"),
        ({"bits": 3, "tune": "frozen"}, "bits=3: use 8, 4 or 0"),
        ({"bits": 8}, "bits=8: the weights must not change, set tune to frozen or lora"),
        ({"named": True}, "named=True: the weights must not change"),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        LanguageConfig(**settings)
    with pytest.raises(ConfigError, match=r"lora\.rank=0"):
        LoraConfig(rank=0)
    with pytest.raises(ConfigError, match="alpha must be above 0"):
        LoraConfig(alpha=0.0)
