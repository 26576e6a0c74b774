"""scripts/finetune_vqa_rad.py with a tiny answerer: data, training, scores, table; a second run goes on."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
from tests.tiny_answerer import save_tiny_answerer
from tests.tiny_questions import write_vqa_rad

from vistill.cli.main import main

pytestmark = pytest.mark.slow
SCRIPT = Path(__file__).parents[2] / "scripts" / "finetune_vqa_rad.py"


@pytest.fixture
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("finetune_vqa_rad", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_scores_before_and_after(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran = []

    def here(*words: object) -> None:  # in this process, which has loaded torch already
        ran.append(words[0])
        monkeypatch.setattr(sys, "argv", ["vistill", *map(str, words)])
        code: object = 0
        try:
            main()
        except SystemExit as stop:
            code = stop.code
        assert not code, capsys.readouterr().err

    monkeypatch.setattr(script, "vistill", here)
    monkeypatch.setattr(script, "SEEDS", (0,))
    source, model = write_vqa_rad(tmp_path / "raw", 20), save_tiny_answerer(tmp_path / "model")
    settings = ["trainer.max_epochs=1", "trainer.validate_every=1", "datamodule.batch_size=4"]
    settings += [
        "trainer.encoder=frozen",
        "datamodule.tokenizer.min_count=1",
        "logger=none",
        "generation.max_new_tokens=4",
    ]
    script.run(model, tmp_path, source, settings)
    assert ran == ["data", "evaluate", "train", "evaluate"]
    page = script.page(tmp_path / "runs")
    for kind, count in (("all", 8), ("closed", 4), ("open", 4)):
        assert f"\n| {kind} | {count} | 100.0 | 100.0 | 100.0 | " in page, "one answer to all of them"
    assert "| Is this chest or head? |" in page
    (tmp_path / "runs" / "evaluate" / "vqa-rad-0" / "metrics.json").unlink()
    script.run(model, tmp_path, source, settings)
    assert ran[4:] == ["train", "evaluate"], "the run is gone on with, and scored"
