"""The learning curves of scripts/finetune_rsicd.py on a tiny captioner: run by run, then the page."""

import importlib.util
import json
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.tiny import build_data, tiny_config

from vistill.data.dataset import open_split
from vistill.data.text import TokenizerConfig, train_tokenizer
from vistill.models.captioner import Captioner
from vistill.models.checkpoint import save_captioner

SCRIPT = Path(__file__).parents[2] / "scripts" / "finetune_rsicd.py"


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    spec = importlib.util.spec_from_file_location("finetune_rsicd", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(__import__("sys").modules, "finetune_rsicd", module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "STEPS", 3)
    monkeypatch.setattr(module, "DOCS", tmp_path / "docs")
    (tmp_path / "docs").mkdir()
    return module


@pytest.mark.slow
def test_runs_are_made_one_by_one_and_end_in_a_page_and_a_picture(script: Any, tmp_path: Path) -> None:
    built = build_data(tmp_path)
    captions = [text for row in open_split(built, "train")["captions"] for text in row]
    tokenizer = train_tokenizer(captions[:8], TokenizerConfig(min_count=1))
    config = tiny_config(vocab=tokenizer.get_vocab_size())
    long = replace(config.decoder, context=script.GREEDY.max_new_tokens)
    model = Captioner(replace(config, decoder=long))
    save_captioner(tmp_path / "start", model, tokenizer, {})
    words = [
        str(tmp_path / "start"),
        "--folder",
        str(tmp_path),
        "--aerial",
        str(built),
        "--everyday",
        str(built),
    ]
    words += ["--photos", "8", "16", "--seeds", "0"]
    results = tmp_path / "runs" / "finetune-rsicd"

    script.main([*words, "--most", "2"])
    assert {file.stem for file in results.iterdir()} == {"before", "last-layer-8-0", "cross-attention-8-0"}
    stamp = (results / "last-layer-8-0.json").stat().st_mtime_ns
    script.main([*words, "--write"])
    assert (results / "last-layer-8-0.json").stat().st_mtime_ns == stamp, "it was there already"
    found = {f.stem: json.loads(f.read_text()) for f in results.iterdir()}
    assert len(found) == 1 + 2 * 5
    assert not any(path.is_dir() for path in results.iterdir()), "weights are not kept"
    assert {name for name, one in found.items() if not one["everyday"]} == {
        "from-scratch-8-0",
        "from-scratch-16-0",
    }
    assert found["all-8-0"]["share"] == 1
    assert found["lora-8-0"]["share"] < found["from-scratch-8-0"]["share"] < 1
    assert found["all-8-0"]["steps"] == 3
    assert found["all-16-0"]["steps"] == 4

    page = (tmp_path / "docs" / "finetune-rsicd.md").read_text()
    assert page.count("| cross-attention |") == 3
    assert page.count("| from scratch |") == 2
    assert "| | 8 photos | 16 photos |" in page
    picture = ET.parse(tmp_path / "docs" / "finetune-rsicd.svg").getroot()
    curves = [one for one in picture.iter() if "curve" in one.get("class", "")]
    assert [len(one.get("points", "").split()) for one in curves] == [3, 3, 3, 3, 2]


def test_what_is_left_is_estimated_by_the_steps_of_each_policy(script: Any) -> None:
    done = [{"policy": "lora", "seconds": 10.0, "steps": 5}, {"policy": "all", "seconds": 40.0, "steps": 5}]
    left = [script.Cell("lora", 800, 0), script.Cell("all", 8, 1), script.Cell("last-layer", 8, 1)]
    assert script.remaining(done, left) == pytest.approx(2 * 100 + 8 * 3 + 5 * 3)
