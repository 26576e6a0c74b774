"""COCO-format files: what is read, what is refused and how it is said."""

import json
from pathlib import Path
from typing import Any

import pytest

from vistill.errors import ConfigError, DataError
from vistill.metrics.caption import NAMES, score_captions
from vistill.metrics.coco import (
    DEFAULT,
    Result,
    choose_metrics,
    read_references,
    read_results,
    score_results,
    write_lines,
)

RESULTS = [{"image_id": 7, "caption": "A dog runs."}, {"image_id": 9, "caption": ""}]
REFERENCES = {
    "images": [{"id": 7, "file_name": "7.jpg"}, {"id": 9}, {"id": 11}, {"id": 13}],
    "annotations": [
        {"id": 1, "image_id": 9, "caption": "A cat."},
        {"id": 2, "image_id": 7, "caption": "A dog runs on grass."},
        {"id": 3, "image_id": 7, "caption": "The dog runs!"},
        {"id": 4, "image_id": 11, "caption": "Two men"},
    ],
}


def save(path: Path, content: Any) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return path


def test_reading(tmp_path: Path) -> None:
    results = read_results(save(tmp_path / "r.json", RESULTS))
    assert {key: result.caption for key, result in results.items()} == {"7": "A dog runs.", "9": ""}
    assert results["7"].image_id == 7
    references = read_references(save(tmp_path / "c.json", REFERENCES))
    assert list(references) == ["7", "9", "11"]  # 13 has no caption: nothing can be scored there
    assert references["7"] == ["A dog runs on grass.", "The dog runs!"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'[{"image_id": 1,\n "caption": }]', "line 2, column 13: broken JSON"),
        (b"\xff\xfe[", "broken JSON"),
        (b"[" * 100_000, "broken JSON"),
        (b"", "line 1, column 1: broken JSON"),
        ({"7": "a dog"}, "a results file is a list"),
        ([], "the list is empty"),
        ([*RESULTS, ["x"]], "entry 2: has to be an object with the key 'image_id'"),
        ([*RESULTS, {"caption": "a"}], "entry 2: key 'image_id' is missing"),
        ([*RESULTS, {"image_id": 8}], "entry 2: key 'caption' is missing"),
        ([*RESULTS, {"image_id": 8, "caption": None}], "entry 2: key 'caption' has to be a text, not None"),
        ([{"image_id": 1.5, "caption": "a"}], "entry 0: key 'image_id' has to be a number without fraction"),
        ([{"image_id": True, "caption": "a"}], "not True"),
        ([*RESULTS, RESULTS[0]], "entry 2: image_id 7 comes twice, first in entry 0"),
        ([*RESULTS, {"image_id": "7", "caption": "a"}], "image_id '7' comes twice"),
    ],
)
def test_results_that_are_refused(content: Any, message: str, tmp_path: Path) -> None:
    path = save(tmp_path / "r.json", content)
    with pytest.raises(DataError) as error:
        read_results(path)
    assert str(error.value).startswith(f"{path}: ")
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": None}, "key 'images' with a list is missing"),
        ({"annotations": {}}, "key 'annotations' with a list is missing"),
        ({"annotations": []}, "there is no caption in it"),
        ({"images": [{"id": 7}, {"id": 7}]}, "images, entry 1: id 7 comes twice"),
        ({"images": [{"name": 7}]}, "images, entry 0: key 'id' is missing"),
        ({"images": [{"id": 7}]}, "annotations, entry 0: image_id 9 is not among the images"),
        ({"annotations": [{"image_id": 7}]}, "annotations, entry 0: key 'caption' is missing"),
    ],
)
def test_references_that_are_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = save(tmp_path / "c.json", REFERENCES | change)
    with pytest.raises(DataError) as error:
        read_references(path)
    assert str(error.value).startswith(f"{path}: ")
    assert message in str(error.value)


def test_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        read_results(tmp_path / "none.json")
    with pytest.raises(DataError, match="cannot be read"):
        read_references(tmp_path)
    with pytest.raises(DataError, match="cannot be written"):
        write_lines(tmp_path / "none" / "x.jsonl", [])


def test_scores_are_those_of_score_captions(tmp_path: Path) -> None:
    results = read_results(save(tmp_path / "r.json", RESULTS))
    references = read_references(save(tmp_path / "c.json", REFERENCES))
    scored = score_results(results, references)
    wanted = score_captions({"7": "A dog runs.", "9": ""}, references)
    assert list(scored.summary) == [*NAMES, "CIDEr-D", "pictures"]
    assert {name: scored.summary[name] for name in NAMES} == wanted.corpus
    assert scored.summary["CIDEr-D"] == scored.summary["CIDEr"]
    assert scored.summary["pictures"] == 2
    assert [line["image_id"] for line in scored.lines] == [7, 9]
    assert scored.lines[0]["caption"] == "A dog runs."
    assert scored.lines[0]["scores"]["ROUGE-L"] == wanted.per_picture["ROUGE-L"][0]


def test_document_frequencies_of_another_file_change_cider_d_only(tmp_path: Path) -> None:
    results = read_results(save(tmp_path / "r.json", RESULTS))
    references = read_references(save(tmp_path / "c.json", REFERENCES))
    scored = score_results(
        results, references, idf_references={"x": ["a dog"], "y": ["b"], "z": ["c"]}
    ).summary
    assert scored["CIDEr"] == score_results(results, references).summary["CIDEr"]
    assert scored["CIDEr"] != scored["CIDEr-D"]


def test_chosen_metrics_and_intervals(tmp_path: Path) -> None:
    results = read_results(save(tmp_path / "r.json", RESULTS))
    references = read_references(save(tmp_path / "c.json", REFERENCES))
    scored = score_results(results, references, choose_metrics("rouge-l, BLEU-1,rouge-l"), samples=50)
    assert list(scored.summary) == ["ROUGE-L", "BLEU-1", "pictures", "intervals"]
    for name, interval in scored.summary["intervals"].items():
        assert interval["low"] <= scored.summary[name] <= interval["high"]
    assert set(scored.lines[0]["scores"]) == {"ROUGE-L", "BLEU-1"}


def test_a_result_without_references() -> None:
    results = {str(image_id): Result(image_id, "a dog") for image_id in (13, 7, "x")}
    with pytest.raises(DataError, match=r"image_id 13 has a result but no reference caption \(2 such"):
        score_results(results, {"7": ["a dog"]})


def test_names_of_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_metrics(None) == DEFAULT
    assert choose_metrics("BLEU,CIDEr") == ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "CIDEr")
    with pytest.raises(ConfigError, match=r"--metrics: 'F1' is unknown; there are BLEU-1, .*METEOR, SPICE"):
        choose_metrics("CIDEr,F1")
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ConfigError, match="--metrics: METEOR needs Java"):
        choose_metrics("CIDEr,METEOR")


def test_lines_are_written_whole(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_text("old")

    def broken() -> Any:
        yield {"image_id": 1}
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_lines(path, broken())
    assert path.read_text() == "old"
    write_lines(path, [{"image_id": 1, "caption": "café"}])
    assert path.read_text() == '{"image_id": 1, "caption": "café"}\n'
