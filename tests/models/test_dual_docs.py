"""docs/dual.md: its code runs, its sizes are those of the code."""

import re
from pathlib import Path

import pytest
import torch
from tests.models.tiny_clip import save_tiny_clip

from vistill.models.clip import ClipConfig
from vistill.models.dual import DualConfig, TextConfig


def test_the_conversion_for_open_clip(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("open_clip", reason="pip install --no-deps open_clip_torch; pip install ftfy")
    text = (root / "docs" / "dual.md").read_text("utf-8")
    [code] = re.findall(r"```python\n(.*?)```", text, re.S)
    monkeypatch.chdir(tmp_path)
    save_tiny_clip(tmp_path / "student")
    found: dict = {}
    exec(code, found)
    pixels = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        theirs = found["model"].eval().encode_image(pixels, normalize=True)
        torch.testing.assert_close(theirs, found["student"].encode_image(pixels), rtol=1e-4, atol=1e-5)


def test_the_defaults_are_as_the_table_says(root: Path) -> None:
    text = (root / "docs" / "dual.md").read_text("utf-8")
    row = next(line for line in text.splitlines() if line.startswith("| defaults"))
    c, t = ClipConfig(), TextConfig()
    ours = f"{t.layers} layers of width {t.width}, E = {DualConfig().width} "
    image = f"{c.image_size} px, patch {c.patch}, {c.image_width} x {c.image_layers}, {c.image_heads} heads"
    words = f"{c.context} tokens of {c.vocab_size:,}, {c.text_width} x {c.text_layers}, {c.text_heads} heads"
    assert ours in row
    assert f"{image}; {words}; E = {c.width} " in row
