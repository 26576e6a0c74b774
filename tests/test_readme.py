"""The commands in README.md and docs/ do what they say.

A fenced block after a line `<!-- test -->` is run by bash in a temporary folder that holds `samples/`. If the
next block follows a line `<!-- output -->`, it is what the commands print. `<!-- test: slow -->` is slow.
"""

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from vistill.report.generate import hash_files

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
RESULT = ROOT / "docs" / "results" / "flickr8k-captioner-dev.json"
FENCE = re.compile(r"<!-- (test|output)(?:: (slow))? -->\n+```\w*\n(.*?)```", re.DOTALL)
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")
FENCED = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)
IMAGE = re.compile(r'<img [^>]*src="([^"]+)"')


@dataclass(frozen=True)
class Block:
    page: str
    number: int
    commands: str
    output: str | None
    slow: bool


def blocks() -> list[Block]:
    found: list[Block] = []
    for page in PAGES:
        for number, (kind, slow, text) in enumerate(FENCE.findall(page.read_text(encoding="utf-8"))):
            if kind == "output":
                last = found.pop()
                found.append(Block(last.page, last.number, last.commands, text, last.slow))
            else:
                found.append(Block(page.name, number, text, None, bool(slow)))
    return found


def parameters() -> list[object]:
    return [
        pytest.param(block, id=f"{block.page}-{block.number}", marks=[pytest.mark.slow] if block.slow else [])
        for block in blocks()
    ]


@pytest.mark.parametrize("block", parameters())
@pytest.mark.usefixtures("shipped_bundle")
def test_commands_work(block: Block, tmp_path: Path) -> None:
    (tmp_path / "samples").symlink_to(ROOT / "samples", target_is_directory=True)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block.commands],
        cwd=tmp_path,
        env=os.environ | {"PATH": path, "NO_COLOR": "1", "XDG_DATA_HOME": str(tmp_path / "data")},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    if block.output is not None:
        assert done.stdout.strip() == block.output.strip()


def test_the_readme_is_tested() -> None:
    assert any(block.page == "README.md" for block in blocks())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_pictures_are_there(page: Path) -> None:
    text = FENCED.sub("", page.read_text(encoding="utf-8"))
    for target in [*LINK.findall(text), *IMAGE.findall(text)]:
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} points to {target}"


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "docs/architecture.md", "docs/from-the-five.md"])
def test_files_that_a_page_names_are_there(page: str) -> None:
    """Names like `runtime/image.py` are read from src/vistill or from the repository."""
    text = (ROOT / page).read_text(encoding="utf-8")
    for name in re.findall(r"`((?:[a-z0-9_]+/)+[a-z0-9_]+\.(?:py|yaml|css))`", text):
        places = [ROOT / name, ROOT / "src" / "vistill" / name, ROOT / "src" / name]
        assert any(place.exists() for place in places), f"{page} names {name}"


def test_the_scores_are_those_of_the_kept_result() -> None:
    """README.md tells the figures of docs/results, and these are of the bundle in the package."""
    result = json.loads(
        (ROOT / "docs" / "results" / "flickr8k-captioner-dev.json").read_text(encoding="utf-8")
    )
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for name in ("CIDEr", "BLEU-4"):
        figure = result["scores"][name]
        assert f"{name} {figure['value']:.1f} ({figure['low']:.1f} to {figure['high']:.1f})" in text


@pytest.mark.usefixtures("shipped_bundle")
def test_the_kept_result_is_of_the_bundle_in_the_package() -> None:
    result = json.loads(
        (ROOT / "docs" / "results" / "flickr8k-captioner-dev.json").read_text(encoding="utf-8")
    )
    folder = ROOT / "src" / "vistill" / "bundles" / "captioner"
    names = [entry["file"] for entry in json.loads((folder / "manifest.json").read_text())["files"].values()]
    assert result["model"]["sha256"] == hash_files([folder / name for name in names])


def test_the_two_set_up_commands_are_scripts(root: Path) -> None:
    text = (root / "README.md").read_text(encoding="utf-8")
    for script in ("scripts/demo.sh", "scripts/test.sh"):
        assert script in text
        assert os.access(root / script, os.X_OK)
