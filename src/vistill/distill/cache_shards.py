"""Shards of the teacher cache: a range of answers as one Arrow IPC file, and back.

A row of a shard is one record, the answer to one view of one picture. Its texts (gold captions first, then
the teacher's) lie one after the other in flat lists, so that reading a record is slicing mapped arrays:

| column | type | there if |
|---|---|---|
| key | string | always |
| mirrored | uint8 | always |
| problem | string, empty if there is an answer | always |
| captions | list of string | captions were asked for |
| gold | uint16, how many of the texts are gold | the teacher has a vocabulary and texts were asked for |
| lengths | list of uint16, ids of each text | as gold |
| ids | list of uint16 or uint32, sum(lengths) | as gold |
| top_ids | list of the same type, sum(lengths - 1) * K | top_k was asked for |
| top_logp | list of float16, the same length | top_k was asked for |
| hidden | list of float16 or int8, N * D | hidden was asked for |
| hidden_shape | list of uint32, [N, D] or [D] | hidden was asked for |
| hidden_scale | list of float32, one for each row of D | hidden is int8 |
| embedding | list of float16, E | embedding was asked for |

int8 values times their row's scale are the states; the scale is max(abs(row)) / 127.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vistill.distill.answers import Answer, Ask, Text
from vistill.errors import DataError
from vistill.models.tokens import EOS

Array = NDArray[Any]

HIDDEN_DTYPES = ("float16", "int8")
_LARGEST = float(np.finfo(np.float16).max)
_META = b"vistill"


@dataclass(frozen=True)
class Record:
    """One view of one picture: its answer, or the problem why there is none."""

    key: str
    mirrored: bool
    answer: Answer | None
    problem: str = ""


@dataclass(frozen=True)
class Layout:
    """What the columns depend on."""

    ask: Ask
    vocab_size: int
    hidden_dtype: str

    @property
    def id_type(self) -> np.dtype[Any]:
        """uint16 if every id of the vocabulary fits, else uint32."""
        return np.dtype(np.uint16 if self.vocab_size <= 2**16 else np.uint32)

    @property
    def texts(self) -> bool:
        """Whether there are token ids."""
        return self.vocab_size > 0 and bool(self.ask.captions or self.ask.top_k)

    @property
    def kept(self) -> int:
        """K: log-probabilities at each position."""
        return min(self.ask.top_k, self.vocab_size)


def flatten(record: Record, layout: Layout) -> dict[str, Any]:
    """{column: value} of a record, lists as numpy arrays in the types of the file.

    Raises DataError, naming the key, for an answer that is not as asked.
    """
    ask, answer = layout.ask, record.answer or Answer()
    row: dict[str, Any] = {
        "key": record.key,
        "mirrored": np.uint8(record.mirrored),
        "problem": record.problem,
    }
    if ask.captions:
        row["captions"] = list(answer.captions)
    if layout.texts:
        texts = (*answer.gold, *answer.generated)
        row["gold"] = np.uint16(len(answer.gold))
        row["lengths"] = np.array([len(text.ids) for text in texts], np.uint16)
        row["ids"] = _joined([_ids(text.ids, record.key, layout) for text in texts], layout.id_type)
        if ask.top_k:
            tops = [_top(text, record.key, layout) for text in texts]
            row["top_ids"] = _joined([ids for ids, _ in tops], layout.id_type)
            row["top_logp"] = _joined([logp for _, logp in tops], np.dtype(np.float16))
    if ask.hidden != "none":
        row |= _flatten_hidden(record, ask, layout.hidden_dtype)
    if ask.embedding:
        states = _state(answer.embedding, "embedding", 1, record)
        row["embedding"] = _half(states, "embedding", record.key)
    return row


def to_batch(rows: Sequence[dict[str, Any]]) -> pa.RecordBatch:
    """Flattened records, at least one, as an Arrow batch."""
    names = list(rows[0])
    return pa.RecordBatch.from_arrays([_column([row[name] for row in rows]) for name in names], names)


def write_batch(sink: Any, batch: pa.RecordBatch, about: dict[str, Any]) -> None:
    """Write a shard to an open file; `about` says which piece of which cache it is."""
    schema = batch.schema.with_metadata({_META: json.dumps(about, sort_keys=True).encode()})
    with pa.ipc.new_file(sink, schema) as writer:
        writer.write_batch(batch)


def _joined(parts: Sequence[Array], dtype: np.dtype[Any]) -> Array:
    return np.concatenate([part.reshape(-1) for part in parts]) if parts else np.zeros(0, dtype)


def _ids(ids: Array, key: str, layout: Layout) -> Array:
    if ids.ndim != 1 or not 2 <= len(ids) < 2**16:
        raise _wrong(key, f"a text has ids of shape {ids.shape}; expected [T] with 2 <= T < 65536")
    return _in_vocabulary(ids, key, layout)


def _in_vocabulary(ids: Array, key: str, layout: Layout) -> Array:
    if ids.size and not 0 <= ids.min() <= ids.max() < layout.vocab_size:
        raise _wrong(key, f"ids run from {ids.min()} to {ids.max()}; the vocabulary has {layout.vocab_size}")
    return ids.astype(layout.id_type)


def _top(text: Text, key: str, layout: Layout) -> tuple[Array, Array]:
    expected = (len(text.ids) - 1, layout.kept)
    if text.top_ids is None or text.top_logp is None:
        raise _wrong(key, "a text has no top log-probabilities, though they were asked for")
    if text.top_ids.shape != expected or text.top_logp.shape != expected:
        raise _wrong(key, f"top log-probabilities have shape {text.top_logp.shape}; expected {expected}")
    if np.isnan(text.top_logp).any():
        raise _wrong(key, "a log-probability is not a number")
    # A token that the teacher rules out has -inf or nearly; the lowest float16 keeps 0 * logp a number.
    logp = np.clip(text.top_logp, -_LARGEST, 0.0).astype(np.float16)
    return _in_vocabulary(text.top_ids, key, layout), logp


def _flatten_hidden(record: Record, ask: Ask, dtype: str) -> dict[str, Array]:
    answer = record.answer or Answer()
    states = _state(answer.hidden, "hidden", 2 if ask.hidden == "all" else 1, record)
    shape = np.array(states.shape if record.answer else (), np.uint32)
    if dtype == "float16":
        return {"hidden": _half(states.reshape(-1), "hidden", record.key), "hidden_shape": shape}
    rows = states.reshape(-1, states.shape[-1]) if states.size else np.zeros((0, 1), np.float32)
    scale = (np.abs(rows).max(axis=1) / 127).astype(np.float32)
    whole = np.rint(rows / np.where(scale > 0, scale, 1)[:, None]).astype(np.int8)
    return {"hidden": whole.reshape(-1), "hidden_shape": shape, "hidden_scale": scale}


def _state(states: Array | None, name: str, axes: int, record: Record) -> Array:
    if record.answer is None:
        return np.zeros(0, np.float32)
    if states is None or states.ndim != axes or states.size == 0:
        raise _wrong(record.key, f"{name} is missing or has another shape than was asked for")
    if not np.isfinite(states).all():
        raise _wrong(record.key, f"{name} holds values that are not finite")
    return states.astype(np.float32)


def _half(values: Array, name: str, key: str) -> Array:
    if values.size and np.abs(values).max() > _LARGEST:
        raise _wrong(key, f"{name} reaches {np.abs(values).max():.3g}, beyond float16; int8 can keep hidden")
    return values.astype(np.float16)


def _wrong(key: str, what: str) -> DataError:
    return DataError(f"the teacher's answer to {key!r} cannot be kept: {what}")


def _column(values: list[Any]) -> pa.Array:
    """An Arrow array of texts, numbers, lists of texts or lists of numbers (64-bit offsets)."""
    if isinstance(values[0], str):
        return pa.array(values, pa.string())
    if isinstance(values[0], list):
        return pa.array(values, pa.large_list(pa.string()))
    if isinstance(values[0], np.generic):
        return pa.array(np.stack(values))
    offsets = np.concatenate([[0], np.cumsum([len(value) for value in values])]).astype(np.int64)
    return pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(np.concatenate(values)))


class Shard:
    """A memory-mapped shard. Raises DataError, naming the file, if it is not a whole Arrow file."""

    def __init__(self, path: Path, layout: Layout) -> None:
        self.path, self.layout = path, layout
        try:
            # The mapping lives as long as the arrays do; the file itself need not stay open.
            with pa.memory_map(str(path)) as source:
                reader = pa.ipc.open_file(source)
                self.about: dict[str, Any] = json.loads((reader.schema.metadata or {})[_META])
                self.batch: pa.RecordBatch = reader.get_batch(0)
                self.batch.validate()
                self._open()
        except (pa.ArrowException, OSError, KeyError, ValueError, IndexError) as error:
            raise DataError(
                f"{path}: is truncated or corrupt ({error}); remove it and run `vistill teach run` again"
            ) from error

    def _open(self) -> None:
        """Take each list column apart into offsets and values, both views of the mapped file."""
        self.keys: list[str] = self.batch.column("key").to_pylist()
        self.mirrored: Array = self.batch.column("mirrored").to_numpy()
        problems = enumerate(self.batch.column("problem").to_pylist())
        self.problems: dict[int, str] = {row: reason for row, reason in problems if reason}
        self.lists: dict[str, tuple[Array, Array]] = {}
        for name in self.batch.schema.names:
            column = self.batch.column(name)
            if pa.types.is_large_list(column.type) and name != "captions":
                self.lists[name] = (column.offsets.to_numpy(), column.values.to_numpy())
        if self.layout.texts:
            self.gold: Array = self.batch.column("gold").to_numpy()
        if self.layout.ask.captions:
            captions = self.batch.column("captions")
            self.captions = (captions.offsets.to_numpy(), captions.values)

    def __len__(self) -> int:
        return len(self.keys)

    def flat(self, name: str, row: int) -> Array:
        """The list of a record, a view of the file."""
        offsets, values = self.lists[name]
        return values[offsets[row] : offsets[row + 1]]

    def answer(self, row: int) -> Answer:
        """The answer of a record; its arrays are copies in the types that `Answer` names."""
        layout = self.layout
        captions: tuple[str, ...] = ()
        if layout.ask.captions:
            offsets, values = self.captions
            start, end = int(offsets[row]), int(offsets[row + 1])
            captions = tuple(values[n].as_py() for n in range(start, end))
        gold, generated = self._texts(row) if layout.texts else ((), ())
        hidden = self._hidden(row) if layout.ask.hidden != "none" else None
        embedding = self.flat("embedding", row).astype(np.float32) if layout.ask.embedding else None
        return Answer(captions, gold, generated, hidden, embedding)

    def shortest_cut(self) -> int | None:
        """Tokens of the shortest gold text that was cut, so without an end mark; None if none was."""
        if not self.layout.texts:
            return None
        text_offsets, lengths = self.lists["lengths"]
        ends = self.lists["ids"][1][np.cumsum(lengths, dtype=np.int64) - 1]
        of_row = np.repeat(np.arange(len(self)), np.diff(text_offsets))
        place = np.arange(len(lengths)) - text_offsets[of_row]
        cut = lengths[(ends != EOS) & (place < self.gold[of_row])]
        return int(cut.min()) if len(cut) else None

    def _texts(self, row: int) -> tuple[tuple[Text, ...], tuple[Text, ...]]:
        ids = self.flat("ids", row).astype(np.int64)
        k = self.layout.kept
        top_ids = top_logp = None
        if k:
            top_ids = self.flat("top_ids", row).astype(np.int64).reshape(-1, k)
            top_logp = self.flat("top_logp", row).astype(np.float32).reshape(-1, k)
        texts, start, first = [], 0, 0
        for length in self.flat("lengths", row).tolist():
            end, last = start + length, first + length - 1
            if top_ids is None or top_logp is None:
                texts.append(Text(ids[start:end]))
            else:
                texts.append(Text(ids[start:end], top_ids[first:last], top_logp[first:last]))
            start, first = end, last
        gold = int(self.gold[row])
        return tuple(texts[:gold]), tuple(texts[gold:])

    def _hidden(self, row: int) -> NDArray[np.float32]:
        states = self.flat("hidden", row).astype(np.float32).reshape(self.flat("hidden_shape", row))
        if self.layout.hidden_dtype == "int8":
            scale = self.flat("hidden_scale", row)
            states *= scale[:, None] if states.ndim == 2 else scale
        return states


def check_shape(record: Record, golds: int, layout: Layout) -> None:
    """DataError if an answer has another number of texts than was asked for; `golds` gold captions."""
    answer, ask = record.answer, layout.ask
    if answer is None:
        return
    wanted = golds if ask.top_k and ask.gold and layout.vocab_size else 0
    if len(answer.gold) != wanted:
        raise _wrong(record.key, f"{len(answer.gold)} gold texts for {wanted} gold captions")
    if ask.captions and not 0 < len(answer.captions) <= ask.captions:
        raise _wrong(record.key, f"{len(answer.captions)} captions; {ask.captions} were asked for")
    if not ask.captions and (answer.captions or answer.generated):
        raise _wrong(record.key, "captions that were not asked for")
    if layout.vocab_size and len(answer.generated) != len(answer.captions):
        raise _wrong(record.key, f"{len(answer.generated)} generated texts, {len(answer.captions)} captions")
