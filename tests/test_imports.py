"""The floors and the wall: what a light import brings along, and what it does."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import vistill

PACKAGE = Path(vistill.__file__).parent
HEAVY = {
    "datasets",
    "hydra",
    "lightning",
    "omegaconf",
    "onnx",
    "onnxscript",
    "pandas",
    "pyarrow",
    "pytorch_lightning",
    "scipy",
    "tensorboard",
    "timm",
    "torch",
    "torchvision",
    "transformers",
}
LIGHT_ROOMS = ("runtime", "metrics", "archive", "serve")


def loaded_by(code: str) -> set[str]:
    """Top-level modules that a fresh interpreter has loaded after `code`."""
    program = (
        f"{code}\nimport sys, json; print(json.dumps(sorted({{m.partition('.')[0] for m in sys.modules}})))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


def modules_of(room: str) -> list[str]:
    files = sorted((PACKAGE / room).rglob("*.py"))
    names = [".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts) for file in files]
    return [name.removesuffix(".__init__") for name in names]


def test_light_rooms_load_nothing_heavy() -> None:
    modules = ["vistill", "vistill.errors", *(name for room in LIGHT_ROOMS for name in modules_of(room))]
    assert len(modules) > 5
    loaded = loaded_by("\n".join(f"import {name}" for name in modules))
    assert loaded & HEAVY == set()


def test_metrics_load_numpy_only() -> None:
    modules = modules_of("metrics")
    before = loaded_by("import numpy, json")
    loaded = loaded_by("\n".join(f"import {name}" for name in modules))
    extra = {name for name in loaded - before if name not in sys.stdlib_module_names}
    assert extra <= {"vistill"}


def test_answers_of_a_bundle_are_scored_without_torch() -> None:
    loaded = loaded_by("import vistill.data.asked, vistill.report.answering, vistill.report.answers")
    assert "torch" not in loaded


def test_command_line_loads_typer_only() -> None:
    before = loaded_by("import typer")
    extra = {
        name for name in loaded_by("import vistill.cli.main") - before if name not in sys.stdlib_module_names
    }
    assert extra == {"vistill"}


@pytest.mark.parametrize("file", sorted((PACKAGE / "cli").glob("*.py")), ids=lambda file: file.name)
def test_command_files_say_what_they_are(file: Path) -> None:
    assert file.read_text(encoding="utf-8").startswith('"""')


def test_import_has_no_side_effects(tmp_path: Path) -> None:
    program = """
import os, sys, threading, random, signal, logging, warnings, locale
environment, path, folder = dict(os.environ), list(sys.path), os.getcwd()
threads, state, handler = threading.active_count(), random.getstate(), signal.getsignal(signal.SIGINT)
handlers, filters, hook = list(logging.root.handlers), list(warnings.filters), sys.excepthook
import vistill
assert dict(os.environ) == environment and list(sys.path) == path and os.getcwd() == folder
assert threading.active_count() == threads and random.getstate() == state
assert signal.getsignal(signal.SIGINT) is handler and sys.excepthook is hook
assert logging.root.handlers == handlers and list(warnings.filters) == filters
heavy = {"numpy", "PIL", "onnxruntime", "tokenizers", "typer", "rich"} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(tmp_path.iterdir()) == []


def test_floors_hold(root: Path) -> None:
    pytest.importorskip("importlinter", reason="import-linter comes with the dev extra")
    done = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-logo", "--no-cache"],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
