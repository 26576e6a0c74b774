"""`vistill index`, `search`, `classify` and `embed` with a tiny real bundle, as users meet them."""

import json
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import typer
from PIL import Image
from tests.tiny_embedder import LOGIT_SCALE, image_vector, text_vector, write_tiny_embedder

from vistill.archive.catalogue import FILE
from vistill.cli import main as cli
from vistill.runtime.embedder import Embedder
from vistill.runtime.image import preprocess

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_embedder(tmp_path_factory.mktemp("embedder") / "bundle")


@pytest.fixture
def run(run_app: Callable[[typer.Typer], Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    return run_app(cli.app)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    for seed in range(9):
        path = folder / ("more" if seed % 2 else ".") / f"{seed}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), np.uint8)
        Image.fromarray(pixels).save(path)
    return folder


def vectors_of(bundle: Path, photos: Path) -> dict[str, np.ndarray]:
    """{path: vector} in numpy."""
    spec = Embedder(bundle, threads=1).preprocess
    paths = sorted(str(path) for path in photos.rglob("*.png"))
    return {path: image_vector(preprocess(path, spec)) for path in paths}


def ranking(vectors: dict[str, np.ndarray], query: np.ndarray) -> list[str]:
    return sorted(vectors, key=lambda path: -float(vectors[path] @ query))


def lines(done: subprocess.CompletedProcess[str]) -> list[dict]:
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_index_and_search_by_words_and_by_a_picture(run: Run, bundle: Path, photos: Path) -> None:
    before = sorted(photos.rglob("*"))
    done = run("index", photos, "--model", bundle)
    assert (done.returncode, done.stdout) == (0, "")
    assert "9 photos in " in done.stderr
    assert "9 added, 0 changed, 0 removed, 0 unchanged, 0 failed" in done.stderr
    assert sorted(photos.rglob("*")) == before  # nothing is written among the photos
    vectors = vectors_of(bundle, photos)
    done = run("search", "a red dog", "--model", bundle, "--top", 4)
    assert done.returncode == 0
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    expected = ranking(vectors, text_vector("a red dog"))[:4]
    assert [path for _, path in rows] == expected
    for score, path in rows:
        assert float(score) == pytest.approx(float(vectors[path] @ text_vector("a red dog")), abs=2e-3)
    photo = photos / "4.png"
    done = run("search", "--image", photo, "--index", photos, "--model", bundle, "--json", "--top", 3)
    assert [row["path"] for row in lines(done)] == ranking(vectors, vectors[str(photo)])[:3]
    assert lines(done)[0] == {"path": str(photo), "score": pytest.approx(1.0, abs=1e-3)}


def test_an_index_follows_its_folder(run: Run, bundle: Path, photos: Path, tmp_path: Path) -> None:
    place = tmp_path / "kept" / "index"
    first = lines(run("index", photos, "--index", place, "--model", bundle, "--json"))
    assert first == [
        {"index": str(place), "root": str(photos), "photos": 9, "model": "tiny"}
        | {"added": 9, "changed": 0, "removed": 0, "unchanged": 0, "failed": 0}
    ]
    (photos / "0.png").unlink()
    (photos / "broken.jpg").write_bytes(b"rubbish")
    done = run("index", photos, "--index", place, "--model", bundle, "--json")
    assert done.returncode == 1
    failure, report = lines(done)
    assert failure["path"] == str(photos / "broken.jpg")
    assert failure["error"] == "not_an_image"
    assert {k: report[k] for k in ("photos", "removed", "unchanged", "failed")} == {
        "photos": 8,
        "removed": 1,
        "unchanged": 8,
        "failed": 1,
    }
    done = run("search", "a cat", "--index", place, "--model", bundle)
    assert len(done.stdout.splitlines()) == 8
    assert str(photos / "0.png") not in done.stdout


def test_a_page_with_small_pictures(run: Run, bundle: Path, photos: Path, tmp_path: Path) -> None:
    run("index", photos, "--model", bundle)
    (photos / "0.png").write_bytes(b"gone since")
    page = tmp_path / "sheet.html"
    done = run("search", "<b>a dog</b>", "--model", bundle, "--html", page)
    assert done.returncode == 0
    text = page.read_text("utf-8")
    assert text.count("data:image/jpeg;base64,") == 8
    assert text.count("not_an_image") == 1
    assert "<b>a dog</b>" not in text
    assert "&lt;b&gt;a dog&lt;/b&gt;" in text
    assert "http" not in text.replace("http-equiv", "")


def test_wrong_questions(run: Run, bundle: Path, photos: Path, tmp_path: Path) -> None:
    cases = [
        (("search", "a dog", "--model", bundle), "there is no index yet"),
        (("search", "--model", bundle), "search for words or for a picture"),
        (("search", "a", "--image", "b.png"), "search for words or for a picture"),
        (("index", tmp_path / "absent", "--model", bundle), "there is no such folder"),
        (("classify", photos, "--labels", "dog", "--model", bundle), "name two labels"),
        (("classify", photos, "--labels-file", tmp_path / "x", "--model", bundle), "there is no such file"),
        (("embed", photos, "--out", tmp_path / "x.csv", "--model", bundle), "must end in"),
        (("embed", photos, "--texts", "-", "--out", tmp_path / "x.npz"), "name no pictures with it"),
        (("embed", "--texts", tmp_path / "x", "--out", tmp_path / "x.npz"), "there is no such file"),
    ]
    for words, message in cases:
        done = run(*words)
        assert done.returncode == 2, words
        assert message in done.stderr, words
    (tmp_path / "empty").mkdir()
    done = run("index", tmp_path / "empty", "--model", bundle)
    assert (done.returncode, "found no pictures" in done.stderr) == (2, True)


def test_another_model_is_refused(run: Run, bundle: Path, photos: Path, tmp_path: Path) -> None:
    run("index", photos, "--model", bundle)
    other = shutil.copytree(bundle, tmp_path / "other")
    manifest = json.loads((other / "manifest.json").read_text())
    changed = manifest["preprocess"] | {"mean": [0.4, 0.5, 0.5]}
    (other / "manifest.json").write_text(json.dumps(manifest | {"preprocess": changed}))
    for words in (("search", "a dog"), ("index", photos)):
        done = run(*words, "--model", other)
        assert done.returncode == 2
        assert "was made with the model tiny" in done.stderr
        assert "name that model with --model" in done.stderr


def test_labels(run: Run, bundle: Path, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("cat\n\n green\ndog\n")
    (photos / "broken.png").write_bytes(b"rubbish")
    options = ("--labels", "dog, red", "--labels-file", tmp_path / "labels.txt", "--model", bundle)
    done = run("classify", photos, *options, "--template", "a {}", "--json")
    assert done.returncode == 1
    rows = lines(done)
    vectors = vectors_of(bundle, photos / "more")
    texts = np.stack([text_vector(f"a {label}") for label in ("dog", "red", "cat", "green")])
    for row in rows:
        if row["path"] in vectors:
            logits = np.exp(LOGIT_SCALE * (texts @ vectors[row["path"]]).astype(np.float64))
            expected = dict(zip(("dog", "red", "cat", "green"), logits / logits.sum(), strict=True))
            found = {one["label"]: one["score"] for one in row["labels"]}
            assert found == pytest.approx(expected, abs=1e-4)
            assert [one["score"] for one in row["labels"]] == sorted(found.values(), reverse=True)
    assert [row["error"] for row in rows if "error" in row] == ["not_an_image"]
    done = run("classify", photos / "2.png", *options)
    path, label, score = done.stdout.rstrip("\n").split("\t")
    assert (path, done.returncode, done.stderr) == (str(photos / "2.png"), 0, "")
    assert label in ("dog", "red", "cat", "green")
    assert 0.25 <= float(score) <= 1


@pytest.mark.parametrize("suffix", ["npz", "parquet", "jsonl"])
def test_pictures_become_a_file_of_vectors(
    run: Run, bundle: Path, photos: Path, tmp_path: Path, suffix: str
) -> None:
    if suffix == "parquet":
        pytest.importorskip("pyarrow", reason="Parquet needs pyarrow")
    out = tmp_path / f"out.{suffix}"
    (photos / "broken.png").write_bytes(b"rubbish")
    done = run("embed", photos, "--out", out, "--model", bundle)
    assert done.returncode == 1
    assert "error: not_an_image: " in done.stderr
    assert "9 embedded, 1 failed" in done.stderr
    found = read(out, "path")
    (photos / "broken.png").unlink()
    vectors = vectors_of(bundle, photos)
    assert found.keys() == vectors.keys()
    for path, vector in found.items():
        assert vector == pytest.approx(vectors[path], abs=1e-5)
    done = run("embed", photos, "--out", out, "--model", bundle)
    assert (done.returncode, done.stderr) == (0, "0 embedded, 9 done before\n")


def read(path: Path, column: str) -> dict[str, np.ndarray]:
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as kept:
            return dict(zip(kept[f"{column}s"].tolist(), kept["embeddings"], strict=True))
    if path.suffix == ".parquet":
        import pyarrow.parquet as pq

        table = pq.read_table(path)
        return dict(zip(table[column].to_pylist(), table["embedding"].to_pylist(), strict=True))
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return {row[column]: row["embedding"] for row in rows}


def test_lines_become_a_file_of_vectors(run: Run, bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("\ufeffa dog\n\na cat \na dog\n")
    out = tmp_path / "texts.npz"
    done = run("embed", "--texts", tmp_path / "texts.txt", "--out", out, "--model", bundle)
    assert (done.returncode, done.stderr) == (0, "2 embedded\n")
    found = read(out, "text")
    assert list(found) == ["a dog", "a cat"]
    for text, vector in found.items():
        assert vector == pytest.approx(text_vector(text), abs=1e-5)
    (tmp_path / "texts.txt").write_text("a cat\na red dog\n")
    done = run("embed", "--texts", tmp_path / "texts.txt", "--out", out, "--model", bundle)
    assert done.stderr == "1 embedded, 1 done before\n"
    (tmp_path / "texts.txt").write_bytes(b"fine\n\xff\n")
    done = run("embed", "--texts", tmp_path / "texts.txt", "--out", out, "--model", bundle)
    assert (done.returncode, "line 2, is not UTF-8" in done.stderr) == (2, True)


@pytest.mark.parametrize("suffix", ["npz", "jsonl", "parquet"])
def test_embed_leaves_nothing_where_nothing_was_embedded(
    run: Run, bundle: Path, tmp_path: Path, suffix: str
) -> None:
    if suffix == "parquet":
        pytest.importorskip("pyarrow", reason="pyarrow comes with vistill[parquet]")
    place, out = tmp_path / "place", tmp_path / "out"
    for folder in (place, out):
        folder.mkdir()
    words = ("--out", out / f"x.{suffix}", "--model", bundle)
    assert run("embed", place, *words).returncode == 2
    (place / "a.jpg").write_bytes(b"rubbish")
    assert run("embed", place, *words).returncode == 1
    (place / "texts").write_text("\n\n")
    done = run("embed", "--texts", place / "texts", *words)
    assert done.returncode == 2
    assert "found no texts" in done.stderr
    (place / "texts").write_bytes(b"a dog\n\xff\n")
    assert "line 2, is not UTF-8" in run("embed", "--texts", place / "texts", *words).stderr
    assert list(out.iterdir()) == []


def test_lists_and_lines_may_come_through_a_pipe(
    run: Run, bundle: Path, photos: Path, tmp_path: Path
) -> None:
    def piped(data: bytes) -> Path:  # as `<(command)` of a shell
        reading, writing = os.pipe()
        os.write(writing, data)
        os.close(writing)
        return Path(f"/dev/fd/{reading}")

    words = ("--out", tmp_path / "x.jsonl", "--model", bundle)
    assert run("embed", "--texts", piped(b"a dog\na cat\n"), *words).stderr == "2 embedded\n"
    listed = piped(os.fsencode(photos / "0.png") + b"\n")
    words = ("--out", tmp_path / "y.jsonl", "--model", bundle)
    assert run("embed", "--from-file", listed, *words).stderr == "1 embedded\n"
    for option in ("--texts", "--from-file"):
        assert f"{option} {photos}: is a folder" in run("embed", option, photos, *words).stderr


def test_names_that_break_lines_or_are_not_utf8_are_printable(run: Run, bundle: Path, photos: Path) -> None:
    data = (photos / "0.png").read_bytes()
    for name in (b"/new\nline.png", b"/\xff.png"):
        Path(os.fsdecode(os.fsencode(photos) + name)).write_bytes(data)
    assert run("index", photos, "--model", bundle).returncode == 0
    done = run("search", "a dog", "--model", bundle, "--top", 20)
    assert len(done.stdout.splitlines()) == 11
    assert "new\\nline.png" in done.stdout
    done = run("search", "a dog", "--model", bundle, "--top", 20, "--json")
    names = {os.path.basename(row["path"]) for row in lines(done)}
    assert {"new\nline.png", os.fsdecode(b"\xff.png")} <= names


def test_large_archives_get_lists(
    run: Run, bundle: Path, photos: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("faiss", reason="lists need the search extra")
    from vistill.archive import search

    run("index", photos, "--model", bundle, "--index", tmp_path / "small")
    exact = run("search", "a dog", "--index", tmp_path / "small", "--model", bundle)
    monkeypatch.setattr(search.wants_lists, "__defaults__", (5,))
    done = run("index", photos, "--model", bundle, "--index", tmp_path / "large")
    assert "laying out 9 vectors" in done.stderr
    assert {path.suffix for path in (tmp_path / "large").iterdir()} == {".sqlite", ".faiss", ""}
    assert run("search", "a dog", "--index", tmp_path / "large", "--model", bundle).stdout == exact.stdout
    monkeypatch.setattr(search, "has_faiss", lambda: False)
    (tmp_path / "large" / FILE).unlink()
    done = run("index", photos, "--model", bundle, "--index", tmp_path / "large")
    assert done.returncode == 0
    assert "pip install 'vistill[search]'" in done.stderr
    assert run("search", "a dog", "--index", tmp_path / "large", "--model", bundle).stdout == exact.stdout


def test_the_page_does_what_it_says(
    run: Run, bundle: Path, photos: Path, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every command of docs/search.md and its Python, with the tiny bundle as the one in the package."""
    (tmp_path / "bundles").mkdir()
    (tmp_path / "bundles" / "embedder").symlink_to(bundle)
    monkeypatch.setattr("vistill.runtime.bundle.PACKAGED", tmp_path / "bundles")
    monkeypatch.chdir(tmp_path)
    shutil.copy(root / "samples" / "cat.jpg", photos / "cat.jpg")
    (tmp_path / "lines.txt").write_text("a dog\na cat\n")
    text = (root / "docs" / "search.md").read_text("utf-8")
    commands = re.search(r"```bash\n(.*?)```", text, re.S)
    assert commands is not None
    found = [shlex.split(line, comments=True) for line in commands[1].splitlines()]
    assert len(found) == 7
    for program, *words in found:
        assert program == "vistill"
        done = run(*words)
        assert done.returncode == 0, (words, done.stderr)
    for name in ("sheet.html", "embeddings.npz", "texts.jsonl"):
        assert (tmp_path / name).is_file()
    code = re.search(r"```python\n(.*?)```", text, re.S)
    assert code is not None
    hits: list[tuple[float, str]] = []
    exec(code[1], {"print": lambda *values: hits.append(values)})
    assert len(hits) == 5
    assert hits == sorted(hits, reverse=True)
