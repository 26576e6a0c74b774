"""Where an index lies when nobody says, and which one is meant."""

from pathlib import Path

import pytest

from vistill.archive.catalogue import Model, create_catalogue
from vistill.archive.places import default_index, find_index, indexes_folder
from vistill.errors import ConfigError


@pytest.fixture(autouse=True)
def data_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    return tmp_path / "data"


def make(folder: Path) -> Path:
    create_catalogue(folder, "/photos", Model("m", "0" * 64, 4)).close()
    return folder


def test_each_folder_has_its_own_place_outside_of_it(tmp_path: Path, data_home: Path) -> None:
    for name in ("a/photos", "b/photos"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "a" / "photos")
    first, second = (default_index(tmp_path / name) for name in ("a/photos", "b/photos"))
    assert first != second
    assert first.parent == data_home / "vistill" / "indexes" == indexes_folder()
    assert default_index(tmp_path / "link") == first == default_index(tmp_path / "a" / "x" / ".." / "photos")
    assert default_index(Path("/")).name.startswith("root-")


def test_other_systems(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "darwin")
    assert "Application Support" in str(indexes_folder())
    monkeypatch.setattr("sys.platform", "win32")
    monkeypatch.setenv("LOCALAPPDATA", "/local")
    assert str(indexes_folder()).startswith("/local")


def test_the_index_that_is_meant(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    with pytest.raises(ConfigError, match="there is no index yet: vistill index DIR"):
        find_index(None)
    with pytest.raises(ConfigError, match=f"--index {photos}: neither an index nor a folder that has one"):
        find_index(photos)
    only = make(default_index(photos))
    assert find_index(None) == find_index(photos) == find_index(only) == only
    make(default_index(tmp_path))
    with pytest.raises(ConfigError, match=r"several indexes, name one with --index") as told:
        find_index(None)
    assert str(only) in str(told.value)
