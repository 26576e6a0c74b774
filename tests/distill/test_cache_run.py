"""Making a cache: planned, killed anywhere, shared between processes, and never over something else."""

import os
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from tests.distill.fake_teacher import FakeTeacher, identity
from tests.killing import run_script
from tests.tiny import build_data

from vistill.distill import cache_run
from vistill.distill.answers import Answer, Ask
from vistill.distill.cache import CacheConfig, TeacherCache, make_manifest, ranges
from vistill.distill.cache_run import make_shard, plan, run, start
from vistill.errors import ConfigError, DataError
from vistill.files import write_json

ROOT = Path(__file__).parents[2]
CONFIG = CacheConfig(splits=("train", "dev"), views=2, ask=Ask(captions=1, top_k=4), shard_records=3)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_data(tmp_path_factory.mktemp("tiny"), train=10, dev=2)


def _contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def _shards(folder: Path) -> dict[str, bytes]:
    return {name: content for name, content in _contents(folder).items() if name.endswith(".arrow")}


def test_a_plan_foretells_the_bytes(data: Path, tmp_path: Path) -> None:
    ask = Ask(captions=1, top_k=16, hidden="all")
    for config in (CONFIG, replace(CONFIG, ask=ask, hidden_dtype="int8", shard_records=512)):
        teacher = FakeTeacher()
        expected = plan(teacher, data, config, sample=10)
        assert sum(teacher.asked) == 1 + 10, "one to warm up, and the sample"
        report = run(tmp_path / config.hidden_dtype, FakeTeacher(), data, config)
        assert expected.records == report.made == 24
        assert expected.captions == 48
        assert expected.shards == len(_shards(tmp_path / config.hidden_dtype))
        assert expected.bytes == pytest.approx(report.bytes, rel=0.05)
        assert expected.bytes_per_caption == pytest.approx(expected.bytes / 48)
        assert expected.hours == pytest.approx(expected.seconds_per_record * 24 / 3600)
        assert expected.measured == 10


def test_a_plan_takes_small_data_and_refuses_what_cannot_be(data: Path, tmp_path: Path) -> None:
    assert plan(FakeTeacher(), data, replace(CONFIG, splits=("dev",)), sample=100).measured == 4
    with pytest.raises(ConfigError, match="sample=0: must be at least 1"):
        plan(FakeTeacher(), data, CONFIG, sample=0)
    with pytest.raises(ConfigError, match="gives no top_k"):
        plan(FakeTeacher(can=frozenset(("captions",))), data, CONFIG)
    with pytest.raises(DataError, match=r"has no split 'extra'"):
        plan(FakeTeacher(), data, replace(CONFIG, splits=("extra",)))


def test_two_ranks_make_what_one_makes(data: Path, tmp_path: Path) -> None:
    one = run(tmp_path / "one", FakeTeacher(), data, CONFIG)
    teachers = FakeTeacher(), FakeTeacher()
    first = run(tmp_path / "two", teachers[0], data, CONFIG, rank=1, ranks=2)
    with pytest.raises(
        DataError, match=r"5 of 10 shards are missing, the first is train-v00-0000000-0000003"
    ):
        TeacherCache.open(tmp_path / "two")
    second = run(tmp_path / "two", teachers[1], data, CONFIG, rank=0, ranks=2)
    assert _shards(tmp_path / "two") == _shards(tmp_path / "one")
    assert (first.made + second.made, one.made) == (24, 24)
    assert (first.missing, second.missing, second.kept) == (second.made, 0, first.made)
    assert sum(teachers[0].asked) == first.made
    assert sum(teachers[1].asked) == second.made
    with pytest.raises(ConfigError, match="rank=2 of ranks=2: must be 0 to ranks - 1"):
        run(tmp_path / "two", FakeTeacher(), data, CONFIG, rank=2, ranks=2)


def test_a_rank_runs_once_at_a_time(data: Path, tmp_path: Path) -> None:
    def twice(done: int, total: int) -> None:
        if done == 3:
            with pytest.raises(DataError, match="rank 0 of 1 is being run already"):
                run(tmp_path / "c", FakeTeacher(), data, CONFIG)
            seen.append(done)

    seen: list[int] = []
    run(tmp_path / "c", FakeTeacher(), data, CONFIG, progress=twice)
    assert seen == [3]
    assert not list((tmp_path / "c").glob(".rank*"))


