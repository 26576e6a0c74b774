"""`vistill data questions` and `vistill data blind` as a user runs them."""

import json
import sys
from pathlib import Path

import pytest
from tests.tiny import build_data
from tests.tiny_questions import write_vqa_rad

from vistill.cli.main import main
from vistill.data.dataset import open_split


def run(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr(sys, "argv", ["vistill", *map(str, words)])
    try:
        main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def test_questions_then_blind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = build_data(tmp_path, 60, 30), tmp_path / "questions"
    words = ("data", "questions", data, "--out", out, "--min-answer", 2)
    assert run(monkeypatch, *words) == 0
    printed = capsys.readouterr()
    assert printed.out == f"{out}\n"
    assert "train:" in printed.err
    assert "yes/no" in printed.err
    assert run(monkeypatch, *words) == 2
    assert "exists; --force replaces it" in capsys.readouterr().err
    assert run(monkeypatch, *words, "--force", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["splits"]["train"]["questions"] == len(open_split(out, "train"))

    assert run(monkeypatch, "data", "blind", out, "--split", "train", "--json") == 0
    scores = json.loads(capsys.readouterr().out)
    assert scores["yes/no"]["best"] == 0.5, "balanced"
    assert scores["all"]["questions"] == len(open_split(out, "train"))
    assert run(monkeypatch, "data", "blind", out, "--split", "train") == 0
    assert "most frequent" in capsys.readouterr().out

    assert run(monkeypatch, "data", "blind", data) == 2
    assert "split train has no questions with answers" in capsys.readouterr().err
    assert run(monkeypatch, "data", "questions", data, "--out", tmp_path / "x", "--max-share", 0) == 2
    assert "max_share must be above 0" in capsys.readouterr().err


def test_open_and_closed_questions_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    raw, out = write_vqa_rad(tmp_path / "vqa_rad"), tmp_path / "built"
    words = ("--dev-fraction", 0.5, "--near-duplicates", -1)
    assert run(monkeypatch, "data", "build", "vqa_rad", raw, "--out", out, *words) == 0
    capsys.readouterr()
    assert run(monkeypatch, "data", "blind", out, "--json") == 0
    scores = json.loads(capsys.readouterr().out)
    assert {kind: (found["questions"], found["best"]) for kind, found in scores.items()} == {
        "all": (8, 1.0),
        "closed": (4, 1.0),
        "open": (4, 1.0),
    }, "by its words each would be yes/no"
