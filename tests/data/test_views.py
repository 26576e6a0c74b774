"""Kept features: equal to the tower's, resumable view by view, refused when they belong to something else."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.tiny import build_data

from vistill.data.dataset import open_split
from vistill.data.views import Views, build_views, view_seed
from vistill.errors import DataError
from vistill.models.vision import VisionConfig, VisionTower, tower_preprocess
from vistill.runtime.image import AugmentSpec, augment, read_image, to_array

CONFIG = VisionConfig(name="test_efficientnet", image_size=64)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_data(tmp_path_factory.mktemp("tiny"), train=10, dev=2)


def _tower(seed: int = 0) -> VisionTower:
    torch.manual_seed(seed)
    return VisionTower(CONFIG, pretrained=False).eval()


def _build(
    folder: Path,
    data: Path,
    *,
    seed: int = 0,
    spec: AugmentSpec | None = None,
    views: int = 2,
    drawn: int = 5,
) -> Views:
    return build_views(
        folder,
        data,
        _tower(seed),
        tower_preprocess(CONFIG),
        spec or AugmentSpec(),
        stages=3,
        views={"train": views},
        seed=drawn,
    )


def test_kept_features_are_those_of_each_seeded_view(tmp_path: Path, data: Path) -> None:
    views, tower, spec = _build(tmp_path / "v", data), _tower(), tower_preprocess(CONFIG)
    for view in range(2):
        kept, flipped = views.features("train", view), views.flipped("train", view)
        for row, sample in enumerate(open_split(data, "train")):
            image, mirrored = read_image(sample["image"]), False
            if view:
                image, mirrored = augment(image, AugmentSpec(), view_seed(5, sample["key"], view))
            with torch.inference_mode():
                expected = tower.trunk(torch.from_numpy(to_array(image, spec)).unsqueeze(0), 3)[0].numpy()
            assert flipped[row] == mirrored
            np.testing.assert_allclose(kept[row], expected, rtol=2e-3, atol=2e-3)
    assert views.flipped("train", 1).any()


def test_a_stopped_build_goes_on_with_the_missing_view(tmp_path: Path, data: Path) -> None:
    whole = _build(tmp_path / "whole", data, views=3)
    folder = tmp_path / "part"
    _build(folder, data, views=1)
    stamp = (folder / "train-00.npy").stat().st_mtime_ns
    (folder / "train-01.npy.part").write_bytes(b"torn")
    part = _build(folder, data, views=3)
    assert (folder / "train-00.npy").stat().st_mtime_ns == stamp
    for view in range(3):
        assert np.array_equal(part.features("train", view), whole.features("train", view))
        assert np.array_equal(part.flipped("train", view), whole.flipped("train", view))


def test_features_of_something_else_are_refused(tmp_path: Path, data: Path) -> None:
    folder = tmp_path / "v"
    _build(folder, data, views=1)
    with pytest.raises(DataError, match="another trunk"):
        _build(folder, data, seed=1)
    with pytest.raises(DataError, match="another augment"):
        _build(folder, data, spec=replace(AugmentSpec(), flip=0.1))
    with pytest.raises(DataError, match="other pictures"):
        _build(folder, build_data(tmp_path / "other", train=9, dev=2))


def test_the_clean_view_is_of_any_seed(tmp_path: Path, data: Path) -> None:
    folder = tmp_path / "v"
    stamp = _build(folder, data, views=1).features("train", 0).tobytes()
    assert _build(folder, data, views=1, drawn=6).features("train", 0).tobytes() == stamp
    _build(folder, data, views=2, drawn=6)
    _build(folder, data, views=1, drawn=7)
    with pytest.raises(DataError, match="another seed"):
        _build(folder, data, views=2, drawn=7)


def test_the_sign_of_a_zero_makes_no_other_tower(tmp_path: Path, data: Path) -> None:
    def build(zero: float) -> Views:
        tower = _tower()
        with torch.no_grad():
            next(tower.parameters()).view(-1)[0] = zero
        size = tower_preprocess(CONFIG)
        return build_views(tmp_path, data, tower, size, AugmentSpec(), stages=3, views={"dev": 1}, seed=5)

    build(-0.0)
    build(0.0)  # what averaging makes of a frozen -0.0
    with pytest.raises(DataError, match="another trunk"):
        build(1e-3)
