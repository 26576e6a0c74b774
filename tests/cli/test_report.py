"""`vistill report distill|train` as a user runs them."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from tests.report.evaluations import as_metrics, write_evaluation

from vistill.cli.report import app
from vistill.report.captions import fingerprint
from vistill.report.pictures import example_pictures

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(run_app: Callable[[typer.Typer], Run]) -> Run:
    """Run `vistill report ...`."""
    return run_app(app)


def rows(folder: Path) -> list[str]:
    """Words of a teacher and two students with two seeds each."""
    words = ["--teacher", f"the teacher={write_evaluation(folder / 'teacher', 0.9, 8)}"]
    for name, right in (("plain", 0.2), ("taught", 0.6)):
        seeds = ",".join(str(write_evaluation(folder / f"{name}{s}", right, s)) for s in range(2))
        words += ["--row", f"{name}={seeds}"]
    return words


def test_three_files_and_a_table(run: Run, tmp_path: Path) -> None:
    done = run("distill", *rows(tmp_path), "--out", tmp_path / "out", "--examples", 3)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split("\t")[0] for line in lines] == [
        "",
        "the teacher (teacher)",
        "plain (baseline)",
        "taught",
    ]
    assert "Fewer than 3 seeds" in done.stderr
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    told = as_metrics(tmp_path / "teacher")
    assert report["data"]["fingerprint"] == told["data"]["fingerprint"]
    assert report["lines"][0]["scores"]["CIDEr"]["mean"] == pytest.approx(told["scores"]["CIDEr"]["value"])
    assert len(report["examples"]) == 3
    assert f"{report['lines'][2]['scores']['CIDEr']['mean']:.2f}" in lines[3]
    for name in ("report.html", "report.md"):
        text = (tmp_path / "out" / name).read_text()
        assert "taught" in text
        assert report["examples"][2]["references"][0] in text


def test_json_and_another_baseline(run: Run, tmp_path: Path) -> None:
    done = run("distill", *rows(tmp_path), "--baseline", "taught", "--out", tmp_path / "out", "--json")
    report = json.loads(done.stdout)
    assert report == json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["baseline"] == "taught"
    assert report["lines"][1]["against"]["CIDEr"]["difference"]["value"] < 0


def test_nothing_is_written_when_data_differ(run: Run, tmp_path: Path) -> None:
    other = write_evaluation(tmp_path / "other", 0.4, pictures=30)
    done = run("distill", *rows(tmp_path), "--row", f"other={other}", "--out", tmp_path / "out")
    assert done.returncode == 2
    assert str(other) in done.stderr
    assert not (tmp_path / "out").exists()


def test_pictures_are_those_that_were_evaluated(tmp_path: Path) -> None:
    pytest.importorskip("datasets", reason="a built data set needs the data extra")
    from tests.tiny import build_data

    from vistill.data.dataset import open_split
    from vistill.errors import DataError

    built = build_data(tmp_path / "tiny", train=6, dev=4)
    table = open_split(built, "dev")
    measured = {"split": "dev", "pictures": 3, "fingerprint": fingerprint(table.select(range(3)))}
    key = table[2]["key"]
    shown = example_pictures(built, measured, [key])
    assert set(shown) == {key}
    assert shown[key].startswith("data:image/jpeg;base64,")
    with pytest.raises(DataError, match="fingerprint"):
        example_pictures(built, measured | {"pictures": 4}, [key])


def write_run(folder: Path) -> Path:
    """A run that over-fitted, logged as CSV."""
    (folder / "logs").mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"name": "tiny", "trainer": {"max_epochs": 4, "seed": 0}}))
    lines = ["step,train/loss,dev/CIDEr"]
    for step in range(1, 101):
        score = {25: "20", 50: "30", 75: "27", 100: "22"}.get(step, "")
        lines.append(f"{step},{5 - step / 50},{score}")
    (folder / "logs" / "metrics.csv").write_text("\n".join(lines) + "\n")
    return folder


def test_a_run_and_its_verdict(run: Run, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    done = run("train", folder)
    assert done.returncode == 0, done.stderr
    assert "best   30.00   last   22.00" in done.stdout
    assert "Over-fitting" in done.stdout
    assert done.stderr.strip() == str(folder / "report.html")
    assert "Over-fitting" in (folder / "report.html").read_text()


def test_a_page_elsewhere_leaves_the_run_alone(run: Run, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    before = sorted(folder.rglob("*"))
    done = run("train", folder, "--out", tmp_path / "pages" / "tiny.html", "--json")
    told = json.loads(done.stdout)
    assert told["verdict"]["kind"] == "over-fitting"
    assert told["dev"]["CIDEr"] == {"first": 20, "best": 30, "last": 22}
    assert (tmp_path / "pages" / "tiny.html").is_file()
    assert sorted(folder.rglob("*")) == before


def test_a_folder_that_is_no_run(run: Run, tmp_path: Path) -> None:
    done = run("train", tmp_path)
    assert done.returncode == 2
    assert "no folder of a run" in done.stderr
