"""A dual encoder learns tower by tower and whole: commands, resume, two processes, CLIP from its teacher."""

import json
import math
import random
import shutil
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.distill.fake_texts import FakeTexts
from tests.killing import run_and_kill
from tests.models.test_sentence import folder as sentence_folder  # noqa: F401
from tests.models.tiny_clip import save_tiny_clip
from tests.tiny import build_data

from vistill.cli.compose import compose_train
from vistill.data.dataset import open_split
from vistill.data.texts import gather_texts
from vistill.distill.answers import Ask
from vistill.distill.cache import CacheConfig
from vistill.distill.cache_run import run as ask_pictures
from vistill.distill.teachers import load_teacher
from vistill.distill.text_cache import TextCache
from vistill.distill.text_cache import run as ask_texts
from vistill.errors import BundleError, ConfigError, DataError
from vistill.export.common import ExportConfig
from vistill.export.dual import export_dual
from vistill.metrics.retrieval import retrieval_scores
from vistill.models.clip import ClipDual
from vistill.models.loading import load_dual_model
from vistill.report.retrieval import open_sides
from vistill.runtime.image import read_image, to_array
from vistill.runtime.texts import encode_texts
from vistill.train import dual
from vistill.train.dual_score import DualScore, copy_scores, image_cosine


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, sentence_folder: Path) -> Path:  # noqa: F811
    """Tiny data `built`, a fake teacher's vectors of it and of lines, `texts`, a tiny BERT, `pieces`."""
    folder = tmp_path_factory.mktemp("dual")
    shutil.copytree(sentence_folder, folder / "pieces")
    data = build_data(folder)
    words = ("big", "small", "old"), ("dog", "circle", "square"), ("runs", "is red", "is on the left")
    (folder / "lines.txt").write_text("\n".join(f"a {a} {b} {c}" for a, b, c in product(*words)))
    ask_texts(folder / "texts", FakeTexts(width=12), gather_texts([str(data), str(folder / "lines.txt")]))
    return folder


def words(root: Path, name: str, *more: str) -> list[str]:
    return [
        "task=dual", "model=dual-tiny", "model.width=12", "model.text.width=16", f"pieces={root}/pieces",
        "logger=none", f"out={root}",
        f"name={name}", f"datamodule.path={root}/built", f"texts={root}/texts", "trainer.max_epochs=2",
        "datamodule.batch_size=4", "trainer.encoder=full", *more,
    ]  # fmt: skip


def compose_dual(*settings: Any) -> dual.DualTrainConfig:
    config = compose_train(words(*settings))
    assert isinstance(config, dual.DualTrainConfig)
    return config


def train(*settings: Any) -> Path:
    return dual.train(compose_dual(*settings)) / "best"


def provenance(best: Path, file: str = "config.json") -> dict[str, Any]:
    found: dict[str, Any] = json.loads((best / file).read_text())["provenance"]
    return found


