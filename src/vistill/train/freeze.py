"""What learns: `trainer.freeze` by name, or `trainer.encoder` and `trainer.decoder` one by one.

The mapper joins the two and learns under every policy. Embeddings and the output table, which our decoders
and GPT-2 share, learn with `trainer.decoder=full` alone: every word would move, also those that the new
captions do not have. Rows of words that were added to the table learn always.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from vistill.errors import ConfigError
from vistill.models.clip import ClipDual
from vistill.models.dual import DualEncoder
from vistill.models.lora import LoraConfig, add_lora, merged
from vistill.models.vision import Stage, VisionTower

FREEZE = {
    "last-layer": ("layers-1", "last-1"),
    "cross-attention": ("frozen", "cross-attention"),
    "lora": ("frozen", "lora"),
    "all": ("full", "full"),
}
"""trainer.freeze -> (trainer.encoder, trainer.decoder); `last-N` is `last-layer` with N layers of both."""
Save = Callable[[Path, Any, dict[str, Any]], None]
"""(folder, model, provenance): write a checkpoint folder."""
DECODERS = ("full", "frozen", "cross-attention", "lora")


@dataclass(frozen=True)
class FreezePolicy:
    """What of the tower and of the decoder learns.

    encoder: `frozen`, `full`, `last-N` (the last N stages of the tower) or `layers-N` (the last N numbered
    stages, as `blocks.11`, and what follows them). decoder: `full` (as the model itself has it), `frozen`,
    `last-N` (layers), `cross-attention` or `lora` (beside every dense layer of its layers).
    """

    encoder: str = "frozen"
    decoder: str = "full"
    lora: LoraConfig = field(default_factory=LoraConfig)

    def __post_init__(self) -> None:
        if self.encoder not in ("frozen", "full") and not (
            _number(self.encoder, "last-") or _number(self.encoder, "layers-")
        ):
            raise ConfigError(
                f"trainer.encoder={self.encoder!r}: use frozen, last-N (stages, as last-3), layers-N or full"
            )
        if self.decoder not in DECODERS and not _number(self.decoder, "last-"):
            raise ConfigError(f"trainer.decoder={self.decoder!r}: use {', '.join(DECODERS)} or last-N")

    def frozen_stages(self, stages: list[Stage]) -> int:
        """How many of a tower's stages stay frozen. Raises ConfigError if N is larger than the tower."""
        if self.encoder in ("frozen", "full"):
            return len(stages) if self.encoder == "frozen" else 0
        last = int(self.encoder.rpartition("-")[2])
        numbered = [n for n, stage in enumerate(stages) if stage.name.rpartition(".")[2].isdecimal()]
        if self.encoder.startswith("last-"):
            numbered = list(range(len(stages)))
        numbered = numbered or [0]  # a tower that could not be cut is one layer
        if last > len(numbered):
            kind = "stages" if self.encoder.startswith("last-") else "layers"
            raise ConfigError(f"trainer.encoder={self.encoder}: the tower has only {len(numbered)} {kind}")
        return numbered[-last]


def policy_of(freeze: str, encoder: str, decoder: str, lora: LoraConfig) -> FreezePolicy:
    """The policy of `trainer.freeze`, or of `trainer.encoder` and `trainer.decoder`; "" is not given.

    Raises ConfigError for an unknown name and for a name beside one of the two.
    """
    if not freeze:
        return FreezePolicy(encoder or "frozen", decoder or "full", lora)
    for name, value in (("encoder", encoder), ("decoder", decoder)):
        if value:
            raise ConfigError(
                f"trainer.freeze={freeze} says what learns, and so does trainer.{name}={value}: set one of "
                f"them to ''"
            )
    if last := _number(freeze, "last-"):
        return FreezePolicy(f"layers-{last}", f"last-{last}", lora)
    if freeze not in FREEZE:
        raise ConfigError(f"trainer.freeze={freeze!r}: use {', '.join(FREEZE)} or last-N")
    return FreezePolicy(*FREEZE[freeze], lora)


class HasTower(Protocol):
    """A captioner, or the picture side of a dual encoder."""

    tower: VisionTower


