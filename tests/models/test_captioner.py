"""The captioner as a whole, and its stepper under the decode loop."""

import numpy as np
import torch
from tests.tiny import tiny_captioner

from vistill.models.captioner import TorchStepper
from vistill.models.tokens import BOS, EOS, NEVER_GENERATED
from vistill.runtime.decode import GenerationConfig, generate


def test_captions_of_a_picture_do_not_see_each_other() -> None:
    torch.manual_seed(0)
    model = tiny_captioner()
    pixels, tokens = torch.randn(2, 3, 64, 64), torch.randint(1, 20, (2, 3, 6))
    with torch.inference_mode():
        together = model(pixels, tokens)
        for c in range(3):
            torch.testing.assert_close(
                model(pixels, tokens[:, c : c + 1])[:, 0], together[:, c], rtol=1e-4, atol=1e-5
            )


def test_kept_features_give_the_same_logits() -> None:
    torch.manual_seed(0)
    model = tiny_captioner()
    pixels, tokens = torch.randn(2, 3, 64, 64), torch.randint(1, 20, (2, 1, 6))
    with torch.inference_mode():
        kept = model.tower.trunk(pixels, 3)
        torch.testing.assert_close(model(kept, tokens, start=3), model(pixels, tokens))


def test_greedy_decoding_follows_the_likeliest_token() -> None:
    torch.manual_seed(3)
    model = tiny_captioner()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    pixels = torch.randn(3, 3, 64, 64)
    with torch.inference_mode():
        memory = model.vision(pixels)
        config = GenerationConfig(max_new_tokens=8, num_beams=1)
        found = generate(TorchStepper(model, memory), 3, bos=BOS, eos=EOS, config=config)
        for b in range(3):
            text = [BOS]
            while len(text) <= 8:
                logits = model(pixels[b : b + 1], torch.tensor([[text]]))[0, 0, -1]
                logits[list(NEVER_GENERATED)] = -torch.inf
                if int(logits.argmax()) == EOS and len(text) > 0:
                    break
                text.append(int(logits.argmax()))
            assert list(found[b][0].tokens) == text[1:]


def test_the_stepper_reorders_rows() -> None:
    torch.manual_seed(4)
    model = tiny_captioner()
    memory = model.vision(torch.randn(2, 3, 64, 64)).detach()
    stepper = TorchStepper(model, memory)
    stepper.step(np.full((2, 1), BOS))
    stepper.reorder(np.zeros((2, 3), dtype=np.int64))
    stepper.step(np.array([[4, 5, 6], [7, 8, 9]]))
    stepper.reorder(np.array([[2, 0], [1, 1]]))
    found = stepper.step(np.array([[10, 11], [12, 13]]))
    texts = torch.tensor([[[BOS, 6, 10], [BOS, 4, 11]], [[BOS, 8, 12], [BOS, 8, 13]]])
    with torch.inference_mode():
        expected = model.decoder(texts, model.decoder.cross_kv(memory))[:, :, -1]
    free = [v for v in range(20) if v not in NEVER_GENERATED]
    np.testing.assert_allclose(found[..., free], expected[..., free], rtol=1e-4, atol=1e-5)
