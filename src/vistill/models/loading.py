"""Captioners of either kind and dual encoders of either kind, from and to their folders."""

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from vistill.models import checkpoint, prefix_checkpoint
from vistill.models.captioner import Captioner
from vistill.models.clip import ClipDual, load_clip, save_clip
from vistill.models.dual import DualEncoder, load_dual, save_dual
from vistill.models.folder import is_ours, read_config
from vistill.models.prefix import PrefixCaptioner
from vistill.runtime.image import Preprocess

AnyCaptioner = Captioner | PrefixCaptioner
AnyDual = DualEncoder | ClipDual
KINDS = (checkpoint.KIND, prefix_checkpoint.KIND)


def load_model(folder: Path | str) -> tuple[AnyCaptioner, Tokenizer, Preprocess]:
    """Read a checkpoint folder of either kind; the model comes in evaluation mode on the CPU.

    Raises BundleError, naming the file, if something is missing, broken or of another format.
    """
    if read_config(Path(folder), *KINDS)["kind"] == prefix_checkpoint.KIND:
        prefixed, tokenizer, _, preprocess = prefix_checkpoint.load_prefix_captioner(folder)
        return prefixed, tokenizer, preprocess
    model, tokenizer, _, preprocess = checkpoint.load_captioner(folder)
    return model, tokenizer, preprocess


def save_model(folder: Path, model: AnyCaptioner, tokenizer: Tokenizer, provenance: dict[str, Any]) -> None:
    """Write a checkpoint folder; it appears at once under its name, replacing an older one."""
    if isinstance(model, PrefixCaptioner):
        prefix_checkpoint.save_prefix_captioner(folder, model, tokenizer, provenance)
    else:
        checkpoint.save_captioner(folder, model, tokenizer, provenance)


def load_dual_model(source: Path | str) -> tuple[AnyDual, Tokenizer, Preprocess]:
    """A dual-encoder checkpoint, or CLIP of a folder or hub name; in evaluation mode on the CPU.

    Raises BundleError, naming the file, if something is missing, broken or of another format.
    """
    return load_dual(source) if is_ours(Path(source)) else load_clip(source)


def save_dual_model(folder: Path, model: AnyDual, tokenizer: Tokenizer, provenance: dict[str, Any]) -> None:
    """Write the folder in its kind's format; it appears at once, replacing an older one."""
    if isinstance(model, ClipDual):
        save_clip(folder, model, tokenizer, provenance)
    else:
        save_dual(folder, model, tokenizer, provenance)
