"""Records through a shard file and back: every part, every type, and what is refused."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vistill.distill.answers import Answer, Ask, Text
from vistill.distill.cache_shards import Layout, Record, Shard, check_shape, flatten, to_batch, write_batch
from vistill.errors import DataError

FULL = Ask(captions=2, top_k=4, hidden="all", embedding=True)


def _through(path: Path, records: list[Record], layout: Layout) -> Shard:
    with path.open("wb") as file:
        write_batch(file, to_batch([flatten(record, layout) for record in records]), {"n": 1})
    return Shard(path, layout)


def _text(draw: np.random.Generator, length: int, vocab: int, k: int) -> Text:
    top = np.stack([draw.permutation(vocab)[:k] for _ in range(length - 1)]).astype(np.int64)
    logp = -np.sort(draw.exponential(4, size=(length - 1, k)), axis=1).astype(np.float32)
    return Text(draw.integers(0, vocab, length), top, logp)


def _answer(seed: int, lengths: list[int], generated: int, vocab: int, ask: Ask) -> Answer:
    draw = np.random.default_rng(seed)
    texts = [_text(draw, n, vocab, min(ask.top_k, vocab)) for n in lengths]
    gold, made = texts[: len(texts) - generated], texts[len(texts) - generated :]
    return Answer(
        tuple(f"ein Hund „{n}“ 犬" for n in range(generated)),
        tuple(gold),
        tuple(made),
        (draw.normal(size=(draw.integers(1, 9), 6)) * 10 ** draw.uniform(-3, 3)).astype(np.float32),
        draw.normal(size=3).astype(np.float32),
    )


def _same_texts(kept: tuple[Text, ...], given_: tuple[Text, ...]) -> None:
    assert len(kept) == len(given_)
    for ours, theirs in zip(kept, given_, strict=True):
        assert ours.ids.dtype == ours.top_ids.dtype == np.int64
        assert ours.top_logp.dtype == np.float32
        np.testing.assert_array_equal(ours.ids, theirs.ids)
        np.testing.assert_array_equal(ours.top_ids, theirs.top_ids)
        np.testing.assert_array_equal(ours.top_logp, theirs.top_logp.astype(np.float16).astype(np.float32))


@settings(max_examples=25, deadline=None)
@given(
    records=st.lists(
        st.tuples(st.lists(st.integers(2, 9), min_size=2, max_size=7), st.integers(1, 2)),
        min_size=1,
        max_size=6,
    ),
    seed=st.integers(0, 999),
    int8=st.booleans(),
    vocab=st.sampled_from([3, 50, 65536, 65537]),
)
def test_answers_come_back_as_given(
    tmp_path_factory: pytest.TempPathFactory, records, seed: int, int8: bool, vocab: int
) -> None:
    layout = Layout(FULL, vocab, "int8" if int8 else "float16")
    answers = [_answer(seed + n, *record, vocab, FULL) for n, record in enumerate(records)]
    path = tmp_path_factory.mktemp("shard") / "x.arrow"
    shard = _through(path, [Record(f"k{n}", n % 2 == 1, a) for n, a in enumerate(answers)], layout)
    assert shard.about == {"n": 1}
    assert shard.keys == [f"k{n}" for n in range(len(answers))]
    assert shard.mirrored.tolist() == [n % 2 for n in range(len(answers))]
    wide = np.uint32 if vocab == 65537 else np.uint16
    assert shard.flat("ids", 0).dtype == shard.flat("top_ids", 0).dtype == wide
    assert shard.flat("top_logp", 0).dtype == np.float16
    for row, answer in enumerate(answers):
        kept = shard.answer(row)
        assert kept.captions == answer.captions
        _same_texts(kept.gold, answer.gold)
        _same_texts(kept.generated, answer.generated)
        np.testing.assert_array_equal(kept.embedding, answer.embedding.astype(np.float16))
        assert kept.hidden.shape == answer.hidden.shape
        assert kept.hidden.dtype == np.float32
        if int8:
            step = np.abs(answer.hidden).max(axis=1, keepdims=True) / 127
            assert (np.abs(kept.hidden - answer.hidden) <= 0.501 * step).all()
        else:
            np.testing.assert_array_equal(kept.hidden, answer.hidden.astype(np.float16))


def test_parts_that_were_not_asked_for_take_no_column(tmp_path: Path) -> None:
    layout = Layout(Ask(captions=1), 50, "float16")
    answer = Answer(("a dog",), (), (Text(np.array([1, 7, 2])),))
    shard = _through(tmp_path / "x.arrow", [Record("k", False, answer)], layout)
    names = ["key", "mirrored", "problem", "captions", "gold", "lengths", "ids"]
    assert shard.batch.schema.names == names
    kept = shard.answer(0)
    assert kept.generated[0].top_ids is None
    assert (kept.hidden, kept.embedding, kept.gold) == (None, None, ())
    black_box = Layout(Ask(captions=1), 0, "float16")
    shard = _through(tmp_path / "y.arrow", [Record("k", False, Answer(("a dog",)))], black_box)
    assert shard.batch.schema.names == ["key", "mirrored", "problem", "captions"]
    assert shard.answer(0) == Answer(("a dog",))
    pooled = Layout(Ask(captions=0, hidden="pooled"), 50, "int8")
    states = np.array([-2.0, 1, 0.5], np.float32)
    shard = _through(tmp_path / "z.arrow", [Record("k", False, Answer(hidden=states))], pooled)
    np.testing.assert_allclose(shard.answer(0).hidden, states, atol=1 / 127)
    assert shard.batch.schema.names[3:] == ["hidden", "hidden_shape", "hidden_scale"]


def test_records_without_an_answer_and_rows_of_zeros(tmp_path: Path) -> None:
    layout = Layout(FULL, 50, "int8")
    zeros = replace(_answer(1, [3, 4], 1, 50, FULL), hidden=np.zeros((2, 6), np.float32))
    records = [Record("bad", False, None, "truncated: half a file"), Record("zero", False, zeros)]
    shard = _through(tmp_path / "x.arrow", records, layout)
    assert shard.problems == {0: "truncated: half a file"}
    np.testing.assert_array_equal(shard.answer(1).hidden, np.zeros((2, 6)))
    _same_texts(shard.answer(1).gold, zeros.gold)


def test_tokens_that_are_ruled_out_keep_a_finite_logp(tmp_path: Path) -> None:
    logp = np.array([[-0.1, -1e9, -np.inf]], np.float32)
    text = Text(np.array([1, 2]), np.array([[5, 6, 7]]), logp)
    layout = Layout(Ask(captions=0, top_k=3), 50, "float16")
    shard = _through(tmp_path / "x.arrow", [Record("k", False, Answer(gold=(text,)))], layout)
    kept = shard.answer(0).gold[0].top_logp
    assert kept.tolist()[0][1:] == [-65504.0, -65504.0]


GOOD = _answer(3, [3, 4, 5], 2, 50, FULL)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden": None}, "hidden is missing"),
        ({"hidden": np.zeros(6, np.float32)}, "hidden is missing or has another shape"),
        ({"hidden": np.full((2, 2), np.nan, np.float32)}, "hidden holds values that are not finite"),
        ({"hidden": np.full((2, 2), 1e5, np.float32)}, "hidden reaches 1e.05, beyond float16; int8"),
        ({"embedding": None}, "embedding is missing"),
        ({"gold": (Text(np.array([1, 2])),)}, "no top log-probabilities"),
        ({"gold": (replace(GOOD.gold[0], ids=np.array([1, 50, 2])),)}, "ids run from 1 to 50; .* has 50"),
        ({"gold": (replace(GOOD.gold[0], ids=np.array([1, -1, 2])),)}, "ids run from -1 to 2"),
        ({"gold": (replace(GOOD.gold[0], ids=np.array([1])),)}, r"shape \(1,\)"),
        ({"gold": (replace(GOOD.gold[0], ids=np.array([1, 2])),)}, r"\(2, 4\); expected \(1, 4\)"),
        (
            {"gold": (replace(GOOD.gold[0], top_logp=np.full((2, 4), np.nan, np.float32)),)},
            "a log-probability is not a number",
        ),
    ],
)
def test_answers_that_cannot_be_kept_are_refused_by_key(changes: dict, message: str) -> None:
    with pytest.raises(DataError, match=rf"answer to 'k7' cannot be kept: .*{message}"):
        flatten(Record("k7", False, replace(GOOD, **changes)), Layout(FULL, 50, "float16"))


@pytest.mark.parametrize(
    ("ask", "changes", "message"),
    [
        (FULL, {"gold": ()}, "0 gold texts for 1 gold captions"),
        (FULL, {"captions": ()}, "0 captions; 2 were asked for"),
        (FULL, {"generated": ()}, "0 generated texts, 2 captions"),
        (replace(FULL, gold=False), {}, "1 gold texts for 0 gold captions"),
        (replace(FULL, captions=0), {}, "captions that were not asked for"),
        (replace(FULL, captions=1), {}, "2 captions; 1 were asked for"),
    ],
)
def test_another_number_of_texts_than_asked_for_is_refused(ask: Ask, changes: dict, message: str) -> None:
    layout = Layout(FULL, 50, "float16")
    check_shape(Record("k", False, GOOD), 1, layout)
    with pytest.raises(DataError, match=message):
        check_shape(Record("k", False, replace(GOOD, **changes)), 1, replace(layout, ask=ask))


@pytest.mark.parametrize("size", [0, 5, 100, -300, -1])
def test_a_truncated_file_is_named(tmp_path: Path, size: int) -> None:
    path = tmp_path / "x.arrow"
    _through(path, [Record("k", False, GOOD)], Layout(FULL, 50, "float16"))
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(DataError, match=r"x\.arrow: is truncated or corrupt"):
        Shard(path, Layout(FULL, 50, "float16"))


def test_a_foreign_arrow_file_is_named(tmp_path: Path) -> None:
    batch = pa.RecordBatch.from_arrays([pa.array([1])], ["a"])
    with (tmp_path / "x.arrow").open("wb") as file, pa.ipc.new_file(file, batch.schema) as writer:
        writer.write_batch(batch)
    with pytest.raises(DataError, match=r"x\.arrow: is truncated or corrupt"):
        Shard(tmp_path / "x.arrow", Layout(FULL, 50, "float16"))
