"""The objective: which losses it gives, what it samples, and that it learns."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.tiny import tiny_captioner

from vistill.data.collate import Batch, Item
from vistill.data.text import TokenizerConfig, encode, pad, train_tokenizer
from vistill.distill.answers import Answer, Text
from vistill.distill.join import join
from vistill.distill.losses import cross_entropy, pool_to, top_k_kl
from vistill.distill.objective import CaptionObjective, ObjectiveConfig, Teaching, on_one_grid
from vistill.errors import ConfigError
from vistill.models.tokens import BOS, EOS, PAD

REFERENCES = {"x": ["a red dog runs", "the red dog runs"], "y": ["a blue cat sits", "one blue cat sits here"]}
TOKENIZER = train_tokenizer([t for texts in REFERENCES.values() for t in texts], TokenizerConfig(min_count=1))


def _batch() -> Batch:
    rows = [encode(TOKENIZER, text, 12) for texts in REFERENCES.values() for text in texts]
    tokens = torch.tensor(pad(rows)).view(2, 2, -1)
    torch.manual_seed(5)
    return Batch(tuple(REFERENCES), torch.randn(2, 3, 64, 64), 0, tokens)


def _objective(**weights: float) -> CaptionObjective:
    return CaptionObjective(ObjectiveConfig(**weights), TOKENIZER, REFERENCES)  # type: ignore[arg-type]


def test_gives_the_named_losses_and_their_weighted_sum() -> None:
    torch.manual_seed(0)
    model = tiny_captioner(vocab=TOKENIZER.get_vocab_size())
    objective = _objective(cross_entropy=0.5, bag_of_words=0.25, self_critical=2.0)
    losses = objective(model, _batch())
    assert set(losses) == {"cross_entropy", "bag_of_words", "self_critical", "reward"}
    expected = 0.5 * losses["cross_entropy"] + 0.25 * losses["bag_of_words"] + 2 * losses["self_critical"]
    torch.testing.assert_close(objective.total(losses), expected)


def test_a_weight_of_zero_leaves_the_loss_out() -> None:
    model = tiny_captioner(vocab=TOKENIZER.get_vocab_size())
    assert set(_objective()(model, _batch())) == {"cross_entropy"}


def test_samples_are_marked_padded_and_scored_by_their_own_picture() -> None:
    torch.manual_seed(0)
    model = tiny_captioner(vocab=TOKENIZER.get_vocab_size())
    objective = _objective(cross_entropy=0.0, self_critical=1.0)
    batch = _batch()
    tokens, rewards = objective.sample(model, model.tower(batch.pixels, batch.start), batch.keys)
    assert tokens.shape[:2] == rewards.shape == (2, 5)
    assert (tokens[..., 0] == BOS).all()
    for row in tokens.flatten(0, 1).tolist():
        text = [t for t in row if t != PAD]
        assert text == row[: len(text)], "padding stands on the right"
        assert EOS not in text[1:-1]
    assert objective.reward is not None
    for b, key in enumerate(batch.keys):
        for c in range(5):
            row = [t for t in tokens[b, c].tolist() if t not in (PAD, BOS)]
            words = TOKENIZER.decode([t for t in row if t != EOS]).split() + ["<eos>"] * (EOS in row)
            assert rewards[b, c].item() == pytest.approx(
                float(objective.reward.score([key], [words])[0]), abs=1e-5
            )


def test_a_picture_without_captions_earns_no_reward() -> None:
    model = tiny_captioner(vocab=TOKENIZER.get_vocab_size()).eval()
    objective = _objective(cross_entropy=0.0, self_critical=1.0)
    batch = _batch()
    torch.manual_seed(3)
    alone = objective(
        model, replace(batch, keys=batch.keys[:1], pixels=batch.pixels[:1], tokens=batch.tokens[:1])
    )
    untold = torch.full_like(batch.tokens[:1], PAD)
    mixed = replace(batch, keys=("x", "nobody"), tokens=torch.cat((batch.tokens[:1], untold)))
    torch.manual_seed(3)
    both = objective(model, mixed)
    torch.testing.assert_close(both["self_critical"], alone["self_critical"])
    torch.testing.assert_close(both["reward"], alone["reward"])
    nobody = replace(mixed, keys=("nobody", "no one"), tokens=torch.cat((untold, untold)))
    losses = objective(model, nobody)
    assert losses.keys() == {"self_critical"}, "and the step goes on"
    total = objective.total(losses)
    assert total.item() == 0
    total.backward()


def test_the_bag_of_words_spans_a_table_larger_than_the_tokenizer() -> None:
    model = tiny_captioner(vocab=TOKENIZER.get_vocab_size() + 7)
    losses = _objective(cross_entropy=0.0, bag_of_words=1.0)(model, _batch())
    assert torch.isfinite(losses["bag_of_words"])


def test_sampling_leaves_the_mode_alone() -> None:
    model = tiny_captioner(vocab=TOKENIZER.get_vocab_size()).train()
    features = model.tower(_batch().pixels, 0)
    _objective(cross_entropy=0.0, self_critical=1.0).sample(model, features, _batch().keys)
    assert model.training


def test_self_critical_training_raises_the_reward() -> None:
    torch.manual_seed(0)
    model = tiny_captioner(vocab=TOKENIZER.get_vocab_size()).train()
    objective = CaptionObjective(
        ObjectiveConfig(cross_entropy=0.0, self_critical=1.0, samples=16), TOKENIZER, REFERENCES
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    history = []
    for _ in range(60):
        losses = objective(model, _batch())
        optimizer.zero_grad()
        objective.total(losses).backward()
        optimizer.step()
        history.append(float(losses["reward"]))
    assert sum(history[-10:]) > 1.5 * sum(history[:10])


def _teaching(answers: list[Answer]) -> Teaching:
    return Teaching(lambda items: answers, longest=12, hidden_width=6, embedding_width=5)


def _taught(K: int = 3) -> list[Answer]:
    """Random answers to `_batch`, in the words of TOKENIZER."""
    rng = np.random.default_rng(2)

    def text(caption: str) -> Text:
        ids = encode(TOKENIZER, caption, 12)
        top = np.stack([rng.permutation(TOKENIZER.get_vocab_size())[:K] for _ in ids[1:]])
        return Text(
            np.array(ids), top, np.log(rng.dirichlet(np.ones(K + 1), len(ids) - 1)[:, :K]).astype("f4")
        )

    return [
        Answer(
            captions=("a dog",),
            gold=tuple(text(t) for t in texts),
            generated=(text("a dog"),),
            hidden=rng.standard_normal((4, 6)).astype("f4"),
            embedding=rng.standard_normal(5).astype("f4"),
        )
        for texts in REFERENCES.values()
    ]


def _with_items(batch: Batch) -> Batch:
    items = [Item(key, row, 0, False, (0, 1), ()) for row, key in enumerate(batch.keys)]
    return replace(batch, items=tuple(items))


def test_learns_every_kind_of_answer_and_logs_each_by_name() -> None:
    torch.manual_seed(0)
    weights = {
        "cross_entropy": 1.0,
        "teacher_cross_entropy": 0.5,
        "top_k_kl": 2.0,
        "hidden_cosine": 0.25,
        "hidden_mse": 0.125,
        "hidden_l1": 0.5,
        "embedding": 3.0,
    }
    config = ObjectiveConfig(**weights, scales={"hidden_mse": 10.0}, label_smoothing=0.0)  # type: ignore[arg-type]
    model = tiny_captioner(vocab=TOKENIZER.get_vocab_size())
    objective = CaptionObjective(config, TOKENIZER, REFERENCES, _teaching(_taught()), width=16)
    batch = _with_items(_batch())
    losses = objective(model, batch)
    assert set(losses) == set(weights)
    expected = sum(w * (10 if name == "hidden_mse" else 1) * losses[name] for name, w in weights.items())
    torch.testing.assert_close(objective.total(losses), expected)

    memory = model.vision(batch.pixels)
    cross = model.decoder.cross_kv(memory)
    spelt = torch.tensor([[encode(TOKENIZER, "a dog", 12)]] * 2)
    of_teacher = model.decoder(spelt[..., :-1], cross)
    torch.testing.assert_close(losses["teacher_cross_entropy"], cross_entropy(of_teacher, spelt[..., 1:]))
    gold = join(batch, _taught(), TOKENIZER, wants={"top_k"}, longest=12)
    assert gold.of_gold is not None
    assert gold.of_tokens is not None
    logits = model.decoder(batch.tokens[..., :-1], cross)
    kl = top_k_kl(logits, gold.of_gold.ids, gold.of_gold.logp, batch.tokens[..., 1:])
    kl = (kl + top_k_kl(of_teacher, gold.of_tokens.ids, gold.of_tokens.logp, spelt[..., 1:])) / 2
    torch.testing.assert_close(losses["top_k_kl"], kl)
    embedding = objective.heads["embedding"](memory.mean(1))
    target = torch.from_numpy(np.stack([answer.embedding for answer in _taught()]))
    torch.testing.assert_close(losses["embedding"], (1 - torch.cosine_similarity(embedding, target)).mean())


def test_pictures_without_captions_learn_from_the_teacher_alone() -> None:
    torch.manual_seed(0)
    model = tiny_captioner(vocab=TOKENIZER.get_vocab_size())
    both = _batch()
    half = replace(both, tokens=torch.cat([both.tokens[:1], torch.zeros_like(both.tokens[1:])]))
    first = Batch(both.keys[:1], both.pixels[:1], 0, both.tokens[:1])
    config = ObjectiveConfig(bag_of_words=1.0, teacher_cross_entropy=1.0)
    objective = CaptionObjective(config, TOKENIZER, REFERENCES, _teaching(_taught()))
    losses = objective(model, replace(half, items=_with_items(both).items))
    alone = _objective(bag_of_words=1.0)(model, first)
    torch.testing.assert_close(losses["cross_entropy"], alone["cross_entropy"])
    torch.testing.assert_close(losses["bag_of_words"], alone["bag_of_words"])
    taught = objective(model, _with_items(both))["teacher_cross_entropy"]
    torch.testing.assert_close(losses["teacher_cross_entropy"], taught)
    nothing = replace(half, tokens=torch.zeros_like(both.tokens), items=_with_items(both).items)
    assert torch.isfinite(objective.total(objective(model, nothing)))


def test_the_projections_learn_and_the_student_learns_through_them() -> None:
    torch.manual_seed(0)
    config = ObjectiveConfig(cross_entropy=0.0, hidden_cosine=1.0)
    model = tiny_captioner(vocab=TOKENIZER.get_vocab_size()).train()
    objective = CaptionObjective(config, TOKENIZER, REFERENCES, _teaching(_taught()), width=16)
    assert list(objective.heads) == ["hidden"]
    objective.total(objective(model, _with_items(_batch()))).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in objective.heads.parameters())
    assert model.mapper.project.weight.grad is not None


def test_a_prefix_of_another_length_is_compared_as_a_whole() -> None:
    """Ten learnt embeddings are no class token before a grid of nine."""
    torch.manual_seed(0)
    model = tiny_captioner(vocab=TOKENIZER.get_vocab_size()).eval()
    config = ObjectiveConfig(cross_entropy=0.0, hidden_mse=1.0, hidden_l1=1.0)
    objective = CaptionObjective(config, TOKENIZER, REFERENCES, _teaching(_taught()), width=16)
    batch = _with_items(_batch())
    memory = torch.randn(2, 10, 16)
    model.mapper.forward = lambda features: memory  # type: ignore[method-assign]
    losses = objective(model, batch)
    seen = objective.heads["hidden"](memory).mean(1)
    said = torch.from_numpy(np.stack([answer.hidden for answer in _taught()])).mean(1)
    torch.testing.assert_close(losses["hidden_mse"], (seen - said).square().mean())
    torch.testing.assert_close(losses["hidden_l1"], (seen - said).abs().mean())


def test_losses_of_a_teacher_need_one() -> None:
    with pytest.raises(ConfigError, match=r"captions, top_k: set datamodule\.teacher"):
        _objective(top_k_kl=1.0, teacher_cross_entropy=1.0)


@pytest.mark.parametrize(
    "weights",
    [
        {"cross_entropy": 0.0},
        {"cross_entropy": -1.0},
        {"self_critical": 1.0, "samples": 1},
        {"label_smoothing": 1.0},
        {"scales": {"cross-entropy": 1.0}},
        {"kl_temperature": 0.0},
    ],
)
def test_wrong_weights_are_refused(weights: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="objective"):
        ObjectiveConfig(**weights)  # type: ignore[arg-type]


def test_the_class_token_of_a_teacher_with_a_finer_grid_is_no_patch() -> None:
    student, teacher = torch.randn(2, 4, 3), torch.randn(2, 10, 3)  # 2 x 2; a class token before 3 x 3
    own, theirs = on_one_grid(student, teacher)
    assert torch.equal(own, student)
    assert torch.equal(theirs, pool_to(teacher[:, 1:], 4))


def test_a_batch_without_any_kept_text_is_a_step_too() -> None:
    model = tiny_captioner(vocab=TOKENIZER.get_vocab_size()).eval()
    batch = _with_items(_batch())
    batch = replace(batch, tokens=torch.full_like(batch.tokens, PAD))
    silent = [replace(answer, gold=(), generated=()) for answer in _taught()]
    config = ObjectiveConfig(cross_entropy=0.0, top_k_kl=1.0)
    objective = CaptionObjective(config, TOKENIZER, REFERENCES, _teaching(silent))
    total = objective.total(objective(model, batch))
    assert total.item() == 0
    total.backward()
