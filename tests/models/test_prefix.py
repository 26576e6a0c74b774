"""The prefix captioner beside transformers' models called directly with `inputs_embeds`."""

from typing import Any

import numpy as np
import pytest
import torch

from vistill.errors import ConfigError
from vistill.models.captioner import TorchStepper
from vistill.models.prefix import (
    LanguageConfig,
    PrefixCaptioner,
    PrefixConfig,
    PrefixMapper,
    PrefixMapperConfig,
)
from vistill.models.tokens import BOS, EOS, NEVER_GENERATED, PAD
from vistill.models.vision import VisionConfig
from vistill.runtime.decode import GenerationConfig, generate

VOCAB = 24
SETTINGS: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32},
    "opt": {
        "hidden_size": 16,
        "word_embed_proj_dim": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "ffn_dim": 32,
        "max_position_embeddings": 32,
    },
    "llama": {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 32,
    },
}


def _captioner(kind: str = "gpt2", **settings: Any) -> PrefixCaptioner:
    torch.manual_seed(0)
    config = PrefixConfig(
        VisionConfig(name="test_efficientnet", image_size=64),
        PrefixMapperConfig(dropout=0.0),
        LanguageConfig(kind=kind, settings={**SETTINGS[kind], **settings}, vocab_size=VOCAB, context=12),
    )
    model = PrefixCaptioner(config).eval()
    for parameter in model.decoder.parameters():  # random weights of 0.02 make near ties
        torch.nn.init.normal_(parameter, std=0.3)
    if kind == "gpt2":  # positions must matter, or a caption repeats one word
        torch.nn.init.normal_(model.decoder.language.transformer.wpe.weight)
    torch.nn.init.normal_(
        model.mapper.project.weight, std=100.0
    )  # the features of this tower are about 0.004
    return model


