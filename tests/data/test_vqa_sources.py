"""The readers of questions, on tiny data sets in their real formats, and how their pictures are stored."""

import base64
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from vistill.data.dataset import BuildConfig, build, info, open_dataset, open_split
from vistill.data.records import Dropped, Entry, Item
from vistill.data.sources import conceptual_captions, daquar, tsv, vqa_rad, vqa_v2
from vistill.data.sources.conceptual_captions import picture_name
from vistill.data.tsv import write_tsv
from vistill.errors import ConfigError, DataError
from vistill.metrics.vqa_files import read_daquar


def entries(items: list[Item]) -> dict[str, Entry]:
    return {item.key: item for item in items if isinstance(item, Entry)}


def dropped(items: list[Item]) -> list[tuple[str, str]]:
    return sorted((item.key, item.reason) for item in items if isinstance(item, Dropped))


def write_text(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value))


# VQA v2


@pytest.fixture
def vqa(tmp_path: Path, photo) -> Path:
    """Two train photos with three and one question, one val photo with two, and dirt."""
    root = tmp_path / "vqa"
    asked = {"train2014": [(1, 11), (2, 12), (1, 13), (1, 14), (9, 19)], "val2014": [(3, 31), (3, 32)]}
    for name, rows in asked.items():
        (root / name).mkdir(parents=True)
        for image in {image for image, _ in rows} - {9}:
            (root / name / f"COCO_{name}_{image:012d}.jpg").write_bytes(photo(image))
        questions: list[Any] = [{"image_id": i, "question": f"what {q}?", "question_id": q} for i, q in rows]
        people = [{"answer": f"a {n % 3}", "answer_id": n} for n in range(10)]
        annotations = [
            {"question_id": q, "image_id": i, "answer_type": "other", "answers": people} for i, q in rows
        ]
        if name == "train2014":
            questions.append({"image_id": 1, "question": None, "question_id": 15})
            questions.append({"image_id": 2, "question": "and?", "question_id": 16})
            annotations += [{"question_id": 77, "answers": people}, {"question_id": 78, "answers": "x"}]
        write_text(root / f"v2_OpenEnded_mscoco_{name}_questions.json", {"questions": questions})
        write_text(root / f"v2_mscoco_{name}_annotations.json", {"annotations": annotations})
    return root


def test_vqa_v2(vqa: Path) -> None:
    items = list(vqa_v2.read(vqa))
    found = entries(items)
    assert list(found) == ["31", "32", "11", "13", "14", "12"], (
        "evaluated first, a picture's questions together"
    )
    assert found["31"].split == "dev"
    assert found["13"].path.name == "COCO_train2014_000000000001.jpg"
    assert (found["13"].question, found["13"].source) == ("what 13?", "vqa_v2:other")
    assert found["13"].answers == tuple(f"a {n % 3}" for n in range(10))
    assert dropped(items) == [
        ("16", "no_answer"),
        ("77", "stray_key"),
        ("image 9", "missing_picture"),
        ("v2_OpenEnded_mscoco_train2014_questions.json:questions[5]", "bad_row"),
        ("v2_mscoco_train2014_annotations.json:annotations[6]", "bad_row"),
    ]


def test_vqa_v2_questions_without_annotations(vqa: Path) -> None:
    part = "test:v2_OpenEnded_mscoco_val2014_questions.json::val2014"
    found = entries(list(vqa_v2.read(vqa, [part])))
    assert [(entry.split, entry.answers, entry.source) for entry in found.values()] == [
        ("test", (), "vqa_v2")
    ] * 2
    with pytest.raises(ConfigError, match="is not SPLIT:QUESTIONS:ANNOTATIONS:PICTURES"):
        list(vqa_v2.read(vqa, ["train:a:b"]))
    with pytest.raises(DataError, match="holds no v2_OpenEnded"):
        list(vqa_v2.read(vqa / "train2014"))


def test_questions_share_the_bytes_of_their_picture(vqa: Path, tmp_path: Path, photo) -> None:
    report = build("vqa_v2", vqa, tmp_path / "out")
    train = report["splits"]["train"]
    assert (train["pictures"], train["rows"], train["questions"]) == (2, 4, 4)
    assert train["bytes"] == len(photo(1)) + len(photo(2)), "a picture counts once"
    assert report["duplicates"] == [], "questions about one picture are no duplicates"
    table = open_split(tmp_path / "out", "train")
    assert [row["key"] for row in table] == ["11", "13", "14", "12"]
    assert [row["image"] for row in table] == [photo(1)] * 3 + [photo(2)]
    assert table[[3, 0]]["image"] == [photo(2), photo(1)]
    assert table.select([2, 3]).flatten_indices()[0]["image"] == photo(1)
    (stored,) = (tmp_path / "out" / "train").glob("data-*.arrow")
    assert [stored.read_bytes().count(photo(seed)) for seed in (1, 2)] == [1, 1]
    assert open_dataset(tmp_path / "out")["dev"][1]["question"] == "what 32?"
    summary = info(tmp_path / "out")["splits"]["train"]
    assert (summary["pictures"], summary["rows"]) == (2, 4)


