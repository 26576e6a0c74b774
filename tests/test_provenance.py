import platform
import subprocess
from pathlib import Path

import pytest

from vistill import provenance


def _checkout(folder: Path) -> Path:
    """A git repository with one commit, and the path that `provenance.py` would have in its `src`."""
    (folder / "src" / "vistill").mkdir(parents=True)
    (folder / "file").write_text("x")
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(folder)]
    for words in (["init", "-q"], ["add", "file"], ["commit", "-q", "-m", "x"]):
        subprocess.run([*git, *words], check=True)
    return folder / "src" / "vistill" / "provenance.py"


def test_the_revision_is_that_of_our_own_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "__file__", str(_checkout(tmp_path)))
    assert len(provenance.git_revision()) == 12
    (tmp_path / "file").write_text("y")
    assert provenance.git_revision().endswith("-dirty")


def test_a_foreign_checkout_around_the_package_is_not_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _checkout(tmp_path)
    installed = tmp_path / "venv" / "site-packages" / "vistill" / "provenance.py"
    installed.parent.mkdir(parents=True)
    monkeypatch.setattr(provenance, "__file__", str(installed))
    assert provenance.git_revision() == ""


def test_the_environment_names_no_build_of_the_kernel() -> None:
    found = provenance.environment()
    assert found["system"] == f"{platform.system()} {platform.machine()}"
    assert found["python"] == platform.python_version()
    assert platform.release() not in " ".join(found.values())