def freeze(model: HasTower, policy: FreezePolicy) -> int:
    """Set `requires_grad` of the tower's and the decoder's parameters; returns the number of frozen stages.

    Parameters outside every stage (a position table, a class token) go with the first stage. Of the model are
    asked `tower.stages` and, unless the policy leaves the decoder as it is, `decoder.layers` and
    `decoder.cross_attention` (modules). Raises ConfigError for what the model does not have.
    """
    stages = model.tower.stages
    frozen = policy.frozen_stages(stages)
    learning: set[int] = {id(p) for stage in stages[frozen:] for m in stage.modules for p in m.parameters()}
    for parameter in model.tower.parameters():
        parameter.requires_grad_(frozen == 0 or id(parameter) in learning)
    if policy.decoder != "full":
        _freeze_decoder(model, policy)
    return frozen


def _freeze_decoder(model: Any, policy: FreezePolicy) -> None:
    decoder = model.decoder
    if not all(parameter.requires_grad for parameter in decoder.parameters()):
        raise ConfigError(
            f"trainer.decoder={policy.decoder}: prefix.decoder.tune says already what of this decoder learns"
        )
    decoder.requires_grad_(False)
    if hasattr(model, "word_bias"):  # belongs to the table
        model.word_bias.requires_grad_(False)
    if policy.decoder == "lora":
        for layer in decoder.layers:
            add_lora(layer, policy.lora)
    elif policy.decoder == "cross-attention":
        if not len(decoder.cross_attention):
            raise ConfigError(
                "trainer.decoder=cross-attention: this decoder reads pictures as a prefix and has none; use "
                "frozen (the mapper learns) or lora"
            )
        for module in decoder.cross_attention:
            module.requires_grad_(True)
    elif last := _number(policy.decoder, "last-"):
        if last > len(decoder.layers):
            raise ConfigError(
                f"trainer.decoder={policy.decoder}: the decoder has only {len(decoder.layers)} layers"
            )
        for layer in list(decoder.layers)[-last:]:
            layer.requires_grad_(True)
    if rows := _new_rows(model):
        table = decoder.embed.weight.requires_grad_(True)
        table.register_hook(lambda gradient: _only_last(gradient, rows))


def plainly(save: Save, policy: FreezePolicy) -> Save:
    """`save`, with the LoRA that the policy put into the decoder merged: what is kept is a plain model."""
    if policy.decoder != "lora":
        return save

    def save_merged(folder: Path, model: Any, provenance: dict[str, Any]) -> None:
        with merged(model.decoder):
            save(folder, model, provenance)

    return save_merged


def _only_last(gradient: Tensor, rows: int) -> Tensor:
    # AdamW does not move what never has a gradient; tables have no weight decay
    kept = gradient.clone()
    kept[:-rows] = 0
    return kept


def _new_rows(model: Any) -> int:
    """Rows at the end of the table that a trained model got for new words."""
    return int(getattr(getattr(model, "decoder", None), "new_rows", 0))


def parts_of(model: Any) -> dict[str, nn.Module]:
    """{name: part} of a model, for its table of parameters and for rates of their own.

    `tower` is a tower of stages, `text` the text side of a dual encoder.
    """
    if isinstance(model, DualEncoder):
        head = nn.ModuleList([model.image.norm, model.image.project])
        return {"tower": model.image.tower, "projection": head, "text": nn.ModuleList(model.text_side)}
    if isinstance(model, ClipDual):
        return {"image": nn.ModuleList(model.image_side), "text": nn.ModuleList(model.text_side)}
    return {name: getattr(model, name) for name in ("tower", "mapper", "decoder")}


def parameter_table(model: nn.Module) -> list[tuple[str, int, int]]:
    """(part, parameters, trainable parameters) of the parts and of the whole, `all`."""
    held = 0  # rows of a table of which only the new ones learn
    decoder: Any = getattr(model, "decoder", None)
    if (rows := _new_rows(model)) and decoder.embed.weight._backward_hooks:
        held = decoder.embed.weight[:-rows].numel()
    return [
        (
            name,
            sum(p.numel() for p in part.parameters()),
            sum(p.numel() for p in part.parameters() if p.requires_grad)
            - (held if name in ("decoder", "all") else 0),
        )
        for name, part in {**parts_of(model), "all": model}.items()
    ]


def _number(text: str, before: str) -> int:
    """N of `BEFORE` N, at least 1; 0 for another text."""
    digits = text.removeprefix(before)
    return int(digits) if digits != text and digits.isdecimal() else 0
