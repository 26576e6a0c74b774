"""Picture towers of CLIP, in `transformers`' format and timm's: features, preprocessing, checkpoints."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.models.test_adopt import TEXTS
from tests.models.test_prefix import SETTINGS
from tests.models.tiny_clip import save_tiny_clip
from transformers import CLIPImageProcessor, CLIPModel

from vistill.data.text import TokenizerConfig, train_tokenizer
from vistill.errors import ConfigError
from vistill.models.clip_tower import described
from vistill.models.loading import load_model, save_model
from vistill.models.prefix import LanguageConfig, PrefixCaptioner, PrefixConfig, PrefixMapperConfig
from vistill.models.vision import VisionConfig, VisionTower, tower_preprocess
from vistill.runtime.image import to_array


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_clip(tmp_path_factory.mktemp("clip") / "tiny-clip")


def _config(folder: Path, **settings: Any) -> VisionConfig:
    return VisionConfig(name=str(folder), weights="clip", image_size=32, **settings)


def test_features_and_embedding_are_those_of_transformers(folder: Path) -> None:
    theirs = CLIPModel.from_pretrained(folder).eval()
    pixels = torch.randn(3, 3, 32, 32)
    grid = VisionTower(_config(folder), pretrained=True).eval()
    embedding = VisionTower(_config(folder, output="embedding"), pretrained=True).eval()
    with torch.inference_mode():
        states = theirs.vision_model(pixel_values=pixels).last_hidden_state
        expected = theirs.vision_model.post_layernorm(states)
        torch.testing.assert_close(grid(pixels), expected)
        assert expected.std() > 0.1
        vectors = theirs.get_image_features(pixel_values=pixels).pooler_output
        torch.testing.assert_close(embedding(pixels), vectors.unsqueeze(1))
        for tower in (grid, embedding):
            whole = tower(pixels)
            assert whole.shape[2] == tower.width
            for cut in range(len(tower.stages) + 1):
                torch.testing.assert_close(tower(tower.trunk(pixels, cut), cut), whole)
    owned = {id(p) for stage in grid.stages for m in stage.modules for p in m.parameters()}
    assert owned == {id(p) for p in grid.parameters()}, "every weight belongs to a stage"


@pytest.mark.parametrize("name", ["test_vit", "resnet50_clip"])
def test_a_tower_in_stages_has_no_weight_too_many(name: str) -> None:
    tower = VisionTower(VisionConfig(name=name, image_size=64), pretrained=False).eval()
    pixels = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        whole = tower(pixels)
        torch.testing.assert_close(tower(tower.trunk(pixels, 2), 2), whole)
    assert whole.shape[2] == tower.width


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "grid", "width"),
    [
        ("resnet50_clip.openai", (49, 2048), 1024),
        ("vit_base_patch32_clip_quickgelu_224.openai", (50, 768), 512),
        ("vit_base_patch16_clip_quickgelu_224.openai", (197, 768), 512),
        ("vit_large_patch14_clip_quickgelu_224.openai", (257, 1024), 768),
    ],
)
def test_the_encoders_of_clip_have_the_published_shapes(name: str, grid: tuple[int, int], width: int) -> None:
    pixels = torch.zeros(1, 3, 224, 224)
    with torch.inference_mode():
        assert VisionTower(VisionConfig(name=name), pretrained=False).eval()(pixels).shape == (1, *grid)
        pooled = VisionTower(VisionConfig(name=name, output="embedding"), pretrained=False).eval()
        assert pooled(pixels).shape == (1, 1, width) == (1, 1, pooled.width)
    spec = tower_preprocess(VisionConfig(name=name))
    clip = CLIPImageProcessor()
    assert (spec.resize, spec.interpolation) == ("crop", "bicubic")
    assert (spec.mean, spec.std) == (tuple(clip.image_mean), tuple(clip.image_std))


def test_pictures_are_prepared_as_clip_does(folder: Path) -> None:
    spec = tower_preprocess(_config(folder))
    pixels = np.random.default_rng(0).integers(0, 255, (4, 7, 3), np.uint8)
    image = Image.fromarray(pixels).resize((166, 100), Image.Resampling.BICUBIC)  # smooth, and wide
    processor = CLIPImageProcessor.from_pretrained(folder)
    theirs = np.asarray(processor(image, return_tensors="np")["pixel_values"][0])
    assert np.abs(to_array(image, spec) - theirs).mean() < 0.15  # it rounds the crop to whole pixels
    squashed = to_array(image, tower_preprocess(_config(folder, resize="squash")))
    assert np.abs(squashed - theirs).mean() > 0.4
    assert tower_preprocess(VisionConfig()).resize == "squash"


def test_a_checkpoint_stands_without_the_folder_of_its_clip(folder: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(folder, tmp_path / "private" / "tiny-clip"))
    tokenizer = train_tokenizer(TEXTS, TokenizerConfig(min_count=1))
    language = LanguageConfig(settings=SETTINGS["gpt2"], vocab_size=tokenizer.get_vocab_size(), context=12)
    mapper = PrefixMapperConfig(kind="mlp", length=3, features="pooled")
    config = PrefixConfig(_config(source, output="embedding"), mapper, language)
    model = PrefixCaptioner(config, pretrained=True).eval()
    save_model(tmp_path / "best", model, tokenizer, {})
    shutil.rmtree(source)
    again, _, preprocess = load_model(tmp_path / "best")
    pixels, tokens = torch.randn(2, 3, 32, 32), torch.randint(0, 8, (2, 1, 5))
    with torch.inference_mode():
        assert torch.equal(model(pixels, tokens), again(pixels, tokens))
    assert preprocess == tower_preprocess(_config(folder))
    text = (tmp_path / "best" / "config.json").read_text()
    assert "private" not in text
    assert json.loads(text)["model"]["vision"]["name"] == "tiny-clip"


def test_errors_name_the_setting(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"image_size=224: .* reads pictures of 32 pixels, set it to 32"):
        described(VisionConfig(name=str(folder), weights="clip"))
    with pytest.raises(ConfigError, match=r"model\.vision\.name='.*nowhere'"):
        VisionTower(_config(tmp_path / "nowhere"), pretrained=True)
    with pytest.raises(ConfigError, match="is no CLIP tower"):
        VisionConfig(output="embedding")
    with pytest.raises(ConfigError, match="use grid or embedding"):
        VisionConfig(output="pooled")
    bert = tmp_path / "bert"
    bert.mkdir()
    (bert / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ConfigError, match="a bert model is no CLIP"):
        VisionTower(_config(bert), pretrained=True)
    cut = Path(shutil.copytree(folder, tmp_path / "cut"))
    (cut / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-200])
    with pytest.raises(ConfigError, match=r"model\.vision\.name='.*cut'"):
        VisionTower(_config(cut), pretrained=True)
