"""A batch and its teacher's answers: the same from a cache as asked online, refused where they do not fit."""

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.models.tiny_pretrained import save_public
from tests.tiny import build_data, tiny_captioner

from vistill.data.collate import Batch, CaptionRows, Item, collate, replayed_pixels
from vistill.data.dataset import open_split
from vistill.data.text import TokenizerConfig, encode, train_tokenizer
from vistill.distill.answers import Answer, Ask, Text
from vistill.distill.cache import CacheConfig, TeacherCache
from vistill.distill.cache_run import run
from vistill.distill.join import join, kept_answers, online_answers, open_cache
from vistill.distill.objective import CaptionObjective, ObjectiveConfig, Teaching
from vistill.distill.teachers import load_teacher
from vistill.errors import DataError
from vistill.models.checkpoint import save_captioner
from vistill.models.pretrained import load_pretrained_captioner
from vistill.models.tokens import PAD, SPECIAL
from vistill.models.vision import tower_preprocess
from vistill.runtime.decode import GenerationConfig
from vistill.runtime.image import AugmentSpec

ASK = Ask(
    captions=2,
    generation=GenerationConfig(num_beams=2, max_new_tokens=6),
    top_k=4,
    hidden="all",
    embedding=True,
    longest=12,
)
CONFIG = CacheConfig(splits=("train",), views=2, seed=3, augment=AugmentSpec(), ask=ASK, batch_size=4)


@dataclasses.dataclass(frozen=True)
class World:
    """A data set, a teacher on it and its cache."""

    data: Path
    teacher: Path
    cache: Path

    def rows(self) -> CaptionRows:
        table = open_split(self.data, "train")
        model = tiny_captioner(vocab=20)
        pixels = replayed_pixels(table, tower_preprocess(model.config.vision), CONFIG.augment, 2, CONFIG.seed)
        return CaptionRows(table, pixels, TOKENS(self.data), captions=2, longest=12, seed=0)

    def batch(self) -> Batch:
        rows = self.rows()
        return collate([rows[1, row] for row in (5, 2, 9, 0)], start=0)


def TOKENS(data: Path):  # type: ignore[no-untyped-def]  # noqa: N802
    texts = [text for texts in open_split(data, "train")["captions"] for text in texts]
    return train_tokenizer(texts, TokenizerConfig(min_count=1))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("join")
    data = build_data(folder)
    tokenizer = TOKENS(data)
    torch.manual_seed(1)
    model = tiny_captioner(vocab=tokenizer.get_vocab_size())
    with torch.no_grad():
        model.decoder.embed.weight.mul_(20)  # random logits are nearly flat: give it something to say
    save_captioner(folder / "teacher", model, tokenizer, {})
    run(folder / "cache", load_teacher(str(folder / "teacher")), data, CONFIG)
    return World(data, folder / "teacher", folder / "cache")


def test_a_cache_answers_as_the_teacher_does_online(world: World) -> None:
    batch = world.batch()
    assert {item.view for item in batch.items} == {0, 1}, "clean and augmented views are compared"
    tokenizer = TOKENS(world.data)
    cache = TeacherCache.open(world.cache)
    table = open_split(world.data, "train")
    wants = ASK.wants()
    kept = join(batch, kept_answers(cache, ["train"])(batch.items), tokenizer, wants=wants, longest=12)
    asked = online_answers(load_teacher(str(world.teacher)), table, CONFIG)(batch.items)
    online = join(batch, asked, tokenizer, wants=wants, longest=12)
    assert kept.tokens is not None
    assert online.tokens is not None
    assert torch.equal(kept.tokens, online.tokens)
    for one, other in ((kept.of_gold, online.of_gold), (kept.of_tokens, online.of_tokens)):
        assert one is not None
        assert other is not None
        assert torch.equal(one.ids, other.ids)
        torch.testing.assert_close(one.logp, other.logp, atol=4e-3, rtol=1e-3)  # kept in half precision
    torch.testing.assert_close(kept.hidden, online.hidden, atol=2e-3, rtol=1e-3)
    torch.testing.assert_close(kept.embedding, online.embedding, atol=2e-3, rtol=1e-3)


