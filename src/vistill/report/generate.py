"""Captions of a data set's pictures by a model: same preprocessing, same decode loop.

What can be opened: a checkpoint or the folder of a run; several of these joined with `+`, an ensemble whose
probabilities are averaged; a bundle; the folder of a captioner of `transformers`.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from vistill.errors import BundleError, ConfigError
from vistill.files import best_of
from vistill.runtime.decode import GenerationConfig

CHECKPOINT = "config.json"
BUNDLE = "manifest.json"


class Caption(NamedTuple):
    """What a model says about a picture and how sure it is: sum(log p) / length ** length_penalty.

    A captioner of `transformers` does not tell how sure it is.
    """

    text: str
    score: float | None


@dataclass(frozen=True)
class Model:
    """A captioner opened for evaluation. `caption` takes B encoded pictures and gives B captions."""

    caption: Callable[[Sequence[bytes]], list[Caption]]
    kind: str
    """`checkpoint`, `ensemble`, `bundle` or the kind of a teacher."""
    generation: GenerationConfig
    hash: str
    """sha256 over the files that decide what it says (weights or graphs, and the tokenizer)."""
    preprocess: dict[str, Any]
    parameters: int | None = None
    """None where the model does not tell."""
    bytes: int | None = None
    """Size of the files of `hash`; None if unknown."""
    threads: int | None = None
    """Threads that it computes with; None if unknown."""
    rerank: bool | None = None
    """Whether a consensus head chooses among its captions; None: it has none."""
    trained: tuple[dict[str, Any], ...] = ()
    """For each member: run, seed, steps, weights of its losses, teacher, fingerprints of its data and git
    revision, as far as its provenance says."""


def open_model(
    model: Path | str,
    threads: int | None = None,
    *,
    compiled: bool = False,
    rerank: bool = True,
    **overrides: Any,
) -> Model:
    """Open what `model` names, see the top of this file.

    compiled: run the towers of checkpoints in ONNX Runtime, which pays from some hundred pictures on.
    rerank: let the consensus head of a bundle, if it has one, choose among the captions that a search found.
    overrides: fields of GenerationConfig that replace the model's own, None leaves one alone. Raises
    BundleError if it is nothing of that kind, ConfigError for a generation setting out of range.
    """
    given = {name: value for name, value in overrides.items() if value is not None}
    folder = best_of(Path(model))
    if not folder.exists() and "+" in str(model):
        members = [_checkpoint(best_of(Path(part))) for part in str(model).split("+")]
        return _open_checkpoints(members, threads, compiled, given)
    if (folder / BUNDLE).is_file():
        return _open_bundle(folder, threads, rerank, given)
    if _is_foreign(folder):
        return _open_foreign(folder, threads, given)
    return _open_checkpoints([_checkpoint(folder)], threads, compiled, given)


def _checkpoint(folder: Path) -> Path:
    """`folder`, which must hold a checkpoint. Raises BundleError."""
    if (folder / CHECKPOINT).is_file():
        return folder
    if (folder / BUNDLE).is_file():  # alone it would have been opened
        raise BundleError(f"{folder}: is a bundle; only checkpoints can be joined with +")
    if folder.is_dir():
        problem = f"holds neither {CHECKPOINT} (a checkpoint) nor {BUNDLE} (a bundle)"
    else:
        problem = f"is no folder; expected one with {CHECKPOINT} (a checkpoint) or {BUNDLE} (a bundle)"
    raise BundleError(f"{folder}: {problem}")


def _open_checkpoints(
    folders: list[Path], threads: int | None, compiled: bool, given: dict[str, Any]
) -> Model:
    """One checkpoint, or several as an ensemble that decodes as its first member was trained to."""
    import torch

    from vistill.distill.teachers_vistill import CheckpointTeacher, ensemble_stepper
    from vistill.models.captioner import parameter_count
    from vistill.models.folder import model_files, read_config
    from vistill.models.loading import KINDS
    from vistill.models.tokens import BOS, EOS
    from vistill.runtime.decode import generate
    from vistill.runtime.image import read_image

    if threads:
        torch.set_num_threads(threads)
    provenances = [read_config(folder, *KINDS).get("provenance", {}) for folder in folders]
    members = CheckpointTeacher(folders, compiled=compiled).members
    models = [member.model for member in members]
    heights, widths = zip(*(member.preprocess.size for member in members), strict=True)
    largest = (max(heights), max(widths))
    config = configure(GenerationConfig(**provenances[0].get("config", {}).get("generation", {})), given)

    @torch.inference_mode()
    def caption(images: Sequence[bytes]) -> list[Caption]:
        pictures = [read_image(image, target=largest) for image in images]
        memories = [member.memory(pictures, "cpu") for member in members]
        searched = generate(ensemble_stepper(models, memories), len(images), bos=BOS, eos=EOS, config=config)
        best = [hypotheses[0] for hypotheses in searched]
        texts = members[0].tokenizer.decode_batch([list(hypothesis.tokens) for hypothesis in best])
        return [Caption(text.strip(), found.score) for text, found in zip(texts, best, strict=True)]

    files = [file for folder in folders for file in model_files(folder)]
    treats = [member.preprocess.to_dict() for member in members]
    same = all(treat == treats[0] for treat in treats)
    return Model(
        caption,
        "checkpoint" if len(folders) == 1 else "ensemble",
        config,
        hash_files(files),
        treats[0] if same else {"members": treats},
        parameters=parameter_count(models),
        bytes=_size(files),
        threads=torch.get_num_threads(),
        trained=tuple(_trained(provenance) for provenance in provenances),
    )


def _open_bundle(folder: Path, threads: int | None, rerank: bool, given: dict[str, Any]) -> Model:
    from vistill.runtime.pipelines import Captioner
    from vistill.runtime.sessions import available_cpus

    captioner = Captioner(folder, threads=threads, rerank=rerank, **given, num_return=1)

    def caption(images: Sequence[bytes]) -> list[Caption]:
        return [Caption(found[0].text, found[0].score) for found in captioner.caption(list(images))]

    files = [folder / entry.file for entry in captioner.manifest.files.values()]
    provenance = captioner.manifest.provenance
    return Model(
        caption,
        "bundle",
        captioner.generation,
        hash_files(files),
        captioner.preprocess.to_dict(),
        parameters=provenance.get("export", {}).get("parameters"),
        bytes=_size(files),
        threads=threads or available_cpus(),
        rerank=rerank if "consensus" in captioner.manifest.files else None,
        trained=(_trained(provenance),),
    )


def _open_foreign(folder: Path, threads: int | None, given: dict[str, Any]) -> Model:
    """A captioner of `transformers` in a local folder: as a teacher it knows how to caption."""
    import torch

    from vistill.distill.answers import Ask
    from vistill.distill.teachers import load_teacher
    from vistill.runtime.image import read_image

    if threads:
        torch.set_num_threads(threads)
    try:
        teacher = load_teacher(str(folder))
    except ConfigError as error:
        raise BundleError(f"{folder / CHECKPOINT}: no captioner can be made of it: {error}") from error
    config = configure(GenerationConfig(), given)
    ask = Ask(captions=1, generation=config, gold=False)
    who = teacher.identity

    def caption(images: Sequence[bytes]) -> list[Caption]:
        answers = teacher.answer([read_image(image) for image in images], [()] * len(images), ask)
        return [Caption(answer.captions[0], None) for answer in answers]

    files = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin"))
    return Model(
        caption,
        who.kind,
        config,
        hashlib.sha256(f"{who.weights} {who.tokenizer}".encode()).hexdigest(),
        {"sha256": who.preprocess},
        parameters=who.details.get("parameters"),
        bytes=_size(files) or None,
        threads=torch.get_num_threads(),
    )


def _is_foreign(folder: Path) -> bool:
    """Whether it is a folder of `transformers`, and no checkpoint of ours."""
    from vistill.models.loading import is_public

    return folder.is_dir() and is_public(folder)


def _trained(provenance: Any) -> dict[str, Any]:
    config, taught = provenance.get("config", {}), provenance.get("teacher", {})
    return {
        "run": config.get("name", ""),
        "seed": config.get("trainer", {}).get("seed"),
        "steps": provenance.get("reached", {}).get("step"),
        "losses": provenance.get("losses", {}),
        "teacher": {name: taught[name] for name in ("kind", "name", "weights") if name in taught},
        "data": provenance.get("data", {}),
        "git": provenance.get("git", ""),
    }


def _size(files: Sequence[Path]) -> int:
    return sum(file.stat().st_size for file in files)


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
