"""The caption task: a captioner, its data, its objective, and the scoring of what it writes."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from vistill.data.collate import Batch, locate
from vistill.data.text import by_id, with_words
from vistill.distill.cache import TeacherCache
from vistill.distill.join import kept_answers, open_cache
from vistill.distill.objective import CaptionObjective, ObjectiveConfig, Teaching
from vistill.errors import ConfigError, DataError
from vistill.metrics.caption import score_captions
from vistill.metrics.diversity import diversity
from vistill.metrics.ptb import tokenize
from vistill.models.answerer import grow_vocabulary
from vistill.models.captioner import Captioner, CaptionerConfig, TorchStepper
from vistill.models.loading import AnyCaptioner, load_model, save_model
from vistill.models.prefix import PrefixConfig
from vistill.models.pretrained import PretrainedCaptioner
from vistill.models.tokens import BOS, EOS
from vistill.models.vision import in_training_layout, tower_preprocess
from vistill.runtime.decode import GenerationConfig, generate
from vistill.runtime.image import Preprocess
from vistill.train.callbacks import LogSamples, ScoreDev
from vistill.train.datamodule import CaptionData, DataConfig
from vistill.train.freeze import freeze, plainly
from vistill.train.guard import DISTINCT, REPETITION
from vistill.train.optim import OptimConfig
from vistill.train.run import (
    LoggerConfig,
    Task,
    TrainerConfig,
    fit,
    open_folder,
    print_parameters,
    short_name,
)
from vistill.train.start import from_nothing, text_provenance, with_language, with_layers, with_tower


@dataclass(frozen=True)
class TrainConfig:
    """Everything a run depends on."""

    name: str = "captioner"
    """Name of the run."""
    out: str = "runs"
    """Folder of all runs; this one is written to OUT/NAME."""
    init_from: str = ""
    """Checkpoint folder to start from, with its model and tokenizer, or a public captioner of `transformers`,
    a folder or hub name; empty starts anew."""
    keep_layers: int = 0
    """Decoder layers to keep of those that `init_from` or `language` brings, evenly spread, the first and
    the last among them (DistilGPT-2 was started from GPT-2 so); 0 keeps all."""
    tower_from: str = ""
    """Checkpoint folder (captioner, answerer, dual encoder) whose picture tower this model begins with."""
    new_words: bool = True
    """Words of the train captions that the tokenizer of `init_from` lacks (one that keeps whole words) get
    tokens of their own."""
    datamodule: DataConfig = field(default_factory=DataConfig)
    model: CaptionerConfig = field(default_factory=CaptionerConfig)
    prefix: PrefixConfig | None = None
    """A prefix captioner, to be trained instead of `model`."""
    language: str = ""
    """Folder or hub name of the language model a prefix captioner starts from; empty: random weights."""
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    generation: GenerationConfig = field(default_factory=GenerationConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig)

    def __post_init__(self) -> None:
        if self.keep_layers < 0:
            raise ConfigError(f"keep_layers={self.keep_layers}: must not be negative")
        if self.keep_layers and not (self.init_from or self.language):
            raise ConfigError(
                f"keep_layers={self.keep_layers}: there is no model to take layers from; name one as "
                "init_from or language, or set model.decoder.layers"
            )


def train(config: TrainConfig, *, resume: bool = False) -> Path:
    """Run it; returns the run's folder with `best/` (a checkpoint folder), `last.ckpt` and `config.json`.

    Raises ConfigError if the folder holds another run, or nothing to resume.
    """
    folder = open_folder(config, resume)
    data = CaptionData(config.datamodule, config.trainer.seed, config.trainer.max_epochs)
    model, tokenizer, preprocess = _start_model(config, data)
    if isinstance(model, PretrainedCaptioner) and config.objective.bag_of_words:
        raise ConfigError("objective.bag_of_words: a public captioner has no output for it; set it to 0")
    if config.keep_layers:
        model = with_layers(model, config.keep_layers)
    if config.init_from and config.new_words:
        model, tokenizer = _with_new_words(model, tokenizer, data)
    if config.tower_from:
        preprocess = with_tower(model, config.tower_from)
    in_training_layout(model.tower)
    model.train()  # Lightning leaves the mode as it is, and a loaded checkpoint is in evaluation mode
    frozen = freeze(model, config.trainer.policy())
    print_parameters(model)
    context = model.config.decoder.context
    cache = _open_cache(config, tokenizer, context)
    if cache is not None:
        data.left_out = cache.unanswered(data.train_splits)
    if data.left_out:
        print(f"{len(data.left_out)} pictures without an answer of the teacher are left out", file=sys.stderr)
    data.prepare(tokenizer, model.tower, preprocess, frozen=frozen, longest=context)
    objective = CaptionObjective(
        config.objective,
        tokenizer,
        data.references(data.train_table),
        None if cache is None else _teaching(cache, data, context),
        model.mapper.width,
    )
    per_epoch = data.batches_per_epoch(config.trainer.devices * config.trainer.nodes)
    score = ScoreDev(
        folder,
        partial(score_against, data.references(data.dev_table)),
        plainly(
            lambda place, model, origin: save_model(place, model, tokenizer, origin), config.trainer.policy()
        ),
        text_provenance(config, model.config, cache, tower_from=short_name(config.tower_from)),
        per_epoch,
        best_by="CIDEr",
        shown=("CIDEr", "BLEU-4", "ROUGE-L", "BLEU-1"),
    )
    samples = LogSamples(data.dev_table, preprocess, lambda: score.predictions)
    write = partial(write_captions, tokenizer=tokenizer, generation=config.generation)
    task = Task(model, objective, write, data, per_epoch, [score, samples])
    fit(config, task, folder, resume=resume)
    return folder


def write_captions(
    model: AnyCaptioner, batch: Batch, tokenizer: Tokenizer, generation: GenerationConfig
) -> dict[str, Any]:
    """{key: caption} of the batch."""
    stepper = TorchStepper(model, model.vision(batch.pixels, batch.start))
    found = generate(stepper, len(batch.keys), bos=BOS, eos=EOS, config=generation)
    texts = tokenizer.decode_batch([list(hypotheses[0].tokens) for hypotheses in found])
    return dict(zip(batch.keys, texts, strict=True))


def score_against(references: Mapping[str, Sequence[str]], captions: Mapping[str, str]) -> dict[str, float]:
    """Scores of {key: caption} in hundredths, with how varied they are."""
    found = score_captions(captions, {key: references[key] for key in captions})
    varied = diversity([tokenize(caption) for caption in captions.values()])
    scores = {**found.corpus, REPETITION: varied.repetition, DISTINCT: varied.distinct_2}
    return {name: 100 * value for name, value in scores.items()}


def _start_model(config: TrainConfig, data: CaptionData) -> tuple[AnyCaptioner, Tokenizer, Preprocess]:
    if config.init_from:
        return load_model(config.init_from)
    if config.prefix is not None and config.language:
        prefixed, tokenizer = with_language(config.prefix, config.language)
        return prefixed, tokenizer, tower_preprocess(config.prefix.vision)
    tokenizer = data.train_tokenizer()
    model = from_nothing(config.model, config.prefix, tokenizer)
    return model, tokenizer, tower_preprocess(model.config.vision)


def _with_new_words(
    model: AnyCaptioner, tokenizer: Tokenizer, data: CaptionData
) -> tuple[AnyCaptioner, Tokenizer]:
    """Model and tokenizer with the words of the train captions, if the tokenizer keeps whole words."""
    if not isinstance(model, Captioner):
        return model, tokenizer
    grown = with_words(tokenizer, by_id(data.train_tokenizer()))
    return grow_vocabulary(model, grown.get_vocab_size()), grown


def _open_cache(config: TrainConfig, tokenizer: Tokenizer, longest: int) -> TeacherCache | None:
    """The teacher's cache, if a loss needs it. Raises DataError with the reason if it does not fit."""
    wants, data = config.objective.wants(), config.datamodule
    if not data.teacher:
        return None
    if not wants:
        TeacherCache.open(Path(data.teacher))  # a wrong folder is an error also where nothing is read of it
        print(f"no loss learns from datamodule.teacher={data.teacher}", file=sys.stderr)
        return None
    return open_cache(
        Path(data.teacher),
        Path(data.path),
        data.train_splits(),
        wants=wants,
        tokenizer=tokenizer,
        longest=longest,
        views=data.views,
        seed=data.views_seed,
        augment=data.augment,
        leave_out=data.leave_out_unanswered,
    )


def _teaching(cache: TeacherCache, data: CaptionData, longest: int) -> Teaching:
    """The cache as the objective sees it. Raises DataError if it holds no answer to any picture."""
    sizes = [cache.splits[split] for split in data.train_splits]
    row = next((row for row in range(sum(sizes)) if row not in data.left_out), None)
    if row is None:
        raise DataError(f"{cache.folder}: holds no answer at all")
    part, place = locate(sizes, row)
    first = cache.read(data.train_splits[part], place)
    return Teaching(
        kept_answers(cache, data.train_splits),
        longest,
        hidden_width=0 if first.hidden is None else first.hidden.shape[-1],
        embedding_width=0 if first.embedding is None else first.embedding.shape[-1],
    )
