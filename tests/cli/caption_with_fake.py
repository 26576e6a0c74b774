"""`vistill caption` with a captioner that says how grey a picture is. Run as a program by the tests.

VISTILL_TEST_SLOW: seconds that a batch takes. VISTILL_TEST_KILL=K:PART: the process kills itself with SIGKILL
within the K-th append to the caption file, after PART of that append's bytes.
"""

import os
import signal
import time
from typing import Any

import typer

import vistill.archive.outputs as outputs
import vistill.runtime.pipelines as pipelines
from vistill.cli import main as cli
from vistill.cli.caption import caption
from vistill.runtime.image import Preprocess


class FakeCaptioner:
    """As `vistill.runtime.pipelines.Captioner`, as far as the command uses it."""

    preprocess = Preprocess((4, 4), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))

    def __init__(
        self, bundle: Any = None, threads: int | None = None, batch_size: int = 16, **generation: Any
    ) -> None:
        self.threads = threads or 2
        self.beams = generation.get("num_beams", 3)

    def caption_arrays(self, pixels: Any, num_return: int) -> list[list[pipelines.Caption]]:
        time.sleep(float(os.environ.get("VISTILL_TEST_SLOW", "0")))
        return [
            [pipelines.Caption(f"grey {255 * p.mean():.0f}", -i / 2) for i in range(num_return)]
            for p in pixels
        ]


def kill_within_append(number: int, part: float) -> None:
    whole = outputs.TextOutput._append
    appends = 0

    def torn(self: outputs.TextOutput, data: bytes) -> None:
        nonlocal appends
        appends += 1
        if appends == number:
            self._file.write(data[: int(part * len(data))])
            self._file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        whole(self, data)

    outputs.TextOutput._append = torn  # type: ignore[method-assign]


def program() -> typer.Typer:
    """A program whose only command is `caption`."""
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(caption)
    return app


if __name__ == "__main__":
    if kill := os.environ.get("VISTILL_TEST_KILL"):
        at, share = kill.split(":")
        kill_within_append(int(at), float(share))
    pipelines.Captioner = FakeCaptioner  # type: ignore[assignment,misc]
    cli.app = program()
    cli.main()
