"""An answerer's evaluation: accuracy by kind, blind answers beside it, files and page."""

import json
from pathlib import Path

import pytest
from tests.tiny_answerer import save_tiny_answerer
from tests.tiny_questions import build_questions
from typer.testing import CliRunner

from vistill.cli.main import app
from vistill.data.asked import first_pictures, open_asked
from vistill.metrics.vqa_baselines import blind_scores
from vistill.report.answering import Answering
from vistill.report.answers import evaluate_answers
from vistill.runtime.answerer import Answer
from vistill.runtime.decode import GenerationConfig


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_questions(tmp_path_factory.mktemp("evaluated"))


def test_accuracy_stands_beside_the_blind_answers(data: Path) -> None:
    dev, train = open_asked(data, "dev"), open_asked(data, "train")
    right = {
        (part["image"], one.question): one.answers[0]
        for part, asked in zip(dev.table, dev.asked, strict=True)
        for one in asked
    }

    def answer(pairs, num_return):  # knows everything but where things are
        return [
            [Answer("nowhere" if "where" in question else right[image, question].upper() + ".", 0.0)]
            for image, question in pairs
        ]

    learned = [one for asked in train.asked for one in asked]
    found = evaluate_answers(Answering(answer, "fake", GenerationConfig(), ""), dev, learned)
    assert [row.key for row in found.rows] == [key for keys in dev.keys for key in keys]
    assert found.figures["location"].value == 0
    assert found.figures["colour"].value == found.figures["yes/no"].value == 100
    where = sum(row.kind == "location" for row in found.rows)
    assert found.figures["all"].value == pytest.approx(100 * (1 - where / len(found.rows)))
    assert found.figures["all"].low < found.figures["all"].value < found.figures["all"].high
    assert found.blind == blind_scores(learned, [one for asked in dev.asked for one in asked])
    assert found.beats("colour")
    assert not found.beats("location")


def test_the_command_writes_figures_answers_and_a_page(data: Path, tmp_path: Path) -> None:
    checkpoint = save_tiny_answerer(tmp_path / "model")
    words = ["evaluate", str(checkpoint), "--task", "answer", "--data", str(data), "--limit", "4"]
    done = CliRunner().invoke(app, [*words, "--out", str(tmp_path / "out"), "--num-beams", "1"])
    assert done.exit_code == 0, done.output
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    asked = [one for some in first_pictures(open_asked(data, "dev"), 4).asked for one in some]
    assert metrics["data"]["questions"] == metrics["scores"]["all"]["questions"] == len(asked)
    assert set(metrics["scores"]) == {"all", "colour", "location", "object", "yes/no"}
    lines = (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()
    assert [json.loads(line)["question"] for line in lines] == [one.question for one in asked]
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Beside blind answers" in page
    assert page.count("data:image/jpeg") >= 4
    assert str(tmp_path) not in page
    assert "blind" in done.stdout

    bad = CliRunner().invoke(app, [*words, "--texts", "minilm"])
    assert "texts means nothing for task=answer" in str(bad.exception)
