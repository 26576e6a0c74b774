"""Opening what is to be evaluated: a checkpoint gives what its parts give, and anything else is named."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch", reason="a checkpoint needs the train extra")

from tests.tiny import tiny_captioner  # noqa: E402

from vistill.data.text import TokenizerConfig, train_tokenizer  # noqa: E402
from vistill.errors import BundleError, ConfigError  # noqa: E402
from vistill.models.checkpoint import save_captioner  # noqa: E402
from vistill.models.tokens import BOS, EOS  # noqa: E402
from vistill.report.generate import configure, hash_files, open_model  # noqa: E402
from vistill.runtime.bundle import PACKAGED  # noqa: E402
from vistill.runtime.decode import GenerationConfig  # noqa: E402
from vistill.runtime.image import Preprocess, preprocess  # noqa: E402


def pictures(count: int) -> list[bytes]:
    found = []
    for seed in range(count):
        buffer = io.BytesIO()
        pixels = np.random.default_rng(seed).integers(0, 256, (2, 3, 3), np.uint8)
        Image.fromarray(pixels).resize((120, 80)).save(buffer, "PNG")
        found.append(buffer.getvalue())
    return found


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(3)
    tokenizer = train_tokenizer(
        ["a red dog runs", "two blue birds sit on grass"] * 4, TokenizerConfig(min_count=1)
    )
    model = tiny_captioner(vocab=tokenizer.get_vocab_size())
    folder = tmp_path_factory.mktemp("run") / "best"
    generation = {"max_new_tokens": 6, "num_beams": 2}
    save_captioner(folder, model, tokenizer, {"config": {"generation": generation}})
    return folder


def greedy_by_hand(folder: Path, image: bytes, steps: int) -> tuple[str, float]:
    """The likeliest token again and again, by the whole network each time; no cache, no batch."""
    from vistill.models.checkpoint import load_captioner
    from vistill.models.tokens import NEVER_GENERATED

    model, tokenizer, _, spec = load_captioner(folder)
    pixels = torch.from_numpy(preprocess(image, spec))[None]
    text, score = [BOS], 0.0
    while len(text) <= steps and text[-1] != EOS:
        with torch.no_grad():
            logits = model(pixels, torch.tensor([[text]]))[0, 0, -1]
        logits[list(NEVER_GENERATED)] = -torch.inf
        logp = logits.log_softmax(0)
        if len(text) == 1:
            logp[EOS] = -torch.inf  # min_new_tokens is 1
        score += float(logp.max())
        text.append(int(logp.argmax()))
    return tokenizer.decode(text[1:]), score / (len(text) - 1)


def test_greedy_captions_equal_a_loop_by_hand(checkpoint: Path) -> None:
    model = open_model(checkpoint, num_beams=1)
    images = pictures(6)
    captions = model.caption(images)
    by_hand = [greedy_by_hand(checkpoint, image, 6) for image in images]
    assert [caption.text for caption in captions] == [text for text, _ in by_hand]
    scores = [caption.score for caption in captions]
    assert scores == pytest.approx([score for _, score in by_hand], abs=1e-5)
    assert max(scores) - min(scores) > 1e-4  # each picture has its own
    one_by_one = [model.caption([image])[0] for image in images]
    assert [caption.score for caption in one_by_one] == pytest.approx(scores, abs=1e-5)


def test_the_checkpoint_decodes_as_it_was_trained_to_unless_told_otherwise(checkpoint: Path) -> None:
    model = open_model(checkpoint)
    assert model.kind == "checkpoint"
    assert (model.generation.max_new_tokens, model.generation.num_beams) == (6, 2)
    other = open_model(checkpoint, num_beams=5, length_penalty=None)
    assert (other.generation.max_new_tokens, other.generation.num_beams) == (6, 5)
    assert Preprocess.from_dict(model.preprocess).size == (64, 64)


def test_the_folder_of_a_run_is_its_best_checkpoint(checkpoint: Path) -> None:
    (checkpoint.parent / "config.json").write_text(json.dumps({"name": "run", "out": "runs"}))
    assert open_model(checkpoint.parent).hash == open_model(checkpoint).hash


def test_size_and_origin_are_told(checkpoint: Path) -> None:
    from vistill.models.checkpoint import load_captioner

    model = open_model(checkpoint, threads=1)
    whole = load_captioner(checkpoint)[0]
    assert model.parameters == sum(p.numel() for p in whole.parameters())
    files = [checkpoint / name for name in ("model.safetensors", "tokenizer.json")]
    assert model.bytes == sum(len(file.read_bytes()) for file in files)
    assert model.threads == 1
    assert [member["seed"] for member in model.trained] == [None]  # it was not trained by a run


def test_an_ensemble_of_one_model_twice_says_what_it_says(checkpoint: Path) -> None:
    one, two = open_model(checkpoint), open_model(f"{checkpoint}+{checkpoint.parent}")
    assert (two.kind, two.generation, two.preprocess) == ("ensemble", one.generation, one.preprocess)
    assert two.parameters == 2 * (one.parameters or 0)
    assert two.hash != one.hash
    images = pictures(3)
    for alone, together in zip(one.caption(images), two.caption(images), strict=True):
        assert together.text == alone.text
        assert together.score == pytest.approx(alone.score, abs=1e-5)


def test_a_member_that_is_no_checkpoint_is_named(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="nothing"):
        open_model(f"{checkpoint}+{tmp_path / 'nothing'}")
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(BundleError, match=r"is a bundle; only checkpoints can be joined with \+"):
        open_model(f"{checkpoint}+{tmp_path}")


def test_the_consensus_head_of_a_bundle_may_be_left_out() -> None:
    packaged = PACKAGED / "captioner"
    with_head, without = open_model(packaged), open_model(packaged, rerank=False)
    assert (with_head.rerank, without.rerank) == (True, False)
    (chosen,), (likeliest,) = with_head.caption(pictures(1)), without.caption(pictures(1))
    assert likeliest.score is not None
    assert chosen.score is not None
    assert likeliest.score <= 0, "log-probabilities alone"
    assert chosen.score != likeliest.score


def test_a_captioner_of_transformers(tmp_path: Path) -> None:
    from tests.distill.tiny_teachers import save_vit_gpt2

    from vistill.distill.answers import Ask
    from vistill.distill.teachers import load_teacher
    from vistill.runtime.image import read_image

    folder = save_vit_gpt2(tmp_path / "vit-gpt2")
    model = open_model(folder, max_new_tokens=5, num_beams=2)
    images = pictures(2)
    ask = Ask(captions=1, generation=model.generation, gold=False)
    answers = load_teacher(str(folder)).answer([read_image(image) for image in images], [()] * 2, ask)
    assert model.caption(images) == [(answer.captions[0], None) for answer in answers]
    assert (model.parameters or 0) > 1000
    assert (model.bytes or 0) > 4 * 1000


def test_a_folder_of_another_kind_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"no folder; expected one with config\.json .* or manifest\.json"):
        open_model(tmp_path / "missing")
    with pytest.raises(BundleError, match=r"neither config\.json .* nor manifest\.json"):
        open_model(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["GPT2LMHeadModel"]}))
    with pytest.raises(BundleError, match=r"config\.json"):
        open_model(tmp_path)


def test_settings_are_checked() -> None:
    assert configure(GenerationConfig(num_beams=4, num_return=4), {}).num_return == 1
    assert configure(GenerationConfig(), {"num_beams": 7}).num_beams == 7
    with pytest.raises(ConfigError, match="beams"):
        configure(GenerationConfig(), {"beams": 7})
    with pytest.raises(ConfigError, match="num_beams"):
        configure(GenerationConfig(), {"num_beams": 0})


def test_the_hash_sees_names_and_contents(tmp_path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    a.write_bytes(b"one")
    b.write_bytes(b"two")
    first = hash_files([a, b])
    assert first != hash_files([b, a])
    a.write_bytes(b"One")
    assert first != hash_files([a, b])
    with pytest.raises(BundleError, match="missing"):
        hash_files([a, tmp_path / "c"])
