"""The mean of the weights of captioners that began as the same one: a "model soup" (Wortsman et al. 2022).

python scripts/average_checkpoints.py CHECKPOINT CHECKPOINT... OUT
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from vistill.models.checkpoint import load_captioner, save_captioner
from vistill.models.loading import origin


def mean_of(states: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The mean of each weight, in its own dtype; what is no number with a fraction is the first one's."""
    first = states[0]
    return {
        name: torch.stack([state[name].double() for state in states]).mean(0).to(value.dtype)
        if value.is_floating_point()
        else value
        for name, value in first.items()
    }


def main(sources: Sequence[Path], out: Path) -> None:
    loaded = [load_captioner(source) for source in sources]
    model, tokenizer, config, _ = loaded[0]
    for source, (_, other, settings, _) in zip(sources, loaded, strict=True):
        if settings != config or other.to_str() != tokenizer.to_str():
            raise SystemExit(f"error: {source} has another size or tokenizer than {sources[0]}")
    model.load_state_dict(mean_of([one.state_dict() for one, *_ in loaded]))
    provenance = dict(origin(sources[0])["provenance"])
    provenance.pop("reached", None)  # that was one of them, not their mean
    names = [f"{source.resolve().parent.name}/{source.name}" for source in sources]
    save_captioner(out, model, tokenizer, {**provenance, "mean_of": names})
    print(out)


if __name__ == "__main__":
    if len(sys.argv) < 4:
        raise SystemExit(__doc__)
    *checkpoints, target = map(Path, sys.argv[1:])
    main(checkpoints, target)
