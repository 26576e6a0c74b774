"""`vistill score` as a user and a script meet it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vistill.cli import main as cli
from vistill.metrics.caption import score_captions

RESULTS = [{"image_id": 7, "caption": "A dog runs."}, {"image_id": 9, "caption": "a cat"}]
REFERENCES = {
    "images": [{"id": 7}, {"id": 9}, {"id": 11}],
    "annotations": [
        {"id": 1, "image_id": 9, "caption": "A cat."},
        {"id": 2, "image_id": 7, "caption": "A dog runs on grass."},
        {"id": 4, "image_id": 11, "caption": "Two men"},
    ],
}
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """The usual arguments."""
    results, references = tmp_path / "results.json", tmp_path / "captions.json"
    results.write_text(json.dumps(RESULTS))
    references.write_text(json.dumps(REFERENCES))
    return ["--results", str(results), "--references", str(references)]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run `vistill score ...` -> (exit code, stdout, stderr)."""

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["vistill", "score", *arguments])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        out = capsys.readouterr()
        return int(stop.value.code or 0), out.out, out.err

    return call


def test_scores_as_json(run: Run, files: list[str]) -> None:
    code, out, err = run("--task", "caption", *files)
    assert code == 0
    summary: dict[str, Any] = json.loads(out)
    names = ["BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L", "CIDEr", "CIDEr-D"]
    assert list(summary) == [*names, "pictures"]
    truth = {"7": ["A dog runs on grass."], "9": ["A cat."]}
    wanted = score_captions({"7": "A dog runs.", "9": "a cat"}, truth).corpus
    assert {name: summary[name] for name in wanted} == wanted
    assert summary["pictures"] == 2
    assert err.startswith("note: 1 of 3 pictures in ")
    assert "have no result, 11 first" in err


def test_all_pictures_can_be_demanded(run: Run, files: list[str]) -> None:
    code, out, err = run(*files, "--require-all")
    assert (code, out) == (2, "")
    assert err.startswith("error: 1 of 3 pictures in ")
    complete = [*RESULTS, {"image_id": 11, "caption": "two men"}]
    Path(files[1]).write_text(json.dumps(complete))
    code, out, err = run(*files, "--require-all")
    assert (code, err) == (0, "")
    assert json.loads(out)["pictures"] == 3


def test_lines_for_each_picture(run: Run, files: list[str], tmp_path: Path) -> None:
    lines = tmp_path / "lines.jsonl"
    assert run(*files, "--metrics", "CIDEr,ROUGE-L", "--per-image", str(lines))[0] == 0
    found = [json.loads(line) for line in lines.read_text().splitlines()]
    assert [line["image_id"] for line in found] == [7, 9]
    assert found[1]["scores"].keys() == {"CIDEr", "ROUGE-L"}
    assert found[1]["scores"]["ROUGE-L"] == pytest.approx(1)


def test_intervals(run: Run, files: list[str]) -> None:
    code, out, _ = run(*files, "--bootstrap", "100", "--seed", "3", "--metrics", "ROUGE-L")
    assert code == 0
    summary = json.loads(out)
    interval = summary["intervals"]["ROUGE-L"]
    assert interval["low"] <= summary["ROUGE-L"] <= interval["high"]
    assert run(*files, "--bootstrap", "100", "--seed", "3", "--metrics", "ROUGE-L")[1] == out


def test_document_frequencies_of_another_file(run: Run, files: list[str]) -> None:
    code, out, _ = run(*files, "--idf", files[3])
    assert code == 0
    summary = json.loads(out)
    assert summary["CIDEr-D"] != summary["CIDEr"]  # three pictures count in the file, two in the results


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda entries: [*entries, entries[0]], "entry 2: image_id 7 comes twice"),
        (lambda entries: [*entries, {"image_id": 99, "caption": "x"}], "image_id 99 has a result but no"),
        (lambda entries: [{"image_id": 7}], "entry 0: key 'caption' is missing"),
        (lambda entries: [], "the list is empty"),
    ],
)
def test_wrong_results(run: Run, files: list[str], change: Callable[[Any], Any], message: str) -> None:
    Path(files[1]).write_text(json.dumps(change(RESULTS)))
    code, out, err = run(*files)
    assert (code, out) == (2, "")
    lines = err.splitlines()
    assert lines[-1].startswith(f"error: {files[1]}")
    assert message in lines[-1]


def test_broken_json_and_a_missing_file(run: Run, files: list[str]) -> None:
    Path(files[3]).write_text('{"images": [')
    code, _, err = run(*files)
    assert code == 2
    assert f"{files[3]}: line 1, column 13: broken JSON" in err
    Path(files[1]).unlink()
    assert f"error: {files[1]}: there is no such file" in run(*files)[2]


def test_wrong_options(run: Run, files: list[str]) -> None:
    assert "error: --task: 'vqa' is unknown" in run(*files, "--task", "vqa")[2]
    assert "error: --metrics: 'F1' is unknown" in run(*files, "--metrics", "F1")[2]
    assert "at least 2 resamples" in run(*files, "--bootstrap", "1")[2]
    assert run(*files, "--bootstrap", "-1")[0] == 2


@pytest.mark.parametrize("metric", ["METEOR", "SPICE"])
def test_java_is_asked_for_before_anything_else(
    run: Run, files: list[str], metric: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    code, out, err = run(*files, "--metrics", f"CIDEr,{metric}")
    assert (code, out) == (2, "")
    assert err.startswith(f"error: --metrics: {metric} needs Java")
