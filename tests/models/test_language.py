"""The decoder beside transformers' GPT-2, and its cached steps beside teacher forcing."""

import pytest
import torch

from vistill.distill.losses import cross_entropy
from vistill.errors import ConfigError
from vistill.models.language import Decoder, DecoderConfig, from_gpt2_state
from vistill.models.tokens import PAD

CONFIG = DecoderConfig(vocab_size=30, width=16, layers=2, heads=2, context=12, dropout=0.0)


def test_equals_gpt2_with_cross_attention() -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    theirs = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=30, n_embd=16, n_layer=2, n_head=2, n_positions=12, add_cross_attention=True
        )
    ).eval()
    for parameter in theirs.parameters():  # norms and biases start at 0 and 1, which would hide a swap
        torch.nn.init.normal_(parameter, std=0.3)
    ours = Decoder(CONFIG).eval()
    ours.load_state_dict(from_gpt2_state(theirs.state_dict(), layers=2))
    memory = torch.randn(3, 5, 16)
    tokens = torch.randint(1, 30, (3, 4, 7))
    with torch.inference_mode():
        found = ours(tokens, ours.cross_kv(memory))
        for c in range(4):
            expected = theirs(input_ids=tokens[:, c], encoder_hidden_states=memory).logits
            torch.testing.assert_close(found[:, c], expected, rtol=1e-4, atol=1e-4)


def test_cached_steps_equal_teacher_forcing() -> None:
    torch.manual_seed(1)
    decoder = Decoder(CONFIG).eval()
    tokens = torch.randint(1, 30, (2, 3, 12))
    with torch.inference_mode():
        cross = decoder.cross_kv(torch.randn(2, 5, 16))
        whole = decoder(tokens, cross)
        past = decoder.empty_past(2, captions=3)
        for t in range(12):
            logits, past = decoder.step(tokens[..., t], cross, past)
            torch.testing.assert_close(logits, whole[:, :, t], rtol=1e-4, atol=1e-5)
    assert past[0][0].shape == (2, 3, 2, 12, 8)


def test_the_future_is_not_seen() -> None:
    torch.manual_seed(2)
    decoder = Decoder(CONFIG).eval()
    cross = decoder.cross_kv(torch.randn(1, 5, 16))
    tokens = torch.randint(1, 30, (1, 1, 8))
    changed = tokens.clone()
    changed[..., 5:] = changed[..., 5:] % 29 + 1
    with torch.inference_mode():
        before, after = decoder(tokens, cross), decoder(changed, cross)
    assert torch.equal(before[..., :5, :], after[..., :5, :])
    assert not torch.allclose(before[..., 5:, :], after[..., 5:, :])


def test_a_caption_is_worked_out_as_if_it_had_no_padding() -> None:
    torch.manual_seed(3)
    decoder = Decoder(CONFIG)
    memory = torch.randn(2, 5, 16)
    tokens = torch.randint(4, 30, (2, 3, 9))
    lengths = torch.tensor([[9, 4, 1], [2, 9, 6]])
    tokens[torch.arange(9) >= lengths.unsqueeze(-1)] = PAD
    inputs, targets = tokens[..., :-1], tokens[..., 1:]

    together = decoder(inputs, decoder.cross_kv(memory))
    cross_entropy(together, targets).backward()
    found = {name: parameter.grad for name, parameter in decoder.named_parameters()}
    decoder.zero_grad()
    losses = []
    for b in range(2):
        for c in range(3):
            alone = inputs[b : b + 1, c : c + 1, : int(lengths[b, c])]
            logits = decoder(alone, decoder.cross_kv(memory[b : b + 1]))[0, 0]
            torch.testing.assert_close(together[b, c, : alone.shape[-1]], logits, rtol=1e-4, atol=1e-5)
            assert not together[b, c, alone.shape[-1] :].any()
            asked = targets[b, c, : len(logits)]
            losses.append(torch.nn.functional.cross_entropy(logits, asked, ignore_index=PAD, reduction="sum"))
    (torch.stack(losses).sum() / (targets != PAD).sum()).backward()
    for name, parameter in decoder.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "key"),
    [({"width": 10, "heads": 3}, "heads"), ({"dropout": 1.0}, "dropout"), ({"layers": 0}, "layers")],
)
def test_wrong_settings_name_the_key(settings: dict[str, float], key: str) -> None:
    with pytest.raises(ConfigError, match=key):
        DecoderConfig(**settings)  # type: ignore[arg-type]
