"""METEOR and SPICE through pycocoevalcap, which runs their authors' Java programs.

Both are optional: they need a Java runtime and the extra `eval`, SPICE also 400 MB of models and Java 8 or
11.
Nothing is downloaded here; a message says what is missing.
"""

import shutil
import subprocess
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vistill.errors import ConfigError

METRICS = ("METEOR", "SPICE")
INSTALL = "pip install 'vistill[eval]'"


def missing(metric: str) -> str | None:
    """What has to be installed before `metric` can run, as a sentence; None if it can run."""
    if metric not in METRICS:
        raise ConfigError(f"metric {metric!r}: Java metrics are {', '.join(METRICS)}")
    if shutil.which("java") is None:
        return f"{metric} needs Java, and there is no `java` on the PATH: install a Java runtime (JRE)"
    package = find_spec("pycocoevalcap")
    if package is None or not package.submodule_search_locations:
        return f"{metric} needs pycocoevalcap: {INSTALL}"
    home = Path(next(iter(package.submodule_search_locations)))
    if metric == "SPICE" and not (home / "spice" / "lib" / "stanford-corenlp-3.6.0.jar").is_file():
        return (
            "SPICE needs Stanford CoreNLP 3.6.0 (about 400 MB): "
            "python -m pycocoevalcap.spice.get_stanford_models fetches it; use Java 8 or 11, not 17"
        )
    return None


def score(
    metric: str, candidates: Mapping[str, str], references: Mapping[str, Sequence[str]]
) -> tuple[float, NDArray[np.float64]]:
    """Corpus score and score of each picture, in the order of `candidates`, as pycocoevalcap computes them.

    The texts are PTB tokens with one space between. METEOR's corpus score is its own aggregate, not the mean.
    Raises ConfigError when something is missing or the Java program fails.
    """
    lacking = missing(metric)
    if lacking:
        raise ConfigError(lacking)
    theirs = {key: list(references[key]) for key in candidates}
    ours = {key: [candidates[key]] for key in candidates}
    try:
        return _meteor(theirs, ours) if metric == "METEOR" else _spice(theirs, ours)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        raise ConfigError(
            f"{metric}: the Java program failed ({type(error).__name__}: {error}); "
            "see its message above and try Java 8 or 11, with 8 GB of free memory for SPICE"
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
    from pycocoevalcap.spice.spice import Spice

    corpus, found = Spice().compute_score(references, candidates)
    by_key = {key: scores["All"]["f"] for key, scores in zip(sorted(candidates), found, strict=True)}
    return float(corpus), np.array([by_key[key] for key in candidates], dtype=np.float64)
