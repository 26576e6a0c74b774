"""The losses of a dual encoder beside sums by hand: who is a negative, who learns, what is refused."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tests.models.test_dual import tiny_dual
from tests.models.tiny_clip import tiny_clip
from torch import Tensor

from vistill.data.collate import Batch, Item, pad_texts
from vistill.data.pairs import NO_TEXT
from vistill.distill.losses_dual import similarity_preserving
from vistill.distill.objective_dual import DualObjective, DualObjectiveConfig, Known, TowerLosses
from vistill.errors import ConfigError

IDS = [[1, 5, 2], [1, 6, 7, 2], [1, 4, 2], [1, 7, 5, 4, 2], [1, 6, 2], [1, 4, 4, 2]]


def batch(numbers: Sequence[Sequence[int]]) -> tuple[Batch, np.ndarray]:
    """Pictures whose captions have these numbers, and the numbers [B, C]."""
    torch.manual_seed(1)
    items = tuple(
        Item(str(row), row, 0, False, tuple(range(len(of))), tuple(IDS[n] for n in of))
        for row, of in enumerate(numbers)
    )
    tokens = pad_texts([item.texts for item in items])
    table = np.full(tokens.shape[:2], NO_TEXT)
    for row, of in enumerate(numbers):
        table[row, : len(of)] = of
    return Batch(
        tuple(map(str, range(len(items)))), torch.randn(len(items), 3, 64, 64), 0, tokens, items
    ), table


def known(table: np.ndarray, width: int = 8) -> Known:
    """A teacher of random unit vectors: of picture row r and of text n."""
    torch.manual_seed(2)
    pictures, texts = (F.normalize(torch.randn(len(IDS), width), dim=-1) for _ in range(2))
    hidden = torch.randn(len(IDS), 4, 5)
    return Known(
        numbers=lambda items: table[[item.row for item in items]],
        image=lambda items: pictures[[item.row for item in items]],
        hidden=lambda items: hidden[[item.row for item in items]],
        text=texts,
        widths={"image": width, "text": width, "hidden": 5},
    )


def objective(config: DualObjectiveConfig, told: Known, towers: str = "both") -> DualObjective:
    torch.manual_seed(3)
    return DualObjective(config, towers, told, width=8, hidden_width=tiny_dual().image.tower.width)


def by_hand(image: Tensor, text: Tensor, right: list[list[int]], scale: float) -> float:
    """InfoNCE in loops: right[i] are the texts of picture i."""
    cosine = [[float(a @ b) * scale for b in text] for a in image]

    def log_softmax(row: list[float], at: int) -> float:
        return row[at] - math.log(sum(map(math.exp, row)))

    to_text = [sum(log_softmax(cosine[i], j) for j in of) / len(of) for i, of in enumerate(right) if of]
    to_image = []
    for j in range(len(text)):
        column = [cosine[i][j] for i, of in enumerate(right) if of]
        own = [place for place, of in enumerate([of for of in right if of]) if j in of]
        to_image.append(sum(log_softmax(column, place) for place in own) / len(own))
    return -(np.mean(to_text) + np.mean(to_image)) / 2


@pytest.mark.parametrize(
    ("numbers", "right"),
    [
        ([[0], [1], [2]], [[0], [1], [2]]),
        ([[0, 1], [2, 3]], [[0, 1], [2, 3]]),
        ([[0, 1], [1, 2]], [[0, 1, 2], [1, 2, 3]]),  # text 1 of both: right for both, wherever it stands
        ([[0, 1], [], [2]], [[0, 1], [], [2]]),
    ],
)
def test_contrastive_takes_no_right_text_for_a_wrong_one(
    numbers: list[list[int]], right: list[list[int]]
) -> None:
    model, (shown, table) = tiny_dual(), batch(numbers)
    found = objective(DualObjectiveConfig(contrastive=1.0), known(table))(model, shown)
    with torch.no_grad():
        image = model.encode_image(shown.pixels)
        text = model.encode_text(pad_texts([[IDS[n] for of in numbers for n in of]])[0])
    assert set(found) == {"contrastive"}
    assert float(found["contrastive"].detach()) == pytest.approx(
        by_hand(image, text, right, 1 / 0.07), rel=1e-4
    )


def test_losses_of_a_tower_are_those_of_its_vectors() -> None:
    model, (shown, table) = tiny_dual(), batch([[0, 1], [2, 3]])
    every = TowerLosses(1, 1, 1, 1, 1, 1)
    config = DualObjectiveConfig(image=every, text=every, temperature=0.2)
    told = known(table)
    found = objective(config, told)(model, shown)
    assert len(found) == 12
    assert told.image is not None
    assert told.text is not None
    with torch.no_grad():
        sides = {
            "image": (model.encode_image(shown.pixels), told.image(shown.items)),
            "text": (model.encode_text(shown.tokens.flatten(0, 1)), told.text[[0, 1, 2, 3]]),
        }
    for side, (student, teacher) in sides.items():
        p, log_q = (teacher / 0.2).softmax(1), (student / 0.2).log_softmax(1)
        cross_entropy = -(p * log_q).sum(1).mean()
        expected = {
            "l1": (student - teacher).abs().mean() / 0.2,
            "cross_entropy": cross_entropy,
            "kl": cross_entropy + (p * p.log()).sum(1).mean(),
            "cosine": 1 - (student * teacher).sum(1).mean(),
            "mse": (student - teacher).square().mean(),
            "similarity": (student @ student.T - teacher @ teacher.T).square().mean(),
        }
        for name, value in expected.items():
            torch.testing.assert_close(found[f"{side}_{name}"].detach(), value, msg=f"{side} {name}")


def test_total_is_the_sum_of_weight_times_scale_times_loss() -> None:
    """The objective of system 3: loss = sum(weight_i * scale_i * loss_i)."""
    model, (shown, table) = tiny_dual(), batch([[0], [1]])
    config = DualObjectiveConfig(
        image=TowerLosses(l1=0.6, cross_entropy=0.35, kl=0.05), scales={"image_l1": 10.0, "text_l1": 3.0}
    )
    term = objective(config, known(table), "image")
    losses = term(model, shown)
    expected = 6 * losses["image_l1"] + 0.35 * losses["image_cross_entropy"] + 0.05 * losses["image_kl"]
    torch.testing.assert_close(term.total(losses), expected)


@pytest.mark.parametrize("towers", ["image", "text"])
def test_the_tower_that_does_not_learn_gets_no_gradient(towers: str) -> None:
    model, (shown, table) = tiny_dual(), batch([[0, 1], [2, 3]])
    told = known(table)
    with torch.no_grad():
        own = model.encode_text(pad_texts([IDS])[0])
    told = Known(**{**vars(told), "own_text": own})
    for parameter in (p for module in model.text_side for p in module.parameters()):
        parameter.requires_grad_(towers == "text")
    found = objective(DualObjectiveConfig(contrastive=1.0), told, towers)(model, shown)
    both = objective(DualObjectiveConfig(contrastive=1.0), told)(tiny_dual(), shown)
    torch.testing.assert_close(found["contrastive"], both["contrastive"])
    found["contrastive"].backward()
    learnt = {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None}
    assert learnt == {"image": {"image", "logit_scale"}, "text": {"text", "text_head", "logit_scale"}}[towers]


def test_pair_losses_compare_a_picture_with_its_first_text() -> None:
    model, (shown, table) = tiny_dual(), batch([[0, 1], [2, 3], []])
    told = known(table)
    found = objective(DualObjectiveConfig(interactive=1.0, relational=1.0, feature=1.0), told)(model, shown)
    assert told.image is not None
    assert told.text is not None
    with torch.no_grad():
        image, of_image = model.encode_image(shown.pixels)[:2], told.image(shown.items)[:2]
        text, of_text = model.encode_text(pad_texts([[IDS[0], IDS[2]]])[0]), told.text[[0, 2]]
    diagonal, scale = torch.arange(2), 1 / 0.07
    interactive = F.cross_entropy(scale * image @ of_text.T, diagonal)
    interactive = (interactive + F.cross_entropy(scale * text @ of_image.T, diagonal)) / 2
    torch.testing.assert_close(found["interactive"].detach(), interactive, rtol=1e-4, atol=1e-5)
    feature = (image - of_image).square().mean() + (text - of_text).square().mean()
    torch.testing.assert_close(found["feature"].detach(), feature)
    student, teacher = scale * image @ text.T, 100 * of_image @ of_text.T
    kl = sum(
        F.kl_div(s.log_softmax(1), t.softmax(1), reduction="batchmean")
        for s, t in ((student, teacher), (student.T, teacher.T))
    )
    torch.testing.assert_close(found["relational"].detach(), kl / 2, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("patches", [4, 5])
def test_patches_learn_hidden_states_on_the_coarser_grid(patches: int) -> None:
    model, (shown, table) = tiny_dual(), batch([[0], [1]])
    told = known(table)
    states = torch.randn(2, patches, 5)
    told = Known(**{**vars(told), "hidden": lambda items: states})
    term = objective(DualObjectiveConfig(image=TowerLosses(hidden_mse=1.0)), told, "image")
    found = term(model, shown)
    with torch.no_grad():
        own = term.heads["hidden"](model.image.tower(shown.pixels))  # 2 x 2 patches
    assert own.shape[1] == 4
    torch.testing.assert_close(found["image_hidden_mse"].detach(), (own - states[:, -4:]).square().mean())


def test_a_teacher_of_another_width_is_met_by_a_projection() -> None:
    model, (shown, table) = tiny_dual(), batch([[0], [1]])
    config = DualObjectiveConfig(image=TowerLosses(cosine=1.0), text=TowerLosses(cosine=1.0), interactive=1.0)
    term = objective(config, known(table, width=12))
    assert {name: tuple(head.weight.shape) for name, head in term.heads.items()} == {
        "image": (12, 8),
        "text": (12, 8),
    }
    assert all(torch.isfinite(loss) for loss in term(model, shown).values())


def test_a_clip_takes_the_same_objective() -> None:
    model, (shown, table) = tiny_clip(), batch([[0], [1]])
    end = model.config.vocab_size - 1
    tokens = torch.tensor([[[1, 5, end]], [[1, 0, end]]])
    shown = Batch(shown.keys, shown.pixels[..., :32, :32], 0, tokens, shown.items)
    config = DualObjectiveConfig(
        image=TowerLosses(l1=1.0, hidden_mse=1.0), text=TowerLosses(kl=1.0), contrastive=1.0
    )
    term = DualObjective(config, "both", known(table, 12), width=12, hidden_width=24)
    found = term(model, shown)
    assert set(found) == {"image_l1", "image_hidden_mse", "text_kl", "contrastive"}
    term.total(found).backward()
    assert all(p.grad is not None for module in model.text_side for p in module.parameters())


def test_similarity_preserving_sees_through_turns_and_widths() -> None:
    torch.manual_seed(0)
    x = torch.randn(6, 4)
    turn = torch.linalg.qr(torch.randn(4, 4))[0]
    wide = torch.cat([3 * x @ turn, torch.zeros(6, 3)], 1)
    assert float(similarity_preserving(x, wide)) == pytest.approx(0, abs=1e-10)
    assert float(similarity_preserving(x, torch.randn(6, 5))) > 0.01


@pytest.mark.parametrize(
    ("settings", "towers", "says"),
    [
        ({}, "both", "every weight is 0"),
        ({"contrastive": -1.0}, "both", "must not be negative"),
        ({"text": TowerLosses(hidden_mse=1.0)}, "both", r"objective\.text\.hidden_mse"),
        ({"contrastive": 1.0, "scales": {"l1": 2.0}}, "both", r"objective\.scales: l1"),
        ({"contrastive": 1.0, "temperature": 0.0}, "both", r"objective\.temperature=0"),
        ({"text": TowerLosses(l1=1.0)}, "image", r"objective\.text: this tower does not learn"),
        ({"image": TowerLosses(l1=1.0)}, "text", r"objective\.image: this tower does not learn"),
        ({"relational": 1.0}, "both", "a teacher's image vectors: set datamodule.teacher or texts"),
    ],
)
def test_wrong_settings_are_named(settings: dict, towers: str, says: str) -> None:
    told = Known(numbers=lambda items: np.zeros((1, 1), int))
    with pytest.raises(ConfigError, match=says):
        DualObjective(DualObjectiveConfig(**settings), towers, told, width=8, hidden_width=8)
