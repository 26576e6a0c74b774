"""METEOR and SPICE: what is said when they cannot run, and METEOR itself where it can."""

import importlib.util
import re
import shutil
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
    (tmp_path / "spice" / "lib").mkdir(parents=True)
    for name in java.MODELS:
        assert "get_stanford_models" in str(java.missing("SPICE"))
        (tmp_path / "spice" / "lib" / name).touch()
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


def fake_java(folder: Path, script: str) -> None:
    """A `java` that runs a shell script; $6 is where SPICE is to write."""
    (folder / "java").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "java").chmod(0o755)


@pytest.mark.parametrize(
    ("says", "told"),
    [
        ('Cannot invoke "javax.script.ScriptEngine.put" because "scriptEngine" is null', "librhino-java"),
        ("java.lang.OutOfMemoryError: Java heap space", "8 GB of free memory"),
        ("java.io.IOException: disk full", "java.io.IOException: disk full"),
        ("", "it says nothing"),
    ],
)
def test_why_spice_fails(says: str, told: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake_package(monkeypatch, tmp_path)
    (tmp_path / "spice" / "lib").mkdir(parents=True)
    for name in java.MODELS:
        (tmp_path / "spice" / "lib" / name).touch()
    fake_java(tmp_path, f"echo '{says}' >&2; exit 1" if says else "exit 1")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    with pytest.raises(ConfigError, match=f"SPICE: the Java program failed: .*{re.escape(told)}"):
        java.score("SPICE", {"1": "a dog"}, {"1": ["a dog"]})


@pytest.mark.slow
@pytest.mark.skipif(
    shutil.which("java") is None or java.missing("SPICE") is not None,
    reason="SPICE needs Java and 400 MB of models, see docs/metrics.md",
)
def test_spice_runs() -> None:
    corpus, pictures = java.score(
        "SPICE",
        {"b": "a cat sleeps on the mat", "a": "a red dog is running", "c": "", "d": "two men"},
        {
            "a": ["a red dog runs", "the dog is running"],
            "b": ["a cat sleeps on the mat"],
            "c": ["a man"],
            "d": ["a blue car"],
        },
    )
    # scene graphs of "a": dog, dog red, dog run; of its references: dog, dog red, dog run
    assert pictures.tolist() == pytest.approx([1, 1, 0, 0])
    assert corpus == pytest.approx(0.5)
