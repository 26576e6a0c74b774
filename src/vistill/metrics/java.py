"""METEOR and SPICE: the Java programs of their authors, as pycocoevalcap brings them.

Both are optional: they need a Java runtime and the extra `eval`, SPICE also 400 MB of models and a JavaScript
engine. Nothing is downloaded here; a message says what is missing.

METEOR runs through pycocoevalcap. SPICE is started here: pycocoevalcap starts it with a cache that Java 17
refuses, names its jars so that no engine can be added, and writes into its own package.
"""

import json
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from vistill.errors import ConfigError

METRICS = ("METEOR", "SPICE")
INSTALL = "pip install 'vistill[eval]'"
MODELS = ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")
RHINO = Path("/usr/share/java/rhino.jar")
"""Debian's JavaScript engine. SPICE adds up scores in JavaScript, and Java itself has had none since 15."""


def missing(metric: str) -> str | None:
    """What has to be installed before `metric` can run, as a sentence; None if it can run."""
    if metric not in METRICS:
        raise ConfigError(f"metric {metric!r}: Java metrics are {', '.join(METRICS)}")
    if shutil.which("java") is None:
        return f"{metric} needs Java, and there is no `java` on the PATH: install a Java runtime (JRE)"
    home = _home()
    if home is None:
        return f"{metric} needs pycocoevalcap: {INSTALL}"
    libraries = home / "spice" / "lib"
    if metric == "SPICE" and not all((libraries / name).is_file() for name in MODELS):
        return (
            f"SPICE needs {' and '.join(MODELS)} (about 400 MB) in {libraries}: "
            "python -m pycocoevalcap.spice.get_stanford_models fetches them"
        )
    return None


def _home() -> Path | None:
    """The folder of pycocoevalcap; None if it is not installed."""
    package = find_spec("pycocoevalcap")
    places = package.submodule_search_locations if package else None
    return Path(next(iter(places))) if places else None


def score(
    metric: str, candidates: Mapping[str, str], references: Mapping[str, Sequence[str]]
) -> tuple[float, NDArray[np.float64]]:
    """Corpus score and score of each picture, in the order of `candidates`, as pycocoevalcap tells them.

    The texts are PTB tokens with one space between. METEOR's corpus score is its own aggregate, not the mean.
    Raises ConfigError when something is missing or the Java program fails.
    """
    lacking = missing(metric)
    if lacking:
        raise ConfigError(lacking)
    if not candidates:
        raise ConfigError(f"{metric}: there is no caption to score")
    theirs = {key: list(references[key]) for key in candidates}
    ours = {key: [candidates[key]] for key in candidates}
    try:
        return _meteor(theirs, ours) if metric == "METEOR" else _spice(theirs, ours)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        raise ConfigError(
            f"{metric}: the Java program failed ({type(error).__name__}: {error}); see its message above"
        ) from error


def _meteor(
    references: Mapping[str, list[str]], candidates: Mapping[str, list[str]]
) -> tuple[float, NDArray[np.float64]]:
    from pycocoevalcap.meteor.meteor import Meteor

    corpus, pictures = Meteor().compute_score(references, candidates)
    return float(corpus), np.array(pictures, dtype=np.float64)


def _spice(
    references: Mapping[str, list[str]], candidates: Mapping[str, list[str]]
) -> tuple[float, NDArray[np.float64]]:
    """F of the scene graphs (Anderson et al. 2016); NaN where neither has anything, and so their mean."""
    home = _home()
    assert home is not None
    jars = [home / "spice" / "spice-1.0.jar", home / "spice" / "lib" / "*", RHINO]
    with TemporaryDirectory() as folder:
        asked, told = Path(folder) / "asked.json", Path(folder) / "told.json"
        asked.write_text(
            json.dumps(
                [
                    {"image_id": key, "test": ours[0], "refs": references[key]}
                    for key, ours in candidates.items()
                ]
            )
        )
        done = subprocess.run(
            ["java", "-Xmx8G", "-cp", os.pathsep.join(map(str, jars)), "edu.anu.spice.SpiceScorer",
             str(asked), "-out", str(told), "-silent"],
            capture_output=True, text=True, errors="replace", check=False,
        )  # fmt: skip
        if done.returncode or not told.is_file():
            killed = f"it was killed by signal {-done.returncode}; it needs 8 GB of free memory"
            why = killed if done.returncode < 0 else _why(done.stderr, home)
            raise ConfigError(f"SPICE: the Java program failed: {why}")
        found = {
            picture["image_id"]: picture["scores"]["All"]["f"] for picture in json.loads(told.read_text())
        }
    pictures = np.array([found[key] for key in candidates], dtype=np.float64)  # null becomes NaN
    return float(pictures.mean()), pictures


def _why(stderr: str, home: Path) -> str:
    """What to do about a failure of SPICE."""
    if "scriptEngine" in stderr:
        return (
            "this Java has no JavaScript engine (none since 15 has): apt install librhino-java, or put "
            f"rhino.jar and rhino-engine.jar of Rhino into {home / 'spice' / 'lib'}"
        )
    if "OutOfMemoryError" in stderr or "object heap" in stderr:
        return "it needs 8 GB of free memory"
    problem = [line for line in stderr.splitlines() if "Exception" in line or "Error" in line]
    return (problem or stderr.splitlines()[-1:] or ["it says nothing"])[0].strip()
