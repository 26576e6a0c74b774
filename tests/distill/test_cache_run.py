"""Making a cache: planned, killed anywhere, shared between processes, and never over something else."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
from tests.distill.fake_teacher import FakeTeacher
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


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_at_seeded_points_and_run_again_gives_the_same_bytes(data: Path, tmp_path: Path) -> None:
    assert run_script(KILLER, tmp_path / "killed", 5, data) > 30


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_at_every_point_and_run_again_gives_the_same_bytes(data: Path, tmp_path: Path) -> None:
    assert run_script(KILLER, tmp_path / "killed", 0, data) > 30
