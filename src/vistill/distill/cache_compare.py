"""Whether two answers to the same question are the same but for rounding."""

import numpy as np
from numpy.typing import NDArray

from vistill.distill.answers import Answer, Text

Floats = NDArray[np.float32]


def compare(kept: Answer, fresh: Answer) -> str:
    """What differs beyond what fp16 or int8 rounding and another batch explain; empty if nothing does."""
    if kept.captions != fresh.captions:
        return f"captions were {list(kept.captions)} and are {list(fresh.captions)}"
    for name, before, after in (
        ("gold", kept.gold, fresh.gold),
        ("generated", kept.generated, fresh.generated),
    ):
        if len(before) != len(after):
            return f"{len(before)} {name} texts were kept, {len(after)} come now"
        for number, (old, new) in enumerate(zip(before, after, strict=True)):
            wrong = _compare_text(old, new)
            if wrong:
                return f"{name} text {number}: {wrong}"
    for name, ours, theirs in (
        ("hidden", kept.hidden, fresh.hidden),
        ("embedding", kept.embedding, fresh.embedding),
    ):
        wrong = _compare_states(ours, theirs)
        if wrong:
            return f"{name}: {wrong}"
    return ""


def _compare_text(kept: Text, fresh: Text) -> str:
    if not np.array_equal(kept.ids, fresh.ids):
        return f"ids were {kept.ids.tolist()} and are {fresh.ids.tolist()}"
    if kept.top_ids is None or kept.top_logp is None or fresh.top_ids is None or fresh.top_logp is None:
        return "" if kept.top_ids is fresh.top_ids is None else "log-probabilities on one side only"
    for position in range(len(kept.top_ids)):
        old = dict(zip(kept.top_ids[position].tolist(), kept.top_logp[position].tolist(), strict=True))
        new = dict(zip(fresh.top_ids[position].tolist(), fresh.top_logp[position].tolist(), strict=True))
        for token in {**old, **new}:
            # A token on one side only is as likely as the last of the other side, or there is an error.
            before, after = old.get(token, min(old.values())), new.get(token, min(new.values()))
            before, after = max(before, -65504.0), max(after, -65504.0)  # the lowest that is kept
            if not abs(before - after) <= 0.01 + 0.002 * abs(after):
                return f"log p of token {token} at {position} was {before:.4f} and is {after:.4f}"
    return ""


def _compare_states(kept: Floats | None, fresh: Floats | None) -> str:
    if kept is None or fresh is None:
        return "" if kept is fresh else "is there on one side only"
    if kept.shape != fresh.shape:
        return f"shape was {list(kept.shape)} and is {list(fresh.shape)}"
    room = 0.02 * np.abs(fresh).max(axis=-1, keepdims=True) + 1e-6  # two and a half steps of int8
    apart = np.abs(kept - fresh)
    return f"values are up to {apart.max():.4g} apart" if not (apart <= room).all() else ""
