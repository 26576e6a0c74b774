"""MedICaT in its published layout: figures, inline references, sub-captions, papers that share a split."""

import json
from pathlib import Path
from typing import Any

import pytest

from vistill.data.build import BuildConfig, build
from vistill.data.dataset import open_split
from vistill.data.records import Annotation, Dropped, Entry, Item
from vistill.data.sources import medicat
from vistill.errors import ConfigError, DataError

FIGURES = "s2_full_figures_oa_nonroco_combined_medical_top4_public.jsonl"
CAPTION = "Figure 1. Brain CT (A) and MR diffusion (B) showing no lesion."


def _row(paper: int, figure: int, **changes: Any) -> dict[str, Any]:
    """One line as the data set publishes it."""
    return {
        "pdf_hash": f"{paper:040x}",
        "fig_key": f"Figure{figure}",
        "fig_uri": f"2-Figure{figure}-1.png",
        "s2_caption": f"Figure {figure}. A scan of paper {paper}.",
        "s2orc_caption": None,
        "s2orc_references": [f"A scan showed nothing (Fig. {figure}) .", f"As before ( Figure {figure} )."],
        "radiology": figure % 2 == 1,
        "scope": False,
        "predicted_type": "Medical images",
        "oa_info": {"doi": f"10.1/{paper}", "oa": {"is_oa": True, "license": "cc-by-nc"}},
        **changes,
    }


def _key(paper: int, figure: int) -> str:
    return f"{paper:040x}_2-Figure{figure}-1.png"


def _tokens() -> list[dict[str, Any]]:
    tokens, at = [], 0
    for number, word in enumerate(CAPTION.replace("(", "( ").replace(")", " )").replace(".", " .").split()):
        start = CAPTION.index(word, at)
        at = start + len(word)
        tokens.append({"text": word, "start": start, "end": at, "id": number})
    return tokens


def _write(root: Path, rows: list[Any], photo: Any = None, papers: int = 0) -> Path:
    (root / "figures").mkdir(parents=True, exist_ok=True)
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (root / FIGURES).write_text("\n".join(lines) + "\n", "utf-8")
    for row in rows:
        if photo is not None and isinstance(row, dict):
            name = f"{row['pdf_hash']}_{row['fig_uri']}"
            (root / "figures" / name).write_bytes(
                photo(len(list((root / "figures").iterdir())), format="PNG")
            )
    return root


def _entries(items: list[Item]) -> dict[str, Entry]:
    return {item.key: item for item in items if isinstance(item, Entry)}


def _dropped(items: list[Item]) -> list[tuple[str, str]]:
    return sorted((item.key, item.reason) for item in items if isinstance(item, Dropped))


def test_captions_licences_and_references(tmp_path: Path, photo: Any) -> None:
    rows = [
        _row(1, 1),
        _row(1, 2, s2_caption="", s2orc_caption="From the other parse.", s2orc_references=None),
        _row(2, 1, oa_info={"oa": {"license": None}}),
        _row(3, 1, oa_info=None),
    ]
    root = _write(tmp_path, rows, photo)
    entries = _entries(list(medicat.read(root)))
    assert entries[_key(1, 1)].captions == ("Figure 1. A scan of paper 1.",)
    assert entries[_key(1, 1)].licence == "cc-by-nc (doi:10.1/1); MedICaT: non-commercial use"
    assert entries[_key(1, 2)].captions == ("From the other parse.",)
    assert entries[_key(2, 1)].licence == "licence not stated; MedICaT: non-commercial use"
    assert entries[_key(3, 1)].licence == "licence not stated; MedICaT: non-commercial use"
    both = _entries(list(medicat.read(root, texts=["caption", "references"])))
    assert both[_key(1, 1)].captions == (
        "Figure 1. A scan of paper 1.",
        "A scan showed nothing (Fig. 1) .",
        "As before ( Figure 1 ).",
    )
    only = _entries(list(medicat.read(root, texts=["references"])))
    assert only[_key(1, 2)].captions == ()


def test_subcaptions_are_runs_of_the_captions_tokens(tmp_path: Path, photo: Any) -> None:
    root = _write(tmp_path, [_row(1, 1, s2_caption=CAPTION), _row(1, 2), _row(2, 1), _row(3, 1)], photo)
    tokens = _tokens()
    words = [token["text"] for token in tokens]
    brain, mr, showing = words.index("Brain"), words.index("MR"), words.index("showing")
    last = len(words) - 2  # without the full stop
    annotated = {
        **{name: _row(1, 1)[name] for name in ("pdf_hash", "fig_uri")},
        "text": CAPTION,
        "tokens": tokens,
        "subcaptions": {
            "B": [mr, mr + 1, *range(showing, last + 1)],
            "A": [brain + 1, brain, *range(showing, last + 1)],
        },
    }
    without_offsets = {
        **annotated,
        "fig_uri": "2-Figure2-1.png",
        "tokens": [{"text": word} for word in words],
        "subcaptions": {"A": [brain, brain + 1]},
    }
    other = {"pdf_hash": f"{2:040x}", "fig_uri": "2-Figure1-1.png", "text": CAPTION, "tokens": tokens}
    rows = [
        annotated,
        without_offsets,
        {**other, "subcaptions": {"A": [999], "B": [], "C": [brain]}},
        {**other, "pdf_hash": f"{3:040x}", "subcaptions": "odd"},
        {**other, "pdf_hash": f"{9:040x}", "subcaptions": {"A": [brain]}},
        {"tokens": []},
    ]
    (root / medicat.SUBCAPTIONS).write_text("\n".join(map(json.dumps, rows)))
    items = list(medicat.read(root, texts=["caption", "subcaptions"]))
    entries = _entries(items)
    assert entries[_key(1, 1)].captions == (
        CAPTION,
        "Brain CT showing no lesion",
        "MR diffusion showing no lesion",
    )
    assert entries[_key(1, 2)].captions[1:] == ("Brain CT",)
    assert entries[_key(2, 1)].captions[1:] == ("Brain",)
    assert _dropped(items) == sorted(
        [
            (_key(2, 1), "bad_row"),
            (_key(3, 1), "bad_row"),
            (_key(9, 1), "stray_key"),
            (f"{medicat.SUBCAPTIONS}:6", "bad_row"),
        ]
    )
    assert [item.path.name for item in items if isinstance(item, Annotation)] == [
        FIGURES,
        medicat.SUBCAPTIONS,
    ]
    assert _entries(list(medicat.read(root)))[_key(1, 1)].captions == (CAPTION,), "only when asked for"


