"""The model card of a bundle: README.md with a YAML header, from the manifest alone."""

import json
from collections.abc import Mapping
from typing import Any

from vistill.runtime.bundle import ANSWERER, CAPTIONER, EMBEDDER, Manifest

ABOUT = {  # kind -> pipeline tag of the hub, tag, what it is, how to use it
    CAPTIONER: (
        "image-to-text",
        "image-captioning",
        "An image captioner",
        'from vistill import Captioner\n\nCaptioner("path/to/this/folder")("photo.jpg")',
    ),
    ANSWERER: (
        "visual-question-answering",
        "vqa",
        "A model that answers questions about pictures",
        'from vistill import Answerer\n\nAnswerer("path/to/this/folder")("photo.jpg", "what is this?")',
    ),
    EMBEDDER: (
        "zero-shot-image-classification",
        "image-text-retrieval",
        "A picture tower and a text tower into one space (cosine says what belongs together)",
        'from vistill import Embedder\n\nembedder = Embedder("path/to/this/folder")\n'
        'embedder.images(["photo.jpg"]) @ embedder.texts(["a dog in the snow"]).T',
    ),
}


def model_card(manifest: Manifest) -> str:
    """Markdown; what the manifest does not know is left out, nothing is made up."""
    pipeline, tag, about, use = ABOUT[manifest.kind]
    header = {
        "library_name": "vistill",
        "pipeline_tag": pipeline,
        "language": "en",
        "license": manifest.licence,
        "tags": [tag, "onnx", manifest.precision],
    }
    config = manifest.provenance.get("config", {})
    data = config.get("datamodule", {}).get("path")
    if data:
        header["datasets"] = [data]
    parts = [
        "---\n" + "".join(f"{key}: {json.dumps(value)}\n" for key, value in header.items()) + "---",
        f"# {manifest.name}",
        f"{about} exported by vistill. It runs on ONNX Runtime, on a plain CPU.",
        f"```python\n{use}\n```",
        "## Model\n\n" + _table(_model_rows(manifest)),
    ]
    if manifest.scores:
        parts.append("## Scores\n\n" + _table(_flat(manifest.scores)))
    if config:
        parts.append("## Training\n\n" + _table(_flat(config)))
    rest = {key: value for key, value in manifest.provenance.items() if key != "config"}
    if rest:
        parts.append("## Provenance\n\n" + _table(_flat(rest)))
    return "\n\n".join(parts) + "\n"


def _model_rows(manifest: Manifest) -> list[tuple[str, Any]]:
    spec, search = manifest.preprocess, manifest.generation
    texts = (
        ("search", f"{search.num_beams} beams, at most {search.max_new_tokens} tokens")
        if search is not None
        else ("embedding", f"{manifest.width} numbers; texts of at most {manifest.context} tokens")
    )
    size = sum(entry.bytes for entry in manifest.files.values())
    rows = [
        ("precision", manifest.precision),
        ("picture", f"{spec.size[1]} x {spec.size[0]} pixels, {spec.resize}, {spec.interpolation}"),
        texts,
    ]
    return [*rows, ("size", f"{size / 1e6:.1f} MB")] if size else rows


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """{"a": {"b": 1}} -> [("a.b", 1)]."""
    rows: list[tuple[str, Any]] = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            rows += _flat(value, f"{prefix}{key}.")
        else:
            rows.append((f"{prefix}{key}", value))
    return rows


def _table(rows: list[tuple[str, Any]]) -> str:
    lines = ["| | |", "|---|---|", *(f"| {key} | {_cell(value)} |" for key, value in rows)]
    return "\n".join(lines)


def _cell(value: Any) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text.replace("|", "\\|").replace("\n", " ")
