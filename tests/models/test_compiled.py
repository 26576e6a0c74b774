"""A compiled tower says what the tower says."""

import numpy as np
import pytest
import torch

from vistill.models.compiled import compile_trunk
from vistill.models.vision import VisionConfig, VisionTower


@pytest.mark.parametrize("stop", [2, None])
def test_equals_the_tower_for_any_number_of_pictures_and_leaves_its_mode(stop: int | None) -> None:
    torch.manual_seed(0)
    tower = VisionTower(VisionConfig(name="test_vit", image_size=64), pretrained=False).train()
    stop = stop or len(tower.stages)
    run = compile_trunk(tower, (64, 64), stop)
    assert tower.training
    tower.eval()
    for count in (1, 3):
        pixels = np.random.default_rng(count).normal(size=(count, 3, 64, 64)).astype(np.float32)
        with torch.no_grad():
            expected = tower.trunk(torch.from_numpy(pixels), stop).numpy()
        np.testing.assert_allclose(run(pixels), expected, atol=2e-5)
