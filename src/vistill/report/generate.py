"""Captions of a data set's pictures by a checkpoint or a bundle: same preprocessing, same decode loop."""

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from vistill.errors import BundleError, ConfigError
from vistill.runtime.decode import GenerationConfig

CHECKPOINT = "config.json"
BUNDLE = "manifest.json"


class Caption(NamedTuple):
    """What a model says about a picture and how sure it is: sum(log p) / length ** length_penalty."""

    text: str
    score: float


@dataclass(frozen=True)
class Model:
    """A captioner opened for evaluation. `caption` takes B encoded pictures and gives B captions."""

    caption: Callable[[Sequence[bytes]], list[Caption]]
    kind: str
    """`checkpoint` or `bundle`."""
    generation: GenerationConfig
    hash: str
    """sha256 over the files that decide what it says (weights or graphs, and the tokenizer)."""
    preprocess: dict[str, Any]


def open_model(folder: Path, threads: int | None = None, **overrides: Any) -> Model:
    """Open a checkpoint folder or a bundle folder, whichever `folder` is.

    overrides: fields of GenerationConfig that replace the model's own, None leaves one alone. Raises
    BundleError if the folder is neither, ConfigError for a generation setting out of range.
    """
    given = {name: value for name, value in overrides.items() if value is not None}
    if (folder / BUNDLE).is_file():
        return _open_bundle(folder, threads, given)
    if (folder / "best" / CHECKPOINT).is_file():  # the folder of a run, which has its own config.json
        return _open_checkpoint(folder / "best", threads, given)
    if (folder / CHECKPOINT).is_file():
        return _open_checkpoint(folder, threads, given)
    problem = "holds neither" if folder.is_dir() else "is no folder; expected one with"
    raise BundleError(f"{folder}: {problem} {CHECKPOINT} (a checkpoint) nor {BUNDLE} (a bundle)")


def _open_checkpoint(folder: Path, threads: int | None, given: dict[str, Any]) -> Model:
    import numpy as np
    import torch

    from vistill.models.captioner import TorchStepper
    from vistill.models.checkpoint import load_captioner, read_config
    from vistill.models.tokens import BOS, EOS
    from vistill.runtime.decode import generate
    from vistill.runtime.image import preprocess

    if threads:
        torch.set_num_threads(threads)
    model, tokenizer, _, spec = load_captioner(folder)
    trained = read_config(folder).get("provenance", {}).get("config", {}).get("generation", {})
    config = configure(GenerationConfig(**trained), given)

    @torch.inference_mode()
    def caption(images: Sequence[bytes]) -> list[Caption]:
        pixels = torch.from_numpy(np.stack([preprocess(image, spec) for image in images]))
        searched = generate(
            TorchStepper(model, model.vision(pixels)), len(images), bos=BOS, eos=EOS, config=config
        )
        best = [hypotheses[0] for hypotheses in searched]
        texts = tokenizer.decode_batch([list(hypothesis.tokens) for hypothesis in best])
        return [Caption(text.strip(), found.score) for text, found in zip(texts, best, strict=True)]

    files = [folder / "model.safetensors", folder / "tokenizer.json"]
    return Model(caption, "checkpoint", config, hash_files(files), spec.to_dict())


def _open_bundle(folder: Path, threads: int | None, given: dict[str, Any]) -> Model:
    from vistill.runtime.pipelines import Captioner

    captioner = Captioner(folder, threads=threads, **given, num_return=1)

    def caption(images: Sequence[bytes]) -> list[Caption]:
        return [Caption(found[0].text, found[0].score) for found in captioner.caption(list(images))]

    files = [folder / entry.file for entry in captioner.manifest.files.values()]
    return Model(caption, "bundle", captioner.generation, hash_files(files), captioner.preprocess.to_dict())


def configure(config: GenerationConfig, given: dict[str, Any]) -> GenerationConfig:
    """`config` with some fields replaced; one caption a picture. Raises ConfigError for an unknown field."""
    unknown = sorted(set(given) - {field.name for field in dataclasses.fields(GenerationConfig)})
    if unknown:
        raise ConfigError(f"generation has no setting {', '.join(unknown)}")
    return dataclasses.replace(config, **given, num_return=1)


def hash_files(files: Sequence[Path]) -> str:
    """sha256 (hex) over names and contents of files, in the order given; BundleError if one is missing."""
    digest = hashlib.sha256()
    for file in files:
        if not file.is_file():
            raise BundleError(f"{file} is missing: the model is incomplete")
        digest.update(f"{file.name} {file.stat().st_size}\n".encode())
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()
