"""Kill a piece of work with SIGKILL at what it does to the file system, go on, compare what it leaves."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[1]
POINTS = ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir")
"""Audit events at which a child is killed, if their path lies below the target."""


def run_script(code: str, target: Path, points: int, *words: object) -> int:
    """The number that `code` prints in a fresh process, given target, 7 (a seed), points and words."""
    target.mkdir()
    command = [sys.executable, "-c", code, str(target), "7", str(points), *map(str, words)]
    path = f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    return int(done.stdout)


def kill_and_compare(
    make: Callable[[Path], object], target: Path, seed: int, points: int, *, again_before: int
) -> int:
    """Make `target/NAME` whole, then killed at `points` seeded places (0: all of them) and made again.

    Each is killed a second time on the way, perhaps: at one of the first `again_before` places. What is made
    must be the same bytes. Returns the number of places there are.
    """
    assert _run(make, target, target / "plain")
    total = int((target / "count").read_text())
    expected = _contents(target / "plain")
    rng = random.Random(seed)
    chosen = range(1, total + 1) if points == 0 else sorted(rng.sample(range(1, total + 1), points))
    for point in chosen:
        out = target / f"killed-{point}"
        assert not _run(make, target, out, point), f"point {point} of {total} was not reached"
        again = rng.randrange(1, again_before)
        _run(make, target, out, again)
        assert _run(make, target, out), point
        assert _contents(out) == expected, f"killed at {point} and {again} of {total}: other bytes"
    return total


def run_and_kill(command: list[str], last: Path, checkpoints: int) -> bool:
    """Kill a command once `last` has been written so many times; whether it was still going."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    seen, stamp = 0, last.stat().st_mtime_ns if last.exists() else 0
    while process.poll() is None and seen < checkpoints:
        now = last.stat().st_mtime_ns if last.exists() else 0
        seen, stamp = seen + (now != stamp), now
        time.sleep(0.002)
    running = process.poll() is None
    process.kill()  # nothing, if it is over
    process.wait()
    return running


def _run(make: Callable[[Path], object], target: Path, out: Path, die_at: int | None = None) -> bool:
    """Make `out` in a child that kills itself at the n-th thing it does below `target`; whether it lived."""
    child = os.fork()
    if child == 0:
        count = 0

        def hook(event: str, args: tuple[object, ...]) -> None:
            nonlocal count
            if event in POINTS and str(target) in str(args[0]):
                count += 1
                if count == die_at:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)
        make(out)
        (target / "count").write_text(str(count))
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) or status == 0, status
    return status == 0


def _contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