def test_a_picture_of_dev_takes_all_its_questions_out_of_train(vqa: Path, tmp_path: Path, photo) -> None:
    (vqa / "val2014" / "COCO_val2014_000000000003.jpg").write_bytes(photo(1))
    report = build("vqa_v2", vqa, tmp_path / "out")
    lost = [item["key"] for item in report["dropped"]["items"] if item["reason"] == "duplicate"]
    assert lost == ["11", "13", "14"]
    assert open_split(tmp_path / "out", "train")["key"][:] == ["12"]
    assert len(report["duplicates"]) == 1


def test_a_broken_picture_loses_all_its_questions_and_each_is_named(vqa: Path, tmp_path: Path) -> None:
    (vqa / "train2014" / "COCO_train2014_000000000001.jpg").write_bytes(b"no picture")
    report = build("vqa_v2", vqa, tmp_path / "out", BuildConfig(shard_size=2))
    lost = [item["key"] for item in report["dropped"]["items"] if item["reason"] == "image_not_an_image"]
    assert lost == ["11", "13", "14"]
    assert report["splits"]["train"]["rows"] == 1


# DAQUAR, VQA-RAD


def test_daquar(tmp_path: Path, photo) -> None:
    lines = ["question,answer,image_id", 'what is there ,"book, lamp",image3', "how many,2,image4"]
    lines += ["what,is,wrong,image3", "what color,red,image3", "nothing,,image3", "lost,x,image5"]
    write_text(tmp_path / "data.csv", "\n".join(lines))
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "image3.png").write_bytes(photo(3, format="PNG"))
    (tmp_path / "images" / "image4.jpg").write_bytes(photo(4))
    items = list(daquar.read(tmp_path))
    found = entries(items)
    assert {key: entry.answers for key, entry in found.items()} == {
        "image3#0": ("book, lamp",),
        "image3#1": ("red",),
        "image4#0": ("2",),
    }
    assert found["image3#0"].question == "what is there"
    # scoring reads the same file without this package's data room, and knows every question by the same key
    truth = read_daquar(tmp_path / "data.csv")
    assert truth == {key: entry.answers[0] for key, entry in found.items()} | {"image5#0": "x"}
    assert dropped(items) == [
        ("data.csv:4", "bad_row"),
        ("image3#2", "no_answer"),
        ("image5", "missing_picture"),
    ]
    write_text(tmp_path / "data.csv", "question,answer\nx,y\n")
    with pytest.raises(DataError, match="expected question, answer, image_id"):
        list(daquar.read(tmp_path))


@pytest.mark.data
def test_the_real_daquar(data_root: Path) -> None:
    items = list(daquar.read(data_root / "daquar", dev_fraction=0.1))
    found = entries(items)
    assert (len(found), dropped(items)) == (6795, [])
    split = {entry.path: entry.split for entry in found.values()}
    assert (len(split), list(split.values()).count("dev")) == (794, 79)
    assert all(split[entry.path] == entry.split for entry in found.values()), "splits are by photo"
    assert {entry.split for entry in list(found.values())[:500]} == {"dev"}


def test_vqa_rad(tmp_path: Path, photo) -> None:
    rows = [
        {"qid": "0", "image_name": "a.jpg", "question": "Is it?", "answer": "Yes", "answer_type": "CLOSED"},
        {"qid": "1", "image_name": "b.jpg", "question": "What?", "answer": "lung", "answer_type": "OPEN"},
        {"qid": "2", "image_name": "a.jpg", "question": "How many?", "answer": 2, "answer_type": "OPEN "},
        {"qid": "3", "image_name": "a.jpg", "question": "", "answer": "x", "answer_type": "OPEN"},
        {"qid": "4", "image_name": "../a.jpg", "question": "q", "answer": "x", "answer_type": "OPEN"},
        {"qid": "5", "question": "q"},
    ]
    write_text(tmp_path / vqa_rad.FILE, rows)
    (tmp_path / "images").mkdir()
    for name in "ab":
        (tmp_path / "images" / f"{name}.jpg").write_bytes(photo(ord(name)))
    items = list(vqa_rad.read(tmp_path))
    assert {key: (entry.source, entry.answers) for key, entry in entries(items).items()} == {
        "0": ("vqa_rad:closed", ("Yes",)),
        "1": ("vqa_rad:open", ("lung",)),
        "2": ("vqa_rad:open", ("2",)),
    }
    assert dropped(items) == [
        ("../a.jpg", "unsafe_path"),
        ("3", "no_answer"),
        (f"{vqa_rad.FILE}[5]", "bad_row"),
    ]


