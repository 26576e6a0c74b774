"""The black box, against a real HTTP server on loopback that misbehaves on demand."""

import base64
import contextlib
import io
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.message import Message
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

pytest.importorskip("torch")

from tests.distill.tiny_teachers import pictures

from vistill.distill.answers import Ask
from vistill.distill.teachers import load_teacher
from vistill.distill.teachers_remote import (
    KEY,
    RemoteConfig,
    RemoteError,
    RemoteTeacher,
    data_url,
    retry_after,
)
from vistill.errors import ConfigError
from vistill.runtime.decode import GenerationConfig

QUICK = RemoteConfig(pause=0.01, timeout=5, workers=2)
SAMPLED = GenerationConfig(do_sample=True, num_return=2, temperature=0.7, top_p=0.9, seed=5)
Reply = tuple[int, bytes, dict[str, str]]


def said(text: Any) -> Reply:
    return 200, json.dumps({"choices": [{"message": {"content": text}}]}).encode(), {}


class Server:
    """Answers with the colour of the picture; `script` holds replies to be given first, or functions."""

    def __init__(self) -> None:
        self.script: list[Reply | Callable[[], Reply]] = []
        self.requests: list[dict[str, Any]] = []
        self.headers: list[Message] = []
        self.times: list[float] = []
        self.paths: list[str] = []
        self.busy = self.most_busy = 0
        self.lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                with outer.lock:
                    outer.busy += 1
                    outer.most_busy = max(outer.busy, outer.most_busy)
                    outer.times.append(time.monotonic())
                    outer.paths.append(self.path)
                    outer.headers.append(self.headers)
                    body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                    outer.requests.append(body)
                    reply = outer.script.pop(0) if outer.script else outer.colour(body)
                status, data, headers = reply() if callable(reply) else reply
                with outer.lock:
                    outer.busy -= 1
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                with contextlib.suppress(BrokenPipeError):  # some clients have given up by now
                    self.wfile.write(data)

            def log_message(self, *args: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"

    @staticmethod
    def colour(body: dict[str, Any]) -> Reply:
        from PIL import Image

        url = body["messages"][0]["content"][1]["image_url"]["url"]
        data = base64.b64decode(url.removeprefix("data:image/jpeg;base64,"))
        red = Image.open(io.BytesIO(data)).getpixel((46, 38))[0]
        return said(f"picture {round(red / 40)} seed {body.get('seed')}")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.delenv(KEY, raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = Server()
    yield server
    server.http.shutdown()
    server.http.server_close()


def teacher(server: Server, config: RemoteConfig = QUICK) -> RemoteTeacher:
    return RemoteTeacher(f"{server.url}#tiny-vlm", config)


def captions(found: RemoteTeacher, count: int = 1, ask: Ask | None = None) -> list[tuple[str, ...]]:
    images = pictures(count)
    return [answer.captions for answer in found.answer(images, [[]] * count, ask or Ask())]


def test_each_picture_gets_its_caption_in_order(server: Server) -> None:
    assert captions(teacher(server), 5) == [(f"picture {n} seed None",) for n in range(5)]
    assert server.most_busy <= QUICK.workers
    request = server.requests[0]
    assert request["model"] == "tiny-vlm"
    assert request["temperature"] == 0
    assert request["max_tokens"] == 20
    assert request["messages"][0]["content"][0] == {"type": "text", "text": QUICK.prompt}
    assert server.paths == ["/v1/chat/completions"] * 5
    assert server.headers[0]["Authorization"] is None


def test_requests_run_at_the_same_time(server: Server) -> None:
    together = threading.Barrier(2, timeout=10)  # each waits for another one to be there

    def reply() -> Reply:
        together.wait()
        return said("here")

    server.script = [reply] * 4
    assert captions(teacher(server), 4) == [("here",)] * 4


def test_samples_differ_by_seed_and_come_again(server: Server) -> None:
    ask = Ask(captions=2, generation=SAMPLED)
    first = captions(teacher(server), 2, ask)
    assert len({caption.split("seed")[1] for of in first for caption in of}) == 4
    assert {(r["temperature"], r["top_p"]) for r in server.requests} == {(0.7, 0.9)}
    assert captions(teacher(server), 2, ask) == first
    alone = teacher(server).answer(pictures(2)[1:], [[]], ask)
    assert alone[0].captions == first[1]


@pytest.mark.parametrize(
    "failure",
    [
        (429, b"slow down", {}),
        (500, b"oops", {}),
        (503, b"", {}),
        (200, b"<html>gateway</html>", {}),
        (200, b"", {}),
        (200, b'{"choices": []}', {}),
        (200, b"[" * 100_000, {}),
        said(None),
        said("  \n "),
        (200, b"x" * (2**20 + 1), {}),
        (200, b"cut", {"Content-Length": "1000"}),
    ],
    ids=["429", "500", "503", "html", "empty", "no-choices", "nested", "null", "blank", "huge", "cut"],
)
def test_what_may_pass_is_asked_again(server: Server, failure: Reply) -> None:
    server.script = [failure, failure]
    assert captions(teacher(server)) == [("picture 0 seed None",)]
    assert len(server.requests) == 3
    assert server.requests[0] == server.requests[2]


def test_pauses_double(server: Server) -> None:
    server.script = [(500, b"", {})] * 3
    captions(teacher(server, RemoteConfig(pause=0.1, timeout=5)))
    pauses = [b - a for a, b in zip(server.times, server.times[1:], strict=False)]
    for pause, least in zip(pauses, (0.1, 0.2, 0.4), strict=True):
        assert pause >= least


def test_the_server_says_how_long_to_wait_and_everybody_does(server: Server) -> None:
    server.script = [(429, b"", {"Retry-After": "1"})]
    found = teacher(server, RemoteConfig(pause=0.01, timeout=5, workers=1))
    assert len(captions(found, 2)) == 2
    assert server.times[1] - server.times[0] >= 0.99


def test_too_long_a_wait_is_an_error(server: Server) -> None:
    server.script = [(429, b"quota", {"Retry-After": "86400"})]
    with pytest.raises(RemoteError, match="asks to wait 86400 s: quota"):
        captions(teacher(server))
    assert len(server.requests) == 1


def test_a_silent_server_times_out_and_is_asked_again(server: Server) -> None:
    def slow() -> Reply:
        time.sleep(0.6)
        return said("late")

    server.script = [slow]
    assert captions(teacher(server, RemoteConfig(pause=0.01, timeout=0.2))) == [("picture 0 seed None",)]
    server.script = [slow] * 2
    with pytest.raises(RemoteError, match=r"after 2 attempts, the last: .*timed out"):
        captions(teacher(server, RemoteConfig(pause=0.01, timeout=0.2, attempts=2)))


def test_no_server_is_an_error_that_names_it() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
        with pytest.raises(RemoteError, match=f"{url}: no answer from 'm' after 2 attempts"):
            captions(RemoteTeacher(f"{url}#m", RemoteConfig(pause=0.01, attempts=2)))


@pytest.mark.parametrize("status", [400, 401, 404, 413])
def test_a_refusal_is_an_error_at_once(server: Server, status: int) -> None:
    server.script = [(status, b'{"error": "no\nsuch model"}', {})]
    with pytest.raises(RemoteError, match=rf'status {status}: {{"error": "no such model"}}'):
        captions(teacher(server))
    assert len(server.requests) == 1


def test_one_failure_stops_the_rest(server: Server) -> None:
    server.script = [(400, b"no", {})]
    with pytest.raises(RemoteError, match="status 400"):
        captions(teacher(server, RemoteConfig(workers=1)), 30)
    assert len(server.requests) < 5


def test_the_key_is_sent_and_told_nobody(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY, "sk-secret")
    found = teacher(server)
    captions(found)
    assert server.headers[0]["Authorization"] == "Bearer sk-secret"
    server.script = [(401, b"bad key", {})]
    with pytest.raises(RemoteError) as error:
        captions(found)
    assert "sk-secret" not in f"{error.value} {found.identity}"


def test_redirects_are_not_followed(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY, "sk-secret")
    server.script = [(302, b"", {"Location": f"{server.url}/elsewhere"})]
    with pytest.raises(RemoteError, match="status 302"):
        captions(teacher(server))
    assert server.paths == ["/v1/chat/completions"]


def test_the_rate_is_kept_over_all_threads(server: Server) -> None:
    captions(teacher(server, RemoteConfig(workers=4, per_minute=600)), 5)  # one in 0.1 s
    assert server.times[-1] - server.times[0] >= 0.39


@pytest.mark.parametrize(
    ("content", "caption"),
    [
        ('"a dog runs"\n', "a dog runs"),
        ("a dog\nruns", "a dog runs"),
        ([{"type": "text", "text": "a dog"}, {"type": "text", "text": " runs"}], "a dog runs"),
        ('the sign says "stop"', 'the sign says "stop"'),
    ],
)
def test_captions_are_one_line_without_quotes_around(server: Server, content: Any, caption: str) -> None:
    server.script = [said(content)]
    assert captions(teacher(server)) == [(caption,)]


def test_large_pictures_are_sent_smaller() -> None:
    from PIL import Image

    for size, expected in (((2000, 1000), (100, 50)), ((60, 90), (60, 90)), ((5000, 2), (100, 1))):
        url = data_url(Image.new("RGB", size), 100)
        data = base64.b64decode(url.removeprefix("data:image/jpeg;base64,"))
        assert Image.open(io.BytesIO(data)).size == expected


def test_retry_after_is_a_number_or_a_date() -> None:
    def parse(value: str) -> float | None:
        message = Message()
        message["Retry-After"] = value
        return retry_after(message)

    assert parse("7") == 7
    later = datetime.now(UTC) + timedelta(seconds=100)
    assert parse(format_datetime(later, usegmt=True)) == pytest.approx(100, abs=3)
    assert parse("Wed, 21 Oct 2015 07:28:00 GMT") == 0
    for odd in ("soon", "", "-5", "1e9", "²"):
        assert parse(odd) is None
    assert retry_after(Message()) is None


def test_identity_tells_servers_models_and_prompts_apart() -> None:
    def identity(url: str, prompt: str = "") -> Any:
        return load_teacher(url, prompt=prompt).identity

    first = identity("http://127.0.0.1:9/v1#a/b:c")
    assert (first.kind, first.name, first.tokenizer, first.vocab_size) == ("openai", "a/b:c", "", 0)
    assert identity("http://127.0.0.1:9/v1/#a/b:c").weights == first.weights
    assert identity("http://127.0.0.1:9/v2#a/b:c").weights != first.weights
    assert identity("http://127.0.0.1:9/v1#a").weights != first.weights
    assert identity("http://127.0.0.1:9/v1#a/b:c", "Say less.").preprocess != first.preprocess


@pytest.mark.parametrize(
    "url", ["http://host/v1", "http:///v1#m", "http://host/v1?key=1#m", "http://me:secret@host/v1#m"]
)
def test_a_url_that_cannot_be_asked_is_refused(url: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_teacher(url)
    assert "secret" not in str(error.value)


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (Ask(captions=2), "only if they are sampled"),
        (Ask(top_k=4), "gives no top_k; it can give captions"),
        (Ask(generation=GenerationConfig(no_repeat_ngram=2)), "generation.no_repeat_ngram=2"),
        (Ask(generation=GenerationConfig(do_sample=True, top_k=5)), "generation.top_k=5"),
    ],
)
def test_what_a_server_cannot_do_is_refused_before_anything_is_sent(
    server: Server, ask: Ask, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        captions(teacher(server), 1, ask)
    assert server.requests == []


@pytest.mark.parametrize(
    "settings", [{"workers": 0}, {"attempts": 0}, {"timeout": 0}, {"pause": -1.0}, {"per_minute": -1.0}]
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="remote"):
        RemoteConfig(**settings)
