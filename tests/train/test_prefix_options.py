"""How a prefix captioner is trained: over processes with torchrun, in parts of a batch, with LoRA."""

import csv
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tests.tiny import build_data

from vistill.models.loading import load_model
from vistill.models.lora import Lora

ROOT = Path(__file__).parents[2]
WORDS = (
    "prefix=tiny",
    "logger=csv",
    "datamodule.captions=2",
    "datamodule.tokenizer.min_count=1",
    "trainer.max_epochs=3",
    "trainer.encoder=full",
    "trainer.checkpoint_every=5",
    "optim.warmup=0.2",
    "prefix.mapper.dropout=0",
    "generation.max_new_tokens=8",
    "generation.num_beams=1",
    *(f"+prefix.decoder.settings.{name}=0.0" for name in ("attn_pdrop", "resid_pdrop", "embd_pdrop")),
)


def run(folder: Path, name: str, *words: str, launcher: tuple[str, ...] = ()) -> Path:
    """Train; the run's folder."""
    paths = (f"out={folder}", f"name={name}", f"datamodule.path={folder}/built")
    command = [sys.executable, *launcher, str(ROOT / "train.py"), *WORDS, *paths, *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder / name


def curve(folder: Path) -> dict[int, float]:
    """{step: train loss}."""
    with next((folder / "logs").rglob("metrics.csv")).open() as file:
        rows = list(csv.DictReader(file))
    return {int(row["step"]): float(row["train/loss"]) for row in rows if row.get("train/loss")}


@pytest.mark.slow
def test_torchrun_and_parts_of_a_batch_learn_as_one_process(tmp_path: Path) -> None:
    build_data(tmp_path, train=80)
    one = run(tmp_path, "one", "datamodule.batch_size=8")
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    two = run(tmp_path, "two", "datamodule.batch_size=4", "trainer.devices=2", launcher=torchrun)
    parts = run(tmp_path, "parts", "datamodule.batch_size=4", "trainer.accumulate=2")
    expected = curve(one)
    assert len(expected) == 3, "30 steps, each tenth is logged"
    assert expected[29] < expected[9] - 0.1
    assert curve(two) == pytest.approx(expected, rel=1e-5)
    states = [torch.load(folder / "last.ckpt", weights_only=True) for folder in (one, two, parts)]
    assert [state["global_step"] for state in states] == [30, 30, 30]
    for name, tensor in states[0]["state_dict"].items():
        for other in states[1:]:
            torch.testing.assert_close(other["state_dict"][name], tensor, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_lora_is_trained_in_half_precision_and_resumed(tmp_path: Path) -> None:
    build_data(tmp_path)
    words = (
        "datamodule.batch_size=8",
        "prefix.decoder.tune=lora",
        "prefix.decoder.lora.rank=2",
        "prefix.decoder.checkpointing=true",
        "trainer.precision=bf16-mixed",
        "optim.lr=1e-2",
    )
    folder = run(tmp_path, "lora", *words)
    before = torch.load(folder / "last.ckpt", weights_only=True)["global_step"]
    run(tmp_path, "lora", *words, "--resume")
    assert torch.load(folder / "last.ckpt", weights_only=True)["global_step"] == before == 9
    model, _, _ = load_model(folder / "best")
    loras = [module for module in model.modules() if isinstance(module, Lora)]
    assert loras
    assert all(lora.up.weight.any() and not lora.base.weight.requires_grad for lora in loras)
