"""`vistill export` as a user meets it; the export itself is tested in its room."""

import json
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

pytest.importorskip("torch")

from vistill.cli.export import export
from vistill.errors import BundleError
from vistill.export import run as exporting
from vistill.runtime.bundle import FILES, FileEntry, Manifest
from vistill.runtime.decode import GenerationConfig
from vistill.runtime.image import Preprocess

app = typer.Typer()
app.command()(export)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What the export was asked for; it answers with a manifest."""
    found: list[dict[str, Any]] = []

    def fake(checkpoint: Path, out: Path, config: object, **more: Any) -> Manifest:
        found.append({"checkpoint": checkpoint, "out": out, "config": config, **more})
        more["report"]("graphs", 1, 2)
        more["report"]("check", 3, 10)
        return Manifest(
            name="m",
            preprocess=Preprocess(size=(4, 4), mean=(0, 0, 0), std=(1, 1, 1)),
            generation=GenerationConfig(),
            special_tokens={"bos": 1, "eos": 2},
            files={role: FileEntry(file, "0" * 64, 500_000) for role, file in FILES["captioner"].items()},
            precision="int8",
            scores={"export": {"token_agreement": 0.991}},
        )

    monkeypatch.setattr(exporting, "export_checkpoint", fake)
    return found


def test_options_reach_the_export(calls: list[dict[str, Any]], tmp_path: Path) -> None:
    words = f"ckpt --out b --quantize int8 --data {tmp_path} --calibration-pictures 7 --check-pictures 9"
    done = CliRunner().invoke(
        app,
        [
            *words.split(),
            "--tolerance",
            "0.5",
            "--min-cosine",
            "0.9",
            "--max-r10-drop",
            "2",
            "--min-agreement",
            "0.9",
            "--force",
        ],
    )
    assert done.exit_code == 0, done.output
    (call,) = calls
    assert (call["checkpoint"], call["out"]) == (Path("ckpt"), Path("b"))
    assert call["replace_existing"] is True
    config = call["config"]
    assert (config.precision, config.data) == ("int8", tmp_path)
    assert (config.calibration_pictures, config.check_pictures) == (7, 9)
    assert (config.max_cider_drop, config.min_agreement) == (0.5, 0.9)
    assert (config.min_cosine, config.max_r10_drop) == (0.9, 2)
    lines = done.stdout.splitlines()
    assert lines[0] == "b  int8, 1.5 MB"
    assert lines[1].split() == ["token_agreement", "0.991"]


def test_json_prints_the_manifest_alone(calls: list[dict[str, Any]]) -> None:
    done = CliRunner().invoke(app, ["ckpt", "--out", "b", "--json"])
    assert json.loads(done.stdout)["kind"] == "captioner"
    assert calls[0]["config"].precision == "fp32"


def test_a_refusal_comes_out_with_its_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> Manifest:
        raise BundleError("export refused: on 8 pictures token agreement 0.5000 is below 0.95")

    monkeypatch.setattr(exporting, "export_checkpoint", refuse)
    done = CliRunner().invoke(app, ["ckpt", "--out", "b"])
    assert isinstance(done.exception, BundleError)  # main() makes `error: ...` and exit code 2 of it
    assert "0.5000" in str(done.exception)
