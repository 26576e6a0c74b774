"""`vistill teach plan|run|verify|info` as a user runs them: a teacher of arithmetic, then a real one."""

import json
import shutil
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import typer
from tests.distill.black_box import Server
from tests.distill.fake_teacher import FakeTeacher, identity
from tests.distill.tiny_teachers import save_checkpoint
from tests.tiny import build_data

from vistill.cli.teach import app
from vistill.distill import teachers, teachers_remote
from vistill.distill.cache import TeacherCache
from vistill.distill.cache_run import run as make
from vistill.distill.teachers_remote import Pace
from vistill.errors import ConfigError
from vistill.runtime.image import AugmentSpec

Run = Callable[..., subprocess.CompletedProcess[str]]
WORDS = ("--splits", "train,dev", "--captions", 2, "--top-k", 4, "--views", 2, "--shard-records", 4)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_data(tmp_path_factory.mktemp("tiny"), train=6, dev=2)


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> dict[str, FakeTeacher]:
    """The teachers that `load_teacher` knows by name."""
    known = {
        "good": FakeTeacher(),
        "other": FakeTeacher(identity(weights="w2")),
        "drifts": FakeTeacher(drift=1),
    }

    def load(spec: str, device: str = "cpu", prompt: str = "", remote: object = None) -> FakeTeacher:
        assert (device, prompt, remote) == ("cpu", "", {})
        if spec not in known:
            raise ConfigError(f"teacher {spec!r}: there is no such folder")
        return known[spec]

    monkeypatch.setattr(teachers, "load_teacher", load)
    return known


@pytest.fixture
def run(run_app: Callable[[typer.Typer], Run]) -> Run:
    """Run `vistill teach ...`."""
    return run_app(app)


def test_plan_run_info_verify(data: Path, tmp_path: Path, run: Run, fakes: dict[str, FakeTeacher]) -> None:
    out = tmp_path / "cache"
    planned = json.loads(run("plan", "good", data, *WORDS, "--measure", 8, "--json").stdout)
    assert (planned["records"], planned["captions"], planned["shards"], planned["measured"]) == (16, 32, 6, 8)
    text = run("plan", "good", data, *WORDS).stdout
    assert text.startswith("16 records in 6 files: ")
    assert "bytes a gold caption; 0.0 minutes in one process" in text

    done = run("run", "good", data, "--out", out, *WORDS)
    assert done.returncode == 0
    assert done.stdout == f"{out}\n", "results on stdout: the folder, for a script to use"
    assert "16 records in 6 files" in done.stderr, "the plan comes before the run"
    assert "16 records made, 0 were there, 0 are left to other ranks" in done.stderr
    assert len(TeacherCache.open(out)) == 16
    made = json.loads(run("info", out, "--json").stdout)["bytes"]
    assert planned["bytes"] == pytest.approx(made, rel=0.05)

    again = run("run", "good", data, "--out", out, *WORDS, "--json")
    assert json.loads(again.stdout) == {"made": 0, "kept": 16, "missing": 0, "bytes": made, "problems": []}
    assert "measured" not in again.stderr, "nothing is planned where a run goes on"

    shown = run("info", out).stdout
    for words in (
        "fake (fake), weights w1",
        "train 6, dev 2",
        "2, seed 0",
        "2, 3 beams",
        "4 of 40",
        "16 in 6",
    ):
        assert words in shown
    assert run("verify", out, "--data", data, "--teacher", "good").stdout == f"{out}: nothing is wrong\n"


