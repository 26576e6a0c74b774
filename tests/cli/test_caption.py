"""`vistill caption` as a user and a script meet it."""

import csv
import importlib.util
import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from vistill.cli import main as cli
from vistill.errors import BundleError
from vistill.runtime import pipelines

FAKE = Path(__file__).with_name("caption_with_fake.py")
_spec = importlib.util.spec_from_file_location("caption_with_fake", FAKE)
assert _spec is not None
assert _spec.loader is not None
fake = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(fake)


@dataclass(frozen=True)
class Done:
    returncode: int
    stdout: bytes
    stderr: bytes


def run(*words: object, stdin: bytes = b"", cwd: Path | None = None) -> Done:
    """The command in this process: as `run_apart`, and much quicker."""
    streams = [io.TextIOWrapper(io.BytesIO(data)) for data in (stdin, b"", b"")]
    with pytest.MonkeyPatch.context() as patch:
        for name, stream in zip(("stdin", "stdout", "stderr"), streams, strict=True):
            patch.setattr(sys, name, stream)
        patch.setattr(sys, "argv", ["vistill", *map(str, words)])
        patch.setenv("NO_COLOR", "1")
        patch.setattr(pipelines, "Captioner", fake.FakeCaptioner)
        patch.setattr(cli, "app", fake.program())
        if cwd is not None:
            patch.chdir(cwd)
        with pytest.raises(SystemExit) as ended:
            cli.main()
    for stream in streams[1:]:
        stream.flush()
    code = ended.value.code
    assert isinstance(code, int)
    return Done(code, *(s.buffer.getvalue() for s in streams[1:]))  # type: ignore[attr-defined]


