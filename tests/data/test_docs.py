"""What docs/data.md says: its example source builds, its rules and options are those of the code."""

import re
from pathlib import Path

import pytest
import typer

from vistill.cli.data import app
from vistill.data.cleaning import RULES
from vistill.data.dataset import build, open_split
from vistill.data.records import REASONS, tidy
from vistill.data.sources import SOURCES


def test_the_example_source_builds(
    root: Path, tmp_path: Path, photo, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (root / "docs" / "data.md").read_text("utf-8")
    code = next(block for block in re.findall(r"```python\n(.*?)```", text, re.S) if "def read" in block)
    namespace: dict = {}
    exec(code, namespace)
    monkeypatch.setitem(SOURCES, "pairs", namespace["read"])
    (tmp_path / "pairs" / "pictures").mkdir(parents=True)
    (tmp_path / "pairs" / "pictures" / "a.jpg").write_bytes(photo(1))
    (tmp_path / "pairs" / "pairs.txt").write_text("a.jpg;one dog\na.jpg;a dog\nb.jpg;no photo\nnonsense\n")
    report = build("pairs", tmp_path / "pairs", tmp_path / "out")
    assert open_split(tmp_path / "out", "train")["captions"][:] == [["one dog", "a dog"]]
    assert report["dropped"]["counts"] == {"bad_row": 1, "missing_picture": 1}


def test_every_reason_and_source_is_documented(root: Path) -> None:
    text = (root / "docs" / "data.md").read_text("utf-8")
    assert [name for name in (*REASONS, *SOURCES) if f"`{name}`" not in text] == []


def test_the_table_of_cleaning_rules_says_what_they_do(root: Path) -> None:
    text = (root / "docs" / "data.md").read_text("utf-8").split("## Cleaning captions")[1]
    rows = re.findall(r"^\| `(\w+)` \| `(.+)` \| `(.+)` \|$", text, re.M)
    assert [name for name, _, _ in rows] == list(RULES), "every rule, in the order in which they run"
    assert [tidy(RULES[name].apply(before)) for name, before, _ in rows] == [after for *_, after in rows]


def test_every_option_in_the_commands_exists(root: Path) -> None:
    text = (root / "docs" / "data.md").read_text("utf-8")
    command = typer.main.get_command(app)
    assert isinstance(command, typer.core.TyperGroup)
    known = {
        name: {option for parameter in sub.params for option in parameter.opts}
        for name, sub in command.commands.items()
    }
    lines = re.findall(r"^vistill data (\w+) (.*)$", text, re.M)
    assert len(lines) > 4
    for name, words in lines:
        assert set(re.findall(r"--[a-z][a-z-]*", words.split("#")[0])) <= known[name], words
    tables = set(re.findall(r"--[a-z][a-z-]*", text.split("## What is built")[0]))
    assert tables <= {option for options in known.values() for option in options}
