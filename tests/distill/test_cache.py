"""The cache from end to end on a tiny data set: what is read back, what is refused, what breaks on disk."""

import json
import os
import pickle
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from tests.distill.fake_teacher import FakeTeacher, identity
from tests.tiny import build_data

from vistill.data import store
from vistill.data.collate import mirror_words
from vistill.data.dataset import open_split
from vistill.data.records import Sample
from vistill.data.views import view_seed
from vistill.distill import cache_verify
from vistill.distill.answers import Answer, Ask
from vistill.distill.cache import CacheConfig, TeacherCache, read_manifest
from vistill.distill.cache_run import run
from vistill.distill.cache_verify import verify
from vistill.errors import ConfigError, DataError
from vistill.runtime.image import AugmentSpec, augment, read_image

ASK = Ask(captions=2, top_k=4, hidden="all", embedding=True)
CONFIG = CacheConfig(splits=("train", "dev"), views=3, seed=5, ask=ASK, shard_records=4, batch_size=3)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_data(tmp_path_factory.mktemp("tiny"), train=10, dev=2)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    folder = tmp_path_factory.mktemp("cache") / "cache"
    run(folder, FakeTeacher(), data, CONFIG)
    return folder


@pytest.fixture
def copy(tmp_path: Path, made: Path) -> Path:
    """A cache that a test may spoil."""
    return shutil.copytree(made, tmp_path / "copy")


def _shard(folder: Path, start: str) -> Path:
    [path] = folder.glob(f"{start}*.arrow")
    return path


def _direct(data: Path, split: str, row: int, view: int) -> tuple[Answer, bool]:
    """The teacher asked without a cache."""
    sample, mirrored = open_split(data, split)[row], False
    image, texts = read_image(sample["image"]), sample["captions"]
    if view:
        image, mirrored = augment(image, AugmentSpec(), view_seed(5, sample["key"], view))
    if mirrored:
        texts = [mirror_words(text) for text in texts]
    return FakeTeacher().answer([image], [texts], ASK)[0], mirrored


def test_each_record_is_what_the_teacher_says_of_that_view(data: Path, made: Path) -> None:
    cache = TeacherCache.open(made)
    assert cache.splits == {"train": 10, "dev": 2}
    assert len(cache) == 36
    assert cache.teacher == identity()
    assert cache.problems() == []
    flips = set()
    for split, rows in cache.splits.items():
        for row in range(rows):
            for view in range(3):
                kept = cache.read(split, row, view)
                expected, mirrored = _direct(data, split, row, view)
                assert kept.captions == expected.captions
                for ours, theirs in zip(
                    (*kept.gold, *kept.generated), (*expected.gold, *expected.generated), strict=True
                ):
                    np.testing.assert_array_equal(ours.ids, theirs.ids)
                    np.testing.assert_array_equal(ours.top_ids, theirs.top_ids)
                    np.testing.assert_allclose(ours.top_logp, theirs.top_logp, rtol=1e-3)
                np.testing.assert_allclose(kept.hidden, expected.hidden, rtol=1e-3)
                np.testing.assert_allclose(kept.embedding, expected.embedding, rtol=1e-3)
                assert cache.mirrored(split, row, view) is mirrored
                flips.add((view > 0, mirrored))
                sample = open_split(data, split)[row]
                shown, flipped = cache.picture(sample["image"], sample["key"], view)
                assert flipped is mirrored
                assert FakeTeacher().answer([shown], [()], ASK)[0].captions == kept.captions
    assert flips == {(False, False), (True, False), (True, True)}


def test_gold_captions_of_mirrored_views_are_mirrored(data: Path, tmp_path: Path) -> None:
    teacher = FakeTeacher()
    spec = AugmentSpec(flip=1.0)
    run(tmp_path / "c", teacher, data, replace(CONFIG, splits=("dev",), views=2, augment=spec))
    texts = [tuple(texts) for texts in open_split(data, "dev")["captions"]]
    assert teacher.saw == [*texts, *[tuple(map(mirror_words, each)) for each in texts]]
    assert teacher.saw[2:] != texts


def test_reading_says_which_records_there_are(made: Path) -> None:
    cache = TeacherCache.open(made)
    for place in (("test", 0, 0), ("train", 10, 0), ("train", -1, 0), ("train", 0, 3), ("train", 12, 0)):
        with pytest.raises(
            DataError, match=r"has no record of .* train \(10 pictures\), dev \(2 pictures\) in 3"
        ):
            cache.read(*place)
    assert cache.read("train", 9, 2).captions
    with pytest.raises(DataError, match="has no record"):
        cache.read("train", 10, 2)  # its shard is open by now


