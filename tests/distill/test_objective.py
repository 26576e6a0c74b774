"""The objective: which losses it gives, what it samples, and that it learns."""

import pytest
import torch
from tests.tiny import tiny_captioner

from vistill.data.collate import Batch
from vistill.data.text import TokenizerConfig, encode, pad, train_tokenizer
from vistill.distill.objective import CaptionObjective, ObjectiveConfig
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


@pytest.mark.parametrize(
    "weights",
    [
        {"cross_entropy": 0.0},
        {"cross_entropy": -1.0},
        {"self_critical": 1.0, "samples": 1},
        {"label_smoothing": 1.0},
    ],
)
def test_wrong_weights_are_refused(weights: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="objective"):
        ObjectiveConfig(**weights)  # type: ignore[arg-type]
