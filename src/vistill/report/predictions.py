"""Answers to the questions of one TSV about the pictures of another, kept as they come.

    images.tsv       key<TAB>base64 of the picture's file
    questions.tsv    key<TAB>[{"question_id": 7, "question": "how many dogs are there?"}]
    out.tsv          {"answer": "2", "question_id": 7}

A row of `out.tsv` is whole or will be written again: a stopped run goes on with the questions that lack one.
"""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from vistill.data.tsv import TsvFile
from vistill.errors import DataError, ImageError
from vistill.runtime.answerer import Answer, Pair

Answers = Callable[[Sequence[Pair], int], list[list[Answer]]]
Question = tuple[int | str, str]
"""(question_id, question)."""
BEGIN = b'{"answer": '  # of each row


def read_questions(file: TsvFile) -> dict[str, list[Question]]:
    """{key of a picture: its questions}. Raises DataError, naming file and row, for anything else."""
    found: dict[str, list[Question]] = {}
    seen: set[str] = set()
    for row in range(len(file)):
        where = f"{file.path}: row {row}"
        key, _, text = b"\t".join(file.fields(row)).decode("utf-8", "replace").partition("\t")
        try:
            listed = json.loads(text)
        except ValueError as error:
            raise DataError(f"{where}: is not key<TAB>JSON: {error}") from error
        for entry in listed if isinstance(listed, list) else [listed]:
            number = entry.get("question_id") if isinstance(entry, dict) else None
            question = entry.get("question") if isinstance(entry, dict) else None
            if isinstance(number, bool) or not isinstance(number, int | str) or not isinstance(question, str):
                raise DataError(f'{where}: {str(entry)[:80]} has no "question_id" and "question"')
            if str(number) in seen:
                raise DataError(f"{where}: question_id {number} comes twice")
            seen.add(str(number))
            found.setdefault(key, []).append((number, question))
    return found


def picture_rows(file: TsvFile) -> dict[str, int]:
    """{key: row} of the pictures; of a key that comes twice the first."""
    rows: dict[str, int] = {}
    for row in range(len(file)):
        field = file.second(row)
        if field is not None:
            rows.setdefault(field[0], row)
    return rows


def answered(out: Path) -> set[str]:
    """The question ids that `out` has; a torn last row is cut off. Raises DataError for another file."""
    if not out.is_file():
        return set()
    data = out.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    torn = data[len(whole) :]
    if not torn.startswith(BEGIN[: len(torn)]):
        raise DataError(f"{out}: its last row is no answer of ours; choose another file or remove it")
    done = set()
    for number, line in enumerate(whole.splitlines()):
        try:
            done.add(str(json.loads(line)["question_id"]))
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{out}: row {number} is no answer of ours; choose another file or remove it"
            ) from error
    if torn:
        os.truncate(out, len(whole))
    return done


def predict(
    answer: Answers,
    images: TsvFile,
    questions: TsvFile,
    out: Path,
    batch_size: int,
    told: Callable[[int, list[str]], object] = lambda done, problems: None,
) -> int:
    """Append the missing answers to `out`; returns how many questions stay without one.

    batch_size: pictures at a time. told: number of questions dealt with, and what went wrong in sentences.
    """
    done = answered(out)
    rows = picture_rows(images)
    asked = read_questions(questions)
    missing = {key: [one for one in some if str(one[0]) not in done] for key, some in asked.items()}
    missing = {key: some for key, some in missing.items() if some}
    keys, dealt, lost = list(missing), 0, 0
    with out.open("ab") as file:
        for start in range(0, len(keys), batch_size):
            batch = keys[start : start + batch_size]
            problems = {key: f"not in {images.path}" for key in batch if key not in rows}
            given = [key for key in batch if key in rows]
            for key, found in _answer(answer, images, rows, given, missing):
                if isinstance(found, str):
                    problems[key] = found
                    continue
                for (number, _), text in zip(missing[key], found, strict=True):
                    line = json.dumps({"answer": text, "question_id": number}, ensure_ascii=False)
                    file.write(line.encode("utf-8", "backslashreplace") + b"\n")
            file.flush()
            os.fsync(file.fileno())
            dealt += sum(len(missing[key]) for key in batch)
            lost += sum(len(missing[key]) for key in problems)
            told(dealt, [f"{key}: {reason}" for key, reason in problems.items()])
    return lost


def _answer(
    answer: Answers,
    images: TsvFile,
    rows: dict[str, int],
    keys: Sequence[str],
    asked: dict[str, list[Question]],
) -> Iterator[tuple[str, list[str] | str]]:
    """(key, answers to its questions, or what is wrong with its picture) of each picture."""
    pictures: dict[str, bytes] = {}
    for key in keys:
        try:
            pictures[key] = images.picture(rows[key])
        except DataError as error:
            yield key, str(error)
    groups = [list(pictures)]
    while groups:
        group = groups.pop(0)
        pairs: list[Pair] = [(pictures[key], question) for key in group for _, question in asked[key]]
        try:
            texts = iter([found[0].text for found in answer(pairs, 1)])
        except ImageError as error:
            if len(group) == 1:
                yield group[0], str(error)
            else:
                groups += [[key] for key in group]
            continue
        for key in group:
            yield key, [next(texts) for _ in asked[key]]
