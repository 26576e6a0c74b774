"""The answer task: a captioner that reads a question first, its data, its objective, and its scores."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from vistill.data.collate import Batch
from vistill.distill.objective import CaptionObjective, ObjectiveConfig
from vistill.errors import ConfigError
from vistill.metrics.vqa_baselines import Asked
from vistill.models.adopt import reads_its_own_way, with_ask_mark
from vistill.models.answerer import AnyAnswerer, PromptedStepper, grow_vocabulary, of_questions
from vistill.models.captioner import CaptionerConfig
from vistill.models.loading import load_text_model, save_answerer
from vistill.models.prefix import PrefixCaptioner, PrefixConfig
from vistill.models.tokens import EOS
from vistill.models.vision import in_training_layout, tower_preprocess
from vistill.runtime.decode import GenerationConfig, generate
from vistill.runtime.image import Preprocess
from vistill.runtime.prompts import answer_text, ask_mark
from vistill.train.answer_data import AnswerData
from vistill.train.callbacks import LogSamples, ScoreDev
from vistill.train.datamodule import DataConfig
from vistill.train.freeze import freeze, plainly
from vistill.train.optim import OptimConfig
from vistill.train.run import (
    LoggerConfig,
    Task,
    TrainerConfig,
    fit,
    open_folder,
    print_parameters,
)
from vistill.train.start import from_nothing, text_provenance, with_language

SHORTEST_PROMPT = 8
"""Tokens that a question needs at least, its two marks included."""
ACCURACY, MEAN = "accuracy", "mean_of_kinds"


@dataclass(frozen=True)
class AnswerTrainConfig:
    """Everything a run depends on. `datamodule.captions` counts the questions of a picture in a step."""

    name: str = "answerer"
    """Name of the run."""
    out: str = "runs"
    """Folder of all runs; this one is written to OUT/NAME."""
    init_from: str = ""
    """Checkpoint of a captioner or answerer to start from; new words get new tokens. Empty starts anew."""
    datamodule: DataConfig = field(default_factory=DataConfig)
    model: CaptionerConfig = field(default_factory=CaptionerConfig)
    prefix: PrefixConfig | None = None
    """A prefix captioner, to be trained instead of `model`."""
    language: str = ""
    """Folder or hub name of the language model it starts from; empty: random weights."""
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    generation: GenerationConfig = field(
        default_factory=lambda: GenerationConfig(max_new_tokens=8, num_beams=1)
    )
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig)

    def __post_init__(self) -> None:
        weights = self.objective.weights()
        odd = [name for name, weight in weights.items() if weight and name != "cross_entropy"]
        if odd:
            raise ConfigError(f"objective.{odd[0]}: answers are learned by cross_entropy alone")


def train(config: AnswerTrainConfig, *, resume: bool = False) -> Path:
    """Run it; returns the run's folder with `best/` (a checkpoint folder), `last.ckpt` and `config.json`.

    Raises ConfigError if the folder holds another run, or nothing to resume.
    """
    folder = open_folder(config, resume)
    data = AnswerData(config.datamodule, config.trainer.seed, config.trainer.max_epochs)
    model, tokenizer, preprocess = _start_model(config, data)
    in_training_layout(model.tower)
    model.train()
    frozen = freeze(model, config.trainer.policy())
    print_parameters(model)
    longest_answer = config.generation.max_new_tokens
    longest = model.config.decoder.context - longest_answer
    if longest < SHORTEST_PROMPT:
        raise ConfigError(
            f"generation.max_new_tokens={longest_answer}: of {model.config.decoder.context} positions "
            f"(model.decoder.context) {longest} are left for the question"
        )
    data.prepare(
        tokenizer, model.tower, preprocess, frozen=frozen, longest=longest, longest_answer=longest_answer
    )
    per_epoch = data.batches_per_epoch(config.trainer.devices * config.trainer.nodes)
    questions = data.questions()
    kinds = sorted({asked.kind for asked in questions.values()})
    score = ScoreDev(
        folder,
        partial(score_answers, questions),
        plainly(
            lambda place, model, origin: save_answerer(place, model, tokenizer, origin),
            config.trainer.policy(),
        ),
        text_provenance(config, model.config),
        per_epoch,
        best_by=MEAN,  # the half of all questions that is yes/no would hide the others
        shown=(ACCURACY, MEAN, *kinds),
    )
    answer = partial(write_answers, tokenizer=tokenizer, generation=config.generation, keys=data.dev_keys())
    objective = CaptionObjective(config.objective, tokenizer, {})
    samples = _samples(data, preprocess, score)
    fit(config, Task(model, objective, answer, data, per_epoch, [score, samples]), folder, resume=resume)
    return folder


def _samples(data: AnswerData, preprocess: Preprocess, score: ScoreDev) -> LogSamples:
    """The first dev pictures with a question each: the first of the first picture, the second of the next."""
    part = data.dev[0]
    said = []
    for place, (keys, asked) in enumerate(zip(part.keys, part.asked, strict=True)):
        number = place % len(keys)
        said.append((keys[number], f"{asked[number].question} {asked[number].label}"))
    return LogSamples(part.table, preprocess, lambda: score.predictions, said=said)


def write_answers(
    model: AnyAnswerer,
    batch: Batch,
    tokenizer: Tokenizer,
    generation: GenerationConfig,
    keys: Sequence[Sequence[str]],
) -> dict[str, Any]:
    """{key of a question: answer} of the batch; the tower runs once a picture.

    keys: those of the questions of each row of the split.
    """
    owner, prompts, names = [], [], []
    for place, item in enumerate(batch.items):
        for number, text, length in zip(item.shown, item.texts, item.prompts, strict=True):
            owner.append(place)
            prompts.append(text[:length])
            names.append(keys[item.row][number])
    cross = model.decoder.cross_kv(model.vision(batch.pixels, batch.start))
    stepper = PromptedStepper(model, of_questions(cross, owner), prompts)
    found = generate(stepper, len(prompts), bos=ask_mark(tokenizer), eos=EOS, config=generation)
    texts = [answer_text(tokenizer, hypotheses[0].tokens) for hypotheses in found]
    return dict(zip(names, texts, strict=True))


def score_answers(questions: Mapping[str, Asked], answers: Mapping[str, str]) -> dict[str, float]:
    """Accuracy of {key: answer} in hundredths: `accuracy`, `mean_of_kinds` and that of each kind of question.

    An answer is right if it equals the one there is after `metrics.vqa.normalise`; where ten people answered
    it is their VQA accuracy.
    """
    kinds: dict[str, list[float]] = {}
    for key, answer in answers.items():
        asked = questions[key]
        kinds.setdefault(asked.kind, []).append(100 * asked.accuracy(answer))
    means = {kind: sum(found) / len(found) for kind, found in sorted(kinds.items())}
    together = [value for found in kinds.values() for value in found]
    overall = {ACCURACY: sum(together) / len(together), MEAN: sum(means.values()) / len(means)}
    return {**overall, **means}


def _start_model(config: AnswerTrainConfig, data: AnswerData) -> tuple[AnyAnswerer, Tokenizer, Preprocess]:
    if config.init_from:
        model, tokenizer, preprocess = load_text_model(config.init_from)
    elif config.prefix is not None and config.language:
        model, tokenizer = with_language(config.prefix, config.language)
        preprocess = tower_preprocess(config.prefix.vision)
    else:
        tokenizer = data.tokenizer()
        model = from_nothing(config.model, config.prefix, tokenizer)
        return model, tokenizer, tower_preprocess(model.config.vision)
    if isinstance(model, PrefixCaptioner) and reads_its_own_way(tokenizer):
        return model, with_ask_mark(tokenizer, model.config.decoder.blocked), preprocess
    tokenizer = data.tokenizer(tokenizer)
    return grow_vocabulary(model, tokenizer.get_vocab_size()), tokenizer, preprocess
