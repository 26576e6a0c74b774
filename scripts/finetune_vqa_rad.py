"""Fine-tune the answerer on VQA-RAD, three seeds; scores before and after, open and closed questions apart.

    VISTILL_DATA=... python scripts/finetune_vqa_rad.py [CHECKPOINT] [--folder .] [--write]

CHECKPOINT is an answerer's, by default runs/flickr8k-answerer/best. Under --folder come built/vqa_rad (a
tenth of the pictures chooses the epoch, a fifth is scored; split by picture), runs/vqa-rad-SEED and their
scores in runs/evaluate. What is there already is kept, so a stopped script goes on when it is run again.
--write puts the table into docs/results/finetune-vqa-rad.md.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[1] / "docs" / "results" / "finetune-vqa-rad.md"
SEEDS = (0, 1, 2)
BEFORE = "before"
BLIND = {"most_frequent": "most frequent", "same_question": "same question", "question_words": "its words"}
EXAMPLES = 4

Metrics = dict[str, Any]


def vistill(*words: object) -> None:
    """Run a command of vistill; a failure ends the script with its exit code."""
    command = [sys.executable, "-m", "vistill", *map(str, words)]
    print("vistill", *words, file=sys.stderr, flush=True)
    code = subprocess.run(command, stdout=sys.stderr, check=False).returncode
    if code:
        raise SystemExit(code)


def run(checkpoint: Path, folder: Path, source: Path, settings: list[str]) -> None:
    """Whatever is not there yet: the data set, the runs, the scores. settings: further words of training."""
    data, runs = folder / "built" / "vqa_rad", folder / "runs"
    if not data.is_dir():
        parts = ("--dev-fraction", 0.1, "--test-fraction", 0.2)
        vistill("data", "build", "vqa_rad", source, "--out", data, *parts)
    evaluate(checkpoint, data, runs, BEFORE)
    for seed in SEEDS:
        name = f"vqa-rad-{seed}"
        if not scores(runs, str(seed)).is_file():
            vistill(
                "train",
                "experiment=vqa-rad-answerer",
                f"init_from={checkpoint}",
                f"name={name}",
                f"out={runs}",
                f"datamodule.path={data}",
                f"datamodule.cache={folder / 'built' / f'views-vqa-rad-{seed}'}",
                f"trainer.seed={seed}",
                *settings,
                *(["--resume"] if (runs / name / "last.ckpt").is_file() else []),
            )
        evaluate(runs / name / "best", data, runs, str(seed))


def scores(runs: Path, name: str) -> Path:
    """The file with the scores of a run, or of BEFORE."""
    return runs / "evaluate" / f"vqa-rad-{name}" / "metrics.json"


def evaluate(model: Path, data: Path, runs: Path, name: str) -> None:
    """Scores of a checkpoint on the test pictures, unless they are there."""
    file = scores(runs, name)
    if not file.is_file():
        asked = ("--task", "answer", "--data", data, "--split", "test")
        vistill("evaluate", model, *asked, "--out", file.parent)


def page(runs: Path) -> str:
    """The Markdown of the scores."""
    found = {name: json.loads(scores(runs, name).read_text()) for name in (BEFORE, *map(str, SEEDS))}
    first: Metrics = found["0"]
    about = first["data"]
    heads = ["questions", "questions", *(f"blind: {name}" for name in BLIND.values()), BEFORE]
    heads += [*(f"seed {seed}" for seed in SEEDS), "mean"]
    lines = [
        "# The answerer on VQA-RAD",
        "",
        "Written by `python scripts/finetune_vqa_rad.py --write`: the answerer of the package, which has",
        "seen photos alone, and the same after `experiment=vqa-rad-answerer`, asked",
        f"{about['questions']} questions about {about['pictures']} X-ray, CT and MR pictures that nothing",
        "was learned from or chosen by. Splits are by picture. Accuracy in hundredths by exact answers, with",
        "95% intervals over pictures; the blind answers never see the picture, they learn from the train",
        "questions.",
        "",
        f"| {' | '.join(heads)} |",
        "|" + "---|" * len(heads),
    ]
    for kind, score in first["scores"].items():
        after = [found[str(seed)]["scores"][kind]["accuracy"] for seed in SEEDS]
        cells = [kind, str(score["questions"]), *(f"{score['blind'][name]:.1f}" for name in BLIND)]
        cells += [_interval(found[BEFORE]["scores"][kind]["accuracy"]), *map(_interval, after)]
        lines.append(f"| {' | '.join(cells)} | {statistics.mean(one['value'] for one in after):.1f} |")
    above = {
        kind: sum(found[str(seed)]["scores"][kind]["beats_blind"] for seed in SEEDS)
        for kind in first["scores"]
    }
    told = ", ".join(f"{kind} in {count} of {len(SEEDS)} runs" for kind, count in above.items())
    lines += ["", f"The whole interval lies above the best blind answer: {told}.", ""]
    return "\n".join([*lines, *examples(scores(runs, "0").with_name("predictions.jsonl")), ""])


def _interval(figure: dict[str, float]) -> str:
    return f"{figure['value']:.1f} ({figure['low']:.1f} to {figure['high']:.1f})"


def examples(predictions: Path) -> list[str]:
    """A table of a few right and wrong answers of each kind, evenly drawn."""
    rows = [json.loads(line) for line in predictions.read_text("utf-8").splitlines()]
    lines = ["| | question | answer | right answer |", "|---|---|---|---|"]
    for kind in sorted({row["kind"] for row in rows}):
        for right in (True, False):
            some = [row for row in rows if row["kind"] == kind and (row["accuracy"] > 0.5) == right]
            for row in some[:: max(1, len(some) // EXAMPLES)][:EXAMPLES]:
                cells = (kind, row["question"], row["answer"], ", ".join(row["answers"]))
                lines.append(f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = Path("runs/flickr8k-answerer/best")
    parser.add_argument("checkpoint", type=Path, nargs="?", default=default)
    parser.add_argument("--folder", type=Path, default=Path())
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.name}")
    parser.add_argument("--set", nargs="*", default=[], help="further settings of training, as KEY=VALUE")
    words = parser.parse_args()
    if "VISTILL_DATA" not in os.environ:
        raise SystemExit("set VISTILL_DATA to the folder with vqa_rad/")
    run(words.checkpoint, words.folder, Path(os.environ["VISTILL_DATA"]) / "vqa_rad", words.set)
    text = page(words.folder / "runs")
    print(text)
    if words.write:
        PAGE.write_text(text, "utf-8")


if __name__ == "__main__":
    main()
