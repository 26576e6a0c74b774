"""The base package in an empty environment: small, without torch, and it captions a picture."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

LARGEST = 300 * 10**6  # bytes of the whole environment, pip included

pytestmark = pytest.mark.slow


def run(*words: str | Path, cwd: Path) -> str:
    done = subprocess.run([str(word) for word in words], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--quiet")
    run(*pip, "--no-deps", "--no-build-isolation", "--wheel-dir", folder, root, cwd=folder)
    return next(folder.glob("vistill-*.whl"))


@pytest.fixture(scope="module")
def environment(root: Path, wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", folder, cwd=folder)
    pip = (folder / "bin" / "python", "-m", "pip", "--disable-pip-version-check", "install", "--quiet")
    run(*pip, "-c", root / "constraints.txt", wheel, cwd=folder)
    return folder


def test_the_wheel_holds_the_package_and_nothing_else(root: Path, wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {name.split("/")[0] for name in names} == {
        "vistill",
        next(n.split("/")[0] for n in names if "dist-info" in n),
    }
    package = root / "src" / "vistill"
    kept = {
        f"vistill/{file.relative_to(package).as_posix()}" for file in package.rglob("*") if file.is_file()
    }
    kept = {name for name in kept if "__pycache__" not in name}
    assert {name for name in names if name.startswith("vistill/")} == kept


def test_the_environment_is_small_and_without_torch(environment: Path) -> None:
    size = sum(
        file.stat().st_size for file in environment.rglob("*") if file.is_file() and not file.is_symlink()
    )
    installed = run(environment / "bin" / "python", "-m", "pip", "list", "--format=freeze", cwd=environment)
    names = {line.partition("==")[0].lower() for line in installed.splitlines()}
    print(f"{size / 1e6:.0f} MB in {len(names)} packages")
    assert (
        names & {"torch", "torchvision", "transformers", "lightning", "datasets", "hydra-core", "timm"}
        == set()
    )
    assert size < LARGEST


def test_help_and_version_need_no_extra(environment: Path) -> None:
    vistill = environment / "bin" / "vistill"
    assert "caption" in run(vistill, "--help", cwd=environment)
    assert run(vistill, "--version", cwd=environment).startswith("vistill ")


def test_a_command_of_an_extra_names_it(environment: Path) -> None:
    done = subprocess.run(
        [environment / "bin" / "vistill", "train"],
        cwd=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "pip install 'vistill[train]'" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.usefixtures("shipped_bundle")
def test_it_captions_a_picture(root: Path, environment: Path, tmp_path: Path) -> None:
    photo = next(file for file in sorted((root / "samples").iterdir()) if file.suffix in (".jpg", ".png"))
    from_command = run(environment / "bin" / "vistill", "caption", photo, cwd=tmp_path)
    assert len(from_command.split()) > 3
    program = f"from vistill import Captioner; print(Captioner()({str(photo)!r}))"
    from_python = run(environment / "bin" / "python", "-c", program, cwd=tmp_path)
    assert from_python.strip() in from_command
