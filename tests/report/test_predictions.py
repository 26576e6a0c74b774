"""Answers to TSVs: every question once, whatever stopped the run, broken pictures named."""

import base64
import io
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vistill.data.tsv import TsvFile, write_tsv
from vistill.errors import DataError, ImageError
from vistill.metrics.vqa_files import write_evalai
from vistill.report.predictions import predict
from vistill.runtime.answerer import Answer, Pair
from vistill.runtime.image import read_image


def _png(seed: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((4, 4, 3), seed, np.uint8)).save(file, "PNG")
    return file.getvalue()


def _question(number: int) -> dict[str, object]:
    return {"question_id": number, "question": f"q{number}\u2603"}


class Fake:
    """Answers with the brightness of the picture; counts the questions."""

    def __init__(self, stop_after: int = 10**9) -> None:
        self.asked: list[str] = []
        self.stop_after = stop_after

    def __call__(self, pairs: Sequence[Pair], num_return: int) -> list[list[Answer]]:
        assert num_return == 1
        if len(self.asked) >= self.stop_after:
            raise KeyboardInterrupt
        found = [[Answer(f"{read_image(s).getpixel((0, 0))[0]} {q}", 0.0)] for s, q in pairs]  # type: ignore[index]
        self.asked += [question for _, question in pairs]
        return found


@pytest.fixture
def files(tmp_path: Path) -> tuple[TsvFile, TsvFile]:
    pictures = [(f"p{n}", base64.b64encode(_png(n))) for n in range(6)]
    pictures[2] = ("p2", base64.b64encode(b"no picture"))
    pictures[4] = ("p4", b"***")
    write_tsv(tmp_path / "images.tsv", pictures)
    rows = [
        (f"p{n}", json.dumps([_question(10 * n + k) for k in range(n % 3 + 1)]))
        for n in (3, 0, 2, 7, 1, 4, 5)
    ]
    write_tsv(tmp_path / "questions.tsv", rows)
    return TsvFile(tmp_path / "images.tsv"), TsvFile(tmp_path / "questions.tsv")


GOOD = {30: "3 q30\u2603", 0: "0 q0\u2603", **{10 + k: f"1 q1{k}\u2603" for k in range(2)}} | {
    50 + k: f"5 q5{k}\u2603" for k in range(3)
}


def _answers(out: Path) -> list[tuple[int, str]]:
    return [(row["question_id"], row["answer"]) for row in map(json.loads, out.read_text().splitlines())]


@pytest.mark.parametrize("batch", [1, 2, 16])
def test_all_are_answered_and_what_is_broken_is_named(
    files: tuple[TsvFile, TsvFile], tmp_path: Path, batch: int
) -> None:
    problems: list[str] = []
    out = tmp_path / "out.tsv"
    lost = predict(Fake(), *files, out, batch, lambda done, found: problems.extend(found))
    assert sorted(_answers(out)) == sorted(GOOD.items())
    assert lost == 3 + 2 + 2
    assert sorted(problem[:2] for problem in problems) == ["p2", "p4", "p7"]
    assert any("row 4 is not base64" in problem for problem in problems)
    fake = Fake()
    assert predict(fake, *files, out, batch) == lost
    assert fake.asked == []
    assert write_evalai(out, tmp_path / "evalai.json") == len(GOOD)


def test_a_stopped_run_goes_on_after_a_torn_row(files: tuple[TsvFile, TsvFile], tmp_path: Path) -> None:
    out = tmp_path / "out.tsv"
    with pytest.raises(KeyboardInterrupt):
        predict(Fake(stop_after=3), *files, out, 2)
    assert 0 < len(_answers(out)) < len(GOOD)
    with out.open("ab") as file:
        file.write(b'{"answer": "torn", "question_id": 5')
    predict(Fake(), *files, out, 2)
    assert sorted(_answers(out)) == sorted(GOOD.items())


def test_other_files_are_left_alone(files: tuple[TsvFile, TsvFile], tmp_path: Path) -> None:
    for mine in ("mine\n", "mine"):
        (tmp_path / "notes.txt").write_text(mine)
        with pytest.raises(DataError, match="is no answer of ours"):
            predict(Fake(), *files, tmp_path / "notes.txt", 2)
        assert (tmp_path / "notes.txt").read_text() == mine
    write_tsv(tmp_path / "bad.tsv", [("p1", '[{"question_id": 1}]')])
    with pytest.raises(DataError, match="row 0"):
        predict(Fake(), files[0], TsvFile(tmp_path / "bad.tsv"), tmp_path / "o", 2)
    twice = [("p1", json.dumps([{"question_id": 1, "question": "a"}] * 2))]
    write_tsv(tmp_path / "twice.tsv", twice)
    with pytest.raises(DataError, match="comes twice"):
        predict(Fake(), files[0], TsvFile(tmp_path / "twice.tsv"), tmp_path / "o", 2)


def test_the_fake_fails_as_the_real_one() -> None:
    with pytest.raises(ImageError):
        Fake()([(b"no picture", "q")], 1)
