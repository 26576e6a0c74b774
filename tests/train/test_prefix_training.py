"""A prefix captioner goes through the same training, folder, teacher and evaluation as the other kind."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tests.tiny import build_data

from vistill.cli.compose import compose_train
from vistill.data.dataset import open_split
from vistill.distill.answers import Ask
from vistill.distill.teachers import load_teacher
from vistill.models.loading import load_model
from vistill.models.prefix import LanguageConfig, PrefixCaptioner
from vistill.report.generate import hash_files, open_model
from vistill.runtime.decode import GenerationConfig
from vistill.runtime.image import read_image
from vistill.train.caption import train
from vistill.train.optim import OptimConfig, build_optimizer

WORDS = (
    "prefix=tiny",
    "logger=none",
    "datamodule.batch_size=4",
    "datamodule.tokenizer.min_count=1",
    "trainer.max_epochs=2",
    "trainer.ema=0.9",
    "trainer.encoder=full",
    "trainer.thaw.decoder=3",
    "objective.bag_of_words=0.1",
    "generation.max_new_tokens=8",
)


@pytest.mark.slow
def test_the_whole_line(tmp_path: Path) -> None:
    data = build_data(tmp_path)
    words = [*WORDS, f"datamodule.path={data}", f"out={tmp_path}"]
    train(compose_train([*words, "name=first"]))
    best = tmp_path / "first" / "best"
    model, tokenizer, _ = load_model(best)
    assert isinstance(model, PrefixCaptioner)
    assert model.config.decoder.vocab_size == tokenizer.get_vocab_size()
    recorded = json.loads((best / "config.json").read_text())["provenance"]["config"]
    assert recorded["prefix"]["decoder"]["settings"]["n_embd"] == 32

    rows = open_split(data, "dev")
    images = [rows[i]["image"] for i in range(3)]
    evaluated = open_model(tmp_path / "first", num_beams=2)
    texts = [caption.text for caption in evaluated.caption(images)]
    kept = [best / "model.safetensors", best / "tokenizer.json", best / "language" / "model.safetensors"]
    assert evaluated.bytes == sum(file.stat().st_size for file in kept)
    assert evaluated.hash == hash_files(kept)
    ask = Ask(captions=1, generation=GenerationConfig(num_beams=2, max_new_tokens=8), top_k=3, hidden="all")
    teacher = load_teacher(str(best))
    answers = teacher.answer([read_image(image) for image in images], [["a red circle"]] * 3, ask)
    assert [answer.captions[0] for answer in answers] == texts
    assert answers[0].hidden is not None
    assert answers[0].hidden.shape == (17, 32)  # 16 patches and the class token
    assert answers[0].gold[0].top_ids is not None

    train(compose_train([*words, "name=second", f"init_from={best}", "objective=self-critical"]))
    assert (tmp_path / "second" / "best" / "language" / "model.safetensors").is_file()


@pytest.mark.slow
def test_starts_from_a_language_model_in_a_folder(tmp_path: Path) -> None:
    data = build_data(tmp_path)
    words = [*WORDS, f"datamodule.path={data}", f"out={tmp_path}", "trainer.fast_dev_run=true"]
    train(compose_train([*words[:-1], "name=first", "trainer.max_epochs=1"]))
    command = [sys.executable, "-m", "vistill", "train", *words, f"language={tmp_path}/nowhere"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "nowhere" in done.stderr


def test_tables_and_positions_have_no_decay() -> None:
    config = compose_train(["prefix=tiny", "prefix.mapper.kind=transformer", "prefix.mapper.length=4"])
    assert config.prefix is not None
    decoder = LanguageConfig(settings=config.prefix.decoder.settings, vocab_size=20, context=24)
    torch.manual_seed(0)
    model = PrefixCaptioner(type(config.prefix)(config.prefix.vision, config.prefix.mapper, decoder))
    groups = build_optimizer(model, OptimConfig()).param_groups
    spared = {id(p) for g in groups if g["weight_decay"] == 0 for p in g["params"]}
    for table in (model.decoder.embed.weight, model.mapper.query, model.mapper.position):
        assert id(table) in spared
    assert id(model.mapper.project.weight) not in spared
    assert {id(p) for g in groups for p in g["params"]} == {id(p) for p in model.parameters()}
