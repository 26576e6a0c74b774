"""The working folder of an export: gone at its end, removed by the next one after a kill, never shared."""

import os
import signal
from pathlib import Path

import pytest

pytest.importorskip("torch")

from vistill.errors import BundleError, DataError
from vistill.export.common import REPLACED, working_folder
from vistill.runtime.bundle import MANIFEST


def _killed(out: Path, replacing: bool = False) -> None:
    """A child begins an export to `out` and is killed in it; `replacing`: between its two renames."""
    child = os.fork()
    if child == 0:
        with working_folder(out, True) as work:
            (work / "vision.onnx").write_text("half")
            if replacing:
                out.rename(work / REPLACED)
            os.kill(os.getpid(), signal.SIGKILL)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1])


def _bundle(out: Path) -> Path:
    out.mkdir()
    (out / MANIFEST).write_text("{}")
    return out


def test_the_next_export_removes_what_a_killed_one_left(tmp_path: Path) -> None:
    out, other = tmp_path / "bundle", tmp_path / "other"
    _killed(out)
    _killed(other)
    theirs = {path for path in tmp_path.iterdir() if path.name.startswith(".other")}
    assert set(tmp_path.iterdir()) > theirs
    with working_folder(out, False) as work:
        assert list(work.iterdir()) == []
    assert set(tmp_path.iterdir()) == theirs, "nothing is left of this one, and another place is left alone"


def test_an_export_that_still_runs_keeps_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "bundle"
    monkeypatch.chdir(tmp_path)
    with working_folder(out, True) as work:
        (work / "vision.onnx").write_text("half")
        for name in (out, Path("bundle")):
            with (
                pytest.raises(DataError, match=r"another export to .*/bundle is running"),
                working_folder(name, True),
            ):
                pass
        assert (work / "vision.onnx").exists()
    assert list(tmp_path.iterdir()) == []


def test_an_older_bundle_comes_back_after_a_kill_between_the_renames(tmp_path: Path) -> None:
    out = _bundle(tmp_path / "bundle")
    _killed(out, replacing=True)
    assert not out.exists()
    with pytest.raises(BundleError, match="exists already"), working_folder(out, False):
        pass
    assert (out / MANIFEST).exists()
    assert list(tmp_path.iterdir()) == [out]


def test_an_older_bundle_comes_back_if_the_new_one_cannot_take_its_place(tmp_path: Path) -> None:
    out = _bundle(tmp_path / "bundle")
    with pytest.raises(FileNotFoundError), working_folder(out, True) as work:  # noqa: PT012
        out.rename(work / REPLACED)
        (work / "bundle").rename(out)  # which is not there
    assert (out / MANIFEST).exists()
    assert list(tmp_path.iterdir()) == [out]
