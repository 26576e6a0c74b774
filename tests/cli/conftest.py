"""Commands run inside of this process."""

import subprocess
import sys
from collections.abc import Callable

import pytest
import typer

from vistill.errors import VistillError

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run_app(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[[typer.Typer], Run]:
    """A sub-app of `vistill` as a function of its words, with the exit codes of the command line."""
    monkeypatch.setenv("NO_COLOR", "1")

    def of(app: typer.Typer) -> Run:
        command = typer.main.get_command(app)

        def call(*words: object) -> subprocess.CompletedProcess[str]:
            capsys.readouterr()
            try:
                code = command.main([str(word) for word in words], standalone_mode=False) or 0
            except VistillError as error:
                print(f"error: {error}", file=sys.stderr)
                code = 2
            told = capsys.readouterr()
            return subprocess.CompletedProcess(words, code, told.out, told.err)

        return call

    return of
