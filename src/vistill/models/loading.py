"""Captioners of any kind, answerers and dual encoders of either kind, from and to their folders."""

import re
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from vistill.errors import BundleError
from vistill.models import checkpoint, prefix_checkpoint, pretrained
from vistill.models.answerer import AnyAnswerer
from vistill.models.captioner import Captioner
from vistill.models.clip import ClipDual, load_clip, save_clip
from vistill.models.dual import KIND as DUAL
from vistill.models.dual import DualEncoder, load_dual, save_dual
from vistill.models.folder import SIDE, config_of, is_ours, read_config
from vistill.models.prefix import PrefixCaptioner
from vistill.models.pretrained import PretrainedCaptioner
from vistill.models.vision import VisionConfig, VisionTower
from vistill.runtime.image import Preprocess

AnyCaptioner = Captioner | PrefixCaptioner | PretrainedCaptioner
AnyDual = DualEncoder | ClipDual
ANSWERERS = (checkpoint.ANSWERER, prefix_checkpoint.ANSWERER)
KINDS = (checkpoint.KIND, prefix_checkpoint.KIND, pretrained.KIND)

_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w.-]+")


def load_model(source: Path | str) -> tuple[AnyCaptioner, Tokenizer, Preprocess]:
    """A checkpoint folder of any kind or a public captioner; in evaluation mode on the CPU.

    Raises BundleError, naming the file, if something is missing, broken or of another format.
    """
    kind = origin(source)["kind"]
    if kind == pretrained.KIND:
        return pretrained.load_pretrained_captioner(source)
    if kind == prefix_checkpoint.KIND:
        prefixed, tokenizer, _, preprocess = prefix_checkpoint.load_prefix_captioner(source)
        return prefixed, tokenizer, preprocess
    model, tokenizer, _, preprocess = checkpoint.load_captioner(source)
    return model, tokenizer, preprocess


def origin(source: Path | str, *others: str) -> dict[str, Any]:
    """`kind` (one of KINDS or `others`) and `provenance` of a folder or hub name; a public one has none.

    Raises BundleError, naming the file, for anything else.
    """
    if is_public(source):
        return {"kind": pretrained.KIND, "provenance": {}}
    raw = read_config(Path(source), *KINDS, *others)
    return {"kind": raw["kind"], "provenance": raw.get("provenance", {})}


def is_public(source: Path | str) -> bool:
    """Whether it is a hub name, or a folder of `transformers` that vistill has not written."""
    folder = Path(source)
    if not folder.exists():
        return _HUB_NAME.fullmatch(str(source)) is not None
    return not (folder / SIDE).is_file() and "kind" not in (raw := config_of(folder)) and "model_type" in raw


def save_model(folder: Path, model: AnyCaptioner, tokenizer: Tokenizer, provenance: dict[str, Any]) -> None:
    """Write a checkpoint folder; it appears at once under its name, replacing an older one."""
    if isinstance(model, PretrainedCaptioner):
        pretrained.save_pretrained_captioner(folder, model, provenance)
    elif isinstance(model, PrefixCaptioner):
        prefix_checkpoint.save_prefix_captioner(folder, model, tokenizer, provenance)
    else:
        checkpoint.save_captioner(folder, model, tokenizer, provenance)


def load_answerer(folder: Path | str) -> tuple[AnyAnswerer, Tokenizer, Preprocess]:
    """The checkpoint folder of an answerer of either kind; as `load_model`."""
    if read_config(Path(folder), *ANSWERERS)["kind"] == prefix_checkpoint.ANSWERER:
        prefixed, tokenizer, _, preprocess = prefix_checkpoint.load_prefix_captioner(
            folder, prefix_checkpoint.ANSWERER
        )
        return prefixed, tokenizer, preprocess
    model, tokenizer, _, preprocess = checkpoint.load_answerer(folder)
    return model, tokenizer, preprocess


def load_text_model(folder: Path | str) -> tuple[AnyAnswerer, Tokenizer, Preprocess]:
    """The checkpoint folder of a captioner or an answerer that vistill has made; as `load_model`."""
    captioners = (checkpoint.KIND, prefix_checkpoint.KIND)
    if read_config(Path(folder), *ANSWERERS, *captioners)["kind"] in ANSWERERS:
        return load_answerer(folder)
    model, tokenizer, preprocess = load_model(folder)
    assert not isinstance(model, PretrainedCaptioner)
    return model, tokenizer, preprocess


def load_tower(folder: Path | str) -> tuple[VisionTower, VisionConfig, Preprocess]:
    """The picture tower of a captioner, an answerer or a dual encoder of ours, and its settings.

    Raises BundleError, naming the file, for anything else, and if the tower has never met texts.
    """
    captioners = (checkpoint.KIND, prefix_checkpoint.KIND)
    if read_config(Path(folder), *ANSWERERS, *captioners, DUAL)["kind"] == DUAL:
        require_learned(folder, "image")
        dual, _, preprocess = load_dual(folder)
        return dual.image.tower, dual.config.vision, preprocess
    model, _, preprocess = load_text_model(folder)
    return model.tower, model.config.vision, preprocess


def save_answerer(folder: Path, model: AnyAnswerer, tokenizer: Tokenizer, provenance: dict[str, Any]) -> None:
    """Write the checkpoint folder of an answerer; as `save_model`. Raises ConfigError without `<ask>`."""
    if isinstance(model, PrefixCaptioner):
        kind = prefix_checkpoint.ANSWERER
        prefix_checkpoint.save_prefix_captioner(folder, model, tokenizer, provenance, kind)
    else:
        checkpoint.save_answerer(folder, model, tokenizer, provenance)


def load_dual_model(source: Path | str) -> tuple[AnyDual, Tokenizer, Preprocess]:
    """A dual-encoder checkpoint, or CLIP of a folder or hub name; in evaluation mode on the CPU.

    Raises BundleError, naming the file, if something is missing, broken or of another format.
    """
    return load_dual(source) if is_ours(Path(source)) else load_clip(source)


def dual_provenance(folder: Path) -> dict[str, Any]:
    """What the folder of a dual encoder says about its origin; nothing of a CLIP that others made."""
    name = SIDE if (folder / SIDE).is_file() else "config.json"
    found: dict[str, Any] = config_of(folder, name).get("provenance", {})
    return found


def require_learned(source: Path | str, *sides: str) -> None:
    """Raise BundleError if one of `sides` (image, text) of a dual encoder has the weights it was born with.

    Towers are trained one by one: a run with towers=image and a new text side leaves that one as it is.
    """
    folder = Path(source)
    if found := sorted(set(dual_provenance(folder).get("untrained", ())) & set(sides)):
        raise BundleError(
            f"{source}: its {' and '.join(found)} side has never learned; its embeddings mean nothing. Take "
            "that side from another model (--texts of evaluate), or join both: image_from, text_from of a run"
        )


def save_dual_model(folder: Path, model: AnyDual, tokenizer: Tokenizer, provenance: dict[str, Any]) -> None:
    """Write the folder in its kind's format; it appears at once, replacing an older one."""
    if isinstance(model, ClipDual):
        save_clip(folder, model, tokenizer, provenance)
    else:
        save_dual(folder, model, tokenizer, provenance)
