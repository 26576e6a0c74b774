"""A public captioner is fine-tuned by the words of the command line; the result is one for `transformers`."""

from pathlib import Path

import pytest
from safetensors.torch import load_file
from tests.models.tiny_pretrained import save_public
from tests.tiny import build_data

from vistill.cli.compose import compose_train
from vistill.data.dataset import open_split
from vistill.distill.answers import Ask
from vistill.distill.teachers import load_teacher
from vistill.errors import ConfigError
from vistill.models.loading import load_model, origin
from vistill.report.generate import open_model
from vistill.runtime.image import read_image
from vistill.train.caption import train


def words(folder: Path, *more: str) -> list[str]:
    return [
        f"out={folder}",
        "name=run",
        f"init_from={folder}/public",
        f"datamodule.path={folder}/built",
        f"datamodule.cache={folder}/views",
        "datamodule.batch_size=4",
        "datamodule.views=2",
        "trainer.max_epochs=1",
        "optim.lr=1e-2",
        "optim.encoder_lr=1e-2",
        "generation.max_new_tokens=8",
        "logger=none",
        *more,
    ]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["vit-gpt2", "blip"])
@pytest.mark.parametrize("freeze", ["last-layer", "lora", "cross-attention"])
def test_what_a_policy_names_learns_and_nothing_else(kind: str, freeze: str, tmp_path: Path) -> None:
    build_data(tmp_path)
    save_public(tmp_path / "public", kind)
    # or best/ would be what it began with, until it captions better than that
    learnt = words(tmp_path, f"trainer.freeze={freeze}", "trainer.validate_first=false")
    best = train(compose_train(learnt)) / "best"
    before, after = (load_file(tmp_path / place / "model.safetensors") for place in ("public", "run/best"))
    assert before.keys() == after.keys(), "a plain model, LoRA merged"
    changed = {name for name, tensor in before.items() if not tensor.equal(after[name])}
    assert changed
    allowed = {
        "last-layer": (".h.1.", "layer.1.", "layers.1.", "layernorm.", "post_layernorm", "enc_to_dec_proj"),
        "lora": (".h.", "text_decoder.bert.encoder.layer.", "enc_to_dec_proj"),
        "cross-attention": ("cross", "enc_to_dec_proj"),
    }[freeze]
    assert not [name for name in changed if not any(part in name for part in allowed)]
    made = origin(best)["provenance"]["config"]["model"]["decoder"]["name"]
    assert made == {"vit-gpt2": "gpt2", "blip": "blip_text_model"}[kind]


@pytest.mark.slow
def test_the_result_is_a_checkpoint_like_any_other(tmp_path: Path) -> None:
    from transformers import VisionEncoderDecoderModel

    data = build_data(tmp_path)
    save_public(tmp_path / "public", "vit-gpt2")
    best = train(compose_train(words(tmp_path))) / "best"
    VisionEncoderDecoderModel.from_pretrained(best)
    opened = open_model(tmp_path / "run")
    assert opened.kind == "checkpoint"
    assert opened.generation.max_new_tokens == 8, "as it was trained to write"
    rows = open_split(data, "dev")
    written = [caption.text for caption in opened.caption(list(rows["image"]))]
    teacher = load_teacher(str(best))
    ask = Ask(captions=1, generation=opened.generation, top_k=5)
    answers = teacher.answer([read_image(image) for image in rows["image"]], list(rows["captions"]), ask)
    assert [answer.captions[0] for answer in answers] == written
    _, tokenizer, _ = load_model(best)
    assert teacher.identity.vocab_size == tokenizer.get_vocab_size()
    assert origin(best)["provenance"]["reached"]


def test_a_bag_of_words_is_refused(tmp_path: Path) -> None:
    build_data(tmp_path)
    save_public(tmp_path / "public", "blip")
    with pytest.raises(ConfigError, match=r"objective\.bag_of_words"):
        train(compose_train(words(tmp_path, "objective.bag_of_words=0.1")))
