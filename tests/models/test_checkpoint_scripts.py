"""Scripts that make a checkpoint out of others: their mean, and one for pictures of another size."""

import subprocess
import sys
from pathlib import Path

import torch
from tests.tiny import tiny_captioner

from vistill.data.text import TokenizerConfig, train_tokenizer
from vistill.models.checkpoint import load_captioner, save_captioner

SCRIPTS = Path(__file__).parents[2] / "scripts"


def saved(folder: Path, seed: int, texts: tuple[str, ...] = ("a red dog runs",)) -> Path:
    torch.manual_seed(seed)
    tokenizer = train_tokenizer(list(texts) * 4, TokenizerConfig(min_count=1))
    provenance = {"config": {"name": folder.name}, "reached": {"step": 1}}
    save_captioner(folder, tiny_captioner(vocab=tokenizer.get_vocab_size()), tokenizer, provenance)
    return folder


def call(script: str, *words: object) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, str(SCRIPTS / script), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_mean_of_checkpoints(tmp_path: Path) -> None:
    sources = [saved(tmp_path / f"run-{seed}" / "best", seed) for seed in range(3)]
    done = call("average_checkpoints.py", *sources, tmp_path / "mean")
    assert done.returncode == 0, done.stderr
    states = [load_captioner(source)[0].state_dict() for source in sources]
    mean = load_captioner(tmp_path / "mean")[0].state_dict()
    for name, value in mean.items():
        expected = sum(state[name].float() for state in states) / 3
        torch.testing.assert_close(value.float(), expected, msg=name)
    assert (tmp_path / "mean" / "config.json").read_text().count("run-2/best") == 1

    other = saved(tmp_path / "other", 3, ("a cat sits on a mat",))
    done = call("average_checkpoints.py", sources[0], other, tmp_path / "never")
    assert done.returncode == 1
    assert f"{other} has another size or tokenizer than {sources[0]}" in done.stderr
    assert not (tmp_path / "never").exists()


def test_a_checkpoint_for_larger_pictures(tmp_path: Path) -> None:
    source = saved(tmp_path / "best", 0)
    for size in (64, 96):
        done = call("resized_checkpoint.py", source, size, tmp_path / str(size))
        assert done.returncode == 0, done.stderr
    model, same, larger = (load_captioner(place)[0] for place in (source, tmp_path / "64", tmp_path / "96"))
    pixels, tokens = torch.randn(1, 3, 64, 64), torch.randint(4, 8, (1, 1, 3))
    with torch.inference_mode():
        torch.testing.assert_close(same(pixels, tokens), model(pixels, tokens), rtol=1e-4, atol=1e-4)
        assert larger(torch.randn(1, 3, 96, 96), tokens).shape == model(pixels, tokens).shape
    assert load_captioner(tmp_path / "96")[3].size == (96, 96)
    corner = larger.mapper.position.view(3, 3, -1)[0, 0], model.mapper.position.view(2, 2, -1)[0, 0]
    assert torch.cosine_similarity(*corner, dim=0) > 0.9, "a corner stays near its place"
