"""`vistill score` as a user and a script meet it."""

import json
import sys
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


def test_the_lines_of_an_evaluation_bring_their_references(
    run: Run, files: list[str], tmp_path: Path
) -> None:
    by_id = {image["id"]: [] for image in REFERENCES["images"]}  # type: ignore[var-annotated]
    for annotation in REFERENCES["annotations"]:
        by_id[annotation["image_id"]].append(annotation["caption"])
    lines = [
        {"key": f"{r['image_id']}.jpg", "caption": r["caption"], "references": by_id[r["image_id"]]}
        for r in RESULTS
    ]
    path = tmp_path / "predictions.jsonl"
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    code, out, err = run("--results", str(path))
    assert (code, err) == (0, "")
    assert json.loads(out) == json.loads(run(*files)[1])

    for broken, message in (
        (
            {**lines[0], "key": "8.jpg", "references": []},
            "row 3: key 'references' has to be a list of texts, not []",
        ),
        ({**lines[0], "key": 7}, "row 3: key 'key' has to be a text, not 7"),
        (lines[0], "row 3: key '7.jpg' comes twice"),
        ([], "row 3: has to be an object with the key 'key'"),
    ):
        path.write_text("".join(json.dumps(line) + "\n" for line in [*lines, broken]))
        code, out, err = run("--results", str(path))
        assert (code, out) == (2, "")
        assert f"error: {path}: {message}" in err
    path.write_text('{"key": 1\n')
    assert f"error: {path}: row 1: the last field is no JSON" in run("--results", str(path))[2]
    path.write_text("\n")
    assert f"error: {path}: there is no caption in it" in run("--results", str(path))[2]
    assert "error: --references is missing" in run(*files[:2])[2]


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
    assert "error: --task: 'ocr' is unknown" in run(*files, "--task", "ocr")[2]
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


# Answers

QUESTIONS = {"questions": [{"question_id": n, "image_id": 1, "question": "how many?"} for n in (1, 2, 3, 4)]}
ANNOTATIONS = {
    "annotations": [
        {
            "question_id": n,
            "answers": [{"answer": text} for text in answers],
            "question_type": "how many",
            "answer_type": kind,
        }
        for n, answers, kind in (
            (1, ["2"] * 9 + ["3"], "number"),
            (2, ["yes"] * 2 + ["no"] * 8, "yes/no"),
            (3, ["x"] * 10, "other"),
        )
    ]
}


@pytest.fixture
def vqa_files(tmp_path: Path) -> list[str]:
    (tmp_path / "questions.json").write_text(json.dumps(QUESTIONS))
    (tmp_path / "annotations.json").write_text(json.dumps(ANNOTATIONS))
    rows = [{"answer": "two", "question_id": 1}, {"answer": "Yes.", "question_id": 2}]
    (tmp_path / "out.tsv").write_text("".join(json.dumps(row) + "\n" for row in rows))
    names = ("--results", "out.tsv", "--questions", "questions.json", "--annotations", "annotations.json")
    return ["--task", "vqa", *(name if name.startswith("--") else str(tmp_path / name) for name in names)]


def test_vqa(run: Run, vqa_files: list[str], tmp_path: Path) -> None:
    code, out, err = run(*vqa_files, "--per-image", str(tmp_path / "lines.jsonl"))
    assert code == 0
    summary = json.loads(out)
    assert summary["accuracy"] == pytest.approx(0.8)
    assert summary["per_answer_type"] == pytest.approx({"number": 1.0, "yes/no": 0.6})
    assert (list(summary["per_question_type"]), summary["questions"]) == (["how many"], 2)
    assert "1 of 3 questions in" in err
    assert "have no result, 3 first" in err
    lines = [json.loads(line) for line in (tmp_path / "lines.jsonl").read_text().splitlines()]
    assert lines[1] == {"question_id": "2", "answer": "Yes.", "accuracy": pytest.approx(0.6)}
    assert run(*vqa_files, "--require-all")[0] == 2


def test_the_evalai_list_scores_the_same(
    run: Run, vqa_files: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "answers.json"
    monkeypatch.setattr("sys.argv", ["vistill", "convert", "vqa-evalai", vqa_files[3], str(target)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert not stop.value.code
    assert json.loads(target.read_text())[0] == {"question_id": 1, "answer": "two"}
    run("--help")  # empties what was printed
    plain = run(*vqa_files)[1]
    assert plain.startswith("{")
    assert run(*[str(target) if word == vqa_files[3] else word for word in vqa_files])[1] == plain


def test_answers_without_annotation(run: Run, vqa_files: list[str]) -> None:
    out = Path(vqa_files[3])
    out.write_text(out.read_text() + '{"answer": "a", "question_id": 4}\n')
    assert "note: 1 answers are to questions without annotation" in run(*vqa_files)[2]
    out.write_text(out.read_text() + 'key\t{"answer": "a", "question_id": 5}\n')
    assert "question_id 5 has an answer but no annotation" in run(*vqa_files)[2]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('{"answer": "x", "question_id": 1}', "row 3: question_id 1 comes twice"),
        ("no json", "row 3: the last field is no JSON object"),
        ('{"answer": 3, "question_id": 3}', "row 3: key 'answer' has to be a text"),
        ('{"answer": "x"}', "row 3: key 'question_id' is missing"),
    ],
)
def test_wrong_answers(run: Run, vqa_files: list[str], row: str, message: str) -> None:
    out = Path(vqa_files[3])
    out.write_text(out.read_text() + row)
    code, _, err = run(*vqa_files)
    assert code == 2
    assert f"error: {out}: {message}" in err


def test_vqa_needs_annotations_and_knows_no_metrics(run: Run, vqa_files: list[str]) -> None:
    assert "error: --annotations is missing" in run(*vqa_files[:4])[2]
    assert "are for captions, not for --task vqa" in run(*vqa_files, "--metrics", "CIDEr")[2]
    assert "error: --references is missing" in run(*vqa_files[2:4])[2]


def test_daquar(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nltk", None)
    data = tmp_path / "data.csv"
    data.write_text('question,answer,image_id\nwhat,"book, lamp",image3\nhow,2,image4\nwho,x,image3\n')
    answers = tmp_path / "answers.json"
    rows = [{"question_id": "image3#1", "answer": "y"}, {"question_id": "image3#0", "answer": "lamp,book"}]
    answers.write_text(json.dumps(rows))
    code, out, err = run("--task", "daquar", "--results", str(answers), "--references", str(data))
    assert (code, json.loads(out)) == (0, {"accuracy": 0.5, "questions": 2})
    assert "accuracy alone: WUPS needs WordNet: pip install nltk" in err
    data.write_text("question,answer\n")
    code, _, err = run("--task", "daquar", "--results", str(answers), "--references", str(data))
    assert code == 2
    assert "lacks column image_id" in err
