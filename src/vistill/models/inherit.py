"""Weights of a larger model for a smaller one of the same widths: every n-th layer, all else as it is.

DistilBERT and DistilGPT-2 start from every second layer of their teachers (Sanh et al., arXiv 1910.01108). A
state dict is all that is needed: its stacks of layers are found by their names, so the same function serves
`models.language.Decoder`, a whole `Captioner`, GPT-2 and BERT of `transformers` and timm's ViT.
"""

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from vistill.errors import ConfigError

# The name of a list of layers is one of these words, then comes the number of the layer.
_LAYER = re.compile(r"^(?P<stack>(?:.*?\.)?(?:layers|layer|blocks|h))\.(?P<number>\d+)\.(?P<rest>.*)$")

# Tables of learnt text positions: of a longer one the first rows are taken.
_POSITIONS = ("position.weight", "wpe.weight")


def every_nth(larger: int, smaller: int) -> tuple[int, ...]:
    """Which of `larger` layers a model of `smaller` inherits: evenly spread, with the first and the last.

    12 to 6 gives 0, 2, 4, 7, 9, 11, the layers of DistilBERT's own script. Raises ConfigError unless
    1 <= smaller <= larger.
    """
    if not 1 <= smaller <= larger:
        raise ConfigError(f"{smaller} layers cannot be taken of {larger}")
    if smaller == 1:
        return (0,)
    # rounded half up in whole numbers: the same on every machine
    return tuple((2 * i * (larger - 1) + smaller - 1) // (2 * (smaller - 1)) for i in range(smaller))


def stacks(state: Mapping[str, Tensor]) -> dict[str, int]:
    """{name of each outermost list of layers: its length} of a state dict, as {"decoder.layers": 3}."""
    found: dict[str, int] = {}
    for name in state:
        if match := _LAYER.match(name):
            number = int(match["number"]) + 1
            found[match["stack"]] = max(found.get(match["stack"], 0), number)
    return found


def inherit(
    larger: Mapping[str, Tensor],
    smaller: Mapping[str, Tensor],
    picks: Mapping[str, Sequence[int]] | None = None,
) -> dict[str, Tensor]:
    """The weights that a model with state dict `smaller` takes over from one with `larger`.

    Returned is a full state dict for the smaller model, in its dtypes: layer i of each list is layer picks[i]
    of the larger one's list of that name (`every_nth` where `picks` does not name the list), text positions
    are cut to the smaller model's, everything else is equal. The tensors are copies.
    Raises ConfigError if a weight of the smaller model is missing in the larger one or has another shape, as
    it has when the widths or vocabularies differ, and for picks that do not fit. Heads leave no trace in the
    shapes: that they are as many in both models is for the caller to see to.
    """
    many, few = stacks(larger), stacks(smaller)
    chosen = {name: every_nth(many[name], count) for name, count in few.items() if name in many}
    for name, wanted in (picks or {}).items():
        if name not in chosen:
            raise ConfigError(
                f"no list of layers {name!r} in both models; there are {', '.join(chosen) or 'none'}"
            )
        if len(wanted) != few[name] or not all(0 <= i < many[name] for i in wanted):
            raise ConfigError(f"{name}: {list(wanted)} does not pick {few[name]} of {many[name]} layers")
        chosen[name] = tuple(wanted)
    out = {}
    for name, own in smaller.items():
        source = _source(name, chosen)
        if source not in larger:
            raise ConfigError(f"{name}: the larger model has no {source}; it is another kind of model")
        value = larger[source]
        if name.endswith(_POSITIONS) and value.dim() == own.dim() == 2 and len(value) > len(own):
            value = value[: len(own)]
        if value.shape != own.shape:
            raise ConfigError(
                f"{name}: {tuple(value.shape)} in the larger model, {tuple(own.shape)} in the smaller one; "
                "weights are inherited only between equal widths and vocabularies"
            )
        out[name] = value.detach().to(dtype=own.dtype, device=own.device, copy=True)
    return out


def _source(name: str, chosen: Mapping[str, Sequence[int]]) -> str:
    """The name in the larger model of a weight of the smaller one."""
    match = _LAYER.match(name)
    if match is None or match["stack"] not in chosen:
        return name
    return f"{match['stack']}.{chosen[match['stack']][int(match['number'])]}.{match['rest']}"


def principal_table(larger: Tensor, smaller: Tensor) -> Tensor:
    """Rows of a wide table of vectors in fewer dimensions, as a start for a narrow one -> as `smaller`.

    larger [V, D], smaller [V, d] with d <= D. The first d principal components of the rows: those that were
    alike still are. Their size is that of `smaller`. Raises ConfigError if d > D or the rows differ.
    """
    if larger.shape[0] != smaller.shape[0] or larger.shape[1] < smaller.shape[1]:
        raise ConfigError(f"a table {tuple(larger.shape)} cannot start one of {tuple(smaller.shape)}")
    rows = larger.detach().double()
    rows = rows - rows.mean(0)
    _, directions = torch.linalg.eigh(rows.T @ rows)  # ascending
    out = rows @ directions.flip(1)[:, : smaller.shape[1]]
    return (out * (smaller.double().norm() / out.norm().clamp_min(1e-12))).to(smaller.dtype)
