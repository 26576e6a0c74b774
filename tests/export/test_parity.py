"""The comparison of a checkpoint with a bundle."""

from functools import partial

import numpy as np
import pytest
from tests.export.conftest import Exported

from vistill.data.dataset import open_split
from vistill.export.parity import Parity, Picture, Start, compare, figures, torch_start
from vistill.metrics.caption import score_captions
from vistill.models.tokens import BOS, EOS
from vistill.runtime.decode import GenerationConfig, Stepper, generate
from vistill.runtime.image import preprocess

CONFIG = GenerationConfig(max_new_tokens=8, num_beams=2)


class Noisy:
    """A stepper whose logits are shaken."""

    def __init__(self, stepper: Stepper, strength: float) -> None:
        self.stepper, self.strength, self.rng = stepper, strength, np.random.default_rng(0)

    def step(self, tokens: np.ndarray) -> np.ndarray:
        logits = self.stepper.step(tokens)
        noise = self.rng.standard_normal(logits.shape) * logits[..., 4:].std() * self.strength
        return (logits + noise).astype(np.float32)

    def reorder(self, rows: np.ndarray) -> None:
        self.stepper.reorder(rows)


@pytest.fixture
def pictures(exported: Exported) -> list[Picture]:
    rows = open_split(exported.data, "train")
    return [
        Picture(row["key"], partial(preprocess, row["image"], exported.preprocess), tuple(row["captions"]))
        for row in rows
    ]


def shaken(exported: Exported, strength: float) -> Start:
    return lambda pixels: Noisy(torch_start(exported.model)(pixels), strength)


def test_a_model_agrees_with_itself(exported: Exported, pictures: list[Picture]) -> None:
    start = torch_start(exported.model)
    done: list[int] = []
    found = compare(start, start, pictures, exported.tokenizer, CONFIG, done.append)
    assert found.pictures == len(pictures) == done[-1]
    assert found.token_agreement == found.same_captions == 1.0
    assert found.cider_drop == 0.0
    pixels = np.stack([picture.load() for picture in pictures])
    texts = {
        picture.key: exported.tokenizer.decode(list(hypotheses[0].tokens))
        for picture, hypotheses in zip(
            pictures, generate(start(pixels), len(pixels), bos=BOS, eos=EOS, config=CONFIG), strict=True
        )
    }
    references = {picture.key: picture.captions for picture in pictures}
    assert found.cider_checkpoint == pytest.approx(100 * score_captions(texts, references).corpus["CIDEr"])


def test_the_more_a_model_is_shaken_the_less_it_agrees(exported: Exported, pictures: list[Picture]) -> None:
    start = torch_start(exported.model)
    agreement = [
        compare(start, shaken(exported, s), pictures, exported.tokenizer, CONFIG).token_agreement
        for s in (0.0, 0.3, 3.0)
    ]
    assert agreement[0] == 1.0 > agreement[1] > agreement[2]


def test_without_references_there_is_no_cider(exported: Exported, pictures: list[Picture]) -> None:
    start = torch_start(exported.model)
    bare = [Picture(picture.key, picture.load, ()) for picture in pictures[:3]]
    found = compare(start, start, bare, exported.tokenizer, CONFIG)
    assert found.cider_checkpoint is None
    assert found.cider_drop == 0.0
    assert figures(found)["cider_bundle"] is None


def test_the_drop_is_in_points() -> None:
    assert Parity(10, 1.0, 1.0, 60.5, 59.0).cider_drop == pytest.approx(1.5)
