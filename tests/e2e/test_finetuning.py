"""The notebook runs from top to bottom, and the five commands of README.md do what they say."""

import json
import os
import random
import re
import runpy
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw
from tests.tiny import COLOURS, tiny_config

MISSING = [
    name for name in ("torch", "lightning", "hydra", "timm", "onnx", "datasets") if not find_spec(name)
]
pytestmark = pytest.mark.skipif(
    bool(MISSING), reason=f"the train extra is not installed: no {', '.join(MISSING)}"
)
COMMANDS = re.compile(r"## Caption your own pictures in five commands\n.*?```bash\n(.*?)```", re.DOTALL)


def test_the_page_is_the_notebook(root: Path) -> None:
    to_markdown = runpy.run_path(str(root / "scripts" / "notebook_page.py"))["to_markdown"]
    page = (root / "docs" / "finetuning-notebook.md").read_text(encoding="utf-8")
    assert page == to_markdown(root / "notebooks" / "finetune.ipynb"), "run scripts/notebook_page.py"


def test_the_notebook_holds_no_outputs(root: Path) -> None:
    cells = json.loads((root / "notebooks" / "finetune.ipynb").read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert len(code) > 8
    assert not any(cell["outputs"] or cell["execution_count"] for cell in code)


def save_tiny(folder: Path) -> Path:
    """A checkpoint of a tiny captioner with random weights that knows the words of the drawn shapes."""
    import torch

    from vistill.data.text import TokenizerConfig, train_tokenizer
    from vistill.models.captioner import Captioner
    from vistill.models.checkpoint import save_captioner

    torch.manual_seed(0)
    texts = [f"a {colour} {shape} on grey" for colour in COLOURS for shape in ("circle", "square")]
    tokenizer = train_tokenizer(texts, TokenizerConfig(min_count=1))
    config = tiny_config(vocab=tokenizer.get_vocab_size())
    model = Captioner(replace(config, decoder=replace(config.decoder, context=32)))
    save_captioner(folder, model, tokenizer, {})
    return folder


@pytest.mark.slow
def test_the_notebook_runs_from_top_to_bottom(root: Path, tmp_path: Path) -> None:
    nbformat = pytest.importorskip("nbformat", reason="notebooks are run with the dev extra")
    nbclient = pytest.importorskip("nbclient", reason="notebooks are run with the dev extra")
    notebook: Any = nbformat.read(root / "notebooks" / "finetune.ipynb", as_version=4)
    (parameters,) = (cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", []))
    start = save_tiny(tmp_path / "tiny")
    parameters.source += f'\nSTART, WORK, EPOCHS = "{start}", Path("{tmp_path}/work"), 2'
    client = nbclient.NotebookClient(
        notebook, timeout=900, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    pages = [output.data["text/html"] for output in outputs if "text/html" in output.get("data", {})]
    assert [page.count("<img") for page in pages if "iframe" not in page] == [8, 8, 4]
    assert "before: " in pages[1]
    assert "after: " in pages[1]
    assert sum("<iframe" in page for page in pages) == 1
    printed = "".join(output.get("text", "") for output in outputs)
    assert re.search(r"CIDEr +first +[\d.]+ +best +[\d.]+ +last", printed)
    assert (tmp_path / "work" / "bundle" / "manifest.json").is_file()


def commands(page: Path) -> str:
    found = COMMANDS.search(page.read_text(encoding="utf-8"))
    assert found is not None
    return found[1]


def test_the_page_and_the_readme_tell_the_same_five_commands(root: Path) -> None:
    told = commands(root / "README.md")
    assert told == commands(root / "docs" / "finetuning.md")
    assert len(told.splitlines()) == 5


def draw_photos(folder: Path, count: int = 48) -> None:
    """Shapes on blurred backgrounds, with captions in .txt files that have a word of their own."""
    folder.mkdir()
    draw = random.Random(5)
    for number in range(count):
        colour, shape = draw.choice(list(COLOURS)), draw.choice(("circle", "square"))
        background = Image.frombytes("RGB", (6, 5), draw.randbytes(90))
        picture = background.resize((120, 100), Image.Resampling.BICUBIC)
        x, y, size = draw.randrange(60), draw.randrange(40), draw.randrange(30, 50)
        pen = ImageDraw.Draw(picture)
        paint = pen.ellipse if shape == "circle" else pen.rectangle
        paint((x, y, x + size, y + size), fill=COLOURS[colour])
        picture.save(folder / f"{number}.jpg", quality=92)
        (folder / f"{number}.txt").write_text(f"a {colour} {shape} before a zigzaggy background")


@pytest.mark.slow
def test_the_five_commands_work(root: Path, tmp_path: Path) -> None:
    checkpoint = root / "checkpoints"
    if not (checkpoint / "flickr8k-captioner" / "model.safetensors").is_file():
        pytest.skip("the checkpoint behind the model in the package is not there")
    (tmp_path / "checkpoints").symlink_to(checkpoint, target_is_directory=True)
    draw_photos(tmp_path / "my-photos")
    (tmp_path / "photo.jpg").write_bytes((tmp_path / "my-photos" / "0.jpg").read_bytes())
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", commands(root / "README.md")],
        cwd=tmp_path,
        env=os.environ | {"PATH": path, "NO_COLOR": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert "before training CIDEr" in done.stderr
    report = (tmp_path / "runs" / "mine" / "report.html").read_text(encoding="utf-8")
    assert "before training" in report
    assert "data:image/jpeg;base64," in report
    caption = done.stdout.splitlines()[-1]
    assert {"circle", "square"} & set(caption.split()), caption
    assert "zigzaggy" in caption, "words that the model did not know are learnt"
