"""VQA v2: questions and annotations as JSON, each beside its folder of COCO pictures.

Goyal et al., "Making the V in VQA Matter" (arXiv 1612.00837).

    {"questions": [{"question_id", "image_id", "question"}], "data_subtype": "train2014"}
    {"annotations": [{"question_id", "answers": [{"answer"}], "answer_type": "yes/no"}]}

A row is a question: its key is the question id, its answers are those of the ten people, its source is
`vqa_v2:` and the answer type. A file without annotations (test) gives questions without answers.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from vistill.data.records import Annotation, Dropped, Entry, Item, normalise_split, split_order
from vistill.data.sources.common import first_picture, is_id, lost, read_json, require_file, require_folder
from vistill.errors import ConfigError, DataError

# (split, COCO's name of it) of the downloads of visualqa.org, taken where they exist.
STANDARD = (("dev", "val2014"), ("train", "train2014"))


def read(root: Path, parts: Sequence[str] = ()) -> Iterator[Item]:
    """Yield the questions, evaluated splits first, those of one picture one after another.

    parts: SPLIT:QUESTIONS:ANNOTATIONS:PICTURES each, paths relative to `root`, ANNOTATIONS may be empty;
    without any, `v2_OpenEnded_mscoco_train2014_questions.json`, `v2_mscoco_train2014_annotations.json` and
    the folder `train2014`, the same of val2014. Raises ConfigError for a malformed part and DataError for
    missing or malformed files.
    """
    for split, questions, annotations, pictures in _parts(root, parts):
        require_file(questions, "questions of VQA v2")
        require_folder(pictures, f"the pictures of {questions.name}")
        yield Annotation(questions)
        answers: dict[Any, tuple[str, tuple[str, ...]]] = {}
        if annotations is not None:
            yield Annotation(require_file(annotations, "annotations of VQA v2"))
            for number, row in enumerate(_rows(annotations, "annotations")):
                found = _answers(row)
                if found is None:
                    yield Dropped(
                        f"{annotations.name}:annotations[{number}]", "bad_row", f"is {str(row)[:80]}"
                    )
                else:
                    answers[row["question_id"]] = found
        yield from _read_part(questions, pictures, split, answers)


def _parts(root: Path, parts: Sequence[str]) -> list[tuple[str, Path, Path | None, Path]]:
    found: list[tuple[str, Path, Path | None, Path]] = []
    for part in parts:
        words = part.split(":")
        if len(words) != 4 or not all((words[0], words[1], words[3])):
            raise ConfigError(f"part {part!r} is not SPLIT:QUESTIONS:ANNOTATIONS:PICTURES")
        split = normalise_split(words[0], f"part {part!r}")
        found.append((split, root / words[1], root / words[2] if words[2] else None, root / words[3]))
    for split, name in () if parts else STANDARD:
        questions = root / f"v2_OpenEnded_mscoco_{name}_questions.json"
        if questions.is_file():
            found.append((split, questions, root / f"v2_mscoco_{name}_annotations.json", root / name))
    if not found:
        raise DataError(
            f"{root}: holds no v2_OpenEnded_mscoco_*2014_questions.json; "
            "name the files as SPLIT:QUESTIONS:ANNOTATIONS:PICTURES"
        )
    return sorted(found, key=lambda part: split_order(part[0]))


def _rows(path: Path, key: str) -> list[Any]:
    data = read_json(path)
    if not isinstance(data, dict) or not isinstance(data.get(key), list):
        raise DataError(f"{path}: is no file of VQA v2; expected an object with a list of {key}")
    rows: list[Any] = data[key]
    return rows


def _answers(row: Any) -> tuple[str, tuple[str, ...]] | None:
    """(answer type, answers) of an annotation; None if it is malformed."""
    if (
        not isinstance(row, dict)
        or not is_id(row.get("question_id"))
        or not isinstance(row.get("answers"), list)
    ):
        return None
    texts: list[Any] = [one.get("answer") if isinstance(one, dict) else None for one in row["answers"]]
    if not all(isinstance(text, str) for text in texts):
        return None
    return str(row.get("answer_type") or ""), tuple(texts)


def _read_part(
    path: Path, folder: Path, split: str, answers: dict[Any, tuple[str, tuple[str, ...]]]
) -> Iterator[Item]:
    annotated = bool(answers)
    asked: dict[Any, list[tuple[Any, str]]] = {}
    for number, row in enumerate(_rows(path, "questions")):
        if _is_question(row):
            asked.setdefault(row["image_id"], []).append((row["question_id"], row["question"]))
        else:
            yield Dropped(f"{path.name}:questions[{number}]", "bad_row", f"is {str(row)[:80]}")
    for image, questions in asked.items():
        found = first_picture(folder, _names(folder, image), f"image {image}")
        if isinstance(found, Dropped):
            yield lost(found, split, len(questions), "questions")
        for key, question in questions:
            if annotated and key not in answers:
                yield Dropped(str(key), "no_answer", f"{path.name}: a question without annotation")
                continue
            kind, people = answers.pop(key, ("", ()))
            if isinstance(found, Path):
                source = f"vqa_v2:{kind}" if kind else "vqa_v2"
                yield Entry(str(key), found, (), split, source, question=question, answers=people)
    for key in answers:
        yield Dropped(str(key), "stray_key", f"annotation of a question that is not in {path.name}")


def _names(folder: Path, image: int | str) -> tuple[str, ...]:
    """The names that the picture of an image id may have: COCO's of 2014 and of 2017, and the plain id."""
    number = f"{image:012d}" if isinstance(image, int) else image
    return f"COCO_{folder.name}_{number}.jpg", f"{number}.jpg", f"{image}.jpg"


def _is_question(row: Any) -> bool:
    return (
        isinstance(row, dict)
        and is_id(row.get("question_id"))
        and is_id(row.get("image_id"))
        and isinstance(row.get("question"), str)
    )
