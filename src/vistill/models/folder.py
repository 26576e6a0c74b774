"""What the folders of trained models share: config.json says what they are."""

import json
from pathlib import Path
from typing import Any

from vistill.errors import BundleError

FORMAT = 1


def read_config(folder: Path, *kinds: str) -> dict[str, Any]:
    """config.json of a folder, which must be of one of these kinds. Raises BundleError, naming the file."""
    path = folder / "config.json"
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
