"""The whole line with a tiny model, by commands only: data set, training, scores, bundle, captions."""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

MISSING = [
    name for name in ("torch", "lightning", "hydra", "timm", "onnx", "datasets") if not find_spec(name)
]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason=f"the train extra is not installed: no {', '.join(MISSING)}"),
]

COLOURS = {"red": (210, 30, 40), "green": (20, 160, 60), "blue": (30, 60, 200), "yellow": (230, 210, 30)}
SHAPES = ("square", "bar")


def draw(colour: str, shape: str, rng: np.random.Generator) -> Image.Image:
    """A coloured square or bar somewhere on noisy grey."""
    pixels = rng.integers(90, 140, (64, 64, 3), dtype=np.uint8)
    height, width = (24, 24) if shape == "square" else (8, 48)
    top, left = rng.integers(0, 64 - height), rng.integers(0, 64 - width)
    pixels[top : top + height, left : left + width] = COLOURS[colour]
    return Image.fromarray(pixels)


def vistill(*words: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).with_name("vistill")
    command = [str(word) for word in (program, *words)]
    return subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False
    )


def succeed(*words: str | Path, cwd: Path) -> str:
    done = vistill(*words, cwd=cwd)
    assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """96 pictures of which 24 are dev, with three captions each."""
    folder = tmp_path_factory.mktemp("line")
    rng = np.random.default_rng(0)
    for split, count in (("train", 9), ("dev", 3)):
        rows = []
        (folder / "photos" / split).mkdir(parents=True)
        for colour in COLOURS:
            for shape in SHAPES:
                for number in range(count):
                    name = f"{colour}-{shape}-{number}.png"
                    draw(colour, shape, rng).save(folder / "photos" / split / name)
                    texts = (
                        f"A {colour} {shape} .",
                        f"a {colour} {shape} on grey",
                        f"there is a {colour} {shape}",
                    )
                    rows.append({"file_name": name, "captions": texts})
        (folder / "photos" / split / "metadata.jsonl").write_text(
            "".join(json.dumps(row) + "\n" for row in rows)
        )
    return folder


@pytest.fixture(scope="module")
def built(folder: Path) -> Path:
    succeed("data", "build", "folder", "photos", "--out", "built", "--near-duplicates", "-1", cwd=folder)
    return folder / "built"


@pytest.fixture(scope="module")
def checkpoint(folder: Path, built: Path) -> Path:
    words = (
        "model=tiny name=line out=runs logger=none trainer.max_epochs=18 trainer.encoder=full optim.lr=0.003 "
        "optim.encoder_lr=0.001 datamodule.batch_size=12 datamodule.tokenizer.min_count=1 "
        "trainer.validate_every=6 generation.num_beams=2"
    )
    printed = succeed("train", f"datamodule.path={built}", *words.split(), cwd=folder)
    assert printed.strip().endswith("runs/line/best")
    return folder / "runs" / "line" / "best"


@pytest.fixture(scope="module")
def bundle(folder: Path, built: Path, checkpoint: Path) -> Path:
    succeed("export", checkpoint, "--out", "bundle", "--data", built, cwd=folder)
    return folder / "bundle"


def test_the_data_set_is_told(folder: Path, built: Path) -> None:
    told = succeed("data", "info", built, cwd=folder)
    assert "72" in told
    assert "24" in told


def test_a_trained_model_tells_colours_apart(folder: Path, built: Path, checkpoint: Path) -> None:
    printed = succeed(
        "evaluate",
        checkpoint,
        "--data",
        built,
        "--out",
        "scores",
        "--json",
        "--coco",
        "coco.json",
        cwd=folder,
    )
    metrics = json.loads(printed)
    assert metrics == json.loads((folder / "scores" / "metrics.json").read_text())
    assert metrics["data"]["pictures"] == 24
    lines = [json.loads(line) for line in (folder / "scores" / "predictions.jsonl").read_text().splitlines()]
    right = sum(line["key"].split("/")[-1].split("-")[0] in line["caption"].split() for line in lines)
    assert right >= 18
    page = (folder / "scores" / "report.html").read_text(encoding="utf-8")
    assert lines[0]["caption"] in page
    assert page.count("data:image/jpeg;base64,") >= 24
    coco = {row["image_id"]: row["caption"] for row in json.loads((folder / "coco.json").read_text())}
    assert coco == {line["key"]: line["caption"] for line in lines}


def test_the_bundle_says_what_the_checkpoint_says(
    folder: Path, built: Path, checkpoint: Path, bundle: Path
) -> None:
    said = {}
    for model in (checkpoint, bundle):
        out = f"scores-{model.name}"
        succeed("evaluate", model, "--data", built, "--out", out, cwd=folder)
        lines = (folder / out / "predictions.jsonl").read_text().splitlines()
        said[model.name] = {row["key"]: row["caption"] for row in map(json.loads, lines)}
        assert json.loads((folder / out / "metrics.json").read_text())["model"]["kind"] in (
            "checkpoint",
            "bundle",
        )
    same = sum(said["best"][key] == said["bundle"][key] for key in said["best"])
    assert same >= 23


def test_the_bundle_captions_files(folder: Path, bundle: Path) -> None:
    printed = succeed("caption", "photos/dev", "--model", bundle, "--json", cwd=folder)
    rows = [json.loads(line) for line in printed.splitlines()]
    assert len(rows) == 24
    assert all(row["caption"] for row in rows)


def test_a_folder_that_is_no_model_is_an_error(folder: Path, built: Path) -> None:
    done = vistill("evaluate", "photos", "--data", built, cwd=folder)
    assert done.returncode == 2
    assert done.stderr.startswith("error: photos: ")
    assert "Traceback" not in done.stderr
