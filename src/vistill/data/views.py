"""Kept features of a frozen tower: each picture's stage output for one clean and several augmented views.

The features of a view are not those of its flipped picture, so every augmented view is stored with its own
seed, which can be drawn again from (seed, key, view).

Folder: manifest.json, then per split and view `SPLIT-VV.npy` (float16 [M, ...stage shape], in the split's
order) and `SPLIT-VV.flipped.npy` (bool [M]). A view's files appear under their names only when complete, so a
stopped build goes on with the first missing view.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset as Table
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from vistill.data.dataset import open_split
from vistill.errors import DataError
from vistill.files import write_json
from vistill.models.checkpoint import weights_hash
from vistill.models.compiled import Run, compile_trunk
from vistill.models.vision import VisionTower
from vistill.runtime.image import AugmentSpec, Preprocess, augment, read_image, to_array

FORMAT = 1
BATCH = 16


@dataclass(frozen=True)
class ViewsKey:
    """All that the stored numbers depend on; a cache with another key is refused."""

    trunk: str
    preprocess: str
    augment: dict[str, Any]
    stages: int
    seed: int


class Views:
    """Read access to a finished cache: `features(split, view)` is a memory-mapped array."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        manifest = json.loads((folder / "manifest.json").read_text())
        self.counts: dict[str, int] = manifest["views"]

    def features(self, split: str, view: int) -> NDArray[np.float16]:
        """float16 [M, ...] in the order of the split."""
        array: NDArray[np.float16] = np.load(_path(self.folder, split, view), mmap_mode="r")
        return array

    def flipped(self, split: str, view: int) -> NDArray[np.bool_]:
        """bool [M]: whether the view shows the picture mirrored."""
        array: NDArray[np.bool_] = np.load(_path(self.folder, split, view, ".flipped"))
        return array