def test_a_range_is_never_made_twice(data: Path, tmp_path: Path) -> None:
    """Two layouts of ranks at once may both ask for a shard; the later one stops."""
    teacher = FakeTeacher()
    manifest = start(tmp_path / "c", teacher, data, CONFIG)
    part = ranges(manifest)[0]
    arguments = (tmp_path / "c", teacher, data, CONFIG, part, manifest)
    late = make_shard(*arguments)
    next(late)
    list(make_shard(*arguments))
    with pytest.raises(DataError, match=f"another process made {part.stem} too"):
        list(late)
    assert len(_shards(tmp_path / "c")) == 1


def test_progress_counts_records(data: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    config = replace(CONFIG, batch_size=2)
    run(tmp_path / "c", FakeTeacher(), data, config, progress=lambda done, total: seen.append((done, total)))
    assert seen[:4] == [(0, 24), (2, 24), (3, 24), (5, 24)]
    assert seen[-1] == (24, 24)


def test_only_a_cache_is_ever_written_to(data: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").write_text("years of work")
    (tmp_path / "file").write_text("x")
    for name in ("thesis", "file"):
        with pytest.raises(DataError, match="is no teacher cache and not empty; choose another folder"):
            run(tmp_path / name, FakeTeacher(), data, CONFIG)
    assert [path.name for path in (tmp_path / "thesis").iterdir()] == ["chapter1.tex"]
    (tmp_path / "killed").mkdir()
    (tmp_path / "killed" / ".manifest.json-0-of-1.tmp").write_text("{")
    run(tmp_path / "killed", FakeTeacher(), data, CONFIG)
    run(tmp_path / "plain", FakeTeacher(), data, CONFIG)
    assert list(_contents(tmp_path / "killed")) == list(_contents(tmp_path / "plain"))


def test_a_teacher_that_breaks_its_contract_is_stopped(data: Path, tmp_path: Path) -> None:
    class Forgetful(FakeTeacher):
        def answer(self, images, gold, ask) -> list[Answer]:  # type: ignore[no-untyped-def]
            return super().answer(images, gold, ask)[:-1]

    class Silent(FakeTeacher):
        def answer(self, images, gold, ask) -> list[Answer]:  # type: ignore[no-untyped-def]
            return [replace(a, gold=a.gold[1:]) for a in super().answer(images, gold, ask)]

    with pytest.raises(DataError, match="teacher 'fake' gave 2 answers to 3 pictures"):
        run(tmp_path / "a", Forgetful(), data, CONFIG)
    with pytest.raises(DataError, match=r"'00000.jpg' cannot be kept: 1 gold texts for 2 gold captions"):
        run(tmp_path / "b", Silent(), data, CONFIG)
    assert _shards(tmp_path / "a") == _shards(tmp_path / "b") == {}


def test_a_run_goes_on_after_a_failing_teacher(data: Path, tmp_path: Path) -> None:
    class Tired(FakeTeacher):
        def answer(self, images, gold, ask) -> list[Answer]:  # type: ignore[no-untyped-def]
            if sum(self.asked) > 12:
                raise ConnectionError("no route")
            return super().answer(images, gold, ask)

    with pytest.raises(ConnectionError):
        run(tmp_path / "a", Tired(), data, CONFIG)
    kept = _shards(tmp_path / "a")
    assert 0 < len(kept) < 10
    teacher = FakeTeacher()
    report = run(tmp_path / "a", teacher, data, CONFIG)
    assert report.made == sum(teacher.asked) < 24
    run(tmp_path / "b", FakeTeacher(), data, CONFIG)
    assert _shards(tmp_path / "a") == _shards(tmp_path / "b")
    assert set(kept) < set(_shards(tmp_path / "b"))


def test_ranks_that_start_together_agree_on_one_manifest(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another rank publishes its manifest after this one looked and before it writes."""
    folder = tmp_path / "c"
    other = replace(CONFIG, seed=9)

    def late(path: Path, value: object) -> None:
        write_json(path, value)
        write_json(folder / "manifest.json", make_manifest(FakeTeacher().identity, data, CONFIG))

    monkeypatch.setattr(cache_run, "write_json", late)
    start(folder, FakeTeacher(), data, CONFIG, rank=1, ranks=2)
    assert sorted(path.name for path in folder.iterdir()) == ["manifest.json"]
    with pytest.raises(DataError, match="seed was 0 and is 9"):
        start(folder, FakeTeacher(), data, other, rank=0, ranks=2)


@dataclass
class Picky(FakeTeacher):
    """A black box that gives no answer about every third picture that it is shown, unless it is `tame`."""

    tame: bool = False
    seconds_apart: float = 0.0

    def answer_each(self, images, gold, ask) -> list[Answer | str]:  # type: ignore[no-untyped-def]
        found: list[Answer | str] = list(self.answer(images, gold, ask))
        before = sum(self.asked) - len(images)
        for n in range(len(images)):
            if not self.tame and (before + n) % 3 == 0:
                found[n] = f"request {before + n}: no"
        return found


RICH = replace(CONFIG, ask=Ask(captions=2, top_k=4, hidden="all", embedding=True), hidden_dtype="int8")


def test_pictures_without_an_answer_are_asked_about_again(data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "c"
    first = run(folder, Picky(), data, RICH)
    assert len(first.problems) == 8
    assert first.problems[0].where == "train/00000.jpg/view 0"
    assert first.problems[0].reason == "request 0: no"
    untouched = _shards(folder)
    again = Picky()
    assert run(folder, again, data, RICH).problems == first.problems
    assert again.asked == [], "only if it is told to"
    some = Picky()
    report = run(folder, some, data, RICH, retry=True)
    assert (report.made, report.kept, sum(some.asked)) == (8, 16, 8)
    assert len(report.problems) == 3, "every third of the eight"
    reasons = {problem.reason for problem in report.problems}
    assert reasons < {problem.reason for problem in first.problems}, "the reasons why they lacked one stay"
    assert len(_shards(folder)) == 10
    assert set(_shards(folder)) & set(untouched), "a shard that gained nothing is left alone"
    seen: list[tuple[int, int]] = []
    rest = Picky(tame=True)
    report = run(folder, rest, data, RICH, retry=True, progress=lambda *done: seen.append(done))
    assert (report.problems, sum(rest.asked), seen) == ((), 3, [(0, 3), (1, 3), (2, 3), (3, 3)])
    run(tmp_path / "plain", Picky(tame=True), data, RICH)
    assert _shards(folder) == _shards(tmp_path / "plain"), "the bytes as if all had been answered at once"
    nothing = Picky()
    assert run(folder, nothing, data, RICH, retry=True).made == 0
    assert nothing.asked == []


def test_a_damaged_shard_is_not_made_whole_by_asking_again(data: Path, tmp_path: Path) -> None:
    run(tmp_path / "c", Picky(), data, CONFIG)
    path = min((tmp_path / "c").glob("train-v00-*.arrow"))
    content = path.read_bytes()
    assert content.count(b"00001.jpg") == 1
    path.write_bytes(content.replace(b"00001.jpg", b"00009.jpg"))
    teacher = Picky(tame=True)
    with pytest.raises(DataError, match=f"{path.name}: the bytes are not those that were written"):
        run(tmp_path / "c", teacher, data, CONFIG, retry=True)
    assert teacher.asked == [], "nothing is paid for"


def test_asking_again_makes_what_is_missing_too_and_keeps_to_its_rank(data: Path, tmp_path: Path) -> None:
    first = run(tmp_path / "c", Picky(), data, CONFIG, rank=0, ranks=2)
    kept = _shards(tmp_path / "c")
    teacher = Picky(tame=True)
    report = run(tmp_path / "c", teacher, data, CONFIG, rank=1, ranks=2, retry=True)
    assert report.made == sum(teacher.asked) == 24 - first.made
    assert kept.items() < _shards(tmp_path / "c").items(), "the shards of rank 0 are as they were"
    run(tmp_path / "c", Picky(tame=True), data, CONFIG, retry=True)
    assert TeacherCache.open(tmp_path / "c").problems() == []


def test_a_kill_before_the_old_shard_is_gone_leaves_two_and_the_next_run_settles_it(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "c"
    run(folder, Picky(), data, CONFIG)
    with monkeypatch.context() as patch:
        patch.setattr(cache_run, "sync_folder", lambda path: 1 / 0)  # the new shard has its name by then
        with pytest.raises(ZeroDivisionError):
            run(folder, Picky(tame=True), data, CONFIG, retry=True)
    assert len(_shards(folder)) == 11
    with pytest.raises(DataError, match="holds the same records"):
        TeacherCache.open(folder)
    assert len(run(folder, Picky(), data, CONFIG).problems) == 7, "the better one of the two stays"
    assert len(_shards(folder)) == 10
    run(folder, Picky(tame=True), data, CONFIG, retry=True)
    run(tmp_path / "plain", FakeTeacher(), data, CONFIG)
    assert _shards(folder) == _shards(tmp_path / "plain")


def test_two_shards_of_a_range_that_lack_as_much_are_no_leftover(data: Path, tmp_path: Path) -> None:
    run(tmp_path / "c", FakeTeacher(), data, CONFIG)
    run(tmp_path / "d", FakeTeacher(drift=1), data, CONFIG)
    other = min((tmp_path / "d").glob("*.arrow"))
    (tmp_path / "c" / other.name).write_bytes(other.read_bytes())
    with pytest.raises(DataError, match="holds the same records; remove one of them"):
        run(tmp_path / "c", FakeTeacher(), data, CONFIG)
    assert len(_shards(tmp_path / "c")) == 11


def test_a_black_box_is_measured_without_waste(data: Path) -> None:
    config = replace(CONFIG, ask=Ask(captions=2))
    teacher = Picky(identity(vocab_size=0), seconds_apart=3.0)
    found = plan(teacher, data, config, sample=5)
    assert sum(teacher.asked) == 5, "none to warm up"
    assert (found.requests, found.spent) == (48, 10)
    assert found.hours == 48 * 3 / 3600, "no faster than it may be asked"
    assert plan(FakeTeacher(), data, config, sample=5).requests == 0


KILLER = """
import sys
from pathlib import Path
from tests.distill.fake_teacher import FakeTeacher
from tests.killing import kill_and_compare
from vistill.distill import cache
from vistill.distill.answers import Ask
from vistill.distill.cache_run import run

target, seed, points, data = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
cache.git_revision = lambda: "fixed"  # of a checkout where somebody may commit meanwhile
config = cache.CacheConfig(("train", "dev"), 2, shard_records=4,
    ask=Ask(captions=1, top_k=4, hidden="pooled"))

def make(out):
    run(out, FakeTeacher(), data, config)

print(kill_and_compare(make, target, seed, points, again_before=30))
"""
RETRIER = KILLER.replace(
    "    run(out, FakeTeacher(), data, config)",
    "    run(out, Picky(), data, config)\n    run(out, Picky(tame=True), data, config, retry=True)",
).replace("import FakeTeacher", "import FakeTeacher\nfrom tests.distill.test_cache_run import Picky")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_at_seeded_points_and_run_again_gives_the_same_bytes(data: Path, tmp_path: Path) -> None:
    assert run_script(KILLER, tmp_path / "killed", 5, data) > 30


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_at_every_point_and_run_again_gives_the_same_bytes(data: Path, tmp_path: Path) -> None:
    assert run_script(KILLER, tmp_path / "killed", 0, data) > 30


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_while_asking_again_and_run_again_gives_the_same_bytes(data: Path, tmp_path: Path) -> None:
    assert run_script(RETRIER, tmp_path / "killed", 5, data) > 30


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_anywhere_while_asking_again_and_run_again_gives_the_same_bytes(
    data: Path, tmp_path: Path
) -> None:
    assert run_script(RETRIER, tmp_path / "killed", 0, data) > 30