def test_what_is_asked_reaches_the_manifest(
    data: Path, tmp_path: Path, run: Run, fakes: dict[str, FakeTeacher]
) -> None:
    words = (
        "--captions 3 --beams 5 --sample --temperature 0.7 --top-p 0.9 --length-penalty 0.5 --longest 30 "
        "--max-new-tokens 12 --top-k 6 --no-gold --hidden all --hidden-dtype int8 --embedding --views 2 "
        "--seed 8 --shard-records 9 --measure 0"
    ).split()
    assert run("run", "good", data, "--out", tmp_path / "c", *words).returncode == 0
    config = TeacherCache.open(tmp_path / "c").config
    ask, search = config.ask, config.ask.generation
    assert (ask.captions, ask.top_k, ask.gold, ask.hidden, ask.embedding, ask.longest) == (
        3,
        6,
        False,
        "all",
        True,
        30,
    )
    assert (search.num_beams, search.do_sample, search.temperature, search.top_p) == (5, True, 0.7, 0.9)
    assert (search.length_penalty, search.max_new_tokens, search.seed) == (0.5, 12, 8)
    assert (config.views, config.seed, config.hidden_dtype, config.shard_records) == (2, 8, "int8", 9)
    assert config.splits == ("train",)


def test_ranks(data: Path, tmp_path: Path, run: Run, fakes: dict[str, FakeTeacher]) -> None:
    out = tmp_path / "c"
    half = run("run", "good", data, "--out", out, *WORDS, "--rank", 1, "--ranks", 2)
    assert half.returncode == 0
    assert "8 are left to other ranks" in half.stderr
    assert "3 files; `vistill teach run` makes them" in run("info", out).stdout
    wrong = run("verify", out)
    assert wrong.returncode == 1
    assert wrong.stdout.count("the shard is missing") == 3
    assert run("run", "good", data, "--out", out, *WORDS, "--rank", 0, "--ranks", 2).returncode == 0
    assert run("verify", out).returncode == 0


