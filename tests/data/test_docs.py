"""The data set that docs/data.md adds as its example must work as printed."""

import re
from pathlib import Path

import pytest

from vistill.data.dataset import build, open_split
from vistill.data.records import REASONS
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