@pytest.mark.slow
def test_a_text_tower_then_pictures_in_its_space(root: Path) -> None:
    text = ("towers=text", "objective.contrastive=0", "objective.text.cosine=1", "trainer.ema=0.9")
    first = train(root, "text", *text)
    scores = provenance(first)["reached"]["dev"]
    assert set(scores) == {"spearman", "cosine"}
    again = train(root, "text-2", *text, f"init_from={first}", "trainer.max_epochs=1")
    assert set(provenance(again)["reached"]["dev"]) == {"spearman", "cosine"}, "its pictures never learnt"
    assert str(root) not in (first / "config.json").read_text(), "somebody's paths would be published"

    image = ("towers=image", f"text_from={first}", "objective.image.cosine=1", "datamodule.captions=2")
    kept = ("trainer.encoder=last-3", "datamodule.views=2", f"datamodule.cache={root}/views")
    second = train(root, "image", *image, *kept, "logger=csv")
    before, after = load_dual_model(first)[0], load_dual_model(second)[0]
    for side, same in (("text_side", True), ("image_side", False)):
        states = [
            [t for module in getattr(model, side) for t in module.state_dict().values()]
            for model in (before, after)
        ]
        assert all(torch.equal(a, b) for a, b in zip(*states, strict=True)) == same
    # what was printed is what the checkpoint scores
    reached = provenance(second)["reached"]["dev"]
    assert reached == pytest.approx(scores_of(second, root / "built", TextCache(root / "texts")), abs=0.01)

    # dev pictures are shown with the captions found for them, at both validations
    dev = open_split(root / "built", "dev")
    shown = [json.loads(line) for line in (second.parent / "logs" / "samples.jsonl").read_text().splitlines()]
    assert [line["key"] for line in shown] == 2 * dev["key"][:8]
    assert {line["caption"] for line in shown} <= {text for texts in dev["captions"] for text in texts}

    # pictures alone: scored beside the teacher's texts, and the side that never learned is told
    alone = train(root, "alone", "towers=image", "objective.contrastive=0", "objective.image.cosine=1")
    assert provenance(alone)["untrained"] == ["text"]
    assert provenance(second)["untrained"] == []
    assert "image_cosine" in provenance(alone)["reached"]["dev"]
    with pytest.raises(BundleError, match="its text side has never learned"):
        open_sides(str(alone))
    with pytest.raises(BundleError, match="its image side has never learned"):
        load_teacher(str(first))
    with pytest.raises(BundleError, match="its text side has never learned"):
        export_dual(alone, root / "never", ExportConfig(precision="fp32"))
    assert open_sides(str(alone), str(first))[1].kind == "dual-encoder-text"
    more = ("towers=image", "objective.contrastive=0", "objective.image.cosine=1", f"init_from={alone}")
    longer = train(root, "longer", *more, "trainer.max_epochs=1")
    assert provenance(longer)["untrained"] == ["text"], "going on does not train it"
    assert dual.untrained_sides(compose_dual(root, "x", "towers=image", f"text_from={alone}")) == ["text"]

    whole = train(root, "both", f"init_from={second}", "texts=", "trainer.max_epochs=1")
    assert provenance(whole)["config"]["init_from"] == "image/best"


def scores_of(best: Path, data: Path, teacher: TextCache) -> dict[str, float]:
    """Recall of a checkpoint on dev, and how near its pictures are to the teacher, one by one."""
    model, tokenizer, preprocess = load_dual_model(best)
    rows = open_split(data, "dev")
    with torch.inference_mode():
        images = [
            model.encode_image(torch.from_numpy(to_array(read_image(row["image"]), preprocess))[None])
            for row in rows
        ]
        texts = [
            model.encode_text(torch.from_numpy(encode_texts(tokenizer, [text], model.context)))
            for row in rows
            for text in row["captions"]
        ]
    owner = np.array([place for place, row in enumerate(rows) for _ in row["captions"]])
    found = retrieval_scores(torch.cat(images).numpy(), torch.cat(texts).numpy(), owner)
    ways = {"text_to_image": found.text_to_image, "image_to_text": found.image_to_text}
    out = {f"{way}_r{k}": 100 * getattr(s, f"r{k}") for way, s in ways.items() for k in (1, 5, 10)}
    near = []
    for image, row in zip(images, rows, strict=True):
        aim = torch.nn.functional.normalize(torch.from_numpy(teacher.of(row["captions"])), dim=1).mean(0)
        near.append(float(torch.cosine_similarity(image[0], aim, dim=0)))
    return {**out, "r10": 100 * found.mean_r10, "image_cosine": 100 * sum(near) / len(near)}