def _directly(model: PrefixCaptioner, prefix: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Logits [B, T, V] of one caption a picture, by one plain call over prefix and text."""
    embeds = torch.cat((prefix, model.decoder.embed(tokens)), dim=1)
    logits: torch.Tensor = model.decoder.language(inputs_embeds=embeds).logits
    return logits[:, prefix.shape[1] :]


@pytest.mark.parametrize("kind", SETTINGS)
def test_logits_equal_the_language_model_called_directly(kind: str) -> None:
    model = _captioner(kind)
    pixels, tokens = torch.randn(2, 3, 64, 64), torch.randint(4, VOCAB, (2, 3, 7))
    with torch.inference_mode():
        prefix = model.vision(pixels)
        found = model(pixels, tokens)
        assert prefix.shape[1] == 4, "each patch is one embedding"
        for c in range(3):
            expected = _directly(model, prefix, tokens[:, c])
            torch.testing.assert_close(found[:, c], expected, rtol=1e-4, atol=1e-4)


def test_padding_changes_nothing() -> None:
    model = _captioner()
    pixels, tokens = torch.randn(2, 3, 64, 64), torch.randint(4, VOCAB, (2, 2, 8))
    tokens[0, 1, 3:] = PAD
    tokens[1, 0, 5:] = PAD
    with torch.inference_mode():
        found = model(pixels, tokens)
        for b, c, length in ((0, 1, 3), (1, 0, 5), (0, 0, 8)):
            alone = model(pixels[b : b + 1], tokens[b : b + 1, c : c + 1, :length])
            torch.testing.assert_close(found[b, c, :length], alone[0, 0], rtol=1e-4, atol=1e-4)


def test_gradients_reach_the_mapper_and_equal_those_of_a_plain_call() -> None:
    model = _captioner()
    pixels, tokens = torch.randn(2, 3, 64, 64), torch.randint(4, VOCAB, (2, 2, 5))
    model(pixels, tokens).square().sum().backward()
    found = [
        p.grad.clone()
        for p in (*model.mapper.parameters(), *model.decoder.parameters())
        if p.grad is not None
    ]
    model.zero_grad(set_to_none=True)
    prefix = model.vision(pixels)
    sum(_directly(model, prefix, tokens[:, c]).square().sum() for c in range(2)).backward()
    expected = [
        p.grad for p in (*model.mapper.parameters(), *model.decoder.parameters()) if p.grad is not None
    ]
    assert len(found) == len(expected) == 2 + len(list(model.decoder.parameters()))
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("kind", SETTINGS)
def test_cached_steps_equal_teacher_forcing(kind: str) -> None:
    model = _captioner(kind)
    pixels, tokens = torch.randn(2, 3, 64, 64), torch.randint(4, VOCAB, (2, 3, 6))
    with torch.inference_mode():
        whole = model(pixels, tokens)
        cross = model.decoder.cross_kv(model.vision(pixels))
        past = model.decoder.empty_past(2, captions=3)
        for t in range(6):
            logits, past = model.decoder.step(tokens[..., t], cross, past)
            torch.testing.assert_close(logits, whole[:, :, t], rtol=1e-4, atol=1e-4)
    assert past[0][0].shape[:4:3] == (2, 6), "the past holds the text, not the prefix"


@pytest.mark.parametrize("beams", [1, 3])
def test_captions_equal_generate(beams: int) -> None:
    model = _captioner(tie_word_embeddings=False)  # tied random ones repeat one word for ever
    pixels = torch.randn(4, 3, 64, 64)
    with torch.inference_mode():
        prefix = model.vision(pixels)
        config = GenerationConfig(max_new_tokens=8, num_beams=beams)
        found = generate(TorchStepper(model, prefix), 4, bos=BOS, eos=EOS, config=config)  # type: ignore[arg-type]
        begin = model.decoder.embed(torch.full((4, 1), BOS))
        theirs = model.decoder.language.generate(
            inputs_embeds=torch.cat((prefix, begin), dim=1),
            attention_mask=torch.ones(4, prefix.shape[1] + 1, dtype=torch.long),
            max_new_tokens=8,
            num_beams=beams,
            do_sample=False,
            early_stopping=beams > 1,
            suppress_tokens=list(NEVER_GENERATED),
            begin_suppress_tokens=[EOS],
            eos_token_id=EOS,
            pad_token_id=PAD,
        )
    expected = [[t for t in row if t not in (PAD, EOS, BOS)] for row in theirs.tolist()]
    assert [list(hypotheses[0].tokens) for hypotheses in found] == expected
    assert len({tuple(row) for row in expected}) > 1, "pictures must matter"


def test_the_stepper_reorders_rows() -> None:
    model = _captioner()
    pixels = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        stepper = TorchStepper(model, model.vision(pixels))  # type: ignore[arg-type]
        stepper.step(np.full((2, 1), BOS))
        stepper.reorder(np.zeros((2, 3), dtype=np.int64))
        stepper.step(np.array([[5, 6, 7], [8, 9, 10]]))
        stepper.reorder(np.array([[2, 0], [1, 1]]))
        found = stepper.step(np.array([[11, 12], [13, 14]]))
        rows = torch.tensor([[[BOS, 7, 11], [BOS, 5, 12]], [[BOS, 9, 13], [BOS, 9, 14]]])
        expected = model(pixels, rows)[:, :, -1].numpy()
    allowed = [i for i in range(VOCAB) if i not in NEVER_GENERATED]
    np.testing.assert_allclose(found[..., allowed], expected[..., allowed], rtol=1e-4, atol=1e-4)
    assert (found[..., list(NEVER_GENERATED)] < -1e8).all()


@pytest.mark.parametrize(
    ("config", "length"),
    [
        (PrefixMapperConfig(kind="linear"), 9),
        (PrefixMapperConfig(kind="mlp"), 9),
        (PrefixMapperConfig(kind="transformer", heads=2), 9),
        (PrefixMapperConfig(kind="transformer", heads=2, length=5), 5),
        (PrefixMapperConfig(kind="transformer", heads=2, features="pooled", length=5), 5),
        (PrefixMapperConfig(kind="linear", features="pooled"), 1),
        (PrefixMapperConfig(kind="mlp", features="pooled", length=5), 5),
    ],
)
def test_a_mapper_gives_its_length_and_every_weight_learns(config: PrefixMapperConfig, length: int) -> None:
    torch.manual_seed(0)
    mapper = PrefixMapper(config, 6, 8, 9)
    out = mapper(torch.randn(2, 9, 6))
    assert out.shape == (2, length, 8)
    assert mapper.length == length
    (out * torch.randn_like(out)).sum().backward()
    idle = [name for name, p in mapper.named_parameters() if p.numel() and not p.grad.abs().sum()]
    assert not idle


def test_the_mapper_can_be_nothing_at_all() -> None:
    features = torch.randn(2, 9, 8)
    assert torch.equal(
        PrefixMapper(PrefixMapperConfig(kind="none", dropout=0.0), 8, 8, 9)(features), features
    )
    with pytest.raises(ConfigError, match="6 wide"):
        PrefixMapper(PrefixMapperConfig(kind="none"), 6, 8, 9)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"kind": "conv"}, "model.mapper.kind='conv'"),
        ({"features": "all"}, "model.mapper.features='all'"),
        ({"kind": "linear", "length": 5}, "length=5: only kind=transformer"),
        ({"length": -1}, "length=-1"),
        ({"dropout": 1.0}, "dropout=1.0"),
        ({"layers": 0}, "layers and heads"),
    ],
)
def test_wrong_mapper_settings_are_named(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        PrefixMapperConfig(**settings)


def test_wrong_language_settings_are_named() -> None:
    with pytest.raises(ConfigError, match=r"model.decoder.context=1"):
        LanguageConfig(context=1)
    vision = VisionConfig(name="test_efficientnet", image_size=64)
    for language, says in (
        (LanguageConfig(kind="no-such-model", vocab_size=VOCAB), "kind='no-such-model'"),
        (LanguageConfig(settings=SETTINGS["gpt2"]), "vocab_size=0"),
        (
            LanguageConfig(settings=SETTINGS["gpt2"], vocab_size=VOCAB, context=29),
            "prefix of 4 and a text of 29",
        ),
    ):
        with pytest.raises(ConfigError, match=says):
            PrefixCaptioner(PrefixConfig(vision, decoder=language))