def test_the_top_k_of_a_gold_caption_stand_at_its_positions(world: World) -> None:
    batch = world.batch()
    answers = kept_answers(TeacherCache.open(world.cache), ["train"])(batch.items)
    taught = join(batch, answers, TOKENS(world.data), wants={"top_k"}, longest=12)
    assert taught.of_gold is not None
    for b, item in enumerate(batch.items):
        for c, shown in enumerate(item.shown):
            text = answers[b].gold[shown]
            assert text.top_ids is not None
            n = len(text.ids)
            assert batch.tokens[b, c, :n].tolist() == text.ids.tolist()
            assert (batch.tokens[b, c, n:] == PAD).all()
            assert taught.of_gold.ids[b, c, : n - 1].tolist() == text.top_ids.tolist()
            assert torch.isneginf(taught.of_gold.logp[b, c, n - 1 :]).all()


def test_one_kept_view_answers_for_every_view(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = load_teacher(str(world.teacher))
    words = dataclasses.replace(CONFIG, views=1, ask=Ask(captions=0, top_k=2, longest=12))
    run(tmp_path / "top", teacher, world.data, words)
    config = dataclasses.replace(CONFIG, views=1, ask=Ask(captions=1, generation=ASK.generation, longest=12))
    run(tmp_path / "one", load_teacher(str(world.teacher)), world.data, config)
    read = kept_answers(TeacherCache.open(tmp_path / "one"), ["train"])
    fresh, clean = (Item("x", 3, view, False, (), ()) for view in (-1, 0))
    assert read([fresh])[0].captions == read([clean])[0].captions
    cache = TeacherCache.open(tmp_path / "one")
    monkeypatch.setattr(cache, "read", lambda *place: Answer(captions=("a dog left of a cat",)))
    mirrored = dataclasses.replace(fresh, mirrored=True)
    answers = kept_answers(cache, ["train"])([clean, mirrored])
    assert [answer.captions for answer in answers] == [("a dog left of a cat",), ("a dog right of a cat",)]
    fits = {"tokenizer": TOKENS(world.data), "longest": 12, "seed": 3}
    for flip, views in ((0.5, 1), (0.0, 0)):
        open_cache(
            tmp_path / "top",
            world.data,
            ["train"],
            wants={"top_k"},
            views=views,
            augment=AugmentSpec(flip=flip),
            **fits,
        )
    with pytest.raises(DataError, match="left and right"):
        open_cache(
            tmp_path / "top", world.data, ["train"], wants={"top_k"}, views=0, augment=AugmentSpec(), **fits
        )


def test_other_token_ids_are_refused() -> None:
    tokenizer = train_tokenizer(["a red dog"], TokenizerConfig(min_count=1))
    ids = encode(tokenizer, "a red dog", 12)
    batch = collate([(Item("x", 0, 0, False, (0,), (ids,)), np.zeros((3, 4, 4), np.float32))], start=0)
    k = (np.zeros((4, 2), np.int64), np.zeros((4, 2), np.float32))
    wrong = Answer(gold=(Text(np.array(ids[::-1]), *k),))
    short = Answer(gold=(Text(np.array(ids[:3]), k[0][:2], k[1][:2]),))
    for answer in (wrong, short):
        with pytest.raises(DataError, match="token ids"):
            join(batch, [answer], tokenizer, wants={"top_k"}, longest=12)


def test_without_log_probabilities_captions_are_spelt_anew() -> None:
    tokenizer = train_tokenizer(["a red dog runs"], TokenizerConfig(min_count=1))
    pixels = np.zeros((3, 4, 4), np.float32)
    batch = collate([(Item(key, 0, 0, False, (), ()), pixels) for key in "xy"], start=0)
    answers = [Answer(captions=("A red dog.", "a dog")), Answer(captions=("a zebra runs",))]
    taught = join(batch, answers, tokenizer, wants={"captions"}, longest=4)
    assert taught.tokens is not None
    assert taught.of_tokens is None
    one, two, three = (encode(tokenizer, text, 4) for text in ("a red dog", "a dog", "a zebra runs"))
    assert taught.tokens.tolist() == [[one, two], [three, [PAD] * 4]]


def _open(world: World, **changes: object) -> TeacherCache:
    fits = {
        "wants": {"captions", "top_k", "hidden"},
        "tokenizer": TOKENS(world.data),
        "longest": 12,
        "views": 2,
        "seed": 3,
        "augment": AugmentSpec(),
        **changes,
    }
    return open_cache(world.cache, world.data, ["train"], **fits)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"tokenizer": train_tokenizer(["another"], TokenizerConfig(min_count=1))}, "tokenizer"),
        ({"views": 3}, "views"),
        ({"views": 0}, r"set datamodule\.views=2"),
        ({"seed": 4}, r"of its views, datamodule\.views_seed was 3 and is 4 in training"),
        ({"augment": AugmentSpec(flip=0.1)}, r"of its views, datamodule\.augment\.flip was 0\.5 and is 0\.1"),
    ],
)
def test_a_cache_that_does_not_fit_is_refused(world: World, changes: dict[str, object], reason: str) -> None:
    assert len(_open(world)) == 48
    with pytest.raises(DataError, match=reason):
        _open(world, **changes)


