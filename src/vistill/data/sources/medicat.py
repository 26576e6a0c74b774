"""MedICaT: figures of open-access medical papers, with captions, inline references and sub-captions.

Subramanian et al., "MedICaT: A Dataset of Medical Images, Captions, and Textual References" (Findings of
EMNLP 2020), github.com/allenai/medicat.

    ROOT/s2_full_figures_oa_nonroco_combined_medical_top4_public.jsonl   one figure a line:
        {"pdf_hash", "fig_uri", "s2_caption", "s2orc_caption", "s2orc_references": [text] or null,
         "radiology": bool, "oa_info": {"doi", "oa": {"license"}}, ...}
    ROOT/figures/PDFHASH_FIGURI                                          e.g. 57c9ad_2-Figure1-1.png
    ROOT/subcaptions_public.jsonl                                        compound figures, annotated by hand:
        {"pdf_hash", "fig_uri", "text", "tokens": [{"text", "start", "end"}], "subcaptions": {"A": [3, 4, 5]}}

A sub-caption names the tokens of the caption that are about one panel. The picture stays the whole figure,
and what is asked for beside its caption becomes more captions of it. Figures of one paper share a split.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vistill.data.records import Annotation, Dropped, Entry, Item
from vistill.data.sources.common import (
    drawn_split,
    json_rows,
    lost,
    only_file,
    picture_path,
    require_file,
    require_folder,
    require_fractions,
)
from vistill.errors import ConfigError

TERMS = "MedICaT: non-commercial use"
SUBCAPTIONS = "subcaptions_public.jsonl"
FIGURES = "figures"
TEXTS = ("caption", "references", "subcaptions")
SUBSETS = ("all", "radiology", "non-radiology")


def read(
    root: Path,
    annotations: str = "",
    images: str = FIGURES,
    texts: Sequence[str] = ("caption",),
    subset: str = "all",
    dev_fraction: float = 0.0,
    test_fraction: float = 0.0,
    seed: int = 0,
) -> Iterator[Item]:
    """Yield the figures in the order of the file.

    annotations, images: file and folder, relative to `root`; by default the only .jsonl beside that of the
    sub-captions, and figures/. texts: what becomes a caption, of TEXTS. subset: of SUBSETS. dev_fraction,
    test_fraction: expected parts of the papers. Raises ConfigError for other words and for fractions outside
    0..1, DataError when a file or the folder is missing.
    """
    require_fractions(dev_fraction, test_fraction)
    _require_words(texts, subset)
    path = require_file(root / annotations, "the figures of MedICaT") if annotations else _only_file(root)
    folder = require_folder(root / images, "the figures of MedICaT")
    yield Annotation(path)
    parts: dict[str, list[str]] = {}
    if "subcaptions" in texts:
        subcaptions = require_file(root / SUBCAPTIONS, "the sub-captions of MedICaT")
        yield Annotation(subcaptions)
        for found in _subcaptions(subcaptions):
            if isinstance(found, Dropped):
                yield found
            else:
                parts[found[0]] = found[1]
    for row in json_rows(path):
        key = row.key if isinstance(row, Dropped) else _key(row)
        if isinstance(row, Dropped):
            yield row
        elif key is None:
            yield Dropped(row["#"], "bad_row", "has no pdf_hash and fig_uri")
        elif subset != "all" and (row.get("radiology") is True) != (subset == "radiology"):
            yield Dropped(key, "skipped_subset", f"radiology is {row.get('radiology')}")
            parts.pop(key, None)
        else:
            split = drawn_split(row["pdf_hash"], dev_fraction, test_fraction, seed)
            yield _figure(row, key, folder, texts, parts.pop(key, []), split)
    for key, captions in parts.items():
        yield Dropped(
            key, "stray_key", f"{SUBCAPTIONS}: {len(captions)} sub-captions of no figure in {path.name}"
        )


def _require_words(texts: Sequence[str], subset: str) -> None:
    for name in texts:
        if name not in TEXTS:
            raise ConfigError(f"texts: {name!r} is none of {', '.join(TEXTS)}")
    if subset not in SUBSETS:
        raise ConfigError(f"subset must be one of {', '.join(SUBSETS)}, not {subset!r}")


def _only_file(root: Path) -> Path:
    found = (path for path in root.glob("*.jsonl") if path.name != SUBCAPTIONS)
    return only_file(found, root, ".jsonl with figures")


def _key(row: Mapping[str, Any]) -> str | None:
    paper, figure = row.get("pdf_hash"), row.get("fig_uri")
    return f"{paper}_{figure}" if isinstance(paper, str) and isinstance(figure, str) and paper else None


def _figure(
    row: Mapping[str, Any], key: str, folder: Path, texts: Sequence[str], parts: Sequence[str], split: str
) -> Entry | Dropped:
    captions: list[str] = []
    caption = row.get("s2_caption") or row.get("s2orc_caption")
    if "caption" in texts and isinstance(caption, str):
        captions.append(caption)
    captions += parts
    references = row.get("s2orc_references")
    if "references" in texts and isinstance(references, list):
        captions += [text for text in references if isinstance(text, str)]
    found = picture_path(folder, key, key)
    if isinstance(found, Dropped):
        return lost(found, split, len(captions))
    return Entry(key, found, tuple(captions), split, "medicat", licence=_licence(row))


def _licence(row: Mapping[str, Any]) -> str:
    """Return the paper's licence and DOI, which a reader needs to name it, and the data set's own terms."""
    access = row.get("oa_info")
    about = access if isinstance(access, dict) else {}
    terms = about.get("oa")
    licence = terms.get("license") if isinstance(terms, dict) else None
    doi = f" (doi:{about['doi']})" if isinstance(about.get("doi"), str) else ""
    return f"{licence or 'licence not stated'}{doi}; {TERMS}"


def _subcaptions(path: Path) -> Iterator[tuple[str, list[str]] | Dropped]:
    """Yield (key, sub-captions in the order of their labels) of each annotated figure."""
    for row in json_rows(path):
        if isinstance(row, Dropped):
            yield row
            continue
        key = _key(row)
        if key is None:
            yield Dropped(row["#"], "bad_row", "has no pdf_hash and fig_uri")
            continue
        labels = row.get("subcaptions") or {}
        by_label = labels if isinstance(labels, dict) else {"": labels}
        texts = [_subcaption(row, by_label[label]) for label in sorted(by_label)]
        kept = [text for text in texts if text]
        if len(kept) < len(texts):
            yield Dropped(
                key, "bad_row", f"{row['#']}: {len(texts) - len(kept)} sub-captions point at no tokens"
            )
        if kept:
            yield key, kept


def _subcaption(row: Mapping[str, Any], numbers: Any) -> str | None:
    """Return the text of the tokens `numbers`, runs of neighbours as they stand in the caption; None if there
    are none.
    """
    tokens = row.get("tokens")
    if not isinstance(tokens, list) or not isinstance(numbers, list) or not numbers:
        return None
    if not all(isinstance(number, int) and 0 <= number < len(tokens) for number in numbers):
        return None
    runs: list[list[Any]] = []
    for number in sorted(set(numbers)):
        if number - 1 in numbers:
            runs[-1].append(tokens[number])
        else:
            runs.append([tokens[number]])
    if not all(
        isinstance(token, dict) and isinstance(token.get("text"), str) for run in runs for token in run
    ):
        return None
    return " ".join(_run(row.get("text"), run) for run in runs)


def _run(text: Any, tokens: Sequence[Mapping[str, Any]]) -> str:
    """Return neighbouring tokens as they stand in `text`, or joined by blanks where offsets are missing."""
    start, end = tokens[0].get("start"), tokens[-1].get("end")
    if isinstance(text, str) and isinstance(start, int) and isinstance(end, int) and 0 <= start < end:
        return text[start:end]
    return " ".join(token["text"] for token in tokens)
