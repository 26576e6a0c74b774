"""What the folders of trained models share: config.json says what they are."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from vistill.errors import BundleError
from vistill.models.clip_tower import described
from vistill.models.vision import tower_preprocess

FORMAT = 1
SIDE = "vistill.json"
"""Beside a config.json that is one of `transformers`, this file says what a folder is to vistill."""


def write_config(folder: Path, kind: str, model: Any, provenance: dict[str, Any]) -> None:
    """Write config.json: settings of a model (a dataclass with `vision`), its preprocessing, its origin."""
    model = dataclasses.replace(model, vision=described(model.vision))
    config = {
        "format": FORMAT,
        "kind": kind,
        "model": dataclasses.asdict(model),
        "preprocess": tower_preprocess(model.vision).to_dict(),
        "provenance": provenance,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def load_weights(model: nn.Module, folder: Path) -> None:
    """Fill a model from model.safetensors of its folder. Raises BundleError, naming the file."""
    weights = folder / "model.safetensors"
    if not weights.is_file():
        raise BundleError(f"{weights} is missing: the checkpoint is incomplete")
    try:
        model.load_state_dict(load_file(weights), strict=True)
    except (SafetensorError, RuntimeError) as error:
        raise BundleError(f"{weights} does not fit its config.json: {error}") from error


def model_files(folder: Path) -> list[Path]:
    """The files of a checkpoint that decide what it says: weights, tokenizer, those of a language model."""
    language = sorted((folder / "language").glob("*.safetensors"))
    return [folder / "model.safetensors", folder / "tokenizer.json", *language]


def read_config(folder: Path, *kinds: str) -> dict[str, Any]:
    """config.json (or, where it is, vistill.json) of a folder, which must be of one of these kinds.

    Raises BundleError, naming the file.
    """
    path = folder / (SIDE if (folder / SIDE).is_file() else "config.json")
    if not path.is_file():
        raise BundleError(f"{folder} is no vistill checkpoint: it has no config.json")
    try:
        raw: dict[str, Any] = json.loads(path.read_text())
    except ValueError as error:
        raise BundleError(f"{path} is not JSON: {error}") from error
    if raw.get("format") != FORMAT or raw.get("kind") not in kinds:
        found = f"format {raw.get('format')!r}, kind {raw.get('kind')!r}"
        wanted = " or ".join(map(repr, kinds))
        raise BundleError(f"{path}: expected format {FORMAT}, kind {wanted}, found {found}")
    return raw


def is_ours(folder: Path) -> bool:
    """Whether the folder's config.json is vistill's (it names a kind) and not one of `transformers`.

    False where there is none. Raises BundleError if it is not JSON.
    """
    return "kind" in config_of(folder)


def config_of(folder: Path, name: str = "config.json") -> dict[str, Any]:
    """config.json (or `name`) of any folder, {} where there is none. Raises BundleError if it is not JSON."""
    path = folder / name
    if not path.is_file():
        return {}
    try:
        raw: Any = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise BundleError(f"{path} is not JSON: {error}") from error
    return raw if isinstance(raw, dict) else {}
