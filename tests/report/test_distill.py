"""Comparing systems: figures against those of single evaluations, refusals, notes, and both pages."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from tests.report.evaluations import as_metrics, write_evaluation
from tests.report.test_page import EVIL, read

from vistill.errors import ConfigError, DataError
from vistill.report.distill import (
    Report,
    compare_systems,
    parse_system,
    read_evaluation,
    read_system,
)
from vistill.report.distill_page import (
    ORIGIN_HEAD,
    difference_rows,
    origin_rows,
    score_rows,
    to_html,
    to_markdown,
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """{name: NAME=FOLDER,...} of a teacher, a student without and one with it, three seeds each."""
    root = tmp_path_factory.mktemp("evaluations")
    words = {}
    for name, right in (("plain", 0.3), ("taught", 0.6)):
        paths = [write_evaluation(root / f"{name}-{seed}", right, seed) for seed in range(3)]
        words[name] = f"{name}={','.join(map(str, paths))}"
    large = {
        "model.parameters": 9_000_000,
        "speed.median_ms": 44.0,
        "speed.cpu_ms": 24.0,
        "model.sha256": "t",
    }
    words["teacher"] = f"the teacher={write_evaluation(root / 'teacher', 0.8, 9, changes=large)}"
    return words


@pytest.fixture(scope="module")
def report(folders: dict[str, str]) -> Report:
    students = [read_system(folders["plain"]), read_system(folders["taught"])]
    return compare_systems(students, read_system(folders["teacher"]), samples=200, examples=4)


def paths(words: str) -> list[Path]:
    return parse_system(words)[1]


@pytest.mark.parametrize(
    ("text", "name", "folders"),
    [
        ("student, no teacher=a,b/c", "student, no teacher", ["a", "b/c"]),
        ("top-K, K=16=runs/x , runs/y,", "top-K, K=16", ["runs/x", "runs/y"]),
    ],
)
def test_a_row_is_a_name_and_folders(text: str, name: str, folders: list[str]) -> None:
    assert parse_system(text) == (name, [Path(folder) for folder in folders])


@pytest.mark.parametrize("text", ["name", "=a,b", "name=", "name= , ", ""])
def test_half_a_row_is_an_error(text: str) -> None:
    with pytest.raises(ConfigError, match="NAME=FOLDER"):
        parse_system(text)


def test_means_and_spreads_are_those_of_the_evaluations(report: Report, folders: dict[str, str]) -> None:
    teacher, plain, taught = report.lines
    assert [line.role for line in report.lines] == ["teacher", "baseline", "student"]
    for line, words in ((plain, folders["plain"]), (taught, folders["taught"])):
        told = [as_metrics(folder) for folder in paths(words)]
        for name, spread in line.scores.items():
            values = [metrics["scores"][name]["value"] for metrics in told]
            assert spread.mean == pytest.approx(np.mean(values))
            assert spread.deviation == pytest.approx(np.std(values, ddof=1))
            assert line.intervals[name].low < spread.mean < line.intervals[name].high
        for name, spread in line.variety.items():
            assert spread.mean == pytest.approx(np.mean([m["variety"][name]["model"] for m in told]))
        assert (line.parameters, line.megabytes) == (2_000_000, 8.0)
        assert (line.milliseconds, line.cpu_milliseconds, line.cpu_share) == (11.0, 6.0, 0.25)
    assert teacher.scores["CIDEr"].deviation is None
    assert teacher.parameters == 9_000_000


def test_differences_and_shares(report: Report) -> None:
    teacher, plain, taught = report.lines
    assert plain.against == {}
    for name in ("CIDEr", "BLEU-4", "ROUGE-L"):
        found = taught.against[name]
        assert found.difference.value == pytest.approx(taught.scores[name].mean - plain.scores[name].mean)
        assert 0 < found.difference.low < found.difference.value < found.difference.high
        assert found.p < 0.05
    assert teacher.teacher_share is None
    assert taught.teacher_share is not None
    share = taught.scores["CIDEr"].mean / teacher.scores["CIDEr"].mean
    assert taught.teacher_share.value == pytest.approx(share)


def test_another_baseline_turns_the_sign(report: Report, folders: dict[str, str]) -> None:
    students = [read_system(folders["plain"]), read_system(folders["taught"])]
    other = compare_systems(students, baseline="taught", samples=200)
    assert (other.teacher, other.lines[0].teacher_share, other.lines[0].cpu_share) == ("", None, None)
    there, back = report.lines[2].against["CIDEr"], other.lines[0].against["CIDEr"]
    assert back.difference.value == pytest.approx(-there.difference.value)
    with pytest.raises(ConfigError, match=r"'nobody'.*'plain', 'taught'"):
        compare_systems(students, baseline="nobody")
    with pytest.raises(ConfigError, match="'plain'"):
        compare_systems([students[0], students[0]])
    with pytest.raises(ConfigError, match="--row"):
        compare_systems([])


def test_other_data_are_refused_and_both_folders_named(tmp_path: Path, folders: dict[str, str]) -> None:
    other = write_evaluation(tmp_path / "other-data", 0.5, pictures=61)
    with pytest.raises(DataError, match=r"plain-0 and .*other-data .*60 pictures.*61 pictures"):
        compare_systems([read_system(folders["plain"]), read_system(f"other={other}")])


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"model.parameters": 3}, "model.parameters"),
        ({"model.kind": "bundle"}, "model.kind"),
        ({"generation.num_beams": 9}, "generation"),
        ({"model.sha256": "weights-0.3-0"}, "same weights"),
    ],
)
def test_seeds_that_are_no_seeds(
    tmp_path: Path, folders: dict[str, str], changes: dict[str, object], reason: str
) -> None:
    other = write_evaluation(tmp_path / "odd", 0.3, 4, changes=changes)
    with pytest.raises(DataError, match=rf"plain-0 and .*odd .*{reason}"):
        read_system(f"{folders['plain']},{other}")


def test_files_that_do_not_belong_together(tmp_path: Path) -> None:
    ours, theirs = (write_evaluation(tmp_path / name, share) for name, share in (("a", 0.2), ("b", 0.9)))
    (ours / "predictions.jsonl").write_bytes((theirs / "predictions.jsonl").read_bytes())
    with pytest.raises(DataError, match="do not belong together"):
        compare_systems([read_system(f"x={ours}")])
    lines = (theirs / "predictions.jsonl").read_text().splitlines(keepends=True)
    (ours / "predictions.jsonl").write_text("".join(lines[:-1]))
    with pytest.raises(DataError, match=r"59 lines.*60 pictures"):
        read_evaluation(ours)
    (ours / "predictions.jsonl").write_text('{"key": 1}\n')
    with pytest.raises(DataError, match="no evaluation"):
        read_evaluation(ours)
    (ours / "predictions.jsonl").unlink()
    with pytest.raises(DataError, match=r"predictions\.jsonl is missing"):
        read_evaluation(ours)


def test_notes_say_what_makes_a_comparison_unfair(tmp_path: Path, report: Report) -> None:
    assert len(report.notes) == 1
    assert "'the teacher'" in report.notes[0]  # it has one seed
    changes = {
        "generation.num_beams": 1,
        "environment.processor": "another",
        "speed.threads": 2,
        "model.trained": [{"seed": 0}],
    }
    first = [write_evaluation(tmp_path / f"a{i}", 0.5, i) for i in range(3)]
    odd = [write_evaluation(tmp_path / f"b{i}", 0.4, i, changes=changes) for i in range(3)]
    words = [f"{name}={','.join(map(str, found))}" for name, found in (("a", first), ("b", odd))]
    notes = " ".join(compare_systems([read_system(word) for word in words], samples=20).notes)
    for wanted in (
        "num_beams 3, 1",
        "processor",
        "threads 1, 2",
        "'b': evaluations of the same training seed",
    ):
        assert wanted in notes
    assert "Fewer" not in notes
    unknown = [
        write_evaluation(tmp_path / f"u{i}", 0.4, i, changes={"model.trained": [{}]}) for i in range(3)
    ]
    told = compare_systems([read_system(f"u={','.join(map(str, unknown))}")], samples=20).notes
    assert "same training seed" not in " ".join(told), "seeds that nobody knows are not equal"


def test_where_each_student_comes_from(report: Report) -> None:
    row = dict(zip(ORIGIN_HEAD, origin_rows(report)[-1], strict=True))
    assert row["steps"] == "442"
    assert row["losses"] == "0.5 cross_entropy + 1 top_k_kl"
    assert row["taught by"] == "big (0123456789ab)"


def test_old_evaluations_without_size_and_time(tmp_path: Path) -> None:
    folder = write_evaluation(tmp_path / "old", 0.5)
    metrics = as_metrics(folder)
    for name in ("parameters", "bytes", "trained"):
        del metrics["model"][name]
    del metrics["speed"]
    (folder / "metrics.json").write_text(json.dumps(metrics))
    report = compare_systems([read_system(f"old={folder}")], samples=20)
    assert score_rows(report)[0][1:7] == ["1", "–", "–", "–", "–", "–"]
    assert any("no time" in note for note in report.notes)
    read(to_html(report, {}))


def test_examples_are_the_same_pictures_for_every_report(report: Report, folders: dict[str, str]) -> None:
    alone = compare_systems([read_system(folders["taught"])], samples=20, examples=4)
    assert [example.key for example in alone.examples] == [example.key for example in report.examples]
    first = read_evaluation(paths(folders["taught"])[0])
    for example in report.examples:
        assert example.captions["taught"] == first.captions[example.key]
        assert example.references == first.references[example.key]


def test_without_examples_there_is_no_place_for_them(folders: dict[str, str]) -> None:
    alone = compare_systems([read_system(folders["taught"])], samples=20, examples=0)
    for page in (to_markdown(alone), to_html(alone, {})):
        assert "xamples" not in page


def test_markdown_and_html_tell_the_same(report: Report) -> None:
    markdown, html = (
        to_markdown(report),
        to_html(report, {report.examples[0].key: "data:image/jpeg;base64,AA"}),
    )
    text = " ".join(read(html).text)
    assert "±" in text
    assert "the teacher (teacher)" in text
    for row in [*score_rows(report), *difference_rows(report)]:
        for cell in row:
            assert cell in text
            assert cell in markdown
    assert html.count("<img") == 1
    assert html.count("no picture") == 3
    assert report.data["fingerprint"] in text
    tables = [block.splitlines() for block in markdown.split("\n\n") if block.startswith("| ")]
    assert len(tables) == 4
    for lines in tables:
        assert len({line.count(" | ") for line in lines}) == 1


def test_names_and_captions_are_escaped(tmp_path: Path) -> None:
    folder = write_evaluation(tmp_path / "e", 0.5, pictures=3)
    plain = compare_systems([read_system(f"{EVIL} | a={folder}")], samples=20)
    evil = f"{EVIL} | `x`"
    example = replace(plain.examples[0], references=[evil], captions={f"{EVIL} | a": evil})
    report = replace(plain, examples=[example])
    html, markdown = to_html(report, {}), to_markdown(report)
    assert "<script" not in html
    assert "<script" not in markdown.replace("\\<", "")
    assert all(line.count(" | ") == 2 for line in markdown.splitlines() if line.startswith("| picture"))
    assert evil in "".join(read(html).text)


def test_the_report_is_json(report: Report) -> None:
    again = json.loads(json.dumps(asdict(report)))
    assert again["lines"][2]["against"]["CIDEr"]["difference"]["value"] > 0
    assert [origin["system"] for origin in again["origins"]] == ["the teacher"] + ["plain"] * 3 + [
        "taught"
    ] * 3
    assert again["origins"][1]["folder"] == "plain-0"
