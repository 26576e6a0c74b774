"""`vistill evaluate --task retrieval` as a user meets it; captions are evaluated in tests/e2e."""

import json
import os
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

pytest.importorskip("datasets")
pytest.importorskip("torch")

from tests.tiny import build_data
from tests.tiny_embedder import write_tiny_embedder

from vistill.cli.evaluate import evaluate
from vistill.errors import ConfigError

app = typer.Typer()
app.command()(evaluate)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A built data set `built` and an embedder bundle `mine`."""
    folder = tmp_path_factory.mktemp("evaluate")
    build_data(folder, train=4, dev=12)
    write_tiny_embedder(folder / "mine")
    return folder


def test_a_bundle_is_scored_both_ways(folder: Path, tmp_path: Path) -> None:
    words = (
        f"{folder / 'mine'} --task retrieval --data {folder / 'built'} --out {tmp_path / 'out'} --pictures 2"
    )
    done = CliRunner().invoke(app, words.split())
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert lines[0].startswith("text to image R@1 ")
    assert lines[6].startswith("text to image median rank ")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"metrics.json", "predictions.jsonl", "report.html", "report.md"}
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert (metrics["task"], metrics["model"]["name"]) == ("retrieval", "mine")
    assert metrics["data"] == metrics["data"] | {"name": "built", "split": "dev", "pictures": 12}


def test_json_limit_and_folds(folder: Path, tmp_path: Path) -> None:
    words = f"{folder / 'mine'} --task retrieval --data {folder / 'built'} --out {tmp_path / 'out'} --json"
    done = CliRunner().invoke(
        app, [*words.split(), "--limit", "8", "--folds", "2", "--texts", str(folder / "mine")]
    )
    assert done.exit_code == 0, done.output
    metrics = json.loads(done.stdout)
    assert (metrics["folds"], metrics["data"]["pictures"]) == (2, 8)
    assert metrics["model"]["name"] == "mine with mine"
    assert metrics["chance"]["text to image"]["r1"] == pytest.approx(25)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("--task rank", "task='rank': use caption, answer or retrieval"),
        ("--task retrieval --num-beams 3", "num_beams means nothing for task=retrieval"),
        ("--task retrieval --length-penalty 0", "length_penalty means nothing for task=retrieval"),
        ("--task retrieval --max-new-tokens 9", "max_new_tokens means nothing for task=retrieval"),
        ("--task retrieval --time-pictures 0", "time_pictures means nothing for task=retrieval"),
        ("--task retrieval --batch-size 8", "batch_size means nothing for task=retrieval"),
        ("--task answer --time-pictures 4", "time_pictures means nothing for task=answer"),
        ("--task retrieval --coco x.json", "coco means nothing for task=retrieval"),
        ("--task answer --no-rerank", "no_rerank means nothing for task=answer"),
        ("--texts minilm", "texts means nothing for task=caption"),
        ("--folds 5", "folds means nothing for task=caption"),
    ],
)
def test_options_of_another_task_are_refused(folder: Path, words: str, named: str) -> None:
    done = CliRunner().invoke(app, [str(folder / "mine"), "--data", str(folder / "built"), *words.split()])
    assert isinstance(done.exception, ConfigError)
    assert named in str(done.exception)


@pytest.mark.parametrize("option", ["--out", "--coco"])
def test_a_place_that_cannot_be_written_is_told_before_the_work(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: str
) -> None:
    def work(*_: object) -> None:
        raise AssertionError("the work was done")

    monkeypatch.setattr("vistill.cli.evaluate._captions", work)
    (tmp_path / "photo.jpg").touch()
    words = [str(folder / "mine"), "--data", str(folder / "built"), "--out", str(tmp_path / "out")]
    for place in (tmp_path / "photo.jpg" / "deep", tmp_path / "photo.jpg" / "deep" / "x.json"):
        done = CliRunner().invoke(app, [*words, option, str(place)])
        assert isinstance(done.exception, ConfigError)
        assert str(done.exception) == f"{option}: {tmp_path}/photo.jpg is a file; name a folder"
    allowed = os.access  # of root everything is
    monkeypatch.setattr(os, "access", lambda place, mode: place != tmp_path and allowed(place, mode))
    done = CliRunner().invoke(app, words)
    assert str(done.exception) == f"--out: nothing may be written in {tmp_path}"
    assert [path.name for path in tmp_path.iterdir()] == ["photo.jpg"]
