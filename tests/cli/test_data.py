"""`vistill data build` and `vistill data info` as a user runs them."""

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from vistill.cli.main import main

PROGRAM = Path(sys.executable).with_name("vistill")


Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command line inside of this process: importing `datasets` each time would take seconds."""

    def call(*words: object) -> subprocess.CompletedProcess[str]:
        monkeypatch.setenv("COLUMNS", "100")
        monkeypatch.setenv("NO_COLOR", "1")
        monkeypatch.setattr(sys, "argv", ["vistill", *map(str, words)])
        capsys.readouterr()
        try:
            main()
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        output = capsys.readouterr()
        return subprocess.CompletedProcess(words, code, output.out, output.err)

    return call


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder of six captioned pictures, one picture without a caption and one half of a JPEG."""
    root = tmp_path / "pictures"
    root.mkdir()
    for number in range(8):
        pixels = np.random.default_rng(number).integers(0, 256, (9, 12, 3), dtype=np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels).resize((48, 36)).save(buffer, "JPEG")
        data = buffer.getvalue()
        (root / f"{number}.jpg").write_bytes(data[: len(data) // 2] if number == 7 else data)
        if number:
            (root / f"{number}.txt").write_text(f"a dog runs past photo {number}")
    return root


def test_build_then_info(pictures: Path, tmp_path: Path, run: Run) -> None:
    out = tmp_path / "out"
    words = ["data", "build", "folder", pictures, "--out", out, "--dev-fraction", "0.5", "--workers", "1"]
    environment = os.environ | {"COLUMNS": "100", "NO_COLOR": "1"}
    command = [str(PROGRAM), *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{out}\n", "results on stdout: the folder, for a script to use"
    assert "dropped 1 image_truncated: 7.jpg" in done.stderr
    assert "dropped 1 no_caption: 0.jpg" in done.stderr
    assert "train:" in done.stderr
    assert set(datasets.load_from_disk(str(out))) == {"train", "dev"}

    again = run("data", "build", "folder", pictures, "--out", out, "--dev-fraction", "0.5", "--json")
    assert again.returncode == 0
    report = json.loads(again.stdout)
    assert report == json.loads((out / "report.json").read_text())
    assert sum(split["pictures"] for split in report["splits"].values()) == 6

    other = run("data", "build", "folder", pictures, "--out", out)
    assert other.returncode == 2
    assert other.stderr.strip().splitlines()[-1].startswith("error: ")
    assert "arguments.options.dev_fraction was 0.5 and is None" in other.stderr
    assert "--force" in other.stderr
    assert run("data", "build", "folder", pictures, "--out", out, "--force").returncode == 0

    shown = run("data", "info", out)
    assert shown.returncode == 0, shown.stderr
    for words in ("train", "48x36: 6", "vocabulary 11", "image_truncated: 1", "no_caption: 1"):
        assert words in shown.stdout
    summary = json.loads(run("data", "info", out, "--json").stdout)
    assert summary["splits"]["train"]["captions_per_picture"] == {"1": 6}
    assert summary["dropped"] == {"image_truncated": 1, "no_caption": 1}


def test_cleaning_samples_and_long_captions_are_told(pictures: Path, tmp_path: Path, run: Run) -> None:
    (pictures / "1.txt").write_text("Figure 1. " + "word " * 50)
    out = tmp_path / "out"
    words = ["--clean", "figure_labels", "--clean", "lowercase", "--num-samples", "100"]
    done = run("data", "build", "folder", pictures, "--out", out, *words)
    assert done.returncode == 0, done.stderr
    assert "figure_labels changed 1 captions:" in done.stderr
    assert "lowercase changed 0 captions:" in done.stderr
    assert "drew 7 of 7 pictures" in done.stderr
    assert "1 captions have more than 40 words; the longest, of 1.jpg, has 50" in done.stderr
    told = run("data", "info", out).stdout
    assert "more than 40 words: train: 1; the longest has 50" in told
    assert "captions changed by cleaning: figure_labels: 1, lowercase: 0" in told
    assert "drawn: 7 of 7 pictures" in told
    assert "more than 60 words: train: 0" in run("data", "info", out, "--long-words", "60").stdout
    refused = run("data", "build", "folder", pictures, "--out", out, *words, "--clean", "stemming")
    assert refused.returncode == 2
    assert "clean: no rule 'stemming'; there are html," in refused.stderr


def test_a_table_and_its_options(pictures: Path, tmp_path: Path, run: Run) -> None:
    (tmp_path / "mine.csv").write_text("image,caption\n1.jpg,a dog\n2.jpg,a cat\n1.jpg,again\n")
    done = run(
        *("data", "build", "table", tmp_path, "--annotations", "mine.csv", "--images", pictures.name),
        *("--dev-fraction", "0.5", "--seed", "3", "--out", tmp_path / "out"),
    )
    assert done.returncode == 0, done.stderr
    assert set(datasets.load_from_disk(str(tmp_path / "out"))) == {"train", "dev"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["build", "flickr8k", "nowhere", "--out", "x"], "nowhere: no such folder; expected the root"),
        (
            ["build", "flickr8k", ".", "--out", "x"],
            "Flickr8k.token.txt: no such file; expected the Flickr8k token",
        ),
        (
            ["build", "flikr", ".", "--out", "x"],
            "unknown source 'flikr'; known are flickr8k, flickr30k, folder",
        ),
        (
            ["build", "folder", ".", "--out", "x", "--restval", "drop"],
            "source folder has no option 'restval'",
        ),
        (
            ["build", "folder", ".", "--out", "x", "--near-duplicates", "99"],
            "near_duplicates must be 0 to 16",
        ),
        (
            ["info", "nowhere"],
            "nowhere/report.json: no such file; expected a folder that `vistill data build`",
        ),
    ],
)
def test_errors_exit_with_two_and_say_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run, words: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    done = run("data", *words)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_fetch_refuses_what_is_private(tmp_path: Path, run: Run) -> None:
    tsv = tmp_path / "list.tsv"
    tsv.write_text("a dog\thttp://127.0.0.1:9/a.jpg\n")
    words = ["data", "fetch", "conceptual-captions", tsv, "--out", tmp_path / "out", "--workers", "1"]
    done = run(*words, "--json")
    assert (done.returncode, json.loads(done.stdout)["failed"]) == (0, {"private_address": 1})
    assert "1 private_address" in done.stderr
    again = run(*words)
    assert again.stdout == f"{tmp_path / 'out'}\n"
    assert "0 new, 0 there before, 1 blocked" in again.stderr
    other = run("data", "fetch", "sbu", tsv, "--out", tmp_path / "out")
    assert other.returncode == 2
    assert "unknown source 'sbu'; there is conceptual-captions" in other.stderr
