"""What exports of every kind share: settings, pictures to calibrate and to check with, publishing."""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray

import vistill
from vistill.data.dataset import open_split
from vistill.data.store import locked
from vistill.errors import BundleError, ConfigError
from vistill.export.card import model_card
from vistill.export.parity import Picture, figures
from vistill.export.quantize import quantize_text, quantize_vision
from vistill.models.captioner import parameter_count
from vistill.models.checkpoint import weights_hash
from vistill.runtime.bundle import CARD, MANIFEST, Manifest, write_bundle
from vistill.runtime.decode import GenerationConfig
from vistill.runtime.image import Preprocess, preprocess

PRECISIONS = ("fp32", "int8")
Report = Callable[[str, int, int], object]  # stage, done, total
REPLACED = "replaced"  # in the working folder: the older bundle, between the two renames


@dataclass(frozen=True)
class ExportConfig:
    """How to export, and when to refuse."""

    precision: str = "fp32"
    """fp32, or int8: static for convolutions, dynamic for matrix products."""
    data: Path | None = None
    """A built data set: its train split calibrates, `split` checks. int8 needs it."""
    split: str = "dev"
    """Split that checkpoint and bundle are compared on."""
    calibration_pictures: int = 128
    """Pictures of the train split that int8 is calibrated with."""
    check_pictures: int = 1000
    """Pictures that checkpoint and bundle are compared on; 0 takes all."""
    min_agreement: float = 0.95
    """Least share of equal next tokens of a captioner or answerer."""
    max_cider_drop: float = 1.0
    """Largest loss of CIDEr of a captioner, in points (CIDEr of 60, not 0.6)."""
    max_accuracy_drop: float = 1.0
    """Largest loss of accuracy of an answerer, in points (60, not 0.6)."""
    min_cosine: float = 0.98
    """Least mean cosine of a dual encoder's embeddings, of pictures and of texts."""
    max_r10_drop: float = 1.0
    """Largest loss of its R@10, mean of both ways, in points (R@10 of 60, not 0.6)."""
    threads: int | None = None
    """Threads of ONNX Runtime while comparing."""
    num_beams: int | None = None
    """Beams that a captioner's bundle searches with; None: as the checkpoint was trained to."""
    length_penalty: float | None = None
    """Its length penalty; None: as the checkpoint was trained to."""
    consensus: str = ""
    """Split of the data whose captions a captioner's consensus head is fitted on; empty: no head."""

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise ConfigError(f"quantize={self.precision!r}: use one of {', '.join(PRECISIONS)}")
        if self.precision == "int8" and self.data is None:
            raise ConfigError("quantize=int8 needs data, a built data set, for calibration and for the check")
        if self.consensus and self.data is None:
            raise ConfigError(f"consensus={self.consensus} needs data, a built data set with that split")
        if self.calibration_pictures < 1:
            raise ConfigError(f"calibration_pictures={self.calibration_pictures}: must be at least 1")
        if self.check_pictures < 0:
            raise ConfigError(f"check_pictures={self.check_pictures}: must not be negative")


