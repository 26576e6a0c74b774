"""A student that learns from a cache: the command, and the same loss curve as with the teacher online."""

import dataclasses
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from PIL import Image
from tests.tiny import build_data

from vistill.data.collate import Batch
from vistill.data.dataset import open_split
from vistill.distill import join
from vistill.distill.answers import Answer, Ask, TeacherIdentity
from vistill.distill.cache import CacheConfig
from vistill.distill.cache_run import run
from vistill.distill.objective import ObjectiveConfig, Teaching
from vistill.distill.teachers import load_teacher
from vistill.errors import DataError
from vistill.models.captioner import CaptionerConfig
from vistill.models.language import DecoderConfig
from vistill.models.mapper import MapperConfig
from vistill.models.vision import VisionConfig
from vistill.report.generate import open_model
from vistill.runtime.decode import GenerationConfig
from vistill.runtime.image import read_image
from vistill.train import caption as training
from vistill.train.caption import TrainConfig
from vistill.train.datamodule import DataConfig
from vistill.train.module import TrainModule
from vistill.train.run import LoggerConfig, TrainerConfig

ASK = Ask(
    captions=1,
    generation=GenerationConfig(num_beams=2, max_new_tokens=8),
    top_k=6,
    hidden="all",
    embedding=True,
    longest=24,
)
WEIGHTS = {
    "teacher_cross_entropy": 1.0,
    "top_k_kl": 1.0,
    "hidden_cosine": 0.5,
    "hidden_mse": 0.5,
    "embedding": 0.5,
}


def _config(folder: Path, name: str, objective: ObjectiveConfig, *, teacher: str = "") -> TrainConfig:
    return TrainConfig(
        name=name,
        out=str(folder),
        datamodule=DataConfig(path=str(folder / "built"), batch_size=4, captions=2, views=2, teacher=teacher),
        model=CaptionerConfig(
            VisionConfig(name="test_efficientnet", image_size=64),
            MapperConfig(layers=1),
            DecoderConfig(width=32, layers=2, heads=2, context=24),
        ),
        objective=objective,
        generation=GenerationConfig(num_beams=1, max_new_tokens=8),
        trainer=TrainerConfig(max_epochs=2, encoder="full"),
        logger=LoggerConfig("none"),
    )


@pytest.fixture
def curves(monkeypatch: pytest.MonkeyPatch) -> list[list[float]]:
    """The loss of every step, a list for each run."""
    runs: list[list[float]] = []
    step = TrainModule.training_step

    def recorded(self: TrainModule, batch: Batch, index: int) -> torch.Tensor:
        if index == 0:
            runs.append([])
        loss = step(self, batch, index)
        runs[-1].append(float(loss.detach()))
        return loss

    monkeypatch.setattr(TrainModule, "training_step", recorded)
    return runs


@pytest.mark.slow
def test_a_student_of_a_cache_is_that_of_the_teacher_online(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, curves: list[list[float]]
) -> None:
    data = build_data(tmp_path)
    training.train(_config(tmp_path, "teacher", ObjectiveConfig()))
    teacher = load_teacher(str(tmp_path / "teacher" / "best"))
    cache = CacheConfig(views=2, seed=0, ask=ASK)
    run(tmp_path / "cache", teacher, data, cache)

    objective = ObjectiveConfig(**WEIGHTS)  # type: ignore[arg-type]
    training.train(_config(tmp_path, "kept", objective, teacher=str(tmp_path / "cache")))
    ask = join.online_answers(teacher, open_split(data, "train"), cache)
    monkeypatch.setattr(training, "_teaching", lambda *_: Teaching(ask, 24, 32, 32))
    training.train(_config(tmp_path, "online", objective, teacher=str(tmp_path / "cache")))
    _, kept, online = curves
    assert len(kept) == len(online) == 12
    assert kept == pytest.approx(online, rel=2e-3)
    assert kept[-1] < 0.97 * kept[0], "a curve that goes nowhere would prove little"
    states = [
        torch.load(tmp_path / name / "last.ckpt", weights_only=True)["state_dict"]
        for name in ("kept", "online")
    ]
    weights = [name for name in states[0] if name.startswith("model.")]
    assert max(float((states[0][name] - states[1][name]).abs().max()) for name in weights) < 2e-3


