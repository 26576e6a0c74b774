"""Make `import torchvision` survive where its compiled operators do not match the installed torch.

Package indexes may offer torchvision only as a CUDA build. Beside a CPU build of torch its extension cannot
load, and importing it dies with `operator torchvision::nms does not exist`, which takes timm, Lightning and
transformers' image processors down with it. vistill uses none of torchvision's operators, so declaring their
schemas is enough. Where the extension loads, nothing is changed.
"""

import importlib.util
from pathlib import Path

import torch

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_library: torch.library.Library | None = None  # the schemas live as long as this object


def repair_torchvision() -> bool:
    """Declare torchvision's operator schemas if its extension cannot load; call before importing timm.

    Returns whether a repair was needed. Safe to call any number of times.
    """
    global _library
    if _library is not None:
        return True
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return False
    if _extension_loads(Path(spec.origin).parent):
        return False
    _library = torch.library.Library("torchvision", "DEF")
    for schema in _SCHEMAS:
        _library.define(schema)
    return True


def _extension_loads(package: Path) -> bool:
    extensions = [*package.glob("_C.so"), *package.glob("_C*.pyd"), *package.glob("_C.*.so")]
    if not extensions:
        return False
    try:
        torch.ops.load_library(str(extensions[0]))
    except OSError:
        return False
    return hasattr(torch.ops.torchvision, "nms")
