"""Bundles written, read back, damaged and forged."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from vistill.errors import BundleError
from vistill.runtime import bundle as bundles
from vistill.runtime.bundle import Manifest, open_bundle, validate, write_bundle


@pytest.fixture
def copy(tiny_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_bundle, tmp_path / "copy"))


def change(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "manifest.json"
    raw = json.loads(path.read_text())
    edit(raw)
    path.write_text(json.dumps(raw))


def test_a_bundle_reads_back_as_it_was_written(tiny_bundle: Path, tiny_files: dict[str, Path]) -> None:
    found = validate(tiny_bundle)
    assert found.manifest.generation.max_new_tokens == 6
    assert found.manifest.preprocess.size == (4, 4)
    for role, path in tiny_files.items():
        assert found.read(role) == path.read_bytes()
    raw = json.loads((tiny_bundle / "manifest.json").read_text())
    assert raw["format"] == 1
    assert raw["kind"] == "captioner"
    assert Manifest.from_dict(raw, "here") == found.manifest
    assert sorted(p.name for p in tiny_bundle.parent.iterdir()) == ["captioner"]  # nothing temporary is left


def test_writing_over_something_is_refused(tiny_bundle: Path, tiny_files: dict[str, Path]) -> None:
    with pytest.raises(BundleError, match="exists already"):
        write_bundle(tiny_bundle, open_bundle(tiny_bundle).manifest, tiny_files, card="")


def test_a_failed_write_leaves_nothing(
    tiny_bundle: Path, tiny_files: dict[str, Path], tmp_path: Path
) -> None:
    manifest = open_bundle(tiny_bundle).manifest
    with pytest.raises(FileNotFoundError):
        write_bundle(tmp_path / "new", manifest, tiny_files | {"decoder": tmp_path / "absent"}, card="")
    with pytest.raises(BundleError, match="unknown"):
        write_bundle(
            tmp_path / "new", replace(manifest, special_tokens={"bos": 1, "eos": "unknown"}), tiny_files, ""
        )  # type: ignore[dict-item]
    assert list(tmp_path.iterdir()) == []


def test_a_changed_byte_is_found_when_the_file_is_read(copy: Path) -> None:
    data = bytearray((copy / "decoder.onnx").read_bytes())
    data[100] ^= 1
    (copy / "decoder.onnx").write_bytes(data)
    found = open_bundle(copy)  # sizes still fit
    assert found.read("vision")
    with pytest.raises(BundleError, match=r"decoder\.onnx: does not match its checksum"):
        found.read("decoder")
    with pytest.raises(BundleError, match=r"decoder\.onnx"):
        validate(copy)


def test_a_cut_or_missing_file_is_found_at_once(copy: Path) -> None:
    whole = (copy / "vision.onnx").read_bytes()
    (copy / "vision.onnx").write_bytes(whole[:-10])
    with pytest.raises(BundleError, match=rf"vision\.onnx: has {len(whole) - 10:,} bytes"):
        open_bundle(copy)
    (copy / "vision.onnx").unlink()
    with pytest.raises(BundleError, match=r"vision\.onnx: is missing"):
        open_bundle(copy)


def test_what_is_no_bundle_says_so(tmp_path: Path, copy: Path) -> None:
    with pytest.raises(BundleError, match="no such bundle folder"):
        open_bundle(tmp_path / "absent")
    with pytest.raises(BundleError, match=r"no vistill bundle: it has no manifest\.json"):
        open_bundle(tmp_path)
    for text in (b"{", b"\xff\xfe", b"[" * 100_000):
        (copy / "manifest.json").write_bytes(text)
        with pytest.raises(BundleError, match=r"manifest\.json: is not JSON"):
            open_bundle(copy)
    (copy / "manifest.json").write_bytes(b" " * (bundles.MAX_MANIFEST_BYTES + 1))
    with pytest.raises(BundleError, match="more than 1,048,576 bytes"):
        open_bundle(copy)


@pytest.mark.parametrize(
    "name",
    ["../vision.onnx", "/etc/passwd", "..", ".", "", "a/b", "a\\b", "C:x", "x\0y", ".hidden", "x\n", "-x"],
)
def test_a_file_name_cannot_leave_the_folder(copy: Path, name: str) -> None:
    change(copy, lambda raw: raw["files"]["vision"].update(file=name))
    with pytest.raises(BundleError, match=r"files\.vision\.file: .* is not a plain file name"):
        open_bundle(copy)


def remove(*keys: str) -> Callable[[dict[str, Any]], object]:
    def edit(raw: dict[str, Any]) -> None:
        for key in keys[:-1]:
            raw = raw[key]
        del raw[keys[-1]]

    return edit


def put(*path: Any) -> Callable[[dict[str, Any]], object]:
    def edit(raw: dict[str, Any]) -> None:
        *keys, last, value = path
        for key in keys:
            raw = raw[key]
        raw[last] = value

    return edit


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (put("format", 2), "reads format 1 of kind 'captioner' or 'answerer' or 'embedder', found format 2"),
        (put("kind", "pickle"), "kind 'pickle'"),
        (put("surprise", 1), "unknown key 'surprise'"),
        (remove("name"), "name is missing"),
        (put("name", ["x"]), "name must be text"),
        (remove("files", "decoder"), "files must be vision, decoder, tokenizer"),
        (remove("files", "vision", "sha256"), "files.vision: sha256 is missing"),
        (put("files", "vision", "sha256", "XYZ"), "files.vision.sha256: 'XYZ' is not a sha256"),
        (put("files", "vision", "bytes", -1), "files.vision: bytes must be a whole number"),
        (put("files", "tokenizer", "bytes", 10**12), "files.tokenizer: bytes must be a whole number"),
        (put("files", "vision", "bytes", True), "files.vision: bytes must be a whole number"),
        (remove("special_tokens", "eos"), "special_tokens.eos is missing"),
        (put("special_tokens", "bos", "1"), "special_tokens: bos must be a whole number"),
        (put("preprocess", "size", [0, 224]), "preprocess"),
        (put("preprocess", "size", [10**6, 224]), "preprocess.size"),
        (put("preprocess", "resize", "melt"), "preprocess.resize"),
        (remove("preprocess", "mean"), "preprocess"),
        (put("preprocess", "mean", "grey"), "preprocess"),
        (put("generation", "num_beams", 0), "generation.num_beams=0"),
        (put("generation", "num_beams", 10**6), "num_beams=1000000: must be at most 256"),
        (put("generation", "num_return", 10**6), "at most num_beams=3"),
        (put("generation", "num_beams", 2.5), "generation.num_beams=2.5: must be int"),
        (put("generation", "beams", 3), "unknown key generation.beams"),
        (put("generation", []), "generation must be an object"),
        (put("context", -1), "context must be a whole number"),
    ],
)
def test_a_broken_manifest_is_told_by_file_and_key(
    copy: Path, edit: Callable[[dict[str, Any]], object], message: str
) -> None:
    change(copy, edit)
    with pytest.raises(BundleError, match=re.escape(message)) as caught:
        open_bundle(copy)
    assert str(copy / "manifest.json") in str(caught.value)


def test_a_manifest_that_is_a_list_is_refused(copy: Path) -> None:
    (copy / "manifest.json").write_text("[]")
    with pytest.raises(BundleError, match="expected a JSON object"):
        open_bundle(copy)


def test_the_shipped_captioner_is_read_and_written_as_before() -> None:
    text = (bundles.PACKAGED / "captioner" / "manifest.json").read_text("utf-8")
    manifest = open_bundle(bundles.PACKAGED / "captioner").manifest
    assert json.dumps(manifest.to_dict(), indent=2, ensure_ascii=False) + "\n" == text
