"""A captioner that looks at pictures of another size, for a teacher that sees each picture at several.

    python scripts/resized_checkpoint.py CHECKPOINT SIZE OUT

The weights stay as they are; the learned positions of the patches are interpolated (bicubic) to the new grid.
`vistill teach run A+B+C` averages what the sizes say: data distillation (Radosavovic et al. 2018, section 3).
"""

import sys
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F

from vistill.models.captioner import Captioner
from vistill.models.checkpoint import load_captioner, save_captioner
from vistill.models.loading import origin


def resized(model: Captioner, size: int) -> Captioner:
    """The same captioner for square pictures of `size` pixels, cut into a square grid of patches."""
    config = replace(model.config, vision=replace(model.config.vision, image_size=size))
    other = Captioner(config).eval()
    weights = model.state_dict()
    position = weights["mapper.position"]  # [N, D]
    side, new_side = (round(m.mapper.length**0.5) for m in (model, other))
    grid = position.T.reshape(1, -1, side, side)
    grid = F.interpolate(grid, size=(new_side, new_side), mode="bicubic", align_corners=False)
    other.load_state_dict({**weights, "mapper.position": grid[0].flatten(1).T})
    return other


def main(source: Path, size: int, out: Path) -> None:
    model, tokenizer, _, _ = load_captioner(source)
    provenance = {**origin(source)["provenance"], "resized_from": source.name}
    with torch.no_grad():
        save_captioner(out, resized(model, size), tokenizer, provenance)
    print(out)


if __name__ == "__main__":
    if len(sys.argv) != 4:
        raise SystemExit(__doc__)
    main(Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
