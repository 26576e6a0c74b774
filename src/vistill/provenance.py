"""Where a result comes from: the machine, the versions, the revision of the code."""

import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

_PACKAGES = (
    "vistill",
    "numpy",
    "pillow",
    "tokenizers",
    "onnxruntime",
    "torch",
    "transformers",
    "timm",
    "lightning",
    "datasets",
)


def stamp() -> dict[str, Any]:
    """What a file of results ends in: when it was made, by which version and revision, on which machine."""
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "vistill": version("vistill"),
        "git": git_revision(),
        "environment": environment(),
    }


def environment() -> dict[str, str]:
    """Python, system, processor and the versions of the packages that matter and are installed."""
    out = {"python": platform.python_version(), "system": system(), "processor": processor()}
    for package in _PACKAGES:
        try:
            out[package] = version(package)
        except PackageNotFoundError:
            continue
    return out


def system() -> str:
    """The system and the kind of machine; the build of its kernel is nobody's business."""
    return f"{platform.system()} {platform.machine()}"


def processor() -> str:
    """The processor's name as the system tells it."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def git_revision() -> str:
    """Revision of the checkout that this code runs from, with `-dirty` if changed; empty outside of one.

    An installed package may lie inside a foreign checkout, which says nothing about it.
    """
    here = Path(__file__).resolve().parent
    if here.parent.name != "src" or not (here.parent.parent / ".git").exists():
        return ""
    try:
        command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
        found = subprocess.run(command, cwd=here, capture_output=True, text=True, timeout=10, check=False)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return ""
    return found.stdout.strip() if found.returncode == 0 else ""
