"""Public captioners: the same numbers and captions as `transformers`, and folders that it opens."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.distill.tiny_teachers import CAPTIONS, pictures, save_git
from tests.models.tiny_pretrained import save_public

from vistill.data.text import encode
from vistill.distill.losses import cross_entropy
from vistill.distill.teachers_pretrained import generate_settings
from vistill.errors import BundleError
from vistill.models.captioner import TorchStepper
from vistill.models.loading import is_public, load_model, origin, save_model
from vistill.models.pretrained import PretrainedCaptioner
from vistill.models.tokens import BOS, EOS, NEVER_GENERATED, PAD, UNK
from vistill.runtime.decode import GenerationConfig, generate
from vistill.runtime.image import to_array

KINDS = ["vit-gpt2", "blip", "deit+bert", "swin+roberta", "beit+gpt2"]


def opened(folder: Path, kind: str) -> tuple[Any, Any, Any]:
    """(model, tokenizer, preprocessing) of a tiny captioner."""
    return load_model(save_public(folder, kind))


def pixels_of(preprocess: Any, count: int = 3) -> torch.Tensor:
    return torch.from_numpy(np.stack([to_array(image, preprocess) for image in pictures(count)]))


def whole_of(model: PretrainedCaptioner) -> Any:
    """The model of `transformers` inside."""
    return model.beside[0]


def own_captions(whole: Any, pixels: torch.Tensor, beams: int) -> list[list[int]]:
    """What `generate` of `transformers` says, without marks, under its own ids."""
    search = generate_settings(GenerationConfig(max_new_tokens=12, num_beams=beams))
    with torch.no_grad():
        rows = whole.generate(pixel_values=pixels, **search).tolist()
    text = whole.config.text_config if hasattr(whole, "text_decoder") else whole.generation_config
    end = text.sep_token_id if hasattr(whole, "text_decoder") else text.eos_token_id
    return [row[1 : row.index(end, 1) if end in row[1:] else None] for row in rows]


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_captions_are_those_of_transformers(kind: str, beams: int, tmp_path: Path) -> None:
    model, _, preprocess = opened(tmp_path / "public", kind)
    pixels = torch.cat([pixels_of(preprocess), torch.randn(5, 3, 32, 32)])
    with torch.inference_mode():
        stepper = TorchStepper(model, model.vision(pixels))
    config = GenerationConfig(max_new_tokens=12, num_beams=beams)
    found = [[i - 4 for i in h[0].tokens] for h in generate(stepper, 8, bos=BOS, eos=EOS, config=config)]
    assert found == own_captions(whole_of(model), pixels, beams)
    assert len({tuple(caption) for caption in found}) > 1, "what the picture says counts"


@pytest.mark.parametrize("kind", KINDS)
def test_probabilities_are_the_models_own(kind: str, tmp_path: Path) -> None:
    model, tokenizer, preprocess = opened(tmp_path / "public", kind)
    whole, own = whole_of(model), model.decoder.own
    pixels = pixels_of(preprocess, 2)
    texts = [encode(tokenizer, text, 24) for text in CAPTIONS[0]]  # of unlike length
    tokens = torch.full((2, 2, max(map(len, texts))), PAD)
    for c, text in enumerate(texts):
        tokens[:, c, : len(text)] = torch.tensor(text)
    with torch.inference_mode():
        ours = model(pixels, tokens)
        for b in range(2):
            for c, text in enumerate(texts):
                ids = torch.tensor([[int(own[i]) if i < 4 else i - 4 for i in text]])
                more = {"input_ids" if kind == "blip" else "decoder_input_ids": ids}
                theirs = whole(pixel_values=pixels[b : b + 1], **more).logits[0]
                logp = ours[b, c, : len(text)].log_softmax(-1)
                end = model.decoder.end
                moved = logp[:, 4:].clone()
                assert (moved[:, end] < -1e8).all(), "the end mark has one place"
                moved[:, end] = logp[:, EOS]
                assert torch.allclose(moved, theirs.log_softmax(-1), atol=1e-5)
                assert (logp[:, list(NEVER_GENERATED)] < -1e8).all()
    assert ours.shape[-1] == model.config.decoder.vocab_size


def test_the_loss_with_label_smoothing_leaves_blocked_tokens_out(tmp_path: Path) -> None:
    model, tokenizer, preprocess = opened(tmp_path / "public", "vit-gpt2")
    text = torch.tensor([[encode(tokenizer, "a red circle", 24)]])
    with torch.no_grad():
        logits = model(pixels_of(preprocess, 1), text[..., :-1])
    loss = cross_entropy(logits, text[..., 1:], 0.1)
    can = logits[0, 0, 0] > -1e8
    places = torch.cumsum(can, 0) - 1
    plain = torch.nn.functional.cross_entropy(
        logits[0, 0][:, can], places[text[0, 0, 1:]], label_smoothing=0.1
    )
    assert torch.allclose(loss, plain)


@pytest.mark.parametrize("kind", KINDS)
def test_stages_follow_each_other(kind: str, tmp_path: Path) -> None:
    model, _, preprocess = opened(tmp_path / "public", kind)
    pixels = pixels_of(preprocess)
    stages = [stage.name for stage in model.tower.stages]
    assert stages == (["all"] if kind.startswith("beit") else ["embeddings", "layers.0", "layers.1"])
    net = model.tower.net
    with torch.inference_mode():
        whole = net(pixel_values=pixels).last_hidden_state
        for start in range(len(stages) + 1):
            assert torch.equal(model.tower(model.tower.trunk(pixels, start), start), whole)
    assert whole.shape[1:] == (model.mapper.length, model.tower.width)
    owned = {id(p) for stage in model.tower.stages for m in stage.modules for p in m.parameters()}
    outside = {name for name, p in net.named_parameters() if id(p) not in owned}
    assert all("pooler" in name for name in outside)


@pytest.mark.parametrize("kind", KINDS)
def test_layers_and_cross_attention(kind: str, tmp_path: Path) -> None:
    model, _, preprocess = opened(tmp_path / "public", kind)
    assert len(model.decoder.layers) == 2
    reads = {id(p) for module in model.decoder.cross_attention for p in module.parameters()}
    assert reads
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in reads)
    tokens = torch.tensor([[[BOS, 9, 10, EOS]]])
    model(pixels_of(preprocess, 1), tokens)[..., 4:9].sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters() if p.requires_grad)
    names = {name for name, p in model.named_parameters() if p.requires_grad}
    assert all("cross" in name for name in names)


@pytest.mark.parametrize("kind", ["vit-gpt2", "blip", "swin+roberta"])
def test_saved_folders_are_those_of_transformers_and_of_vistill(kind: str, tmp_path: Path) -> None:
    from transformers import AutoImageProcessor, AutoTokenizer

    model, tokenizer, preprocess = opened(tmp_path / "public", kind)
    with torch.no_grad():
        for parameter in model.decoder.parameters():
            parameter.mul_(1.1)
    save_model(tmp_path / "best", model, tokenizer, {"note": "tiny"})
    pixels, tokens = pixels_of(preprocess), torch.tensor([[[BOS, 9, 10, EOS]]] * 3)
    whole = type(whole_of(model)).from_pretrained(tmp_path / "best").eval()
    assert own_captions(whole, pixels, 2) == own_captions(whole_of(model), pixels, 2)
    again, again_tokenizer, again_preprocess = load_model(tmp_path / "best")
    with torch.inference_mode():
        assert torch.equal(again(pixels, tokens), model(pixels, tokens))
    assert (again_preprocess, again.config) == (preprocess, model.config)
    assert again_tokenizer.to_str() == tokenizer.to_str()
    words = AutoTokenizer.from_pretrained(tmp_path / "best")
    ids = words("a red circle", add_special_tokens=False)["input_ids"]
    assert encode(tokenizer, "a red circle", 9) == [BOS, *(i + 4 for i in ids), EOS]
    prepared = AutoImageProcessor.from_pretrained(tmp_path / "best")(pictures(3), return_tensors="pt")
    assert torch.allclose(
        prepared["pixel_values"], pixels, atol=0.02
    )  # torchvision scales a little otherwise
    assert origin(tmp_path / "best") == {"kind": "pretrained-captioner", "provenance": {"note": "tiny"}}
    assert [path.name for path in tmp_path.iterdir() if path.name != "public"] == ["best"]


def test_what_is_public(tmp_path: Path) -> None:
    public = save_public(tmp_path / "public", "vit-gpt2")
    assert is_public(public)
    assert is_public("nlpconnect/vit-gpt2-image-captioning")
    assert not is_public(tmp_path)
    assert not is_public("runs/captioner/best")
    save_model(tmp_path / "best", *load_model(public)[:2], {})
    assert not is_public(tmp_path / "best")
    assert origin(public)["provenance"] == {}


@pytest.mark.parametrize(
    ("file", "change", "reason"),
    [
        ("preprocessor_config.json", {"rescale_factor": 1.0}, "rescales by 1.0"),
        ("preprocessor_config.json", {"size": {"height": 32, "width": 40}}, "not supported"),
        ("preprocessor_config.json", {"size": {"height": 64, "width": 64}}, "64 wide, its encoder wants 32"),
        ("generation_config.json", {"eos_token_id": [0, 1]}, "2 tokens end"),
        (
            "config.json",
            {"architectures": ["BlipForQuestionAnswering"]},
            "BlipForQuestionAnswering is none of",
        ),
    ],
)
def test_what_cannot_be_used_is_refused_with_the_reason(
    file: str, change: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    path = save_public(tmp_path / "public", "vit-gpt2") / file
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(BundleError, match=reason):
        load_model(path.parent)


def test_another_kind_of_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="GitForCausalLM is none of VisionEncoderDecoderModel"):
        load_model(save_git(tmp_path / "git"))


def test_incomplete_weights_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = save_public(tmp_path / "public", "vit-gpt2") / "model.safetensors"
    state = load_file(path)
    assert any("pooler" in name for name in state)
    save_file({name: t for name, t in state.items() if "pooler" not in name}, path, {"format": "pt"})
    load_model(path.parent)  # nothing here reads it
    save_file({name: t for name, t in state.items() if "h.1.mlp" not in name}, path, {"format": "pt"})
    with pytest.raises(BundleError, match=r"h\.1\.mlp"):
        load_model(path.parent)


def test_the_unknown_mark_goes_in_as_the_models_own(tmp_path: Path) -> None:
    model, tokenizer, preprocess = opened(tmp_path / "public", "deit+bert")
    assert model.decoder.own.tolist() == [0, 2, 3, 1]
    assert encode(tokenizer, "zebra", 9) == [BOS, 1 + 4, EOS], "its own, which it may say"
    with torch.inference_mode():
        one, other = (model(pixels_of(preprocess, 1), torch.tensor([[[BOS, i]]])) for i in (UNK, 1 + 4))
    assert torch.equal(one, other)
