"""`vistill export`: a checkpoint folder -> a bundle folder, or an error with the figures and no bundle."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from vistill.errors import BundleError
from vistill.export.answerer import export_answerer
from vistill.export.common import (
    ExportConfig,
    Report,
    check_pictures,
    chosen_search,
    described,
    name_of,
    publish,
    quantized,
    refuse_existing,
    refuse_for,
    working_folder,
)
from vistill.export.consensus import fit_consensus, fitted_on
from vistill.export.dual import export_dual, is_dual
from vistill.export.onnx import export_decoder, export_vision
from vistill.export.parity import Parity, compare, logit_error, onnx_start, torch_start
from vistill.files import best_of
from vistill.models.loading import ANSWERERS, load_model, origin
from vistill.models.lora import merge_lora
from vistill.models.prefix import PrefixCaptioner
from vistill.models.tokens import BOS, EOS, PAD, UNK
from vistill.runtime.bundle import CAPTIONER, FILES, OPTIONAL, Manifest, write_bundle
from vistill.runtime.decode import GenerationConfig

MAX_LOGIT_ERROR = 1e-3  # of the fp32 graphs, in standard deviations of the logits
CHECKED = 64  # positions of a text that they are compared on; a public decoder can count to 1,024


def export_checkpoint(checkpoint: Path, out: Path, config: ExportConfig, **about: Any) -> Manifest:
    """Export by what the checkpoint is; `about` are keywords of `export_captioner` and the others alike."""
    folder = best_of(checkpoint)
    if is_dual(folder):
        return export_dual(checkpoint, out, config, **about)
    answers = origin(folder, *ANSWERERS)["kind"] in ANSWERERS
    export = export_answerer if answers else export_captioner
    return export(checkpoint, out, config, **about)


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

    `checkpoint` may be a public captioner too, a folder or a hub name. Without `config.data` the check runs
    on random pictures and cannot measure CIDEr. Raises BundleError if the checkpoint is broken, if `out`
    exists (and `replace_existing` is not set), or, with the figures, if the bundle falls more than the
    tolerances below the checkpoint; DataError if another export to `out` runs.
    """
    refuse_existing(out, replace_existing)
    checkpoint = best_of(checkpoint)
    model, tokenizer, spec = load_model(checkpoint)
    if isinstance(model, PrefixCaptioner):
        merge_lora(model.decoder.language)
    provenance = origin(checkpoint)["provenance"]
    search = chosen_search(provenance, config)
    _check_length(search, model.config.decoder.context)
    pictures = check_pictures(config, spec)
    with working_folder(out, replace_existing) as scratch:
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
        # Far into the text: one runtime was found to go wrong from the 16th position on.
        size = model.config.decoder
        steps = min(size.context, CHECKED)
        _refuse_logits(logit_error(exact, checkpoint_start, pixels, size.vocab_size, steps))
        if config.precision == "int8":
            files |= quantized(files, ["decoder"], config, spec, report)
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
            name=name or name_of(checkpoint, provenance),
            preprocess=spec,
            generation=search,
            special_tokens={"pad": PAD, "bos": BOS, "eos": EOS, "unk": UNK},
            context=model.config.decoder.context,
            licence=licence,
            **described(checkpoint, model, provenance, parity, config),
        )
        if config.consensus:
            assert config.data is not None
            plain = scratch / "plain"
            write_bundle(plain, manifest, files, card="")
            head = fit_consensus(
                plain,
                config.data,
                config.consensus,
                config.threads,
                lambda done, total: report("consensus", done, total),
            )
            files["consensus"] = scratch / OPTIONAL[CAPTIONER]["consensus"]
            files["consensus"].write_bytes(head.to_bytes())
            about = {**manifest.provenance, "consensus": fitted_on(config.data, config.consensus)}
            manifest = replace(manifest, provenance=about)
        return publish(manifest, files, scratch, out)


def _check_length(search: GenerationConfig, context: int) -> None:
    if search.max_new_tokens > context:
        raise BundleError(
            f"generation.max_new_tokens={search.max_new_tokens}: the decoder has only {context} positions"
        )


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
    refuse_for(reasons, f"{parity.pictures} pictures")