def test_figures_of_a_paper_share_a_split(tmp_path: Path, photo: Any) -> None:
    root = _write(tmp_path / "m", [_row(paper, figure) for paper in range(60) for figure in (1, 2)], photo)

    def splits(**options: Any) -> dict[str, str]:
        options = {"dev_fraction": 0.25, "test_fraction": 0.25, **options}
        return {key: entry.split for key, entry in _entries(list(medicat.read(root, **options))).items()}

    drawn = splits()
    assert all(drawn[_key(paper, 1)] == drawn[_key(paper, 2)] for paper in range(60))
    counts = {split: list(drawn.values()).count(split) for split in ("train", "dev", "test")}
    assert counts["train"] > counts["dev"] > 0
    assert counts["test"] > 0
    assert drawn != splits(seed=1)
    fewer = _write(tmp_path / "fewer", [_row(paper, 1) for paper in range(10)], photo)
    again = _entries(list(medicat.read(fewer, dev_fraction=0.25, test_fraction=0.25)))
    assert all(entry.split == drawn[key] for key, entry in again.items()), "no paper depends on the others"


def test_a_build_of_a_subset_with_cleaned_captions(tmp_path: Path, photo: Any) -> None:
    root = _write(tmp_path / "m", [_row(paper, figure) for paper in (1, 2) for figure in (1, 2)], photo)
    config = BuildConfig(options={"subset": "radiology"}, clean=("figure_labels",))
    report = build("medicat", root, tmp_path / "out", config)
    assert report["dropped"]["counts"] == {"skipped_subset": 2}
    table = open_split(tmp_path / "out", "train")
    assert table["key"][:] == [_key(1, 1), _key(2, 1)]
    assert table["captions"][:] == [["A scan of paper 1."], ["A scan of paper 2."]]
    assert report["cleaned"]["figure_labels"]["captions"] == 2
    others = _entries(list(medicat.read(root, subset="non-radiology")))
    assert list(others) == [_key(1, 2), _key(2, 2)]


def test_lines_that_cannot_be_used(tmp_path: Path, photo: Any) -> None:
    root = _write(tmp_path, [_row(1, 1)], photo)
    bad = [
        "{broken",
        "[]",
        json.dumps({"pdf_hash": 7, "fig_uri": "x.png"}),
        json.dumps(_row(5, 1)),
        json.dumps(_row(6, 1, fig_uri="/../../secret.png")),
        json.dumps(_row(1, 1)),
    ]
    with (root / FIGURES).open("a", encoding="utf-8") as file:
        file.write("\n".join(bad))
    items = list(medicat.read(root))
    assert _dropped(items) == sorted(
        [
            (f"{FIGURES}:2", "bad_row"),
            (f"{FIGURES}:3", "bad_row"),
            (f"{FIGURES}:4", "bad_row"),
            (_key(5, 1), "missing_picture"),
            (f"{6:040x}_/../../secret.png", "unsafe_path"),
        ]
    )
    report = build("medicat", root, tmp_path / "out")
    assert report["dropped"]["counts"]["duplicate_key"] == 1


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"texts": ["title"]}, ConfigError, "texts: 'title' is none of caption, references, subcaptions"),
        ({"subset": "ct"}, ConfigError, "subset must be one of all, radiology, non-radiology, not 'ct'"),
        ({"dev_fraction": 2.0}, ConfigError, "dev_fraction 2.0"),
        ({"texts": ["subcaptions"]}, DataError, "expected the sub-captions of MedICaT"),
        ({"annotations": "other.jsonl"}, DataError, "other.jsonl: no such file"),
        ({"images": "pictures"}, DataError, "pictures: no such folder"),
    ],
)
def test_errors_say_what_is_wrong(tmp_path: Path, options: Any, error: type, message: str) -> None:
    root = _write(tmp_path, [_row(1, 1)])
    with pytest.raises(error, match=message):
        list(medicat.read(root, **options))


def test_two_files_of_figures_are_ambiguous(tmp_path: Path) -> None:
    root = _write(tmp_path, [_row(1, 1)])
    (root / "more.jsonl").write_text("{}")
    with pytest.raises(DataError, match=r"found more.jsonl, s2_full.*; name the file with annotations"):
        list(medicat.read(root))
