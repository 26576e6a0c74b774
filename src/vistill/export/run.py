"""`vistill export`: a checkpoint folder -> a bundle folder, or an error with the figures and no bundle."""

import dataclasses
import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import onnxruntime
import torch

import vistill
from vistill.data.dataset import open_split
from vistill.errors import BundleError, ConfigError
from vistill.export.card import model_card
from vistill.export.onnx import export_decoder, export_vision
from vistill.export.parity import Parity, Picture, compare, logit_error, onnx_start, torch_start
from vistill.export.quantize import quantize_decoder, quantize_vision
from vistill.models import checkpoint as captioner_folder
from vistill.models.captioner import parameter_count
from vistill.models.checkpoint import load_captioner, weights_hash
from vistill.models.folder import read_config
from vistill.models.tokens import BOS, EOS, PAD, UNK
from vistill.runtime.bundle import CAPTIONER, CARD, FILES, Manifest, write_bundle
from vistill.runtime.decode import GenerationConfig
from vistill.runtime.image import Preprocess, preprocess

MAX_LOGIT_ERROR = 1e-3  # of the fp32 graphs, in standard deviations of the logits
PRECISIONS = ("fp32", "int8")
Report = Callable[[str, int, int], object]  # stage, done, total


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
    """Least share of equal next tokens."""
    max_cider_drop: float = 1.0
    """Largest loss of CIDEr, in points (CIDEr of 60, not 0.6)."""
    threads: int | None = None
    """Threads of ONNX Runtime while comparing."""
    num_beams: int | None = None
    """Beams that the bundle searches with; None: as the checkpoint was trained to."""
    length_penalty: float | None = None
    """Its length penalty; None: as the checkpoint was trained to."""

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise ConfigError(f"quantize={self.precision!r}: use one of {', '.join(PRECISIONS)}")
        if self.precision == "int8" and self.data is None:
            raise ConfigError("quantize=int8 needs data, a built data set, for calibration and for the check")
        if self.calibration_pictures < 1:
            raise ConfigError(f"calibration_pictures={self.calibration_pictures}: must be at least 1")
        if self.check_pictures < 0:
            raise ConfigError(f"check_pictures={self.check_pictures}: must not be negative")


def export_captioner(
    checkpoint: Path,
    out: Path,
    config: ExportConfig,
    *,
    name: str = "",
    licence: str = "unknown",
    replace_existing: bool = False,
    report: Report = lambda stage, done, total: None,
) -> Manifest:
    """Write the bundle `out`; nothing appears there unless every check has passed.

    Without `config.data` the check runs on random pictures and cannot measure CIDEr. Raises BundleError if
    the checkpoint is broken, if `out` exists (and `replace_existing` is not set), or, with the figures, if
    the bundle falls more than the tolerances below the checkpoint.
    """
    if out.exists() and not replace_existing:
        raise BundleError(f"{out}: exists already; remove it or ask to replace it")
    checkpoint = find_checkpoint(checkpoint)
    model, tokenizer, _, spec = load_captioner(checkpoint)
    provenance = read_config(checkpoint, captioner_folder.KIND).get("provenance", {})
    chosen: dict[str, Any] = {"num_beams": config.num_beams, "length_penalty": config.length_penalty}
    search = dataclasses.replace(
        GenerationConfig(**provenance.get("config", {}).get("generation", {})),
        **{name: value for name, value in chosen.items() if value is not None},
    )
    _check_length(search, model.config.decoder.context)
    pictures = _check_pictures(config, spec)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as scratch_name:
        scratch = Path(scratch_name)
        files = {role: scratch / file for role, file in FILES[CAPTIONER].items()}
        report("graphs", 0, 2)
        export_vision(model, files["vision"])
        report("graphs", 1, 2)
        export_decoder(model, files["decoder"])
        report("graphs", 2, 2)
        tokenizer.save(str(files["tokenizer"]))
        checkpoint_start = torch_start(model)
        exact = onnx_start(files["vision"], files["decoder"], config.threads)
        pixels = np.stack([picture.load() for picture in pictures[:2]])
        # To the end of the text: one runtime was found to go wrong from the 16th position on.
        size = model.config.decoder
        _refuse_logits(logit_error(exact, checkpoint_start, pixels, size.vocab_size, size.context))
        if config.precision == "int8":
            files |= _quantize(files, config, spec, scratch, report)
        parity = compare(
            checkpoint_start,
            onnx_start(files["vision"], files["decoder"], config.threads),
            pictures,
            tokenizer,
            search,
            lambda done: report("check", done, len(pictures)),
        )
        _refuse(parity, config)
        manifest = Manifest(
            name=name or provenance.get("config", {}).get("name", "") or checkpoint.resolve().name,
            preprocess=spec,
            generation=search,
            special_tokens={"pad": PAD, "bos": BOS, "eos": EOS, "unk": UNK},
            context=model.config.decoder.context,
            precision=config.precision,
            provenance=without_folders(provenance) | {"export": _how(config, model)},
            scores=_scores(checkpoint, parity, config),
            licence=licence,
        )
        return _publish(manifest, files, scratch, out)


