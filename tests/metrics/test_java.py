"""METEOR and SPICE: what is said when they cannot run, and METEOR itself where it can."""

import importlib.util
import subprocess
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import pytest
from tests.metrics import java_ptb

from vistill.errors import ConfigError
from vistill.metrics import java


@pytest.fixture
def with_java(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: "/usr/bin/java")


def fake_package(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    spec = ModuleSpec("pycocoevalcap", None, is_package=True)
    spec.submodule_search_locations = [str(folder)]
    monkeypatch.setattr(java, "find_spec", lambda name: spec)


@pytest.mark.parametrize("metric", java.METRICS)
def test_without_java(metric: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert "install a Java runtime" in str(java.missing(metric))
    with pytest.raises(ConfigError, match=f"{metric} needs Java"):
        java.score(metric, {"1": "a"}, {"1": ["a"]})


@pytest.mark.usefixtures("with_java")
def test_without_pycocoevalcap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(java, "find_spec", lambda name: None)
    assert java.missing("METEOR") == "METEOR needs pycocoevalcap: pip install 'vistill[eval]'"


@pytest.mark.usefixtures("with_java")
def test_spice_needs_its_models(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake_package(monkeypatch, tmp_path)
    assert java.missing("METEOR") is None
    assert "get_stanford_models" in str(java.missing("SPICE"))
    (tmp_path / "spice" / "lib").mkdir(parents=True)
    (tmp_path / "spice" / "lib" / "stanford-corenlp-3.6.0.jar").touch()
    assert java.missing("SPICE") is None


@pytest.mark.usefixtures("with_java")
@pytest.mark.parametrize(
    "failure",
    [
        BrokenPipeError("the program is gone"),
        ValueError("no number"),
        subprocess.CalledProcessError(1, "java"),
    ],
)
def test_a_failing_program_is_told(
    failure: Exception, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake_package(monkeypatch, tmp_path)

    class Broken:
        def compute_score(self, *_: object) -> None:
            raise failure

    module = ModuleType("pycocoevalcap.meteor.meteor")
    module.Meteor = Broken  # type: ignore[attr-defined]
    for name in ("pycocoevalcap", "pycocoevalcap.meteor"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    with pytest.raises(ConfigError, match=f"METEOR: the Java program failed.*{type(failure).__name__}"):
        java.score("METEOR", {"1": "a"}, {"1": ["a"]})


def test_an_unknown_metric() -> None:
    with pytest.raises(ConfigError, match="'ROUGE'"):
        java.missing("ROUGE")


@pytest.mark.slow
@pytest.mark.skipif(
    not java_ptb.available() or importlib.util.find_spec("pycocoevalcap") is None, reason=java_ptb.WHY_NOT
)
def test_meteor_runs() -> None:
    corpus, pictures = java.score(
        "METEOR",
        {"b": "a cat sleeps on the mat", "a": "a dog is running", "c": ""},
        {"a": ["a dog runs", "the dog is running"], "b": ["a cat sleeps on the mat"], "c": ["a man"]},
    )
    assert pictures.shape == (3,)
    assert pictures[0] == pytest.approx(1.0)
    assert 0 < pictures[1] < 1
    assert pictures[2] == 0
    assert 0 < corpus < 1