@pytest.mark.slow
def test_a_clip_learns_from_a_clip_tower_by_tower(root: Path) -> None:
    teacher = save_tiny_clip(root / "teacher", seed=5)
    ask = CacheConfig(splits=("train", "dev"), ask=Ask(captions=0, embedding=True, hidden="all"))
    ask_pictures(root / "teacher-images", load_teacher(str(teacher)), root / "built", ask)
    spec = [sys.executable, "-m", "vistill", "teach", "texts", str(teacher), str(root / "built")]
    done = subprocess.run(
        [*spec, str(root / "lines.txt"), "--out", f"{root}/teacher-texts", "--json"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["texts"] == len(TextCache(root / "teacher-texts").texts)
    common = [
        "task=dual", "clip=tiny", "clip.width=12", "clip.image_size=32", "clip.patch=8",
        "clip.vocab_size=521", f"pieces={teacher}", "logger=none", f"out={root}",
        f"datamodule.path={root}/built",
        f"datamodule.teacher={root}/teacher-images", f"texts={root}/teacher-texts", "trainer.max_epochs=1",
        "datamodule.batch_size=4", "trainer.encoder=full", "datamodule.views=1",
    ]  # fmt: skip

    def run(*more: str) -> Path:
        config = compose_train([*common, *more])
        assert isinstance(config, dual.DualTrainConfig)
        return dual.train(config) / "best"

    image = run("name=clip-image", "towers=image", "objective=image-tower", "objective.image.hidden_mse=0.1")
    assert {"text_to_image_r1", "r10"} <= set(provenance(image, "vistill.json")["reached"]["dev"])
    text = run("name=clip-text", "towers=text", "objective=text-tower")
    assert {"spearman", "cosine", "r10"} <= set(provenance(text, "vistill.json")["reached"]["dev"])
    every = ("objective.interactive=1", "objective.relational=1", "objective.feature=1")
    both = run("name=clip-both", f"image_from={image}", f"text_from={text}", *every)
    model = load_dual_model(both)[0]
    assert isinstance(model, ClipDual)

    from transformers import CLIPModel

    public = CLIPModel.from_pretrained(both).eval()
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        theirs = public.get_image_features(pixel_values=pixels)
        theirs = getattr(theirs, "pooler_output", theirs)
        torch.testing.assert_close(model.image_embeds(pixels), theirs, rtol=1e-4, atol=1e-5)
    with pytest.raises(ConfigError, match=r"trainer\.encoder=last-1: a CLIP tower is not cut into stages"):
        run("name=stages", "trainer.encoder=last-1")


KILLED = {
    "text": ("towers=text", "objective.contrastive=0", "objective.text.cosine=1", "datamodule.batch_size=5"),
    "both": ("objective.image.cosine=1", "datamodule.views=2", "trainer.encoder=last-3"),
}


def command(root: Path, name: str, *more: str) -> list[str]:
    return [sys.executable, "-m", "vistill", "train", *words(root, name, *more)]


@pytest.mark.slow
@pytest.mark.parametrize("towers", list(KILLED))
def test_killed_runs_end_like_whole_ones(root: Path, towers: str) -> None:
    more = (*KILLED[towers], "trainer.checkpoint_every=1", "trainer.ema=0.9", f"datamodule.cache={root}/k")
    more += ("trainer.max_epochs=4",)  # many steps: a busy machine sees few of the checkpoints in time
    done = subprocess.run(
        command(root, f"{towers}-whole", *more), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    killed = command(root, f"{towers}-killed", *more)
    last = root / f"{towers}-killed" / "last.ckpt"
    assert run_and_kill(killed, last, random.Random(towers).randint(2, 5)), "over before it could be killed"
    done = subprocess.run([*killed, "--resume"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    states = [
        torch.load(root / f"{towers}-{name}" / "last.ckpt", weights_only=True) for name in ("whole", "killed")
    ]
    assert states[0]["global_step"] == states[1]["global_step"] > 8
    for part in ("state_dict", "current_model_state"):
        for name, tensor in states[0][part].items():
            assert torch.equal(tensor, states[1][part][name]), f"{part}: {name} differs"


@pytest.mark.slow
def test_two_processes_learn_as_one_with_the_joint_batch(root: Path) -> None:
    same = (
        "trainer.max_epochs=1", "model.dropout=0", "model.text.dropout=0", "datamodule.captions=2",
        "objective.interactive=1", "objective.image.cosine=1", "objective.text.mse=1",
        "trainer.gradient_clip=0",
    )  # fmt: skip
    weights = []
    for name, more in (
        ("one", ("datamodule.batch_size=8",)),
        ("two", ("datamodule.batch_size=4", "trainer.devices=2")),
    ):
        done = subprocess.run(command(root, name, *same, *more), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        state = torch.load(root / name / "last.ckpt", weights_only=True)
        assert state["global_step"] == 3
        weights.append(state["state_dict"])
    assert weights[0].keys() == weights[1].keys()
    start = dual.start_model(compose_train(words(root, "start")))[0].state_dict()  # type: ignore[arg-type]
    for name, one in weights[0].items():
        moved = float((one - start[name.removeprefix("model.")]).abs().max()) if "model." in name else 1.0
        assert float((one - weights[1][name]).abs().max()) <= 1e-5 + 0.02 * moved, name


def test_scores_of_a_copy() -> None:
    draw = np.random.default_rng(0)
    teacher = draw.normal(size=(300, 8)).astype(np.float32)
    same = copy_scores(3 * teacher, teacher, seed=0)
    assert same == pytest.approx({"spearman": 100, "cosine": 100})
    turned = teacher @ np.linalg.qr(draw.normal(size=(8, 8)))[0].astype(np.float32)
    assert copy_scores(turned, teacher, seed=0)["spearman"] == pytest.approx(100, abs=0.01)
    assert copy_scores(np.hstack([turned, 0 * turned]), teacher, seed=0).keys() == {"spearman"}
    assert abs(copy_scores(draw.normal(size=(300, 8)).astype(np.float32), teacher, 0)["spearman"]) < 10


def test_cosine_of_pictures_and_the_mean_of_their_texts() -> None:
    images = np.array([[2, 0], [0, 1], [0, 3]], np.float32)
    texts = np.array([[1, 0], [0, 5], [0, 1], [3, 4]], np.float32)  # two of picture 0, one each of 1 and 2
    found = image_cosine(images, texts, np.array([0, 0, 1, 2]))
    assert found == pytest.approx(100 * (math.sqrt(0.5) + 1 + 0.8) / 3)
    assert image_cosine(images, texts[:3], np.array([0, 0, 1])) == pytest.approx(
        100 * (math.sqrt(0.5) + 1) / 2
    )


def test_a_missing_tower_is_the_teachers() -> None:
    images = np.eye(3, dtype=np.float32)
    owner = np.array([0, 1, 2])
    predictions = {str(row): (images[row], None) for row in range(3)}
    scores = DualScore(texts=images, owner=owner)(predictions)
    assert scores["text_to_image_r1"] == scores["image_to_text_r1"] == scores["r10"] == 100
    predictions = {str(row): (None, images[[(row + 1) % 3]]) for row in range(3)}
    assert DualScore(images=images, owner=owner)(predictions)["text_to_image_r1"] == 0


def test_the_nearest_text_is_that_of_the_smallest_angle() -> None:
    images = np.array([[1.0, 0.0], [0.0, 1.0]], np.float32)
    long, near, other = [5.0, 5.0], [0.9, 0.1], [0.0, 0.2]  # the first has the largest product with both
    texts = np.array([long, near, other], np.float32)
    owner = np.array([0, 0, 1])
    predictions = {"a": (images[0], texts[:2]), "b": (images[1], texts[2:])}
    said = DualScore(owner=owner).nearest(predictions, ["long", "near", "other"], 2)
    assert said == {"a": "near", "b": "other"}
    teacher = {"a": (images[0], None), "b": (images[1], None)}
    assert DualScore(texts=texts, owner=owner).nearest(teacher, ["long", "near", "other"], 2) == said
    assert DualScore(texts=texts, owner=owner).nearest(teacher, ["long", "near", "other"], 1) == {"a": "near"}


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (("towers=none",), "towers='none': use image, text, both"),
        (("init_from=a", "text_from=b"), "init_from brings both sides"),
        (("towers=text", "texts=", "objective.contrastive=0", "objective.text.l1=1"), "texts is empty"),
        (("towers=image", "texts="), "set texts"),
        (("towers=image",), "the text side is new: set text_from"),
        (("datamodule.path=",), "datamodule.path is empty"),
        (("objective.image.hidden_mse=1",), "a teacher's hidden vectors: set datamodule.teacher"),
    ],
)
def test_what_does_not_fit_together_is_named(
    root: Path,
    tmp_path: Path,
    more: tuple[str, ...],
    says: str,
) -> None:
    with pytest.raises((ConfigError, DataError), match=says):
        train(root, "refused", *more, f"out={tmp_path}")


def test_texts_alone_hold_some_back(root: Path, tmp_path: Path) -> None:
    """Texts that are scored, and captions of splits that are not trained on, are left out."""
    cache = TextCache(root / "texts")
    for path in ("", f"{root}/built"):
        config = compose_train(words(root, "x", f"datamodule.path={path}", "datamodule.dev_samples=8"))
        data = dual.DualData(config.datamodule, 0, 1, "text", cache)
        model, tokenizer, preprocess = dual.start_model(config)  # type: ignore[arg-type]
        data.prepare(model, tokenizer, preprocess, frozen=0, pictures=False, dev_pictures=False)
        trained = {data.spelt.texts[number] for number in data.train_rows.of_row}
        assert trained
        assert not trained & set(data.dev_texts)
        assert trained <= set(cache.texts)
        assert (data.owner is None) == (path == "")
