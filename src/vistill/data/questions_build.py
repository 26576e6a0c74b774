"""Build a data set of questions out of a built data set of captions: `vistill data questions DIR --out DIR2`.

One row a question, in the common schema: `key` is the picture's key, "#" and a number, `source` is the
picture's source, ":" and the kind of question; picture, captions, split and licence stay. Words, and what
makes a thing likely, are learned from the train split alone. Equal input and settings give equal bytes.
"""

import hashlib
import itertools
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vistill.data import store
from vistill.data.questions import KINDS, Question, Scene, ask, largest, read_scene
from vistill.data.questions_parse import learn
from vistill.data.questions_yesno import Presence, ask_yes_no, learn_presence
from vistill.data.records import Sample
from vistill.errors import ConfigError, DataError
from vistill.files import replacing, write_json

SHARD_ROWS = 4000
LEARNED_FROM = "train"

Progress = Callable[[str, int, int], None]  # (step, done, total)


@dataclass(frozen=True)
class QuestionsConfig:
    """How questions are balanced; nothing of the rules is a setting."""

    seed: int = 0
    """Of the draw of questions that are left out."""
    max_share: float = 0.35
    """Largest share of one answer in the questions of a kind (yes/no is half and half)."""
    max_frame_share: float = 0.5
    """Largest share of one answer in questions that differ in nothing but who does it."""
    min_answer: int = 10
    """Train questions that an answer needs, and pictures of a thing that "is there a ...?" asks for."""

    def __post_init__(self) -> None:
        for name in ("max_share", "max_frame_share"):
            if not 0 < getattr(self, name) <= 1:
                raise ConfigError(f"{name} must be above 0 and at most 1, not {getattr(self, name)}")
        if self.min_answer < 1:
            raise ConfigError(f"min_answer must be 1 or more, not {self.min_answer}")


def build_questions(
    folder: Path,
    out: Path,
    config: QuestionsConfig | None = None,
    *,
    force: bool = False,
    progress: Progress = lambda step, done, total: None,
) -> dict[str, Any]:
    """Write the data set of questions about `folder` to `out`, at once or not at all; return its report.

    Raises DataError if `folder` is no built data set with captions, if nothing can be asked, or if `out`
    exists (`force` replaces what a build made there).
    """
    config = config or QuestionsConfig()
    report = store.read_report(folder)
    _check_out(folder, out, force)
    scenes, lexicon_from = _read_scenes(folder, progress)
    presence = learn_presence(scenes[lexicon_from], config.min_answer)
    asked = {split: _ask(split, found, presence, config) for split, found in scenes.items()}
    kept, dropped = balance(asked, lexicon_from, config)
    if not any(kept.values()):
        raise DataError(f"{folder}: no question is left; asked were {sum(map(len, asked.values()))}")
    with replacing(out) as building:
        counts = {}
        for split, questions in kept.items():
            if questions:
                counts[split] = _write_split(building / split, folder, split, questions, progress)
        summary = {
            "format": report["format"],
            "source": f"{report['source']}, questions",
            "arguments": asdict(config),
            "from": {"fingerprint": report["fingerprint"], "words_from": lexicon_from},
            "fingerprint": store.joint_fingerprint(counts),
            "splits": counts,
            "questions": {split: _describe(questions) for split, questions in kept.items() if questions},
            "dropped": {"counts": dict(dropped.most_common()), "items": []},
            "duplicates": [],
        }
        write_json(building / "dataset_dict.json", {"splits": list(counts)})
        write_json(building / store.REPORT, summary)
        write_json(
            building / store.STATE,
            {name: summary[name] for name in ("format", "source", "arguments", "from")},
        )
    return summary


def _check_out(folder: Path, out: Path, force: bool) -> None:
    if out.resolve() == folder.resolve():
        raise DataError(f"{out}: is the data set that the questions are about; choose another folder")
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not (out / store.STATE).is_file():
        raise DataError(f"{out}: is no data set ({store.STATE} is missing); choose another folder")
    if not force:
        raise DataError(f"{out}: exists; --force replaces it")


def _read_scenes(folder: Path, progress: Progress) -> tuple[dict[str, list[Scene]], str]:
    """The read captions of every split, and the split that words were learned from."""
    captions: dict[str, list[list[str]]] = {
        split: store.open_split(folder, split)["captions"][:] for split in store.split_names(folder)
    }
    words_from = LEARNED_FROM if LEARNED_FROM in captions else next(iter(captions))
    lexicon = learn(caption for texts in captions[words_from] for caption in texts)
    scenes: dict[str, list[Scene]] = {}
    total, done = sum(map(len, captions.values())), 0
    for split, pictures in captions.items():
        scenes[split] = []
        for number, texts in enumerate(pictures):
            scenes[split].append(read_scene(number, texts, lexicon))
            done += 1
            progress("read", done, total)
    return scenes, words_from


def _ask(split: str, scenes: Sequence[Scene], presence: Presence, config: QuestionsConfig) -> list[Question]:
    questions = [question for scene in scenes for question in ask(scene)]
    return questions + ask_yes_no(scenes, questions, presence, _draw(config, split))


def _draw(config: QuestionsConfig, split: str) -> random.Random:
    return random.Random(f"{config.seed} {split}")


