"""Texts from each kind of file, each once, counted; broken files are named."""

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.tiny import build_data

from vistill.data.texts import clean, gather_texts, read_texts, with_mirrored
from vistill.errors import DataError


def test_files_of_each_kind(tmp_path: Path) -> None:
    files = {
        "lines.txt": b"a dog\n\xc3\xa9t\xc3\xa9 \r\n",
        "cc3m.tsv": b"a dog on grass\thttp://x/1.jpg\na cat\thttp://x/2.jpg\n",
        "coco.json": json.dumps({"images": [], "annotations": [{"caption": "A dog."}]}).encode(),
        "vqa.json": json.dumps({"questions": [{"question": "Is it a dog?"}]}).encode(),
        "karpathy.json": json.dumps({"images": [{"sentences": [{"raw": "dogs"}]}]}).encode(),
        "blip.json": json.dumps([{"caption": "one"}, "two"]).encode(),
        "coco.json.gz": gzip.compress(json.dumps({"annotations": [{"caption": "packed"}]}).encode()),
        "questions.gzip": gzip.compress(b' {"questions": [{"question": "packed?"}]}'),
        "lines.gz": gzip.compress(b"packed line\n"),
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    found = {name: [clean(text) for text in read_texts(str(tmp_path / name))] for name in files}
    assert found == {
        "lines.txt": ["a dog", "été"],
        "cc3m.tsv": ["a dog on grass", "a cat"],
        "coco.json": ["A dog."],
        "vqa.json": ["Is it a dog?"],
        "karpathy.json": ["dogs"],
        "blip.json": ["one", "two"],
        "coco.json.gz": ["packed"],
        "questions.gzip": ["packed?"],
        "lines.gz": ["packed line"],
    }


def test_each_text_once_in_order_with_counts(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a dog\n\n a  dog\ntwo\n")
    (tmp_path / "b.txt").write_text("two\nthree\n")
    found = gather_texts([str(tmp_path / "a.txt"), str(tmp_path / "b.txt")])
    assert found.texts == ["a dog", "two", "three"]
    assert [(c.source, c.read, c.empty, c.duplicates) for c in found.counts] == [
        ("a.txt", 4, 1, 1),
        ("b.txt", 2, 0, 1),
    ]


def test_captions_of_a_data_set_come_as_they_are_shown(tmp_path: Path) -> None:
    data = build_data(tmp_path, train=12, dev=4)
    whole, dev = (gather_texts([f"{data}{split}"]).texts for split in ("", "#dev"))
    assert set(dev) < set(whole)
    sides = [text for text in whole if "left" in text]
    assert sides
    assert {text.replace("left", "right") for text in sides} <= set(whole)
    assert with_mirrored("on the  left side") == ["on the left side", "on the right side"]
    assert with_mirrored("a dog") == ["a dog"]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("empty.txt", b"\n \n", "no text"),
        ("broken.json", b"{", "is not JSON"),
        ("other.json", b'{"rows": []}', "expected COCO"),
        ("number.json", b"[3]", "expected COCO"),
        ("latin.txt", b"\xe9t\xe9\n", "not UTF-8"),
        ("cut.gz", gzip.compress(b"a dog\n" * 999, mtime=0)[:30], "cannot be read"),
    ],
)
def test_broken_files_are_named(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=f"{name}.*{says}"):
        gather_texts([str(tmp_path / name)])


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere"):
        gather_texts([str(tmp_path / "nowhere")])


@settings(deadline=None)
@given(st.text(alphabet=st.characters()))
def test_a_clean_text_is_one_line_of_utf_8_and_stays_as_it_is(text: str) -> None:
    once = clean(text)
    assert clean(once) == once
    assert len(once.splitlines()) <= 1
    once.encode("utf-8")


def test_lone_surrogates_are_replaced() -> None:
    assert clean("a \ud800 dog") == "a ? dog"