@pytest.mark.data
def test_the_real_vqa_rad(data_root: Path) -> None:
    found = entries(list(vqa_rad.read(data_root / "vqa_rad", dev_fraction=0.2, seed=1)))
    split = {entry.path: entry.split for entry in found.values()}
    assert (len(found), len(split), list(split.values()).count("dev")) == (1529, 214, 43)
    assert all(split[entry.path] == entry.split for entry in found.values())


# TSV


def test_tsv(tmp_path: Path, photo) -> None:
    def encoded(seed: int) -> str:
        return base64.b64encode(photo(seed)).decode()

    images = [
        ("a", encoded(1)),
        ("b", encoded(2)),
        ("b", encoded(3)),
        ("bad", "no base64!"),
        ("c", encoded(4)),
    ]
    write_tsv(tmp_path / "images.tsv", images)
    asked = [{"question_id": 5, "question": "how?", "answers": [{"answer": "2"}, {"answer": "3"}]}]
    asked.append({"question_id": 6, "question": "who?", "answer": "x"})
    rows = [
        ("a", json.dumps([{"caption": "one dog"}, {"caption": "a dog"}])),
        ("b", json.dumps(asked)),
        ("bad", json.dumps([{"caption": "lost"}])),
        ("gone", json.dumps([{"caption": "nowhere"}])),
        ("broken", "[{"),
        ("c", json.dumps([{"question_id": None, "question": "?"}, {"other": 1}, {"caption": "a cat"}])),
    ]
    write_tsv(tmp_path / "texts.tsv", rows)
    items = list(tsv.read(tmp_path, ["dev:images.tsv:texts.tsv"]))
    assert dropped(items) == [
        ("b", "duplicate_key"),
        ("c", "bad_row"),
        ("c", "bad_row"),
        ("gone", "missing_picture"),
        ("texts.tsv:5", "bad_row"),
    ]
    report = build(
        "tsv", tmp_path, tmp_path / "out", BuildConfig(options={"parts": ["dev:images.tsv:texts.tsv"]})
    )
    detail = next(item for item in report["dropped"]["items"] if item["reason"] == "image_corrupt")
    assert detail["key"] == "bad"
    assert detail["detail"].startswith("images.tsv: row 3 is not base64")
    table = open_split(tmp_path / "out", "dev")
    assert {row["key"]: (row["captions"], row["answers"]) for row in table} == {
        "a": (["one dog", "a dog"], []),
        "5": ([], ["2", "3"]),
        "6": ([], ["x"]),
        "c": (["a cat"], []),
    }
    assert {row["key"]: row["image"] for row in table}["6"] == photo(2)
    for parts in ([], ["dev:images.tsv"]):
        with pytest.raises(ConfigError, match="SPLIT:IMAGES:TEXTS"):
            list(tsv.read(tmp_path, parts))


# Conceptual Captions


def test_conceptual_captions(tmp_path: Path, photo) -> None:
    urls = [f"http://example.org/{name}.jpg?x=1" for name in ("one", "two", "three")]
    lines = [f"a {n} caption\t{url}" for n, url in enumerate(urls)] + [
        f"another\t{urls[0]}",
        "no tab",
        "x\t ",
    ]
    write_text(tmp_path / "Validation_GCC-1.1.0-Validation.tsv", "\n".join(lines))
    name = picture_name(urls[0])
    assert len(name) == 32
    (tmp_path / "pictures" / name[:2]).mkdir(parents=True)
    (tmp_path / "pictures" / name[:2] / f"{name}.jpg").write_bytes(photo(1))
    with tarfile.open(tmp_path / "pictures" / "00000.tar", "w") as tar:
        members = {"7.jpg": photo(2), "7.json": json.dumps({"url": urls[1]}).encode(), "8.jpg": photo(3)}
        for member, data in members.items():
            header = tarfile.TarInfo(member)
            header.size = len(data)
            tar.addfile(header, io.BytesIO(data))
    items = list(conceptual_captions.read(tmp_path))
    found = entries(items)
    assert found[name].captions == ("a 0 caption", "another")
    assert {entry.split for entry in found.values()} == {"dev"}
    tsv_name = "Validation_GCC-1.1.0-Validation.tsv"
    assert dropped(items) == sorted(
        [
            (picture_name(urls[2]), "missing_picture"),
            ("8", "bad_row"),
            (f"{tsv_name}:5", "bad_row"),
            (f"{tsv_name}:6", "bad_row"),
        ]
    )
    build("conceptual_captions", tmp_path, tmp_path / "out")
    table = open_split(tmp_path / "out", "dev")
    assert {row["key"]: row["image"] for row in table} == {name: photo(1), picture_name(urls[1]): photo(2)}


@pytest.mark.data
def test_the_real_conceptual_captions(data_root: Path) -> None:
    path = next((data_root / "cc3m_validation").glob("*.tsv"))
    found = list(conceptual_captions.rows(path))
    assert len(found) == 15833
    assert not any(isinstance(row, Dropped) for row in found)
    assert {url.partition(":")[0] for _, url in found} == {"http", "https"}  # type: ignore[misc]