def balance(
    asked: dict[str, list[Question]], learned_from: str, config: QuestionsConfig
) -> tuple[dict[str, list[Question]], Counter[str]]:
    """Leave out questions until no answer is too frequent or too rare; also count the reasons.

    Of each split: first the frames (a verb, a thing whose colour or number is asked), then the kinds. A
    split that is not learned from keeps only frames and answers that the other has.
    """
    dropped: Counter[str] = Counter()
    kept: dict[str, list[Question]] = {}
    order = [learned_from, *(split for split in asked if split != learned_from)]
    frames: set[tuple[str, str]] = set()
    answers: set[tuple[str, str]] = set()
    for split in order:
        draw = _draw(config, f"balance {split}")
        questions = asked[split]
        if split == learned_from:
            counts = Counter((question.kind, question.answer) for question in questions)
            answers = {pair for pair, number in counts.items() if number >= config.min_answer}
        left = [question for question in questions if (question.kind, question.answer) in answers]
        dropped["rare_answer"] += len(questions) - len(left)
        spoken = _split_by(left, lambda question: question.kind == "yes/no")
        fair = [
            question
            for group in _groups(spoken[False], lambda question: (question.kind, question.frame))
            for question in cap(group, config.max_frame_share, draw)
        ]
        dropped["frame_share"] += len(spoken[False]) - len(fair)
        even = [
            question
            for group in _groups(fair, lambda question: question.kind)
            for question in cap(group, max(config.max_share, 1 / len({q.answer for q in group})), draw)
        ]
        dropped["answer_share"] += len(fair) - len(even)
        even += spoken[True]
        if split == learned_from:
            frames = {(question.kind, question.frame) for question in even}
        known = [question for question in even if (question.kind, question.frame) in frames]
        dropped["frame_not_learned"] += len(even) - len(known)
        kept[split] = sorted(known, key=lambda q: (q.picture, KINDS.index(q.kind), q.text, q.answer))
    return {split: kept[split] for split in asked}, dropped


def _split_by(questions: Iterable[Question], test: Callable[[Question], bool]) -> dict[bool, list[Question]]:
    parts: dict[bool, list[Question]] = {False: [], True: []}
    for question in questions:
        parts[test(question)].append(question)
    return parts


def _groups(questions: Iterable[Question], key: Callable[[Question], Any]) -> Iterator[list[Question]]:
    groups: dict[Any, list[Question]] = {}
    for question in questions:
        groups.setdefault(key(question), []).append(question)
    for _, group in sorted(groups.items()):
        yield group


def cap(questions: Sequence[Question], share: float, draw: random.Random) -> list[Question]:
    """Leave out questions by chance until no answer has more than `share` of those that stay.

    Everything goes if that cannot be: a single answer with a share below 1 teaches to answer without looking.
    """
    counts = Counter(question.answer for question in questions)
    most = largest(counts.values(), share)
    kept: list[Question] = []
    for answer in sorted(counts):
        group = [question for question in questions if question.answer == answer]
        kept += group if len(group) <= most else draw.sample(group, most)
    return kept


def _write_split(
    target: Path, folder: Path, split: str, questions: Sequence[Question], progress: Progress
) -> dict[str, Any]:
    """Write the rows of one split; return its counts and fingerprint."""
    target.mkdir()
    table = store.open_split(folder, split)
    names = store.shard_names(len(questions), SHARD_ROWS)
    digest = hashlib.sha256()
    size, last, picture, done = 0, b"", "", 0
    rows = _samples(table, questions)
    for name in names:
        samples = list(itertools.islice(rows, SHARD_ROWS))
        store.write_shard(target / name, samples, shared=True)
        for sample in samples:
            if sample.image != last:
                last, picture = sample.image, hashlib.sha256(sample.image).hexdigest()
                size += len(last)
            digest.update(store.print_row(sample, picture))
        done += len(samples)
        progress(f"write {split}", done, len(questions))
    fingerprint = digest.hexdigest()
    store.write_split_metadata(target, names, fingerprint, shared=True)
    return {
        "pictures": len({question.picture for question in questions}),
        "rows": len(questions),
        "captions": sum(map(len, table.select([question.picture for question in questions])["captions"][:])),
        "questions": len(questions),
        "bytes": size,
        "fingerprint": fingerprint,
    }


def _samples(table: Any, questions: Sequence[Question]) -> Iterator[Sample]:
    """The rows of questions, of which those about one picture stand side by side."""
    for picture, asked in itertools.groupby(questions, key=lambda question: question.picture):
        row = table[picture]
        for number, question in enumerate(asked):
            yield Sample(
                key=f"{row['key']}#{number}",
                image=row["image"],
                width=row["width"],
                height=row["height"],
                captions=tuple(row["captions"]),
                question=question.text,
                answers=(question.answer,),
                split=row["split"],
                source=f"{row['source']}:{question.kind}",
                licence=row["licence"],
            )


def _describe(questions: Sequence[Question]) -> dict[str, Any]:
    """For each kind: how many questions, and how many of each answer."""
    return {
        kind: {
            "questions": sum(question.kind == kind for question in questions),
            "answers": dict(Counter(q.answer for q in questions if q.kind == kind).most_common()),
        }
        for kind in KINDS
    }
