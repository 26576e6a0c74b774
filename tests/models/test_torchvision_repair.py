"""Importing torchvision works whatever build of it is installed."""

import subprocess
import sys

import pytest


def test_torchvision_imports_after_the_repair() -> None:
    pytest.importorskip("timm")
    code = (
        "from vistill.models.torchvision_repair import repair_torchvision as r\n"
        "first = r(); assert r() == first\nimport torchvision, timm\nprint(torchvision.__version__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