def test_cut_gold_captions_are_refused_before_training(world: World, tmp_path: Path) -> None:
    assert TeacherCache.open(world.cache).shortest_cut(["train"]) is None
    _open(world, longest=30)  # no caption is as long, so what was asked for does not matter
    short = dataclasses.replace(CONFIG, ask=dataclasses.replace(ASK, longest=6))
    run(tmp_path / "short", load_teacher(str(world.teacher)), world.data, short)
    cut = dataclasses.replace(world, cache=tmp_path / "short")
    with pytest.raises(DataError, match="gold captions were cut to 6 tokens and the student reads up to 7"):
        _open(cut, longest=7)
    _open(cut, longest=6)
    _open(cut, longest=7, wants={"captions"})


def test_captions_longer_than_the_student_reads_are_cut(world: World) -> None:
    batch = world.batch()
    answers = kept_answers(TeacherCache.open(world.cache), ["train"])(batch.items)
    whole = join(batch, answers, TOKENS(world.data), wants={"top_k"}, longest=12)
    taught = join(batch, answers, TOKENS(world.data), wants={"top_k"}, longest=5)
    assert whole.tokens is not None
    assert taught.tokens is not None
    assert taught.of_tokens is not None
    assert whole.tokens.shape[-1] > 5
    assert torch.equal(taught.tokens, whole.tokens[..., :5])
    assert taught.of_tokens.ids.shape[2] == 4


def test_a_shard_with_another_byte_is_refused(world: World, tmp_path: Path) -> None:
    shutil.copytree(world.cache, tmp_path / "cache")
    path = sorted((tmp_path / "cache").glob("*.arrow"))[-1]
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)
    with pytest.raises(DataError, match=f"{path.name}: the bytes are not those that were written"):
        _open(dataclasses.replace(world, cache=tmp_path / "cache"))


@pytest.mark.parametrize("kind", ["vit-gpt2", "blip", "vit+bert"])
def test_a_public_captioner_agrees_with_itself(kind: str, world: World, tmp_path: Path) -> None:
    """All of its log-probabilities, kept and learnt from by the same model: nothing is left to learn."""
    save_public(tmp_path / "public", kind)
    model, tokenizer, preprocess = load_pretrained_captioner(tmp_path / "public")
    teacher = load_teacher(str(tmp_path / "public"))
    K = teacher.identity.vocab_size - len(SPECIAL)
    ask = Ask(captions=1, generation=GenerationConfig(num_beams=2, max_new_tokens=6), top_k=K, longest=12)
    config = CacheConfig(splits=("train",), ask=ask, batch_size=4)
    run(tmp_path / "cache", teacher, world.data, config)
    cache = open_cache(
        tmp_path / "cache", world.data, ["train"], wants={"top_k"}, tokenizer=tokenizer, longest=12,
        views=1, seed=0, augment=AugmentSpec(),
    )  # fmt: skip
    table = open_split(world.data, "train")
    pixels = replayed_pixels(table, preprocess, AugmentSpec(), 1, 0)
    rows = CaptionRows(table, pixels, tokenizer, captions=2, longest=12, seed=0)
    batch = collate([rows[1, row] for row in (5, 2, 9, 0)], start=0)
    teaching = Teaching(kept_answers(cache, ["train"]), 12)
    objective = CaptionObjective(ObjectiveConfig(cross_entropy=0, top_k_kl=1), tokenizer, {}, teaching)
    with torch.inference_mode():
        losses = objective(model, batch)
        assert float(losses["top_k_kl"]) == pytest.approx(0, abs=1e-3)
        for weight in model.decoder.parameters():
            weight.mul_(0.5)
        assert float(objective(model, batch)["top_k_kl"]) > 0.05
