"""The frame of the command line: start-up time, help, version and errors for people."""

import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import typer

import vistill
from vistill.cli import main as cli
from vistill.errors import DataError

COMMANDS = (
    *("ask", "caption", "classify", "convert", "data", "embed", "evaluate", "export", "index"),
    *("predict", "report", "score", "search", "teach", "train"),
)
PROGRAM = Path(sys.executable).with_name("vistill")


def run(*words: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"COLUMNS": "100", "NO_COLOR": "1"}
    return subprocess.run([PROGRAM, *words], capture_output=True, text=True, env=environment, check=False)


def test_help_lists_every_command() -> None:
    done = run("--help")
    assert done.returncode == 0
    listed = re.findall(r"^  ([a-z]+) ", done.stdout.partition("Commands:")[2], flags=re.M)
    assert sorted(listed) == sorted(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_a_line_of_help_and_a_page(command: str) -> None:
    line = next(line for line in run("--help").stdout.splitlines() if line.startswith(f"  {command} "))
    assert len(line.split()) > 3
    done = run(command, "--help")
    assert done.returncode == 0
    assert f"vistill {command}" in done.stdout


@pytest.mark.parametrize("command", ["convert", "data", "report", "teach"])
def test_the_lines_of_the_sub_commands_are_whole(command: str) -> None:
    lines = run(command, "--help").stdout.partition("Commands:")[2].splitlines()
    assert [line for line in lines if line.endswith("...")] == []


def test_help_is_quick() -> None:
    """In processor time: the wall clock of a busy machine says nothing."""
    seconds = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert run("--help").returncode == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(seconds) < 0.3


def test_version() -> None:
    done = run("--version")
    assert (done.returncode, done.stdout.strip()) == (0, f"vistill {vistill.__version__}")


def test_no_command_shows_the_help() -> None:
    done = run()
    assert "Usage: vistill" in done.stdout + done.stderr


def test_unknown_command_is_a_usage_error() -> None:
    done = run("paint")
    assert done.returncode == 2
    assert done.stdout == ""
    assert "paint" in done.stderr


def fail_with(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    app = typer.Typer(pretty_exceptions_enable=False)

    @app.command()
    def command() -> None:
        raise error

    monkeypatch.setattr(cli, "app", app)
    monkeypatch.setattr(sys, "argv", ["vistill"])


def test_our_errors_become_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fail_with(DataError("photos.tsv: line 3 has no tab"), monkeypatch)
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 2
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "error: photos.tsv: line 3 has no tab\n")


def test_a_missing_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fail_with(ModuleNotFoundError("No module named 'torch'", name="torch"), monkeypatch)
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 2
    assert "pip install 'vistill[train]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (
            PermissionError(13, "Permission denied", "a\nb/report.json"),
            r"a\nb/report.json: Permission denied",
        ),
        (IsADirectoryError(21, "Is a directory", b"\xff"), r"\udcff: Is a directory"),
        (OSError(28, "No space left on device"), "No space left on device"),
    ],
)
def test_what_the_system_refuses_becomes_one_line(
    error: OSError, told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fail_with(error, monkeypatch)
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 2
    assert capsys.readouterr().err == f"error: {told}\n"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_behind_stdout_is_one_line() -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "vistill", "--version"], stdout=full, stderr=subprocess.PIPE, check=False
        )
    assert done.returncode == 2
    assert done.stderr.decode().splitlines()[-1].endswith("No space left on device")
    assert len(done.stderr.splitlines()) == 1


def test_other_errors_are_not_swallowed(monkeypatch: pytest.MonkeyPatch) -> None:
    fail_with(ModuleNotFoundError("No module named 'nonsense'", name="nonsense"), monkeypatch)
    with pytest.raises(ModuleNotFoundError):
        cli.main()
    fail_with(OSError("cannot identify image file"), monkeypatch)  # by a library, not by the system
    with pytest.raises(OSError, match="identify"):
        cli.main()


def test_extras_are_those_of_the_package(root: Path) -> None:
    import tomllib

    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    assert set(cli.EXTRAS.values()) <= set(project["optional-dependencies"])
