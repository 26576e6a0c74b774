"""Vectors of texts: asked once, killed anywhere, refused when something else, read by text."""

import os
from pathlib import Path

import numpy as np
import pytest
from tests.distill.fake_texts import FakeTexts, identity
from tests.killing import run_script

from vistill.data.texts import SourceCount, TextSet
from vistill.distill import text_cache
from vistill.distill.text_cache import TextCache, run
from vistill.errors import DataError

TEXTS = TextSet([f"text number {n} é" for n in range(7)], [SourceCount("lines.txt", 8, 0, 1)])


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_cache, "SHARD", 3)


def test_what_was_said_can_be_read_by_text(tmp_path: Path) -> None:
    teacher, seen = FakeTexts(), []
    assert run(tmp_path, teacher, TEXTS, lambda done, total: seen.append((done, total))) == 7
    assert seen == [(3, 7), (6, 7), (7, 7)]
    cache = TextCache(tmp_path)
    assert cache.teacher == teacher.identity
    assert cache.manifest["sources"] == [{"source": "lines.txt", "read": 8, "empty": 0, "duplicates": 1}]
    asked = [TEXTS.texts[5], TEXTS.texts[0], TEXTS.texts[5]]
    assert np.abs(cache.of(asked) - teacher(asked)).max() < 1e-3  # float16 of unit vectors
    with pytest.raises(DataError, match=r"1 texts, the first: 'never asked'.*vistill teach texts"):
        cache.of([TEXTS.texts[0], "never asked"])


def test_only_what_is_missing_is_asked(tmp_path: Path) -> None:
    run(tmp_path, FakeTexts(), TEXTS)
    next(tmp_path.glob("vectors-00000003-*")).unlink()
    with pytest.raises(DataError, match="1 of 3 files are missing, the first begins with text 3"):
        TextCache(tmp_path)
    teacher = FakeTexts()
    assert run(tmp_path, teacher, TEXTS) == 3
    assert teacher.asked == [3]
    assert TextCache(tmp_path).vectors.shape == (7, 16)


def test_other_texts_and_another_teacher_are_refused(tmp_path: Path) -> None:
    run(tmp_path, FakeTexts(), TEXTS)
    with pytest.raises(DataError, match=r"teacher\.weights was 'w1' and is 'w2'"):
        run(tmp_path, FakeTexts(identity("w2")), TEXTS)
    with pytest.raises(DataError, match=r"texts\.count was 7 and is 6"):
        run(tmp_path, FakeTexts(), TextSet(TEXTS.texts[:6], TEXTS.counts))


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("manifest.json", b"{}", "is no manifest"),
        ("manifest.json", b'{"format": 9, "teacher": {}, "texts": {}}', "is no manifest"),
        ("texts.txt", b"other\n", "is not what the manifest describes"),
        ("vectors", b"\x93NUMPY", "is damaged"),
    ],
)
def test_damage_is_named(tmp_path: Path, file: str, content: bytes, says: str) -> None:
    run(tmp_path, FakeTexts(), TEXTS)
    next(tmp_path.glob(f"{file}*")).write_bytes(content)
    with pytest.raises(DataError, match=f"{file}.*{says}"):
        TextCache(tmp_path)


def test_no_cache_and_another_format(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="vistill teach texts"):
        TextCache(tmp_path / "nowhere")
    run(tmp_path, FakeTexts(), TEXTS)
    path = tmp_path / "manifest.json"
    path.write_text(path.read_text().replace('"format": 1', '"format": 2'))
    with pytest.raises(DataError, match="has format 2, this version reads 1"):
        TextCache(tmp_path)


KILLER = """
import sys
from pathlib import Path
from tests.distill.fake_texts import FakeTexts
from tests.killing import kill_and_compare
from vistill.data.texts import TextSet
from vistill.distill import text_cache

target, seed, points = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
text_cache.SHARD = 2
text_cache.git_revision = lambda: "fixed"  # of a checkout where somebody may commit meanwhile
texts = TextSet([f"text {n}" for n in range(7)], [])

def make(out):
    text_cache.run(out, FakeTexts(), texts)

print(kill_and_compare(make, target, seed, points, again_before=6))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_anywhere_and_run_again_gives_the_same_bytes(tmp_path: Path) -> None:
    assert run_script(KILLER, tmp_path / "killed", 0) > 12