def run_apart(*words: object, cwd: Path, **variables: str) -> Done:
    """The command in a process of its own."""
    done = subprocess.run(
        [sys.executable, FAKE, *map(str, words)],
        capture_output=True,
        cwd=cwd,
        env=os.environ | variables,
        check=False,
        timeout=120,
    )
    return Done(done.returncode, done.stdout, done.stderr)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Four pictures of grey 1 to 4 in two folders."""
    folder = tmp_path / "photos"
    for grey, name in enumerate(("a.png", "b.png", "c.png", "more/d.png"), 1):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (6, 4), grey).save(path)
    return folder


def many(folder: Path, count: int) -> Path:
    folder.mkdir()
    for index in range(count):
        Image.new("L", (3, 2), index).save(folder / f"{index:03}.png")
    return folder


def json_lines(data: bytes) -> list[dict[str, object]]:
    return [json.loads(line) for line in data.splitlines()]


# --- what is printed


def test_the_consensus_head_may_be_left_out() -> None:
    photo = Path(__file__).parents[2] / "samples" / "temple.jpg"
    said = [
        CliRunner().invoke(cli.app, ["caption", str(photo), *words]).stdout.strip()
        for words in ([], ["--no-rerank"])
    ]
    assert said == [pipelines.Captioner()(photo), pipelines.Captioner(rerank=False)(photo)]
    assert said[0] != said[1], "it has to matter here"


def test_a_process_of_its_own_says_the_same(photos: Path) -> None:
    done = run_apart("photos", "absent.jpg", cwd=photos.parent)
    assert done == run("photos", "absent.jpg", cwd=photos.parent)
    assert done.returncode == 1


def test_one_picture_prints_its_caption(photos: Path) -> None:
    done = run(photos / "b.png")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"grey 2\n", b"")


def test_several_print_their_paths_too(photos: Path) -> None:
    done = run("photos", cwd=photos.parent)
    lines = b"photos/a.png\tgrey 1\nphotos/b.png\tgrey 2\nphotos/c.png\tgrey 3\nphotos/more/d.png\tgrey 4\n"
    assert (done.returncode, done.stdout) == (0, lines)
    assert done.stderr == b"4 captioned\n"
    done = run("photos", "--no-recursive", "photos/a.png", "--batch-size", 1, cwd=photos.parent)
    assert done.stdout == lines.partition(b"photos/more")[0]  # in order, and nothing twice


def test_json(photos: Path) -> None:
    (photos / "b.png").write_bytes(b"rubbish")
    done = run(photos / "a.png", photos / "b.png", "--json")
    assert done.returncode == 1
    good, bad = json_lines(done.stdout)
    assert good == {"path": str(photos / "a.png"), "caption": "grey 1"}
    assert list(bad) == ["path", "error", "detail"]
    assert (bad["path"], bad["error"]) == (str(photos / "b.png"), "not_an_image")
    assert b"not_an_image" not in done.stderr


def test_several_captions_a_picture(photos: Path) -> None:
    done = run(photos / "a.png", "--json", "--num-return", 2)
    captions = [{"text": "grey 1", "score": 0.0}, {"text": "grey 1", "score": -0.5}]
    assert json_lines(done.stdout) == [
        {"path": str(photos / "a.png"), "caption": "grey 1", "captions": captions}
    ]
    assert run(photos / "a.png", "--num-return", 2).stdout == b"grey 1\ngrey 1\n"


def test_prefix_and_suffix(photos: Path) -> None:
    assert run(photos / "a.png", "--prefix", "sks, ", "--suffix", ".").stdout == b"sks, grey 1.\n"
    run(photos, "--sidecar", "txt", "--prefix", "sks, ", "--out", photos / "c.jsonl")
    assert (photos / "a.txt").read_bytes() == b"sks, grey 1\n"
    assert json_lines((photos / "c.jsonl").read_bytes())[0]["caption"] == "sks, grey 1"


# --- what is named


@pytest.mark.parametrize("separator", [b"\n", b"\0", b"\r\n"])
def test_lists(photos: Path, separator: bytes) -> None:
    listed = separator.join([b"photos/c.png", b"", b"photos/a.png", b"photos/more"])
    wanted = b"photos/c.png\tgrey 3\nphotos/a.png\tgrey 1\nphotos/more/d.png\tgrey 4\n"
    assert run("-", stdin=listed, cwd=photos.parent).stdout == wanted
    (photos / "list").write_bytes(listed)
    assert run("--from-file", "photos/list", cwd=photos.parent).stdout == wanted


def test_globs_are_expanded_here_too(photos: Path) -> None:
    assert run(f"{photos}/[bc].png").stdout.count(b"\n") == 2


def test_names_that_are_not_utf8(photos: Path) -> None:
    name = os.fsencode(photos / "a.png")
    odd = os.fsencode(photos) + b"/\xff\n\x1b[31m.png"
    os.rename(name, odd)
    done = run(photos, "--json", "--out", photos / "c.jsonl")
    assert done.returncode == 0
    assert odd in [os.fsencode(str(line["path"])) for line in json_lines(done.stdout)]
    assert run(photos, "--out", photos / "c.jsonl").stderr == b"0 captioned, 4 done before\n"
    plain = run(photos)
    assert b"\\udcff\\n\\x1b[31m.png\tgrey 1\n" in plain.stdout


# --- what goes wrong


def test_broken_pictures_are_named_and_the_rest_is_captioned(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)  # as if it were not installed
    whole = (photos / "a.png").read_bytes()
    (photos / "cut.png").write_bytes(whole[:40])
    (photos / "empty.jpg").touch()
    (photos / "huge.png").write_bytes(whole[:16] + b"\0\1\0\0\0\1\0\0" + whole[24:])
    (photos / "text.jpg").write_text("hello")
    (photos / "phone.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    os.mkfifo(photos / "pipe.jpg")
    (photos / "folder.jpg").mkdir()
    done = run("photos", "absent.jpg", cwd=photos.parent)
    assert done.returncode == 1
    assert done.stdout.count(b"grey") == 4
    errors = done.stderr.decode().splitlines()
    reasons = {line.split(": ")[2]: line.split(": ")[1] for line in errors if line.startswith("error")}
    reasons = {name.split()[0]: reason for name, reason in reasons.items()}
    assert reasons == {
        "photos/cut.png": "truncated",
        "photos/empty.jpg": "empty",
        "photos/huge.png": "corrupt",  # the header's checksum
        "photos/text.jpg": "not_an_image",
        "photos/phone.heic": "unsupported_format",
        "photos/pipe.jpg": "not_a_file",
        "absent.jpg": "missing",
    }
    assert errors[-1] == "4 captioned, 7 failed"


def test_limits(photos: Path) -> None:
    assert b"too_many_pixels: " in run(photos / "a.png", "--max-pixels", 23).stderr
    assert b"too_many_bytes: " in run(photos / "a.png", "--max-bytes", 20).stderr
    assert run(photos / "a.png", "--max-pixels", 24).returncode == 0


def test_nothing_found(tmp_path: Path) -> None:
    done = run(tmp_path, f"{tmp_path}/*.jpg")
    assert done.returncode == 2
    assert done.stdout == b""
    assert (
        done.stderr.decode().splitlines()[-1] == f"error: found no pictures in {tmp_path}, {tmp_path}/*.jpg"
    )


def test_a_name_that_stands_for_nothing_is_noted(photos: Path, tmp_path: Path) -> None:
    done = run(photos, f"{tmp_path}/*.jpg")
    assert done.returncode == 0
    assert f"no pictures in {tmp_path}/*.jpg\n".encode() in done.stderr


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ([], "--from-file"),
        (["--from-file", "absent"], "absent"),
        (["a.png", "--sidecar", "xmp"], "txt"),
        (["a.png", "--out", "c.txt"], ".jsonl"),
        (["a.png", "--out", "absent/c.csv"], "absent"),
        (["a.png", "--batch-size", "0"], "--batch-size"),
        (["a.png", "--num-beam", "2"], "--num-beam"),
        (["a.png", "--num-beams", "1", "--num-return", "3"], "--num-return 3 needs as many beams"),
        (["a.png", "--suffix", "\n"], r"--suffix '\n': a caption is one line"),
        (["a.png", "--prefix", "a\rb"], r"--prefix 'a\rb': a caption is one line"),
    ],
)
def test_wrong_options(photos: Path, words: list[str], named: str) -> None:
    done = run(*words, cwd=photos)
    assert done.returncode == 2
    assert named in done.stderr.decode()
    assert b"Traceback" not in done.stderr


# --- what is kept


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_out_goes_on_where_it_stopped(photos: Path, suffix: str) -> None:
    if suffix == "parquet":
        pytest.importorskip("pyarrow", reason="pyarrow comes with vistill[parquet]")
    out = photos / f"c.{suffix}"
    whole = (photos / "b.png").read_bytes()
    (photos / "b.png").write_bytes(b"rubbish")
    first = run("photos", "--out", out, cwd=photos.parent)
    assert (first.returncode, first.stdout) == (1, b"")
    (photos / "b.png").write_bytes(whole)
    second = run("photos", "--out", out, cwd=photos.parent)  # what failed is tried again
    assert (second.returncode, second.stderr) == (0, b"1 captioned, 3 done before\n")
    before = out.read_bytes()
    third = run("./photos/", "--out", out, "--json", cwd=photos.parent)
    assert (third.returncode, third.stdout, third.stderr) == (0, b"", b"0 captioned, 4 done before\n")
    assert captions_in(out) == {"a.png": "grey 1", "c.png": "grey 3", "d.png": "grey 4", "b.png": "grey 2"}
    if suffix != "parquet":
        assert out.read_bytes() == before
    again = run("photos", "--out", out, "--overwrite", "--prefix", "x ", cwd=photos.parent)
    assert again.stderr == b"4 captioned\n"
    assert set(captions_in(out).values()) == {"x grey 1", "x grey 2", "x grey 3", "x grey 4"}


@pytest.mark.parametrize("name", ["c.jsonl", "c.csv", "c.parquet"])
def test_a_call_that_fails_loses_nothing(photos: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow", reason="pyarrow comes with vistill[parquet]")

    def damaged(self: object, pixels: object, num_return: int) -> None:
        raise BundleError("the bundle is damaged")  # sessions are opened by the first batch

    kept = photos / name
    assert run(photos, "--out", kept).returncode == 0
    before, listed = kept.read_bytes(), sorted(os.listdir(photos))
    monkeypatch.setattr(fake.FakeCaptioner, "caption_arrays", damaged)
    for where in (photos / "nomatch*", photos):
        for words in (["--out", kept, "--overwrite"], ["--out", photos / f"new-{name}"]):
            assert run(where, *words).returncode == 2
            assert kept.read_bytes() == before
            assert sorted(os.listdir(photos)) == listed


def captions_in(out: Path) -> dict[str, str]:
    """File name -> caption; each picture once."""
    if out.suffix == ".jsonl":
        pairs = [(str(r["path"]), str(r["caption"])) for r in json_lines(out.read_bytes())]
    elif out.suffix == ".csv":
        with out.open(encoding="utf-8", newline="") as file:
            pairs = [(r["path"], r["caption"]) for r in csv.DictReader(file)]
    else:
        import pyarrow.parquet as pq

        pairs = [(r["path"], r["caption"]) for r in pq.read_table(out).to_pylist()]
    assert len(pairs) == len(dict(pairs))
    return {Path(p).name: c for p, c in pairs}


def test_sidecars(photos: Path) -> None:
    (photos / "a.txt").write_text("written by hand")
    done = run(photos, "--sidecar", "txt")
    assert (done.returncode, done.stdout) == (0, b"")
    assert done.stderr == b"3 captioned, 1 done before\n"
    assert (photos / "a.txt").read_text() == "written by hand"
    assert (photos / "more/d.txt").read_bytes() == b"grey 4\n"
    assert run(photos, "--sidecar", "txt", "--skip-existing").stderr == b"0 captioned, 4 done before\n"
    assert run(photos, "--sidecar", "txt", "--overwrite").stderr == b"4 captioned\n"
    assert (photos / "a.txt").read_bytes() == b"grey 1\n"


def test_two_pictures_of_one_sidecar(photos: Path) -> None:
    Image.new("L", (3, 3), 9).save(photos / "a.webp", lossless=True)
    for _ in range(2):  # the first run and the next say the same
        done = run(photos, "--sidecar", "txt")
        assert done.returncode == 1
        assert b"error: sidecar_taken: " in done.stderr
        assert (photos / "a.txt").read_bytes() == b"grey 1\n"


def test_sidecar_and_file_together(photos: Path) -> None:
    run(photos, "--sidecar", "txt", "--out", photos / "c.csv")
    (photos / "b.txt").unlink()
    done = run(photos, "--sidecar", "txt", "--out", photos / "c.csv")
    assert done.stderr == b"1 captioned, 3 done before\n"
    assert (photos / "b.txt").exists()
    assert len(captions_in(photos / "c.csv")) == 4


def test_a_sidecar_that_cannot_be_written_is_a_failure_of_that_picture(photos: Path) -> None:
    (photos / "a.txt").symlink_to(photos / "a.txt")
    (photos / "b.txt").mkdir()
    done = run(photos, "--sidecar", "txt", "--overwrite")
    assert done.returncode == 1
    assert b"error: sidecar_unwritable: " in done.stderr
    assert done.stderr.endswith(b"3 captioned, 1 failed\n")
    assert (photos / "a.txt").read_bytes() == b"grey 1\n"


# --- what stops it


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_killed_within_writing_it_loses_nothing(tmp_path: Path, suffix: str) -> None:
    if suffix == "parquet":
        pytest.importorskip("pyarrow", reason="pyarrow comes with vistill[parquet]")
    photos = many(tmp_path / "photos", 17)
    words = ("photos", "--batch-size", 2, "--prefix", 'a "quoted", ')
    assert run(*words, "--out", f"whole.{suffix}", cwd=tmp_path).returncode == 0
    rng = random.Random(f"kill {suffix}")
    for number in (1, 2, 3):
        kill = f"{rng.randint(1, 3)}:{0.0 if number == 1 else rng.random():.3f}"
        done = run_apart(*words, "--out", f"torn.{suffix}", cwd=tmp_path, VISTILL_TEST_KILL=kill)
        assert done.returncode == -signal.SIGKILL
    assert run(*words, "--out", f"torn.{suffix}", cwd=tmp_path).returncode == 0
    whole, torn = captions_in(tmp_path / f"whole.{suffix}"), captions_in(tmp_path / f"torn.{suffix}")
    assert list(torn.items()) == list(whole.items())
    assert len(whole) == len(list(photos.iterdir())) == 17
    if suffix != "parquet":
        assert (tmp_path / f"torn.{suffix}").read_bytes() == (tmp_path / f"whole.{suffix}").read_bytes()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_stopped_at_any_time_it_goes_on(tmp_path: Path, number: signal.Signals) -> None:
    many(tmp_path / "photos", 40)
    rng = random.Random(int(number))
    words = [sys.executable, FAKE, "photos", "--batch-size", "2", "--out", "c.jsonl", "--sidecar", "txt"]
    environment = os.environ | {"VISTILL_TEST_SLOW": "0.25"}
    out = tmp_path / "c.jsonl"
    for stop in (1, 2):
        started = subprocess.Popen(
            words,
            cwd=tmp_path,
            env=environment,
            stderr=subprocess.PIPE,
            # Where the tests themselves were started in the background, children would ignore interrupts.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        floor = len(out.read_bytes()) if out.exists() else 0
        while not (out.exists() and len(out.read_bytes()) > floor) and started.poll() is None:
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.15))
        started.send_signal(number)
        _, told = started.communicate(timeout=60)
        assert started.returncode == (130 if number == signal.SIGINT else -signal.SIGKILL), stop
        if number == signal.SIGINT:
            assert b"goes on from here" in told
            assert b"Traceback" not in told
    done = run("photos", "--batch-size", 2, "--out", "c.jsonl", "--sidecar", "txt", cwd=tmp_path)
    assert done.returncode == 0
    assert captions_in(out) == {f"{i:03}.png": f"grey {i}" for i in range(40)}
    for index in range(40):
        assert (tmp_path / f"photos/{index:03}.txt").read_text() == f"grey {index}\n"


def test_a_reader_that_leaves_is_no_fault(tmp_path: Path) -> None:
    many(tmp_path / "photos", 40)
    words = [sys.executable, FAKE, "photos", "--batch-size", "1"]
    environment = os.environ | {"VISTILL_TEST_SLOW": "0.02"}
    started = subprocess.Popen(
        words, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert started.stdout is not None
    assert started.stderr is not None
    assert started.stdout.readline() == b"photos/000.png\tgrey 0\n"
    started.stdout.close()
    assert started.wait(timeout=60) == 141
    assert started.stderr.read() == b""
    started.stderr.close()


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="there are no pseudo-terminals here")
def test_the_bar_is_on_stderr(tmp_path: Path) -> None:
    """On a terminal: a bar with the total, failures above it, nothing of it in the file's stdout."""
    many(tmp_path / "photos", 9)
    (tmp_path / "photos/004.png").write_bytes(b"rubbish")
    ours, theirs = os.openpty()
    started = subprocess.Popen(
        [sys.executable, FAKE, "photos", "--batch-size", "2", "--json"],
        cwd=tmp_path,
        env=os.environ | {"TERM": "xterm", "COLUMNS": "120", "VISTILL_TEST_SLOW": "0.05"},
        stdout=subprocess.PIPE,
        stderr=theirs,
    )
    os.close(theirs)
    shown = b""
    while True:
        try:
            block = os.read(ours, 65536)
        except OSError:  # the other end has closed
            break
        if not block:
            break
        shown += block
    os.close(ours)
    assert started.stdout is not None
    lines = json_lines(started.stdout.read())
    started.stdout.close()
    assert started.wait(timeout=60) == 1
    assert len(lines) == 9
    assert b"9/9" in shown
    assert b"8 captioned, 1 failed" in shown