def find_checkpoint(folder: Path) -> Path:
    """`folder`, or `folder/best` if it is the folder of a run."""
    best = folder / "best"
    return best if not (folder / "config.json").is_file() and (best / "config.json").is_file() else folder


def without_folders(value: Any) -> Any:
    """JSON values with absolute paths cut to their last part: a bundle tells nothing of its maker's disk."""
    if isinstance(value, Mapping):
        return {key: without_folders(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [without_folders(inner) for inner in value]
    if isinstance(value, str) and value.startswith("/"):
        return PurePosixPath(value).name
    return value


def _check_length(search: GenerationConfig, context: int) -> None:
    if search.max_new_tokens > context:
        raise BundleError(
            f"generation.max_new_tokens={search.max_new_tokens}: the decoder has only {context} positions"
        )


def _check_pictures(config: ExportConfig, spec: Preprocess) -> list[Picture]:
    if config.data is None:
        rng = np.random.default_rng(0)
        noise = rng.standard_normal((8, 3, *spec.size), np.float32)
        return [Picture(str(i), partial(np.copy, pixels), ()) for i, pixels in enumerate(noise)]
    rows = open_split(config.data, config.split)
    if config.check_pictures:
        rows = rows.select(range(min(config.check_pictures, len(rows))))
    return [Picture(r["key"], partial(preprocess, r["image"], spec), tuple(r["captions"])) for r in rows]


def _quantize(
    files: Mapping[str, Path], config: ExportConfig, spec: Preprocess, scratch: Path, report: Report
) -> dict[str, Path]:
    assert config.data is not None
    rows = open_split(config.data, "train")
    count = min(config.calibration_pictures, len(rows))
    chosen = np.linspace(0, len(rows) - 1, count).astype(int).tolist()  # spread over the whole split
    pixels = np.stack([preprocess(rows[i]["image"], spec) for i in chosen])
    small = {role: scratch / f"int8-{FILES[CAPTIONER][role]}" for role in ("vision", "decoder")}
    report("int8", 0, 2)
    quantize_decoder(files["decoder"], small["decoder"])
    report("int8", 1, 2)
    quantize_vision(files["vision"], small["vision"], pixels)
    report("int8", 2, 2)
    return small


def _refuse_logits(error: float) -> None:
    if not error <= MAX_LOGIT_ERROR:
        raise BundleError(
            f"export refused: logits of the fp32 graphs are up to {error:.2g} standard deviations from the "
            f"checkpoint's, more than {MAX_LOGIT_ERROR:g}; nothing was written"
        )


def _refuse(parity: Parity, config: ExportConfig) -> None:
    reasons = []
    if parity.token_agreement < config.min_agreement:
        reasons.append(f"token agreement {parity.token_agreement:.4f} is below {config.min_agreement:g}")
    if parity.cider_drop > config.max_cider_drop:
        reasons.append(
            f"CIDEr fell by {parity.cider_drop:.2f} (checkpoint {parity.cider_checkpoint:.2f}, bundle "
            f"{parity.cider_bundle:.2f}), more than {config.max_cider_drop:g}"
        )
    if reasons:
        raise BundleError(
            f"export refused: on {parity.pictures} pictures {' and '.join(reasons)}; nothing was written"
        )


def _how(config: ExportConfig, model: torch.nn.Module) -> dict[str, Any]:
    versions = {
        "vistill": vistill.__version__,
        "torch": torch.__version__,
        "onnxruntime": onnxruntime.__version__,
    }
    size = {"parameters": parameter_count([model])}
    how: dict[str, Any] = {"weights": weights_hash(model.state_dict()), **size, **versions}
    if config.precision == "int8":
        how["calibration"] = {"split": "train", "pictures": config.calibration_pictures}
    return how


def _scores(checkpoint: Path, parity: Parity, config: ExportConfig) -> dict[str, Any]:
    scores: dict[str, Any] = {"export": parity.to_dict()}
    if config.data is not None:
        scores["export"] |= {"data": config.data.resolve().name, "split": config.split}
    measured = checkpoint / "metrics.json"
    if measured.is_file():
        scores["checkpoint"] = without_folders(json.loads(measured.read_text("utf-8")))
    return scores


def _publish(manifest: Manifest, files: Mapping[str, Path], scratch: Path, out: Path) -> Manifest:
    """Write the bundle beside `out`, then give it its name; an older one goes only then."""
    folder = scratch / "bundle"
    filled = write_bundle(folder, manifest, files, card=model_card(manifest))
    (folder / CARD).write_text(model_card(filled), "utf-8")  # once more, as the sizes are known now
    if out.exists():
        out.rename(scratch / "old")
    folder.rename(out)
    return filled
