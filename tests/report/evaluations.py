"""Folders as `vistill evaluate` writes them, with captions that are right for some of the pictures."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from vistill.report.captions import Run, Speed, prediction_lines, score_run, to_json
from vistill.report.generate import Model
from vistill.runtime.decode import GenerationConfig

WORDS = "red blue dog cat man runs sleeps jumps grass street snow".split()


def write_evaluation(
    folder: Path, right: float, seed: int = 0, pictures: int = 60, changes: dict[str, Any] | None = None
) -> Path:
    """Captions are a reference with probability `right`, else words; the references are always the same.

    changes: {"model.parameters": 9} and the like, put into metrics.json.
    """
    rng = np.random.default_rng(7)
    keys = [f"{i}.jpg" for i in range(pictures)]
    references = [[" ".join(rng.choice(WORDS, 6)) for _ in range(3)] for _ in keys]
    rng = np.random.default_rng(1000 + seed)
    captions = [texts[0] if rng.random() < right else " ".join(rng.choice(WORDS, 6)) for texts in references]
    run = Run(keys, captions, [-1.0] * pictures, references, 2.0, f"data-of-{pictures}-pictures")
    model = Model(
        lambda images: [],
        "checkpoint",
        GenerationConfig(),
        f"weights-{right}-{seed}",
        {"size": [4, 4]},
        parameters=2_000_000,
        bytes=8_000_000,
        threads=1,
        trained=(
            {
                "run": "r",
                "seed": seed,
                "steps": 442,
                "losses": {"cross_entropy": 0.5, "top_k_kl": 1.0},
                "teacher": {"kind": "ensemble", "name": "big", "weights": "0123456789abcdef"},
                "data": {},
                "git": "",
            },
        ),
    )
    scored = score_run(run)
    metrics = to_json(
        scored, model, folder.name, "shapes", "dev", Speed(4, 1, 10.0 + seed, 9.0, 19.0, 5.0 + seed)
    )
    for path, value in (changes or {}).items():
        *parents, last = path.split(".")
        place = metrics
        for name in parents:
            place = place[name]
        place[last] = value
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text(json.dumps(metrics))
    (folder / "predictions.jsonl").write_text("".join(f"{line}\n" for line in prediction_lines(scored)))
    return folder


def as_metrics(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "metrics.json").read_text())
    return found