# --- the model in the package


def test_the_shipped_model_captions_the_sample_photos(
    shipped_bundle: Path, root: Path, tmp_path: Path
) -> None:
    """No fake: the installed program, the real bundle, real photos and one broken file."""
    program = Path(sys.executable).with_name("vistill")
    (tmp_path / "broken.jpg").write_bytes((root / "samples" / "cat.jpg").read_bytes()[:5000])
    done = subprocess.run(
        [program, "caption", root / "samples", tmp_path / "broken.jpg", "--json", "--num-return", "2"],
        capture_output=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 1, done.stderr
    *good, bad = json_lines(done.stdout)
    assert bad["error"] == "truncated"
    assert {Path(str(r["path"])).name for r in good} == {p.name for p in (root / "samples").glob("*.jpg")}
    for record in good:
        caption = str(record["caption"])
        assert caption == caption.strip()
        assert 3 <= len(caption.split()) <= 25
    assert len({str(r["caption"]) for r in good}) > len(good) // 2
    single = subprocess.run(
        [program, "caption", root / "samples" / "cat.jpg"], capture_output=True, check=True, timeout=120
    )
    by_name = {Path(str(r["path"])).name: r["caption"] for r in good}
    assert single.stdout.decode().strip() == by_name["cat.jpg"]
