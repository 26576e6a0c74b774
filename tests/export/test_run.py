"""A whole export: a bundle that says what the checkpoint says, or a refusal and nothing on disk."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from tests.export.conftest import Exported

from vistill.data.dataset import open_split
from vistill.errors import BundleError, ConfigError
from vistill.export import common, run
from vistill.export.common import ExportConfig, without_folders
from vistill.export.parity import torch_start
from vistill.export.run import export_captioner
from vistill.models.tokens import BOS, EOS
from vistill.runtime.bundle import validate
from vistill.runtime.decode import generate
from vistill.runtime.pipelines import Captioner


@pytest.fixture(autouse=True)
def ready_graphs(exported: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    """The exporter takes long and has tests of its own: hand out the graphs that it made once."""
    monkeypatch.setattr(run, "export_vision", lambda model, path: shutil.copyfile(exported.vision, path))
    monkeypatch.setattr(run, "export_decoder", lambda model, path: shutil.copyfile(exported.decoder, path))


def test_a_bundle_captions_as_its_checkpoint(exported: Exported, tmp_path: Path) -> None:
    stages = []
    manifest = export_captioner(
        exported.checkpoint,
        tmp_path / "bundle",
        ExportConfig(data=exported.data, check_pictures=5, threads=1),
        licence="CC0-1.0",
        report=lambda stage, done, total: stages.append((stage, done, total)),
    )
    assert [p.name for p in tmp_path.iterdir()] == ["bundle"]
    assert validate(tmp_path / "bundle").manifest == manifest
    assert manifest.scores["export"]["token_agreement"] == 1.0
    assert manifest.scores["export"]["pictures"] == 5
    assert stages[-1] == ("check", 5, 5)
    captioner = Captioner(tmp_path / "bundle", threads=1)
    assert captioner.generation.num_beams == 2  # as the run was configured
    rows = open_split(exported.data, "dev")
    pixels = exported.pixels(len(rows), "dev")
    found = generate(
        torch_start(exported.model)(pixels), len(rows), bos=BOS, eos=EOS, config=captioner.generation
    )
    texts = [exported.tokenizer.decode(list(hypotheses[0].tokens)) for hypotheses in found]
    assert captioner(list(rows["image"])) == texts
    assert len(set(texts)) > 1


def test_the_manifest_and_the_card_tell_where_it_comes_from(exported: Exported, tmp_path: Path) -> None:
    checkpoint = Path(shutil.copytree(exported.checkpoint, tmp_path / "checkpoint"))
    (checkpoint / "metrics.json").write_text(json.dumps({"CIDEr": {"value": 61.5}, "data": "/a/b/shapes"}))
    export_captioner(
        checkpoint, tmp_path / "bundle", ExportConfig(data=exported.data, threads=1), licence="CC0-1.0"
    )
    text = (tmp_path / "bundle" / "manifest.json").read_text()
    raw = json.loads(text)
    assert raw["name"] == "tiny-run"
    assert raw["licence"] == "CC0-1.0"
    assert raw["provenance"]["git"] == "0123456789ab"
    assert raw["provenance"]["config"]["datamodule"]["path"] == "shapes"
    assert "private" not in text
    assert str(tmp_path) not in text
    assert len(raw["provenance"]["export"]["weights"]) == 64
    assert raw["scores"]["checkpoint"] == {"CIDEr": {"value": 61.5}, "data": "shapes"}
    card = (tmp_path / "bundle" / "README.md").read_text()
    assert card.startswith("---\n")
    assert 'license: "CC0-1.0"\n' in card
    assert 'pipeline_tag: "image-to-text"\n' in card
    assert 'datasets: ["shapes"]\n' in card
    assert "| checkpoint.CIDEr.value | 61.5 |" in card
    assert "| datamodule.batch_size | 4 |" in card
    assert re.search(r"\| size \| \d+\.\d MB \|", card)


def test_int8_is_smaller_and_close(exported: Exported, tmp_path: Path) -> None:
    config = ExportConfig(
        "int8", exported.data, calibration_pictures=16, min_agreement=0.6, max_cider_drop=1000, threads=1
    )
    manifest = export_captioner(exported.checkpoint, tmp_path / "int8", config)
    assert manifest.precision == "int8"
    assert manifest.provenance["export"]["calibration"] == {"split": "train", "pictures": 16}
    assert manifest.files["decoder"].bytes < exported.decoder.stat().st_size
    assert manifest.files["vision"].bytes < exported.vision.stat().st_size
    texts = Captioner(tmp_path / "int8", threads=1)(list(open_split(exported.data, "dev")["image"]))
    assert all(isinstance(text, str) for text in texts)


def test_without_data_random_pictures_are_compared(exported: Exported, tmp_path: Path) -> None:
    manifest = export_captioner(exported.checkpoint, tmp_path / "bundle", ExportConfig(threads=1))
    searching = ExportConfig(threads=1, num_beams=4, length_penalty=0.5)
    other = export_captioner(exported.checkpoint, tmp_path / "searching", searching)
    assert other.generation == replace(manifest.generation, num_beams=4, length_penalty=0.5)
    assert manifest.scores["export"]["pictures"] == 8
    assert "cider_bundle" not in manifest.scores["export"]


def spoil(path: Path, how: float) -> None:
    """Shake every weight of a graph."""
    model = onnx.load(path)
    rng = np.random.default_rng(0)
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.ndim == 2 and values.dtype == np.float32:
            noise = rng.standard_normal(values.shape) * values.std() * how
            tensor.CopyFrom(numpy_helper.from_array((values + noise).astype(np.float32), tensor.name))
    onnx.save(model, path)


def test_a_bundle_that_lost_too_much_is_refused_and_not_written(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def bad(source: Path, target: Path) -> None:
        shutil.copyfile(source, target)
        spoil(target, 1.0)

    monkeypatch.setattr(common, "quantize_text", bad)
    monkeypatch.setattr(
        common, "quantize_vision", lambda source, target, pixels: shutil.copyfile(source, target)
    )
    config = ExportConfig("int8", exported.data, calibration_pictures=4, threads=1)
    with pytest.raises(
        BundleError, match=r"export refused: on 8 pictures token agreement 0\.\d+ is below 0\.95"
    ):
        export_captioner(exported.checkpoint, tmp_path / "bundle", config)
    assert list(tmp_path.iterdir()) == []
    lenient = replace(config, min_agreement=0.0, max_cider_drop=-1000.0)
    with pytest.raises(
        BundleError, match=r"CIDEr fell by -?[\d.]+ \(checkpoint [\d.]+, bundle [\d.]+\), more than -1000"
    ):
        export_captioner(exported.checkpoint, tmp_path / "bundle", lenient)
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_fp32_graph_is_refused(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def bad(model: object, path: Path) -> None:
        shutil.copyfile(exported.decoder, path)
        spoil(path, 0.01)

    monkeypatch.setattr(run, "export_decoder", bad)
    with pytest.raises(BundleError, match="export refused: logits of the fp32 graphs"):
        export_captioner(exported.checkpoint, tmp_path / "bundle", ExportConfig(threads=1))
    assert list(tmp_path.iterdir()) == []


def test_an_older_bundle_is_kept_unless_asked(exported: Exported, tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    out.mkdir()
    (out / "old").touch()
    with pytest.raises(BundleError, match="exists already"):
        export_captioner(exported.checkpoint, out, ExportConfig(threads=1))
    with pytest.raises(BundleError, match=r"is no bundle \(it has no manifest.json\), so it is not replaced"):
        export_captioner(exported.checkpoint, out, ExportConfig(threads=1), replace_existing=True)
    assert (out / "old").exists()
    (out / "manifest.json").touch()
    manifest = export_captioner(exported.checkpoint, out, ExportConfig(threads=1), replace_existing=True)
    assert not (out / "old").exists()
    assert manifest.scores["export"]["data"] == "random noise"
    assert None not in manifest.scores["export"].values(), "nothing is said of what was not measured"
    assert validate(out)
    assert list(tmp_path.iterdir()) == [out]


def test_the_folder_of_a_run_is_taken_by_its_best_checkpoint(exported: Exported, tmp_path: Path) -> None:
    shutil.copytree(exported.checkpoint, tmp_path / "run" / "best")
    (tmp_path / "run" / "config.json").write_text('{"name": "tiny", "out": "runs"}')  # settings of the run
    assert export_captioner(tmp_path / "run", tmp_path / "bundle", ExportConfig(threads=1)).name == "tiny-run"


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"precision": "int4"}, "quantize='int4'"),
        ({"precision": "int8"}, "quantize=int8 needs data"),
        ({"calibration_pictures": 0}, "calibration_pictures=0"),
        ({"check_pictures": -1}, "check_pictures=-1"),
    ],
)
def test_a_wrong_setting_is_named(values: dict[str, object], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        ExportConfig(**values)  # type: ignore[arg-type]


def test_a_checkpoint_that_is_none_is_told(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no vistill checkpoint"):
        export_captioner(tmp_path, tmp_path / "bundle", ExportConfig())


def test_folders_of_the_maker_are_cut_to_their_names() -> None:
    before = {"a": "/x/y/z", "b": ["/q", "rel/path", 3], "c": {"d": None, "e": "text / with slash"}}
    after = {"a": "z", "b": ["q", "rel/path", 3], "c": {"d": None, "e": "text / with slash"}}
    assert without_folders(before) == after
