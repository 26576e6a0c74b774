"""Prompts filled on the left: the same as one by one, and as teacher forcing; a vocabulary that grows."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.models.test_prefix import SETTINGS
from tests.tiny import tiny_captioner

from vistill.models.answerer import AnyAnswerer, PromptedStepper, grow_vocabulary, of_questions
from vistill.models.prefix import LanguageConfig, PrefixCaptioner, PrefixConfig, PrefixMapperConfig
from vistill.models.vision import VisionConfig
from vistill.runtime.decode import GenerationConfig, generate

ASK, EOS = 19, 2
PROMPTS = [[1, 5, 6, 7, ASK], [1, ASK], [1, 8, 9, ASK], [1, 5, 6, 7, 10, 11, ASK]]
OWNER = [0, 1, 1, 2]


@pytest.fixture(scope="module", params=["cross-attention", *SETTINGS])
def model(request: pytest.FixtureRequest) -> AnyAnswerer:
    """A captioner, and prefix captioners with the language models whose positions and masks differ."""
    torch.manual_seed(4)
    if request.param == "cross-attention":
        captioner: AnyAnswerer = tiny_captioner()
        spread = 1.0
    else:
        language = LanguageConfig(kind=request.param, settings=SETTINGS[request.param], vocab_size=20)
        vision = VisionConfig(name="test_efficientnet", image_size=64)
        captioner = PrefixCaptioner(
            PrefixConfig(vision, PrefixMapperConfig(dropout=0.0), replace(language, context=24))
        ).eval()
        torch.nn.init.normal_(captioner.mapper.project.weight, std=100.0)
        spread = 0.3
    for parameter in captioner.decoder.parameters():  # else every answer is the likeliest word
        torch.nn.init.normal_(parameter, std=spread)
    return captioner


def _cross(model: AnyAnswerer) -> list[tuple[torch.Tensor, torch.Tensor]]:
    pixels = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        return of_questions(model.decoder.cross_kv(model.vision(pixels)), OWNER)


def test_a_prompt_and_steps_equal_teacher_forcing(model: AnyAnswerer) -> None:
    cross = _cross(model)
    stepper = PromptedStepper(model, cross, PROMPTS)
    answers = np.array([[12, 4, 13], [4, 4, 5], [6, 14, 7], [9, 8, 12]])
    stepped = [stepper.step(np.full((4, 1), ASK)), *(stepper.step(answers[:, t : t + 1]) for t in range(3))]
    for row, prompt in enumerate(PROMPTS):
        text = torch.tensor([*prompt, *answers[row]])[None, None]
        with torch.inference_mode():
            whole = model.decoder(text, [(key[row : row + 1], value[row : row + 1]) for key, value in cross])
        for t in range(4):
            expected = whole[0, 0, len(prompt) - 1 + t].numpy()
            found = stepped[t][row, 0]
            allowed = [i for i in range(20) if i not in (0, 1, 3)]
            np.testing.assert_allclose(found[allowed], expected[allowed], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("beams", [1, 3])
def test_a_batch_of_questions_equals_one_by_one(model: AnyAnswerer, beams: int) -> None:
    cross = _cross(model)
    config = GenerationConfig(max_new_tokens=5, min_new_tokens=5, num_beams=beams)
    together = generate(PromptedStepper(model, cross, PROMPTS), 4, bos=ASK, eos=EOS, config=config)
    for row, prompt in enumerate(PROMPTS):
        own = [(key[row : row + 1], value[row : row + 1]) for key, value in cross]
        alone = generate(PromptedStepper(model, own, [prompt]), 1, bos=ASK, eos=EOS, config=config)
        assert together[row][0].tokens == alone[0][0].tokens
        assert together[row][0].score == pytest.approx(alone[0][0].score, abs=1e-4)
    assert len({found[0].tokens for found in together}) > 1


def test_new_tokens_leave_the_old_ones_as_they_are(model: AnyAnswerer) -> None:
    grown = grow_vocabulary(copy.deepcopy(model), 25)
    assert grown.config.decoder.vocab_size == 25
    assert not grown.training
    tokens = torch.randint(1, 20, (2, 3, 9))
    pixels = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        before, after = model(pixels, tokens), grown(pixels, tokens)
    assert after.shape[-1] == 25
    torch.testing.assert_close(after[..., :20], before)
    assert grow_vocabulary(grown, 25) is grown