def view_seed(seed: int, key: str, view: int) -> int:
    """The augmentation seed of a picture's view, the same on every machine."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{key}/{view}".encode()).digest()[:8], "little")


def draw_view(image: bytes, key: str, view: int, spec: AugmentSpec, seed: int) -> tuple[Image.Image, bool]:
    """View `view` of a picture, RGB and upright, and whether it is mirrored; view 0 is the clean picture.

    Raises ImageError.
    """
    picture = read_image(image)
    if view == 0:
        return picture, False
    return augment(picture, spec, view_seed(seed, key, view))


def build_views(
    folder: Path,
    data: Path,
    tower: VisionTower,
    preprocess: Preprocess,
    spec: AugmentSpec,
    *,
    stages: int,
    views: dict[str, int],
    seed: int,
    tables: Mapping[str, Table] | None = None,
) -> Views:
    """Run the first `stages` stages of `tower` over each split and keep what comes out.

    `views` maps a split to its number of views; view 0 is the clean picture. `tables`: the rows of each split
    to take, where questions share pictures; else all of them. Views that are there already stay. Raises
    DataError if `folder` holds features of another tower, preprocessing or augmentation.
    """
    if tables is None:
        tables = {split: open_split(data, split) for split in views}
    folder.mkdir(parents=True, exist_ok=True)
    key = ViewsKey(weights_hash(_trunk(tower, stages)), preprocess.hash(), asdict(spec), stages, seed)
    _check_or_write_key(folder, key, drawn=any(count > 1 for count in views.values()))
    for split in views:
        _check_or_write_rows(folder, data, split, tables[split])
    todo = [
        (split, view)
        for split, n in views.items()
        for view in range(n)
        if not _path(folder, split, view).is_file()
    ]
    if todo:
        run = compile_trunk(tower, preprocess.size, stages)
        columns = (
            *Progress.get_default_columns()[:2],
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[view]}"),
        )
        with Progress(*columns, console=Console(stderr=True)) as progress:
            total = sum(len(tables[split]) for split, _ in todo)
            task = progress.add_task("features of the frozen stages", total=total, view="")
            for split, view in todo:
                progress.update(task, view=f"{split} view {view}")
                for done in _build_one(folder, tables[split], split, view, run, preprocess, spec, seed):
                    progress.advance(task, done)
    counts = {**_stored_counts(folder), **views}
    write_json(folder / "manifest.json", {"format": FORMAT, "key": asdict(key), "views": counts})
    return Views(folder)


def _build_one(
    folder: Path,
    rows: Table,
    split: str,
    view: int,
    run: Run,
    preprocess: Preprocess,
    spec: AugmentSpec,
    seed: int,
) -> Iterator[int]:
    def load(index: int) -> tuple[NDArray[np.float32], bool]:
        row = rows[index]
        image, mirrored = draw_view(row["image"], row["key"], view, spec, seed)
        return to_array(image, preprocess), mirrored

    temporary = _path(folder, split, view).with_suffix(".npy.part")
    out: np.memmap[Any, Any] | None = None
    flipped = np.zeros(len(rows), dtype=bool)
    with ThreadPoolExecutor(2) as pool:
        for start in range(0, len(rows), BATCH):
            loaded = list(pool.map(load, range(start, min(start + BATCH, len(rows)))))
            features = run(np.stack([pixels for pixels, _ in loaded]))
            if out is None:
                shape = (len(rows), *features.shape[1:])
                out = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.float16, shape=shape)
            out[start : start + len(loaded)] = features
            flipped[start : start + len(loaded)] = [mirrored for _, mirrored in loaded]
            yield len(loaded)
    if out is None:
        raise DataError(f"{folder}: split {split!r} is empty, so there is nothing to keep features of")
    out.flush()
    np.save(_path(folder, split, view, ".flipped"), flipped)
    os.replace(temporary, _path(folder, split, view))


def _trunk(tower: VisionTower, stages: int) -> dict[str, Tensor]:
    """Those tensors of the tower, under its names for them, that its first `stages` stages have.

    Their zeros have no sign: averaged weights (`trainer.ema`) of a frozen tower have 0.0 where it had -0.0.
    """
    inside = {
        id(tensor)
        for stage in tower.stages[:stages]
        for module in stage.modules
        for tensor in module.state_dict(keep_vars=True).values()
    }
    tensors = tower.state_dict(keep_vars=True)
    return {name: tensor.detach() + 0 for name, tensor in tensors.items() if id(tensor) in inside}


def _check_or_write_key(folder: Path, key: ViewsKey, *, drawn: bool) -> None:
    """`drawn`: views beside the clean one are wanted; only they depend on the seed."""
    path = folder / "key.json"
    if not path.is_file():
        write_json(path, asdict(key))
        return
    stored = json.loads(path.read_text())
    ours = json.loads(json.dumps(asdict(key)))
    different = [name for name in ours if stored.get(name) != ours[name]]
    if different == ["seed"] and not drawn:
        return
    kept = {path.name[-6:-4] for path in folder.glob("*-[0-9][0-9].npy")}
    if different == ["seed"] and kept <= {"00"}:
        write_json(path, asdict(key))
        return
    if different:
        raise DataError(
            f"{folder} keeps features with another {', '.join(different)}; choose another folder or remove it"
        )


def _check_or_write_rows(folder: Path, data: Path, split: str, table: Table) -> None:
    rows = hashlib.sha256("\n".join(table["key"]).encode()).hexdigest()
    path = folder / f"{split}.rows"
    if not path.is_file():
        path.write_text(rows)
    elif path.read_text() != rows:
        raise DataError(
            f"{folder} keeps features of other pictures than {data} has in {split!r}; choose another folder"
        )


def _stored_counts(folder: Path) -> dict[str, int]:
    path = folder / "manifest.json"
    counts: dict[str, int] = json.loads(path.read_text())["views"] if path.is_file() else {}
    return counts


def _path(folder: Path, split: str, view: int, kind: str = "") -> Path:
    return folder / f"{split}-{view:02d}{kind}.npy"