def test_ray_gets_what_one_process_gets(
    data: Path, tmp_path: Path, run: Run, fakes: dict[str, FakeTeacher], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The runner itself has its own test; here only what is handed to it, by a stand-in that runs at once."""
    seen = {}

    def stand_in(folder, load, data, config, *, actors, gpus, progress):  # type: ignore[no-untyped-def]
        seen.update(actors=actors, gpus=gpus)
        return make(folder, load(), data, config, progress=progress)

    module = types.ModuleType("vistill.distill.cache_ray")
    module.run_on_ray = stand_in  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vistill.distill.cache_ray", module)
    done = run("run", "good", data, "--out", tmp_path / "c", *WORDS, "--ray", 3)
    assert done.returncode == 0, done.stderr
    assert seen == {"actors": 3, "gpus": 0}
    assert len(TeacherCache.open(tmp_path / "c")) == 16


def test_problems_exit_with_one(data: Path, tmp_path: Path, run: Run, fakes: dict[str, FakeTeacher]) -> None:
    out = tmp_path / "c"
    run("run", "good", data, "--out", out, *WORDS)
    found = run("verify", out, "--data", data, "--teacher", "drifts", "--ask", 3, "--json")
    assert found.returncode == 1
    assert len(json.loads(found.stdout)) == 3
    [path] = out.glob("dev-v01*")
    path.write_bytes(path.read_bytes()[:-20])
    found = run("verify", out)
    assert found.returncode == 1
    assert found.stdout.startswith(f"{path.name}: the bytes are not those that were written")


def test_refusals_exit_with_two(
    data: Path, tmp_path: Path, run: Run, fakes: dict[str, FakeTeacher], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "c"
    run("run", "good", data, "--out", out, *WORDS)
    for words, message in (
        (("run", "other", data, "--out", out, *WORDS), "teacher.weights was 'w1' and is 'w2'"),
        (("run", "good", data, "--out", out, *WORDS, "--seed", 3), "seed was 0 and is 3"),
        (("run", "nobody", data, "--out", out), "teacher 'nobody': there is no such folder"),
        (("run", "good", data, "--out", tmp_path / "d", "--hidden", "some"), "ask.hidden='some': use none"),
        (("run", "good", data, "--out", tmp_path / "d", "--splits", "tset"), "has no split 'tset'"),
        (("run", "good", data, "--out", out, "--ray", 2, "--ranks", 2), "--ray deals out the work itself"),
        (("plan", "good", tmp_path), "expected a folder that `vistill data build` made"),
        (("verify", out, "--teacher", "good"), "--teacher needs --data"),
        (("info", tmp_path), "expected a folder that `vistill teach run` made"),
        (
            ("plan", "good", data, "--workers", 2),
            "--workers: only for a teacher that is a URL, http(s)://HOST",
        ),
        (("verify", out, "--per-minute", 2, "--timeout", 9), "--per-minute, --timeout: only for a teacher"),
        (("run", "good", data, "--out", out, "--ray", 2, "--retry-problems"), "leave --ray away"),
    ):
        done = run(*words)
        assert done.returncode == 2, words
        assert message in done.stderr
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    done = run("run", "good", data, "--out", tmp_path / "d" / "e", *WORDS)
    assert done.returncode == 2
    assert "are free; ask for less (--hidden pooled" in done.stderr
    assert not (tmp_path / "d").exists()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = Server()
    yield server
    server.close()


def refuse(server: Server, data: Path, number: int) -> str:
    """Let the server refuse a train picture; its key."""
    from vistill.data.dataset import open_split
    from vistill.distill.teachers_remote import data_url
    from vistill.runtime.image import read_image

    row = open_split(data, "train")[number]
    server.of_picture[data_url(read_image(row["image"]), 768)] = (400, b"content policy", {})
    return str(row["key"])


def test_a_picture_that_a_server_refuses_is_named_and_asked_again(
    data: Path, tmp_path: Path, run: Run, server: Server
) -> None:
    out, words = tmp_path / "c", ("--shard-records", 4, "--batch-size", 2)
    keys = [refuse(server, data, number) for number in (0, 3)]  # the first of all, and one between good ones
    done = run("run", f"{server.url}#m", data, "--out", out, *words)
    assert done.returncode == 1
    for key in keys:
        assert f"no answer: train/{key}/view 0: the server refuses it: status 400: content pol" in done.stderr
    assert "2 records have no answer; `vistill teach run` with the same words and --retry-prob" in done.stderr
    assert "6 records made" in done.stderr
    assert "measured" not in done.stderr
    assert 6 <= len(server.requests) <= 8, "each picture once, and a plain one behind a refusal at most"
    shown = run("info", out).stdout
    assert "no answer  2 records" in shown
    assert f"train/{keys[0]}/view 0: the server refuses it" in shown
    found = run("verify", out, "--data", data)
    assert (found.returncode, found.stdout.count("nothing is wrong")) == (1, 0)
    assert "2 records have no answer" in found.stderr
    assert len(json.loads(run("verify", out, "--json").stdout)) == 2

    server.of_picture.clear()
    server.requests.clear()
    assert run("run", f"{server.url}#m", data, "--out", out, *words).returncode == 1
    assert server.requests == []
    words = (*words, "--workers", 1, "--per-minute", 6000, "--timeout", 9)
    done = run("run", f"{server.url}#m", data, "--out", out, *words, "--retry-problems")
    assert done.returncode == 0, done.stderr
    assert len(server.requests) == 2
    assert TeacherCache.open(out).problems() == []
    assert len(list(out.glob("*.arrow"))) == 2
    assert run("verify", out, "--data", data, "--teacher", f"{server.url}#m").returncode == 0


def test_a_server_that_refuses_every_request_ends_the_run(
    data: Path, tmp_path: Path, run: Run, server: Server
) -> None:
    for status, text in ((400, b"unknown field"), (401, b"who are you"), (404, b"no such model")):
        server.always = (status, text, {})
        done = run("run", f"{server.url}#m", data, "--out", tmp_path / "c")
        assert done.returncode == 2
        assert f"status {status}: {text.decode()}" in done.stderr
        assert not list((tmp_path / "c").glob("*.arrow"))
    server.always = None
    assert run("run", f"{server.url}#m", data, "--out", tmp_path / "c").returncode == 0


def test_rates_are_no_part_of_a_cache_and_the_prompt_is(
    data: Path, tmp_path: Path, run: Run, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, url = tmp_path / "c", f"{server.url}#m"
    words = ("run", url, data, "--out", out, "--shard-records", 3)
    assert run(*words, "--prompt", "Say less.", "--rank", 0, "--ranks", 2).returncode == 0
    text = server.requests[0]["messages"][0]["content"][0]["text"]
    assert text == "Say less."
    rates = ("--workers", 8, "--per-minute", 1200, "--timeout", 7)
    refused = run(*words, *rates)
    assert refused.returncode == 2
    assert "is another cache: the prompt was 'Say less.' and is 'Describe this picture in" in refused.stderr
    paces: list[Pace] = []

    def kept(per_minute: float) -> Pace:
        paces.append(Pace(per_minute))
        return paces[-1]

    monkeypatch.setattr(teachers_remote, "Pace", kept)
    assert run(*words, "--prompt", "Say less.", *rates).returncode == 0
    assert [pace.between for pace in paces] == [0.05], "1,200 a minute"
    assert len(TeacherCache.open(out)) == 6


def test_a_plan_of_a_server_says_what_measuring_cost(data: Path, run: Run, server: Server) -> None:
    shown = run("plan", f"{server.url}#m", data, "--captions", 2, "--sample", "--workers", 3).stdout
    assert len(server.requests) == 6
    assert "; 12 requests; " in shown
    assert "3 measured with 6 requests, whose answers are not kept)" in shown
    assert run("plan", f"{server.url}#m", data, "--measure", 1).returncode == 0
    assert len(server.requests) == 7


def test_a_real_checkpoint_teaches(data: Path, tmp_path: Path, run: Run) -> None:
    spec, out = save_checkpoint(tmp_path / "teacher"), tmp_path / "c"
    words = ("--captions", 2, "--top-k", 3, "--hidden", "all", "--embedding", "--max-new-tokens", 8)
    done = run("run", spec, data, "--out", out, *words, "--longest", 12, "--views", 2, "--batch-size", 4)
    assert done.returncode == 0, done.stderr
    cache = TeacherCache.open(out)
    kept = cache.read("train", 2, 1)
    assert len(kept.captions) == len(kept.gold) == 2
    assert kept.gold[0].top_ids is not None
    assert kept.gold[0].top_ids.shape == (len(kept.gold[0].ids) - 1, 3)
    assert kept.hidden is not None
    assert kept.embedding is not None
    found = run("verify", out, "--data", data, "--teacher", spec, "--ask", 12)
    assert found.returncode == 0, found.stdout
    other = save_checkpoint(tmp_path / "other" / "teacher", seed=1)
    done = run("run", other, data, "--out", out, *words, "--longest", 12, "--views", 2)
    assert done.returncode == 2
    assert "teacher.weights was " in done.stderr


def test_help_is_quick_and_imports_nothing_heavy() -> None:
    code = (
        "import sys; from vistill.cli.teach import app; "
        "print(sorted({'torch', 'numpy', 'pyarrow', 'datasets'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_views_go_as_far_as_they_are_told(
    data: Path, tmp_path: Path, run: Run, fakes: dict[str, FakeTeacher]
) -> None:
    words = ("--views", 2, "--augment", "flip=0", "--augment", "crop_scale=0.5,0.9")
    done = run("run", "good", data, "--out", tmp_path / "cache", "--measure", 0, *words)
    assert done.returncode == 0, done.stderr
    assert TeacherCache.open(tmp_path / "cache").config.augment == AugmentSpec((0.5, 0.9), flip=0.0)
    for word, message in (
        ("zoom=1", "--augment zoom=1: names are crop_scale, aspect, flip, brightness"),
        ("flip", "--augment flip: write flip=0.5"),
        ("flip=0.1,0.2", "--augment flip=0.1,0.2: write flip=0.5"),
        ("aspect=1", "--augment aspect=1: write aspect=0.5,1"),
        ("flip=half", "--augment flip=half: write flip=0.5"),
        ("flip=2", "augment.flip must lie in 0..1"),
    ):
        refused = run("run", "good", data, "--out", tmp_path / "other", "--augment", word)
        assert refused.returncode == 2
        assert message in refused.stderr
        assert not (tmp_path / "other").exists()
