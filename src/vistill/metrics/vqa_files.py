"""Read what VQA is scored from: answers (JSON list, JSON lines or TSV), questions and annotations (VQA v2).

    answers      [{"question_id": 1, "answer": "two"}], or one such object a row (the last field of a TSV row)
    questions    {"questions": [{"question_id", "image_id", "question"}]}
    annotations  {"annotations": [{"question_id", "answers": [{"answer"}], "question_type", "answer_type"}]}

Ids are compared as text: 7 and "7" are one question. Any of the files may be gzip.
"""

import csv
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vistill.errors import DataError
from vistill.files import write_text
from vistill.metrics.json_files import id_of, load_json, load_rows, text_of
from vistill.metrics.vqa import Question

ROWS = (".tsv", ".jsonl")


def read_answers(path: Path) -> dict[str, str]:
    """Answers by question id. Raises DataError, with file and row, for what is malformed or comes twice."""
    return {str(question): answer for question, answer in answer_rows(path)}


def answer_rows(path: Path) -> list[tuple[int | str, str]]:
    """(question id as it stands there, answer) in the order of the file. Raises DataError as above."""
    rows = load_rows(path) if path.suffix in ROWS else _list(path)
    found: dict[str, tuple[int | str, str]] = {}
    for place, row in rows:
        question = id_of(row, "question_id", place)
        if str(question) in found:
            raise DataError(f"{place}: question_id {question} comes twice; one answer a question is scored")
        found[str(question)] = (question, text_of(row, "answer", place))
    if not found:
        raise DataError(f"{path}: holds no answer")
    return list(found.values())


def read_questions(path: Path) -> dict[str, str]:
    """Questions by id. Raises DataError, with file and entry, for another shape or an id that comes twice."""
    rows = _entries(path, "questions").items()
    return {key: text_of(row, "question", place) for key, (place, row) in rows}


def read_annotations(path: Path) -> dict[str, Question]:
    """What people answered, by question id. Raises DataError as `read_questions`."""
    found: dict[str, Question] = {}
    for key, (place, row) in _entries(path, "annotations").items():
        people = row.get("answers")
        if not isinstance(people, list) or not people:
            raise DataError(f"{place}: key 'answers' with a list of {{\"answer\"}} is missing")
        found[key] = Question(
            answers=tuple(text_of(one, "answer", f"{place}, answer {n}") for n, one in enumerate(people)),
            question_type=str(row.get("question_type") or ""),
            answer_type=str(row.get("answer_type") or ""),
        )
    return found


def read_daquar(path: Path) -> dict[str, str]:
    """DAQUAR's answers by the key that `vistill data build daquar` gives a question: `image3#0`.

    Rows that it drops are left out, and do not count: those of another number of fields than the header, or
    not of UTF-8. A row without question or answer counts, and is left out. Raises DataError for a file
    without the columns question, answer and image_id.
    """
    if not path.is_file():
        raise DataError(f"{path}: there is no such file")
    numbers: Counter[str] = Counter()
    found = {}
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.reader(file)
        header = [name.strip().lower() for name in next(reader, [])]
        lacking = {"question", "answer", "image_id"} - set(header)
        if lacking:
            raise DataError(f"{path}: lacks column {sorted(lacking)[0]}; expected DAQUAR's data.csv")
        for fields in reader:
            if len(fields) != len(header) or any("\udc80" <= char <= "\udcff" for char in "".join(fields)):
                continue
            row = dict(zip(header, fields, strict=True))
            key = f"{row['image_id']}#{numbers[row['image_id']]}"
            numbers[row["image_id"]] += 1
            if row["question"].strip() and row["answer"].strip():
                found[key] = row["answer"].strip()
    return found


def write_evalai(source: Path, target: Path) -> int:
    """Write the answers of a TSV or JSON-lines file as the JSON list that EvalAI takes; return how many.

    Question ids made of digits become numbers, which EvalAI demands. The file is whole or not there.
    """
    rows = [
        {"question_id": int(key) if str(key).isdecimal() else key, "answer": answer}
        for key, answer in answer_rows(source)
    ]
    write_text(target, json.dumps(rows, ensure_ascii=False) + "\n")
    return len(rows)


def _list(path: Path) -> Iterator[tuple[str, Any]]:
    entries = load_json(path)
    if not isinstance(entries, list):
        raise DataError(f'{path}: answers are a list, [{{"question_id": 1, "answer": "two"}}, ...]')
    return ((f"{path}: entry {number}", entry) for number, entry in enumerate(entries))


def _entries(path: Path, key: str) -> dict[str, tuple[str, dict[str, Any]]]:
    """{question id: (place for an error, entry)} of a file of VQA v2."""
    content = load_json(path)
    if not isinstance(content, dict) or not isinstance(content.get(key), list):
        raise DataError(f"{path}: key {key!r} with a list is missing; expected a {key} file as of VQA v2")
    found: dict[str, tuple[str, dict[str, Any]]] = {}
    for number, row in enumerate(content[key]):
        place = f"{path}: {key}, entry {number}"
        question = str(id_of(row, "question_id", place))
        if question in found:
            raise DataError(f"{place}: question_id {question} comes twice")
        found[question] = (place, row)
    return found
