"""A data set of questions: balanced, split by picture, the same for the same seed, whole or not there."""

import json
import random
from collections import Counter
from pathlib import Path

import pytest

from vistill.data.dataset import BuildConfig, build, info, open_split, read_report, split_names
from vistill.data.questions import Question, read_scene
from vistill.data.questions_build import QuestionsConfig, balance, build_questions, cap
from vistill.data.questions_parse import learn
from vistill.data.questions_yesno import ask_yes_no, learn_presence
from vistill.errors import ConfigError, DataError
from vistill.metrics.vqa_baselines import question_kind

COLOURS = ("red", "blue", "green")
PLACES = ("beach", "street", "snow")
CONFIG = QuestionsConfig(min_answer=2)


def captions(number: int) -> list[str]:
    """Three captions of picture `number`, which agree: one animal, its ball, what it does, where."""
    who = ("dog", "horse")[number % 2]
    colour, place = COLOURS[number % 3], PLACES[number // 2 % 3]
    verb, third = (("running", "runs"), ("sitting", "sits"))[number // 3 % 2]
    ball = f" A {who} has a {colour} ball ." if number % 4 else ""
    return [
        f"A {who} is {verb} on the {place} .{ball}",
        f"The {who} {third} on the {place} .{ball}",
        f"A {who} {verb} on a {place} .",
    ]


@pytest.fixture(scope="module")
def captioned(tmp_path_factory: pytest.TempPathFactory, photo) -> Path:
    """A built data set of 48 pictures, 12 of them dev."""
    root = tmp_path_factory.mktemp("captioned")
    for number in range(48):
        folder = root / "raw" / ("dev" if number % 4 == 3 else "train")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number:02d}.jpg").write_bytes(photo(number))
        (folder / f"{number:02d}.txt").write_text("\n".join(captions(number)))
    build("folder", root / "raw", root / "built", BuildConfig(near_duplicates=None, licence="ours"))
    return root / "built"


@pytest.fixture(scope="module")
def questions(captioned: Path) -> Path:
    out = captioned.with_name("questions")
    build_questions(captioned, out, CONFIG)
    return out


def test_rows_are_in_the_common_schema(captioned: Path, questions: Path) -> None:
    assert set(split_names(questions)) <= {"train", "dev"}
    keys = []
    for split in split_names(questions):
        pictures = {row["key"]: row for row in open_split(captioned, split)}
        for row in open_split(questions, split):
            key, _, number = row["key"].rpartition("#")
            picture = pictures[key]  # of the same split: none has moved
            for name in ("image", "width", "height", "captions", "split", "licence"):
                assert row[name] == picture[name]
            assert number.isdigit()
            assert row["question"].endswith("?")
            assert len(row["answers"]) == 1
            source, _, kind = row["source"].rpartition(":")
            assert source == picture["source"]
            assert kind == question_kind(row["question"]), row["question"]
            keys.append(row["key"])
    assert keys
    assert len(set(keys)) == len(keys)


def test_answers_are_right_by_the_captions(questions: Path) -> None:
    for split in split_names(questions):
        for row in open_split(questions, split):
            number = int(Path(row["key"].partition("#")[0]).stem)
            colour, place = COLOURS[number % 3], PLACES[number // 2 % 3]
            verb = ("running", "sitting")[number // 3 % 2]
            who = ("dog", "horse")[number % 2]
            (answer,) = row["answers"]
            question = row["question"]
            if question.startswith("where"):
                assert answer == place
            elif question.startswith("what color"):
                assert answer == colour
            elif question.endswith("doing?"):
                assert answer == verb
            elif question.startswith(("is there", "is the")):
                asked = question.removesuffix("?").split()[-1]
                ball = "ball" if number % 4 else ""
                assert (answer == "yes") == (asked in (colour, place, verb, who, ball))


def test_the_report_counts_what_is_there(captioned: Path, questions: Path) -> None:
    report = read_report(questions)
    assert report["from"]["fingerprint"] == read_report(captioned)["fingerprint"]
    for split in split_names(questions):
        table = open_split(questions, split)
        counts = report["splits"][split]
        assert counts["questions"] == counts["rows"] == len(table)
        pictures = {row["key"].partition("#")[0]: len(row["image"]) for row in table}
        assert (counts["pictures"], counts["bytes"]) == (len(pictures), sum(pictures.values()))
        assert counts["captions"] == sum(len(row["captions"]) for row in table)
        stored = sum(path.stat().st_size for path in (questions / split).glob("*.arrow"))
        assert stored < sum(len(row["image"]) for row in table), "a picture is stored once for its questions"
        kinds = report["questions"][split]
        assert sum(found["questions"] for found in kinds.values()) == len(table)
        for kind, found in kinds.items():
            answers = [row["answers"][0] for row in table if row["source"].endswith(f":{kind}")]
            assert found["answers"] == dict(Counter(answers))
        yes_no = kinds["yes/no"]["answers"]
        assert yes_no.get("yes") == yes_no.get("no")
    assert info(questions)["splits"]["train"]["questions"] == report["splits"]["train"]["questions"]


def test_yes_and_no_are_equally_often_right_for_the_same_words(questions: Path) -> None:
    counts: dict[str, Counter[str]] = {}
    for row in open_split(questions, "train"):
        if row["source"].endswith("yes/no"):
            counts.setdefault(row["question"], Counter())[row["answers"][0]] += 1
    assert counts
    assert all(found["yes"] == found["no"] for found in counts.values())


def test_the_same_seed_gives_the_same_bytes(captioned: Path, questions: Path, tmp_path: Path) -> None:
    build_questions(captioned, tmp_path / "again", CONFIG)
    build_questions(captioned, tmp_path / "other", QuestionsConfig(seed=1, min_answer=2))
    files = sorted(p.relative_to(questions) for p in questions.rglob("*") if p.is_file())
    assert files == sorted(p.relative_to(tmp_path / "again") for p in (tmp_path / "again").rglob("*.*"))
    for name in files:
        assert (tmp_path / "again" / name).read_bytes() == (questions / name).read_bytes(), name
    reports = [json.loads((p / "report.json").read_text()) for p in (questions, tmp_path / "other")]
    assert reports[0]["fingerprint"] != reports[1]["fingerprint"]


def test_what_is_there_is_not_replaced_unasked(captioned: Path, questions: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="exists; --force replaces it"):
        build_questions(captioned, questions, CONFIG)
    with pytest.raises(DataError, match="choose another folder"):
        build_questions(captioned, captioned, CONFIG, force=True)
    (tmp_path / "precious").write_text("photos")
    with pytest.raises(DataError, match="is no data set"):
        build_questions(captioned, tmp_path, CONFIG, force=True)
    assert (tmp_path / "precious").read_text() == "photos"
    before = (questions / "report.json").read_bytes()
    build_questions(captioned, questions, CONFIG, force=True)
    assert (questions / "report.json").read_bytes() == before


def test_a_failure_leaves_nothing(captioned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("vistill.data.store.write_shard", broken)
    with pytest.raises(OSError, match="disk full"):
        build_questions(captioned, tmp_path / "out", CONFIG)
    assert list(tmp_path.iterdir()) == []


def test_nothing_to_ask_is_an_error(photo, tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "a.jpg").write_bytes(photo(1))
    (tmp_path / "raw" / "a.txt").write_text("nothing that repeats")
    build("folder", tmp_path / "raw", tmp_path / "built")
    with pytest.raises(DataError, match="no question is left"):
        build_questions(tmp_path / "built", tmp_path / "out")
    with pytest.raises(DataError, match="expected a folder that"):
        build_questions(tmp_path / "raw", tmp_path / "out")


@pytest.mark.parametrize("wrong", [{"max_share": 0.0}, {"max_frame_share": 1.5}, {"min_answer": 0}])
def test_settings_are_checked(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        QuestionsConfig(**wrong)  # type: ignore[arg-type]


def test_balance_keeps_the_promised_shares() -> None:
    draw = random.Random(5)
    answers = ["one"] * 300 + ["two"] * 60 + ["three"] * 30 + ["four"] * 12 + ["rare"] * 3
    asked = [
        Question(number, "number", "how many?", draw.choice(answers), f"many {draw.choice('abc')}")
        for number in range(900)
    ]
    config = QuestionsConfig(max_share=0.4, max_frame_share=0.5, min_answer=15)
    kept, dropped = balance({"train": asked[:800], "dev": asked[800:]}, "train", config)
    counts = Counter(question.answer for question in kept["train"])
    assert counts["rare"] == 0
    assert max(counts.values()) <= 0.4 * counts.total()
    assert sum(dropped.values()) + sum(map(len, kept.values())) == 900
    seen = {(question.kind, question.frame) for question in kept["train"]}
    assert all((question.kind, question.frame) in seen for question in kept["dev"])
    assert cap(asked, 1.0, draw) == sorted(asked, key=lambda question: question.answer)


def test_absent_needs_more_than_silence() -> None:
    """No "no" where a caption hints at the thing, or where people often leave it out."""
    texts = []
    for number in range(60):
        if number % 3 == 0:
            texts.append(
                ["A surfer on a wave with a surfboard .", "The surfer has a surfboard .", "A surfboard ."]
            )
        elif number % 3 == 1:
            texts.append(
                ["A dog on the grass .", "The dog is on grass .", "A cloud ." if number % 2 else "A dog ."]
            )
        else:
            texts.append(["A man on the grass .", "A man .", "The man is on grass ."])
    texts.append(["A surfer on a wave .", "A surfer falls .", "The surfer ."])  # does not say: surfboard
    lexicon = learn(text for group in texts for text in group)
    scenes = [read_scene(number, group, lexicon) for number, group in enumerate(texts)]
    presence = learn_presence(scenes, 3)
    assert "surfer" in presence.suspects["surfboard"]
    assert "cloud" not in presence.asked, "never named by two"
    asked = ask_yes_no(scenes, [], presence, random.Random(0))
    about = {q.text: Counter() for q in asked}
    for question in asked:
        about[question.text][question.answer] += 1
        assert not (question.text == "is there a surfboard?" and question.picture == len(texts) - 1)
    assert about["is there a surfboard?"]["yes"] == about["is there a surfboard?"]["no"] > 0


@pytest.mark.data
@pytest.mark.slow
def test_questions_about_real_pictures(data_root: Path, tmp_path: Path) -> None:
    build("flickr8k", data_root / "flickr8k", tmp_path / "built", workers=2)
    report = build_questions(tmp_path / "built", tmp_path / "questions")
    kinds = report["questions"]["train"]
    assert all(found["questions"] > 500 for found in kinds.values())
    for kind, found in kinds.items():
        share = max(found["answers"].values()) / found["questions"]
        assert share <= (0.5 if kind == "yes/no" else 0.36), kind
    answers = {answer for kind in kinds.values() for answer in kind["answers"]}
    assert {"dog", "two", "red", "beach", "running", "yes", "no"} <= answers