def test_other_processes_read_the_same(made: Path) -> None:
    cache = TeacherCache.open(made)
    before = cache.read("train", 3, 1)
    there = pickle.loads(pickle.dumps(cache))
    np.testing.assert_array_equal(there.read("train", 3, 1).hidden, before.hidden)


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="counts open files by /proc")
def test_open_files_do_not_pile_up(made: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    cache = TeacherCache.open(made)
    for row in range(10):
        cache.read("train", row, 0)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_black_box_has_captions_only(data: Path, tmp_path: Path) -> None:
    who = identity(kind="remote", tokenizer="", vocab_size=0)
    teacher = FakeTeacher(who, frozenset(("captions",)))
    config = CacheConfig(splits=("dev",), ask=Ask(captions=2))
    run(tmp_path / "c", teacher, data, config)
    kept = TeacherCache.open(tmp_path / "c").read("dev", 1)
    assert len(kept.captions) == 2
    assert kept == Answer(kept.captions)
    with pytest.raises(ConfigError, match="gives no top_k; it can give captions"):
        run(tmp_path / "d", teacher, data, replace(config, ask=Ask(captions=2, top_k=3)))
    assert not (tmp_path / "d").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"splits": ()}, "splits="),
        ({"splits": ("dev", "dev")}, "name each split once"),
        ({"views": 0}, "views=0: must be at least 1"),
        ({"shard_records": 0}, "shard_records=0"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"hidden_dtype": "int4"}, "hidden_dtype='int4': use float16 or int8"),
    ],
)
def test_settings_out_of_range(change: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        CacheConfig(**change)


@pytest.mark.parametrize(
    ("who", "config", "message"),
    [
        ({"weights": "w2"}, {}, "teacher.weights was 'w1' and is 'w2'"),
        ({"tokenizer": "t2"}, {}, "teacher.tokenizer was 't1' and is 't2'"),
        ({"preprocess": "p2"}, {}, "teacher.preprocess was 'p1' and is 'p2'"),
        ({"vocab_size": 41}, {}, "teacher.vocab_size was 40 and is 41"),
        ({}, {"views": 4}, "views was 3 and is 4"),
        ({}, {"seed": 6}, "seed was 5 and is 6"),
        ({}, {"augment": AugmentSpec(flip=0)}, "augment.flip was 0.5 and is 0"),
        ({}, {"ask": replace(ASK, top_k=5)}, "ask.top_k was 4 and is 5"),
        ({}, {"hidden_dtype": "int8"}, "values.hidden was 'float16' and is 'int8'"),
        ({}, {"splits": ("train",)}, "data.dev.pictures was 2 and is None"),
        ({}, {"shard_records": 5}, "shard_records was 4 and is 5"),
    ],
)
def test_a_cache_goes_on_with_the_same_question_only(
    data: Path, made: Path, who: dict, config: dict, message: str
) -> None:
    teacher = FakeTeacher(identity(**who))
    with pytest.raises(DataError, match=rf"is another cache: .*{message}.*; choose another folder"):
        run(made, teacher, data, replace(CONFIG, **config))
    assert teacher.asked == []


def test_batches_and_details_may_change(data: Path, made: Path) -> None:
    teacher = FakeTeacher(identity(details={"device": "cuda"}))
    assert run(made, teacher, data, replace(CONFIG, batch_size=16)).made == 0


def test_another_data_set_is_refused(data: Path, made: Path, tmp_path: Path) -> None:
    other = build_data(tmp_path, train=11, dev=2)
    with pytest.raises(DataError, match=r"is another cache: data.train.pictures was 10 and is 11"):
        run(made, FakeTeacher(), other, CONFIG)
    # Equal keys, other pictures: only the fingerprint can tell.
    report = json.loads((shutil.copytree(data, tmp_path / "same") / "report.json").read_text())
    report["splits"]["dev"]["fingerprint"] = "0" * 64
    (tmp_path / "same" / "report.json").write_text(json.dumps(report))
    with pytest.raises(DataError, match=r"data.dev.fingerprint was '\w{64}' and is '0{64}'"):
        TeacherCache.open(made).check(data=tmp_path / "same")
    TeacherCache.open(made).check(data=data)


def test_check_names_every_reason(data: Path, made: Path) -> None:
    cache = TeacherCache.open(made)
    who = identity()
    spec = AugmentSpec()
    cache.check(
        data=data,
        teacher=who,
        preprocess="p1",
        tokenizer="t1",
        wants=("top_k", "hidden"),
        views=3,
        seed=5,
        augment=spec,
    )
    cache.check(views=1, seed=6)
    for arguments, message in (
        ({"teacher": replace(who, weights="w2")}, "teacher.weights was 'w1' and is 'w2'"),
        ({"preprocess": "p2"}, "preprocessing was 'p1' and is 'p2'"),
        ({"tokenizer": "t2"}, "the teacher's tokenizer is 't1', the student's 't2': .* captions as text can"),
        ({"views": 4}, "it holds 3 views, 4 are needed"),
        ({"views": 2, "seed": 6}, "seed was 5 and is 6"),
        ({"views": 2, "augment": replace(spec, flip=0.0)}, "augment.flip was 0.5 and is 0"),
        ({"preprocess": "p2", "views": 4}, "preprocessing .*; it holds 3 views"),
    ):
        with pytest.raises(DataError, match=f"copy|cache: does not fit: .*{message}"):
            cache.check(**arguments)


def test_check_names_what_is_not_kept(data: Path, tmp_path: Path) -> None:
    run(tmp_path / "c", FakeTeacher(), data, CacheConfig(splits=("dev",)))
    with pytest.raises(DataError, match="it holds no hidden, top_k"):
        TeacherCache.open(tmp_path / "c").check(wants=("captions", "top_k", "hidden"))


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def _flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def _double(path: Path) -> None:
    shutil.copy(path, path.with_name(path.name.replace(path.name.split(".")[-2], "0" * 16)))


def _stray(path: Path) -> None:
    shutil.copy(path, path.with_name(path.name.replace("train", "elsewhere")))


@pytest.mark.parametrize(
    ("spoil", "where", "reason"),
    [
        (_truncate, "train-v01-0000004-0000008", "bytes are not those that were written"),
        (_flip_a_bit, "train-v01-0000004-0000008", "bytes are not those that were written"),
        (Path.unlink, "train-v01-0000004-0000008", "the shard is missing"),
        (_double, "train-v01-0000004-0000008", "there more than once"),
        (_stray, "elsewhere-v01-0000004-0000008", "is no shard of this cache"),
    ],
)
def test_verify_names_what_is_wrong_on_disk(
    data: Path, made: Path, copy: Path, spoil: Callable[[Path], None], where: str, reason: str
) -> None:
    assert verify(made, FakeTeacher(), data, sample=100) == []
    spoil(_shard(copy, "train-v01-0000004"))
    problems = verify(copy, FakeTeacher(), data, sample=100)
    assert problems[0].where.startswith(where)
    assert reason in problems[0].reason
    assert {problem.where[: len(where)] for problem in problems} == {where}


def test_a_shard_under_the_name_of_another_is_named(data: Path, copy: Path) -> None:
    """The bytes are whole, but of another view: what the shard says of itself tells."""
    one, two = _shard(copy, "train-v01-0000004"), _shard(copy, "train-v02-0000004")
    digest = two.name.split(".")[-2]
    one.unlink()
    wrong = one.with_name(f"{one.name.split('.')[0]}.{digest}.arrow")
    shutil.copy(two, wrong)
    [problem] = verify(copy, None, data)
    assert problem.where == wrong.name
    assert "is no shard of this cache: view was 1 and is 2" in problem.reason
    with pytest.raises(DataError, match=r"is no shard of this cache: view was 1 and is 2"):
        TeacherCache.open(copy).read("train", 4, 1)


def test_a_shard_of_another_cache_is_named(data: Path, copy: Path, tmp_path: Path) -> None:
    run(tmp_path / "other", FakeTeacher(identity(weights="w2")), data, CONFIG)
    path = _shard(copy, "dev-v00")
    path.unlink()
    shutil.copy(_shard(tmp_path / "other", "dev-v00"), copy)
    assert "cache was" in verify(copy, None, data)[0].reason
    with pytest.raises(DataError, match=r"dev-v00.*: is no shard of this cache: cache was"):
        TeacherCache.open(copy).read("dev", 0)


def test_opening_names_missing_doubled_and_truncated_shards(copy: Path) -> None:
    path = _shard(copy, "train-v01-0000004")
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    with pytest.raises(DataError, match=rf"{path.name}: is truncated; remove it and run"):
        TeacherCache.open(copy)
    path.unlink()
    with pytest.raises(
        DataError, match=r"1 of 12 shards are missing, the first is train-v01-0000004-0000008"
    ):
        TeacherCache.open(copy)
    path.write_bytes(content)
    _double(path)
    with pytest.raises(DataError, match="holds the same records; remove one of them"):
        TeacherCache.open(copy)


def test_keys_are_compared_row_by_row(data: Path, copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shard whose bytes are whole, but whose first picture is there twice."""
    path = _shard(copy, "dev-v00")
    keys = open_split(data, "dev")["key"][:]
    monkeypatch.setattr(cache_verify, "damaged", lambda path: False)
    path.write_bytes(path.read_bytes().replace(keys[1].encode(), keys[0].encode()))
    [problem] = verify(copy, None, data)
    assert problem.reason == f"row 1 is of picture {keys[0]!r}, the data set has {keys[1]!r} there"


def test_verify_asks_the_teacher_again(data: Path, made: Path) -> None:
    found = verify(made, FakeTeacher(drift=0.2), data, sample=5, seed=1)
    assert len(found) == 5
    assert all("asked again, the teacher answers otherwise: gold text 0: log p" in p.reason for p in found)
    assert {p.where for p in found} != {
        p.where for p in verify(made, FakeTeacher(drift=0.2), data, sample=5, seed=2)
    }
    assert verify(made, FakeTeacher(drift=1e-4), data, sample=36) == [], "rounding is no problem"
    [problem] = verify(made, FakeTeacher(identity(weights="w2")), data)
    assert (problem.where, problem.reason) == ("manifest.json", "teacher.weights was 'w1' and is 'w2'")


@pytest.mark.parametrize("dtype", ["float16", "int8"])
@pytest.mark.parametrize("hidden", ["all", "pooled"])
def test_verify_compares_states(data: Path, tmp_path: Path, hidden: str, dtype: str) -> None:
    config = CacheConfig(
        splits=("dev",), ask=Ask(captions=0, hidden=hidden, embedding=True), hidden_dtype=dtype
    )
    run(tmp_path / "c", FakeTeacher(), data, config)
    assert verify(tmp_path / "c", FakeTeacher(), data) == []
    assert "hidden: values are up to" in verify(tmp_path / "c", FakeTeacher(drift=0.5), data)[0].reason


def test_a_broken_manifest_is_named(copy: Path, tmp_path: Path) -> None:
    for content, message in (
        ("{", "is no manifest"),
        ("[]", "is no manifest"),
        ('{"format": 1}', "is no manifest"),
        ('{"format": 2}', "has format 2, this version reads 1"),
    ):
        (copy / "manifest.json").write_text(content)
        with pytest.raises(DataError, match=rf"manifest\.json: {message}"):
            read_manifest(copy)
    with pytest.raises(DataError, match="no such file; expected a folder that `vistill teach run` made"):
        TeacherCache.open(tmp_path)


def _with_broken_picture(data: Path, out: Path) -> str:
    """A copy of the data set whose second dev picture is half a JPEG; returns its key."""
    shutil.copytree(data, out)
    rows = [dict(row) for row in open_split(data, "dev")]
    rows[1]["image"] = rows[1]["image"][: len(rows[1]["image"]) // 2]
    for row in rows:
        row |= {"captions": tuple(row["captions"]), "answers": tuple(row["answers"])}
    [arrow] = (out / "dev").glob("*.arrow")
    store.write_shard(arrow, (Sample(**row) for row in rows))
    return str(rows[1]["key"])


def test_a_picture_that_cannot_be_decoded_is_named_not_dropped(data: Path, tmp_path: Path) -> None:
    key = _with_broken_picture(data, tmp_path / "data")
    folder, config = tmp_path / "cache", replace(CONFIG, splits=("dev",), views=2)
    report = run(folder, FakeTeacher(), tmp_path / "data", config)
    assert [problem.where for problem in report.problems] == [f"dev/{key}/view 0", f"dev/{key}/view 1"]
    assert report.problems[0].reason.startswith("truncated: ")
    assert report.made == 4
    cache = TeacherCache.open(folder)
    assert cache.read("dev", 0).captions
    with pytest.raises(DataError, match=rf"dev picture '{key}' has no answer: truncated"):
        cache.read("dev", 1, 1)
    assert cache.problems() == list(report.problems)
    assert run(folder, FakeTeacher(), tmp_path / "data", config) == replace(report, made=0, kept=4)
    assert verify(folder, FakeTeacher(), tmp_path / "data") == []


def test_the_manifest_says_all(data: Path, made: Path) -> None:
    manifest = read_manifest(made)
    assert manifest["teacher"] == asdict(identity())
    assert manifest["values"] == {"ids": "uint16", "top_logp": "float16", "hidden": "float16"}
    assert manifest["data"]["dev"]["fingerprint"] == store.read_report(data)["splits"]["dev"]["fingerprint"]
    assert TeacherCache.open(made).config == replace(CONFIG, batch_size=16)
