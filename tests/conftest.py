"""Fixtures that every room uses: the real data sets and the shipped model, each optional."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BUNDLE = ROOT / "src" / "vistill" / "bundles" / "captioner"
NO_DATA = "VISTILL_DATA does not name the folder of the real data sets"


def pytest_configure() -> None:
    """Let every process import what asks for torchvision: tests, and warnings that name their modules."""
    from vistill.models.torchvision_repair import repair_torchvision

    repair_torchvision()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked `data` where the data sets are absent."""
    if os.environ.get("VISTILL_DATA"):
        return
    for item in items:
        if item.get_closest_marker("data"):
            item.add_marker(pytest.mark.skip(reason=NO_DATA))


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of the real data sets (`flickr8k/`, ...); skips where it is absent."""
    folder = os.environ.get("VISTILL_DATA")
    if not folder:
        pytest.skip(NO_DATA)
    path = Path(folder)
    assert path.is_dir(), f"VISTILL_DATA={folder} is no folder"
    return path


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture(scope="session")
def shipped_bundle() -> Path:
    """The captioner inside the package; skips until it is there."""
    if not (BUNDLE / "manifest.json").is_file():
        pytest.skip("the package holds no model yet: src/vistill/bundles/captioner/manifest.json is missing")
    return BUNDLE
