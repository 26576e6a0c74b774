"""An exported answerer answers as its checkpoint does: alone, in batches, with beams, on the command line."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.tiny_answerer import QUESTIONS, save_tiny_answerer
from tests.tiny_questions import build_questions
from typer.testing import CliRunner

import vistill
from vistill.cli.main import app
from vistill.data.dataset import open_split
from vistill.errors import BundleError, ConfigError, ImageError
from vistill.export.answerer import AnswerParity, refuse
from vistill.export.common import ExportConfig
from vistill.export.run import export_checkpoint
from vistill.report.answering import open_answerer
from vistill.runtime.answerer import Answerer
from vistill.runtime.bundle import open_bundle


@pytest.fixture(scope="module", params=["cross-attention", "prefix"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("answerer") / "checkpoint"
    return save_tiny_answerer(folder, prefix=request.param == "prefix")


@pytest.fixture(scope="module")
def bundle(checkpoint: Path) -> Path:
    out = checkpoint.parent / "bundle"
    manifest = export_checkpoint(checkpoint, out, ExportConfig(threads=1), name="tiny answerer")
    assert manifest.kind == "answerer"
    assert manifest.scores["export"]["token_agreement"] == 1
    return out


@pytest.fixture(scope="module")
def photos(checkpoint: Path) -> list[Path]:
    rng = np.random.default_rng(0)
    paths = [checkpoint.parent / f"{number}.png" for number in range(3)]
    for number, path in enumerate(paths):  # dark, middle, bright
        Image.fromarray(rng.integers(80 * number, 80 * number + 90, (50, 70, 3), np.uint8)).save(path)
    return paths


def test_what_can_be_no_picture_and_no_question_is_refused(bundle: Path, photos: list[Path]) -> None:
    answerer = Answerer(bundle, threads=1)
    for one in ("a.jpg", photos[0], b"x", Image.new("RGB", (9, 9)), 3):
        for call in (answerer, answerer.answer):
            with pytest.raises(TypeError, match=rf"of \(picture, question\).*got {type(one).__name__}"):
                call(one)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match=r"each must be \(picture, question\), got PosixPath"):
        answerer(photos)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="a question must be a str, got NoneType"):
        answerer([(photos[0], "what?"), (photos[0], None)])  # type: ignore[list-item]
    with pytest.raises(TypeError, match="a picture must be bytes, a path or a PIL image, got list"):
        answerer(photos, "what?")  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="questions must come as a list"):
        answerer.answer_arrays(np.zeros((1, 3, *answerer.preprocess.size), np.float32), [0], "what?")
    for wrong in ("2", 1.5, 0):
        with pytest.raises(ConfigError, match=f"num_return={wrong!r}: must be"):
            answerer.answer([(photos[0], "what?")], num_return=wrong)  # type: ignore[arg-type]
    for name, value in (("threads", "2"), ("threads", 257), ("batch_size", 1.5)):
        with pytest.raises(ConfigError, match=f"{name}={value!r}: must be at least 1"):
            Answerer(bundle, **{name: value})


@pytest.mark.parametrize("beams", [1, 3])
def test_bundle_and_checkpoint_answer_alike(
    checkpoint: Path, bundle: Path, photos: list[Path], beams: int
) -> None:
    pairs = [(photo, question) for question in QUESTIONS for photo in photos]
    theirs = open_answerer(checkpoint, num_beams=beams).answer(pairs, beams)
    answerer = Answerer(bundle, threads=1, batch_size=2, num_beams=beams)
    ours = answerer.answer(pairs, beams)
    assert [[a.text for a in one] for one in ours] == [[a.text for a in one] for one in theirs]
    for one, other in zip(ours, theirs, strict=True):
        assert [a.score for a in one] == pytest.approx([a.score for a in other], abs=1e-3)
    alone = [answerer(photo, question) for photo, question in pairs]
    assert alone == answerer(pairs) == [one[0].text for one in ours]
    assert len(set(alone)) > 1


def test_a_picture_with_several_questions_is_seen_once(
    bundle: Path, photos: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    answerer = Answerer(bundle, threads=1)
    seen: list[int] = []
    vision = answerer._parts[0]
    run = vision.run
    monkeypatch.setattr(vision, "run", lambda pixels: (seen.append(len(pixels)), run(pixels))[1])
    image = Image.open(photos[0])
    answers = answerer([(image, question) for question in QUESTIONS] + [(photos[1], "where is it")])
    assert seen == [2]
    assert answers[:5] == [answerer(photos[0], question) for question in QUESTIONS]
    assert answerer([]) == []


def test_what_is_wrong_is_named(bundle: Path, photos: list[Path], tmp_path: Path) -> None:
    with pytest.raises(ImageError):
        Answerer(bundle)(b"no picture", "what is there?")
    with pytest.raises(ConfigError, match="max_new_tokens=10"):
        Answerer(bundle, max_new_tokens=10)
    with pytest.raises(ConfigError, match="unknown setting"):
        Answerer(bundle, beams=3)
    with pytest.raises(BundleError, match="kind 'answerer'"):
        vistill.Captioner(bundle)
    broken = tmp_path / "broken"
    shutil.copytree(bundle, broken)
    raw = json.loads((broken / "manifest.json").read_text())
    del raw["special_tokens"]["ask"]
    (broken / "manifest.json").write_text(json.dumps(raw))
    with pytest.raises(BundleError, match="ask is missing"):
        open_bundle(broken)
    raw["special_tokens"]["ask"] = 3
    (broken / "manifest.json").write_text(json.dumps(raw))
    with pytest.raises(BundleError, match=r"special_tokens\.ask"):
        Answerer(broken)(photos[0], "what?")
    with pytest.raises(BundleError, match="neither a checkpoint"):
        open_answerer(tmp_path)
    with pytest.raises(BundleError, match="no such folder"):
        open_answerer(tmp_path / "nowhere")


def test_long_and_strange_questions_are_answered(bundle: Path, photos: list[Path]) -> None:
    answerer = Answerer(bundle)
    strange = ["", "what " * 500, "<eos> \u2603 <ask>", "\ud800", "WHERE\n\tis  it??"]
    assert all(isinstance(answerer(photos[0], question), str) for question in strange)
    assert answerer(photos[0], strange[-1]) == answerer(photos[0], "where is it")


def test_int8_is_checked_on_questions(checkpoint: Path, tmp_path: Path) -> None:
    data = build_questions(tmp_path)
    settings = ExportConfig(
        precision="int8",
        data=data,
        calibration_pictures=4,
        min_agreement=0.0,
        max_accuracy_drop=100.0,
        threads=1,
    )
    manifest = export_checkpoint(checkpoint, tmp_path / "small", settings)
    checked = manifest.scores["export"]
    assert checked["questions"] == len(open_split(data, "dev"))
    assert {"accuracy_checkpoint", "accuracy_bundle"} <= checked.keys()
    assert Answerer(tmp_path / "small")(Image.new("RGB", (40, 40)), "where is it") is not None


def test_a_worse_bundle_is_refused() -> None:
    refuse(AnswerParity(100, 0.99, 0.98, 60.0, 59.5), ExportConfig())
    with pytest.raises(BundleError, match=r"accuracy falls from 60\.00 to 58\.00"):
        refuse(AnswerParity(100, 0.99, 0.98, 60.0, 58.0), ExportConfig())
    with pytest.raises(BundleError, match=r"90\.00% of the tokens"):
        refuse(AnswerParity(100, 0.9, 0.9), ExportConfig())


def test_ask_prints_answers(bundle: Path, checkpoint: Path, photos: list[Path], tmp_path: Path) -> None:
    def ask(*words: str) -> tuple[int, str]:
        done = CliRunner().invoke(app, ["ask", *words])
        return done.exit_code, done.stdout

    wanted = Answerer(bundle)([(photos[0], question) for question in QUESTIONS[:2]])
    photo = str(photos[0])
    assert ask(photo, QUESTIONS[0], "--model", str(bundle)) == (0, wanted[0] + "\n")
    lines = "".join(f"{q}\t{a}\n" for q, a in zip(QUESTIONS, wanted, strict=False))
    assert ask(photo, *QUESTIONS[:2], "--model", str(bundle)) == (0, lines)
    assert ask(photo, *QUESTIONS[:2], "--model", str(checkpoint)) == (0, lines)
    code, out = ask(photo, *QUESTIONS[:2], "--model", str(bundle), "--json", "--num-return", "2")
    rows = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert [row["question"] for row in rows] == list(QUESTIONS[:2])
    assert all(len(row["answers"]) == 2 and row["answers"][0]["text"] == row["answer"] for row in rows)
    (tmp_path / "x.jpg").write_bytes(b"no picture")
    assert ask(str(tmp_path / "x.jpg"), "what?", "--model", str(bundle))[0] == 1


def test_without_a_packaged_answerer_it_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from vistill.runtime import bundle as bundles

    monkeypatch.setattr(bundles, "PACKAGED", tmp_path)
    with pytest.raises(BundleError, match="holds no answerer"):
        vistill.Answerer()
