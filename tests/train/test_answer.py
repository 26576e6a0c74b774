"""An answerer learns, from a captioner's weights or anew, and a stopped run goes on."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.killing import run_and_kill
from tests.models.test_adopt import byte_level, tiny_gpt2
from tests.tiny import build_data
from tests.tiny_questions import build_questions

from vistill.cli.compose import compose_train
from vistill.data.asked import open_asked
from vistill.data.dataset import open_split
from vistill.errors import BundleError, ConfigError
from vistill.export.common import ExportConfig
from vistill.export.run import export_checkpoint
from vistill.metrics.vqa_baselines import Asked
from vistill.models.checkpoint import load_captioner
from vistill.models.loading import load_answerer
from vistill.models.prefix import PrefixCaptioner
from vistill.report.answering import open_answerer
from vistill.runtime.answerer import Answerer
from vistill.runtime.prompts import ask_mark
from vistill.train.answer import AnswerTrainConfig, score_answers

WORDS = (
    "logger=none",
    "datamodule.batch_size=4",
    "datamodule.tokenizer.min_count=1",
    "trainer.checkpoint_every=2",
    "trainer.encoder=last-4",
    "generation.max_new_tokens=6",
)


def _command(folder: Path, name: str, *words: str) -> list[str]:
    given = (f"out={folder}", f"name={name}", f"datamodule.cache={folder}/{name}-views", *WORDS, *words)
    return [sys.executable, "-m", "vistill", "train", *given]


def _train(folder: Path, name: str, *words: str) -> str:
    done = subprocess.run(_command(folder, name, *words), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stderr


@pytest.mark.slow
def test_an_answerer_begins_with_a_captioner(tmp_path: Path) -> None:
    build_data(tmp_path)
    questions = build_questions(tmp_path)
    _train(tmp_path, "captioner", "model=tiny", f"datamodule.path={tmp_path}/built", "trainer.max_epochs=1")
    start = tmp_path / "captioner" / "best"
    words = (
        "task=answer",
        f"init_from={start}",
        f"datamodule.path={questions}",
        "datamodule.views=2",
        "trainer.max_epochs=16",
        "trainer.ema=0.9",
        "optim.lr=3e-3",
        "optim.encoder_lr=1e-3",
    )
    told = _train(tmp_path, "answerer", *words)
    lines = [line.split() for line in told.splitlines() if line.startswith("epoch")]
    losses = [float(line[line.index("loss") + 1]) for line in lines]
    assert losses[-1] < 0.6 * losses[0]
    kept = np.load(tmp_path / "answerer-views" / "train-00.npy", mmap_mode="r")
    assert len(kept) == len(open_asked(questions, "train").table) == 18, "kept once a picture"

    model, tokenizer, _ = load_answerer(tmp_path / "answerer" / "best")
    before, old, _, _ = load_captioner(start)
    assert {word: tokenizer.get_vocab()[word] for word in old.get_vocab()} == old.get_vocab()
    assert model.config.decoder.vocab_size == tokenizer.get_vocab_size() > before.config.decoder.vocab_size
    raw = json.loads((tmp_path / "answerer" / "best" / "config.json").read_text())
    assert raw["kind"] == "answerer"
    scores = raw["provenance"]["reached"]["dev"]
    assert {"accuracy", "mean_of_kinds", "colour", "location", "object", "yes/no"} == set(scores)
    assert scores["mean_of_kinds"] > 25
    assert str(tmp_path) not in json.dumps(raw)
    with pytest.raises(BundleError, match="kind 'captioner'"):
        load_captioner(tmp_path / "answerer" / "best")


@pytest.mark.slow
def test_a_killed_run_ends_like_a_whole_one_and_two_data_sets_are_one(tmp_path: Path) -> None:
    first = build_questions(tmp_path / "a", 16)
    (tmp_path / "b").mkdir()
    second = build_questions(tmp_path / "b", 12, name="room")
    # the keys of dev would be the same: that is named
    with pytest.raises(AssertionError, match="same key"):
        _train(tmp_path, "same", "task=answer", "model=tiny", f"datamodule.path={first}+{first}")
    words = ("task=answer", "model=tiny", "datamodule.views=2", f"datamodule.path={first}+{second}")
    whole = _train(tmp_path, "whole", *words, "trainer.max_epochs=2")
    assert "epoch 2 step 10" in whole, "12 and 9 pictures are 5 batches"
    assert {folder.name for folder in (tmp_path / "whole-views").iterdir()} == {"questions-a", "questions-b"}
    more = (*words, "trainer.max_epochs=2", "trainer.checkpoint_every=1")
    last = tmp_path / "killed" / "last.ckpt"
    assert run_and_kill(_command(tmp_path, "killed", *more), last, 3), "over before it could be killed"
    _train(tmp_path, "killed", *more, "--resume")
    ended = [
        torch.load(tmp_path / name / "last.ckpt", weights_only=True)["state_dict"]
        for name in ("whole", "killed")
    ]
    assert all(torch.equal(value, ended[1][name]) for name, value in ended[0].items())


@pytest.mark.slow
def test_a_public_language_model_answers_and_is_exported(tmp_path: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    questions = build_questions(tmp_path)
    tokenizer = byte_level()
    tiny_gpt2(tokenizer.get_vocab_size(), n_positions=96).save_pretrained(tmp_path / "lm")
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>")
    fast.save_pretrained(tmp_path / "lm")
    words = (
        "task=answer",
        "prefix=tiny",
        "prefix.decoder.context=64",
        f"language={tmp_path}/lm",
        f"datamodule.path={questions}",
        "datamodule.views=2",
        "trainer.encoder=full",
        "optim.lr=1e-2",
    )
    told = _train(tmp_path, "answerer", *words, "trainer.max_epochs=6")
    losses = [float(line.split("loss ")[1].split()[0]) for line in told.splitlines() if "loss " in line]
    assert losses[-1] < 0.75 * losses[0]
    best = tmp_path / "answerer" / "best"
    model, asking, _ = load_answerer(best)
    assert isinstance(model, PrefixCaptioner)
    assert asking.id_to_token(ask_mark(asking)) == "<ask>"
    raw = json.loads((best / "config.json").read_text())
    assert raw["kind"] == "prefix-answerer"
    assert raw["provenance"]["config"]["language"] == "lm"

    export_checkpoint(best, tmp_path / "bundle", ExportConfig(data=questions, threads=1))
    table = open_split(questions, "dev")
    pairs = [(table[row]["image"], table[row]["question"]) for row in range(6)]
    ours = Answerer(tmp_path / "bundle", threads=1).answer(pairs)
    theirs = open_answerer(tmp_path / "answerer").answer(pairs)
    assert [one[0].text for one in ours] == [one[0].text for one in theirs]
    assert [one[0].score for one in ours] == pytest.approx([one[0].score for one in theirs], abs=1e-3)

    # a captioner of this kind learns to answer too, with words that it did not have
    data = build_data(tmp_path)
    _train(tmp_path, "captioner", "prefix=tiny", f"datamodule.path={data}", "trainer.max_epochs=1")
    more = ("task=answer", f"init_from={tmp_path}/captioner/best", f"datamodule.path={questions}")
    _train(tmp_path, "again", *more, "trainer.max_epochs=1")
    model, asking, _ = load_answerer(tmp_path / "again" / "best")
    assert model.config.decoder.vocab_size == asking.get_vocab_size()


def test_scores_are_by_kind_and_the_mean_of_kinds_counts_each_once() -> None:
    questions = {
        "1": Asked("is there a dog?", ("yes",)),
        "2": Asked("is there a cat?", ("no",)),
        "3": Asked("is there a cow?", ("no",)),
        "4": Asked("what is on the table?", ("book, scissor",)),
        "5": Asked("how many dogs are there?", ("two",)),
    }
    answers = {"1": "yes", "2": "no", "3": "yes", "4": "book, scissor", "5": "2"}
    found = score_answers(questions, answers)
    assert found["yes/no"] == pytest.approx(200 / 3)
    assert found["object"] == found["number"] == 100
    assert found["accuracy"] == pytest.approx(80)
    assert found["mean_of_kinds"] == pytest.approx((200 / 3 + 200) / 3)
    ten = {"1": Asked("is there a dog?", ("yes",) * 2 + ("no",) * 8, people=True)}
    assert score_answers(ten, {"1": "Yes."})["accuracy"] == pytest.approx(60)


def test_settings_that_make_no_answerer_are_named() -> None:
    config = compose_train(["task=answer", "model=tiny"])
    assert isinstance(config, AnswerTrainConfig)
    assert (config.generation.max_new_tokens, config.generation.num_beams) == (8, 1)
    with pytest.raises(ConfigError, match="bag_of_words"):
        compose_train(["task=answer", "objective.bag_of_words=0.1"])