@pytest.mark.slow
def test_the_commands_teach_and_train(tmp_path: Path) -> None:
    data = build_data(tmp_path)
    training.train(_config(tmp_path, "teacher", ObjectiveConfig()))

    def vistill(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "vistill", *words]
        return subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)

    out = str(tmp_path / "cache")
    made = vistill(
        "teach", "run", str(tmp_path / "teacher" / "best"), str(data), "--out", out, "--top-k", "4"
    )
    assert made.returncode == 0, made.stderr
    words = (
        "model=tiny",
        "logger=none",
        f"datamodule.path={data}",
        f"out={tmp_path}",
        "datamodule.batch_size=4",
        "trainer.max_epochs=1",
        "generation.max_new_tokens=8",
        f"init_from={tmp_path}/teacher/best",
        "datamodule.augment.flip=0",
        f"datamodule.teacher={out}",
    )
    done = vistill(
        "train", *words, "name=student", "objective.teacher_cross_entropy=1", "objective.top_k_kl=1"
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "student" / "best" / "model.safetensors").is_file()
    published = (tmp_path / "student" / "best" / "config.json").read_text()
    assert str(tmp_path) not in published
    provenance = json.loads(published)["provenance"]
    assert provenance["losses"] == {"cross_entropy": 1.0, "teacher_cross_entropy": 1.0, "top_k_kl": 1.0}
    taught = load_teacher(str(tmp_path / "teacher" / "best")).identity
    assert provenance["teacher"]["weights"] == taught.weights
    assert provenance["teacher"]["ask"]["top_k"] == 4
    trained = open_model(tmp_path / "student").trained[0]
    assert trained["teacher"] == {"kind": taught.kind, "name": taught.name, "weights": taught.weights}
    assert trained["losses"] == provenance["losses"]
    assert trained["steps"] == provenance["reached"]["step"]
    refused = vistill("train", *words, "name=other", "objective.hidden_mse=1")
    assert refused.returncode == 2
    assert "holds no hidden" in refused.stderr


def test_a_wrong_teacher_is_refused_before_any_feature_is_built(tmp_path: Path) -> None:
    """The kept features of a large data set take hours; a folder that is not there is known at once."""
    build_data(tmp_path)
    with pytest.raises(DataError, match=r"nowhere.manifest\.json: no such file"):
        training.train(_config(tmp_path, "unused", ObjectiveConfig(), teacher=str(tmp_path / "nowhere")))
    config = _config(tmp_path, "used", ObjectiveConfig(top_k_kl=1.0), teacher=str(tmp_path / "nowhere"))
    frozen = dataclasses.replace(config, trainer=TrainerConfig(encoder="frozen"))
    with pytest.raises(DataError, match="nowhere"):
        training.train(frozen)
    assert not (tmp_path / "built-views").exists()


@pytest.mark.slow
def test_pictures_that_a_server_refuses_can_be_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = build_data(tmp_path)
    refused = set(range(0, 24, 3))  # the first picture among them
    pictures = [read_image(row["image"]).tobytes() for row in open_split(data, "train")]

    class Picky:
        identity = TeacherIdentity("black-box", "picky", "w", "p", "", 0)
        can = frozenset({"captions"})
        seconds_apart = 0.0

        def answer(self, *_: object) -> list[Answer]:
            raise AssertionError

        def answer_each(self, images: Sequence[Image.Image], gold: object, ask: object) -> list[Answer | str]:
            rows = [pictures.index(image.tobytes()) for image in images]
            return ["refused" if row in refused else Answer(captions=("a red circle",)) for row in rows]

    run(tmp_path / "cache", Picky(), data, CacheConfig(ask=Ask(captions=1)))
    objective = ObjectiveConfig(teacher_cross_entropy=1.0)
    config = _config(tmp_path, "student", objective, teacher=str(tmp_path / "cache"))
    one_view = dataclasses.replace(config.datamodule, views=1)
    with pytest.raises(DataError, match=r"8 records have no answer, the first: train/00000.*: refused; ask"):
        training.train(dataclasses.replace(config, datamodule=one_view))

    shown: set[int] = set()
    step = TrainModule.training_step

    def watched(self: TrainModule, batch: Batch, index: int) -> torch.Tensor:
        shown.update(item.row for item in batch.items)
        return step(self, batch, index)

    monkeypatch.setattr(TrainModule, "training_step", watched)
    without = dataclasses.replace(one_view, leave_out_unanswered=True)
    training.train(dataclasses.replace(config, name="without", datamodule=without))
    assert shown == set(range(24)) - refused
    assert "8 pictures without an answer of the teacher are left out" in capsys.readouterr().err