def refuse_existing(out: Path, replace_existing: bool) -> None:
    """Raise BundleError if something lies at `out` that must not be replaced: only a bundle ever is."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not replace_existing:
        raise BundleError(f"{out}: exists already; remove it, or replace it with --force (replace_existing)")
    if not (out / MANIFEST).is_file():
        raise BundleError(
            f"{out}: is no bundle (it has no {MANIFEST}), so it is not replaced; choose another"
        )


def refuse_consensus(config: ExportConfig, kind: str) -> None:
    """Raise ConfigError if a consensus head is asked for of what writes no captions."""
    if config.consensus:
        raise ConfigError(f"consensus={config.consensus}: {kind} has no captions to choose from")


@contextmanager
def working_folder(out: Path, replace_existing: bool) -> Iterator[Path]:
    """Give an empty hidden folder beside `out` for the time of an export; that of a killed one goes first.

    An export that was stopped between taking an older bundle away and giving `out` its name has the older one
    put back. Raises BundleError as `refuse_existing` and DataError if another export to `out` runs.
    """
    out = out.absolute()  # "." has no name to put a dot before
    out.parent.mkdir(parents=True, exist_ok=True)
    work = out.with_name(f".{out.name}.exporting")
    with locked(out.with_name(f".{out.name}.exporting.lock"), f"another export to {out} is running"):
        _remove(work, out)
        refuse_existing(out, replace_existing)  # again, as one may have been put back or just finished
        work.mkdir()
        try:
            yield work
        finally:
            _remove(work, out)


def _remove(work: Path, out: Path) -> None:
    """Remove a working folder; an older bundle in it goes back to `out` if nothing took its place."""
    if (work / REPLACED).exists() and not out.exists():
        (work / REPLACED).rename(out)
    if work.exists():
        shutil.rmtree(work)


def chosen_search(provenance: Mapping[str, Any], config: ExportConfig) -> GenerationConfig:
    """How the bundle searches: as the checkpoint was trained to, but for what `config` chooses."""
    chosen: dict[str, Any] = {"num_beams": config.num_beams, "length_penalty": config.length_penalty}
    trained = GenerationConfig(**provenance.get("config", {}).get("generation", {}))
    return replace(trained, **{name: value for name, value in chosen.items() if value is not None})


def quantized(
    files: Mapping[str, Path], texts: Sequence[str], config: ExportConfig, spec: Preprocess, report: Report
) -> dict[str, Path]:
    """int8 graphs beside those of the roles `vision` and `texts`, by role."""
    small = {role: files[role].with_name(f"int8-{files[role].name}") for role in ("vision", *texts)}
    report("int8", 0, 2)
    for role in texts:
        quantize_text(files[role], small[role])
    report("int8", 1, 2)
    quantize_vision(files["vision"], small["vision"], calibration_pixels(config, spec))
    report("int8", 2, 2)
    return small


def refuse_for(reasons: Sequence[str], on: str) -> None:
    """Raise BundleError if there are reasons; `on` says what the comparison was made on."""
    if reasons:
        raise BundleError(f"export refused: on {on} {' and '.join(reasons)}; nothing was written")


def without_folders(value: Any) -> Any:
    """JSON values with absolute paths cut to their last part: a bundle tells nothing of its maker's disk."""
    if isinstance(value, Mapping):
        return {key: without_folders(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [without_folders(inner) for inner in value]
    if isinstance(value, str) and value.startswith("/"):
        return PurePosixPath(value).name
    return value


def check_pictures(config: ExportConfig, spec: Preprocess) -> list[Picture]:
    """Pictures to compare on: of the data set, else eight of noise without captions."""
    if config.data is None:
        rng = np.random.default_rng(0)
        noise = rng.standard_normal((8, 3, *spec.size), np.float32)
        return [Picture(str(i), partial(np.copy, pixels), ()) for i, pixels in enumerate(noise)]
    rows = open_split(config.data, config.split)
    if config.check_pictures:
        rows = rows.select(range(min(config.check_pictures, len(rows))))
    return [Picture(r["key"], partial(preprocess, r["image"], spec), tuple(r["captions"])) for r in rows]


def calibration_pixels(config: ExportConfig, spec: Preprocess) -> NDArray[np.float32]:
    """Pictures of the train split, spread over the whole of it: float32 [n, 3, H, W]."""
    assert config.data is not None
    rows = open_split(config.data, "train")
    chosen = np.linspace(0, len(rows) - 1, calibration_count(config)).astype(int).tolist()
    return np.stack([preprocess(rows[i]["image"], spec) for i in chosen])


def calibration_count(config: ExportConfig) -> int:
    """Pictures that int8 is calibrated with: as many as asked for, or all there are."""
    assert config.data is not None
    return min(config.calibration_pictures, len(open_split(config.data, "train")))


def how_exported(config: ExportConfig, model: torch.nn.Module) -> dict[str, Any]:
    """Weights, versions and calibration, for the provenance."""
    versions = {
        "vistill": vistill.__version__,
        "torch": torch.__version__,
        "onnxruntime": onnxruntime.__version__,
    }
    size = {"parameters": parameter_count([model])}
    how: dict[str, Any] = {"weights": weights_hash(model.state_dict()), **size, **versions}
    if config.precision == "int8":
        how["calibration"] = {"split": "train", "pictures": calibration_count(config)}
    return how


def described(
    checkpoint: Path, model: torch.nn.Module, provenance: dict[str, Any], parity: Any, config: ExportConfig
) -> dict[str, Any]:
    """Fields of the manifest that bundles of every kind fill alike; `parity` is a dataclass of figures."""
    return {
        "precision": config.precision,
        "provenance": without_folders(provenance) | {"export": how_exported(config, model)},
        "scores": scores_of(checkpoint, parity, config),
    }


def name_of(checkpoint: Path, provenance: Mapping[str, Any]) -> str:
    """The name of a bundle that was given none: its run's, else its folder's."""
    return provenance.get("config", {}).get("name", "") or checkpoint.resolve().name


def scores_of(checkpoint: Path, parity: Any, config: ExportConfig) -> dict[str, Any]:
    """What was measured on the checkpoint, if its metrics.json is there, and by the export."""
    measured_on: dict[str, Any] = {"data": "random noise"}
    if config.data is not None:
        measured_on = {"data": config.data.resolve().name, "split": config.split}
    known = {name: value for name, value in figures(parity).items() if value is not None}
    scores: dict[str, Any] = {"export": known | measured_on}
    measured = checkpoint / "metrics.json"
    if measured.is_file():
        scores["checkpoint"] = without_folders(json.loads(measured.read_text("utf-8")))
    return scores


def publish(manifest: Manifest, files: Mapping[str, Path], scratch: Path, out: Path) -> Manifest:
    """Write the bundle beside `out`, then give it its name; an older one goes only then."""
    folder = scratch / "bundle"
    filled = write_bundle(folder, manifest, files, card=model_card(manifest))
    (folder / CARD).write_text(model_card(filled), "utf-8")  # once more, as the sizes are known now
    if out.exists():
        out.rename(scratch / REPLACED)
    folder.rename(out)
    return filled
