"""Settings that the documentation names exist, and what docs/from-the-five.md promises can be built."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="training settings need the train extra")

from tests.tiny import tiny_config  # noqa: E402

from vistill.cli.compose import compose_train  # noqa: E402
from vistill.models.captioner import Captioner  # noqa: E402
from vistill.models.mapper import MapperConfig  # noqa: E402
from vistill.models.vision import VisionConfig, VisionTower  # noqa: E402

ROOT = Path(__file__).parents[1]
PAGES = (
    "README.md",
    "CONTRIBUTING.md",
    "docs/from-the-five.md",
    "docs/training.md",
    "docs/finetuning.md",
    "docs/prefix.md",
    "docs/retrieval.md",
    "docs/vqa.md",
)
GROUPS = tuple(
    "task datamodule model prefix clip objective optim trainer logger generation experiment".split()
)
SPAN = re.compile(r"`([^`\n]+)`|^(vistill train .*)$", re.MULTILINE)
WORD = re.compile(rf"(?<![-\w.])((?:{'|'.join(GROUPS)})(?:\.[a-z_.]+)?=[\w./+-]+)")


def spans() -> list[str]:
    """The settings of every piece of code on the pages, once each; a capital letter stands for a value."""
    found = set()
    for page in PAGES:
        for inline, line in SPAN.findall((ROOT / page).read_text(encoding="utf-8")):
            words = [word for word in WORD.findall(inline or line) if not re.search(r"=[A-Z]+$", word)]
            found.add(" ".join(words))
    return sorted(found - {""})


def test_there_are_settings_to_check() -> None:
    assert {"trainer.freeze=last-layer", "datamodule.num_samples=5000", "objective=cross-entropy"} <= set(
        spans()
    )


@pytest.mark.parametrize("span", spans())
def test_named_settings_are_accepted(span: str) -> None:
    compose_train(span.split())


@pytest.mark.parametrize("layers", [0, 2])
def test_mappers_from_a_projection_to_a_transformer(layers: int) -> None:
    config = replace(tiny_config(), mapper=MapperConfig(layers=layers))
    model = Captioner(config).eval()
    logits = model(torch.zeros(2, 3, 64, 64), torch.ones(2, 3, 5, dtype=torch.int64))
    assert logits.shape == (2, 3, 5, config.decoder.vocab_size)


@pytest.mark.slow
def test_a_clip_tower() -> None:
    tower = VisionTower(VisionConfig(name="vit_base_patch32_clip_224.openai"), pretrained=False).eval()
    with torch.no_grad():
        features = tower(torch.zeros(1, 3, 224, 224))
    assert features.shape == (1, 50, 768)  # 49 patches and the class token
