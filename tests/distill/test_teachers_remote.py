"""The black box, against a real HTTP server on loopback that misbehaves on demand."""

import base64
import io
import json
import math
import re
import socket
import threading
import time
import traceback
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.message import Message
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from tests.distill.black_box import Reply, Server, said
from tests.distill.tiny_teachers import pictures

from vistill.distill.answers import Answer, Ask
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
ONE_BY_ONE = RemoteConfig(pause=0.01, timeout=5, workers=1)
SAMPLED = GenerationConfig(do_sample=True, num_return=2, temperature=0.7, top_p=0.9, seed=5)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.delenv(KEY, raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = Server()
    yield server
    server.close()


def teacher(server: Server, config: RemoteConfig = QUICK) -> RemoteTeacher:
    return RemoteTeacher(f"{server.url}#tiny-vlm", config)


def captions(found: RemoteTeacher, count: int = 1, ask: Ask | None = None) -> list[tuple[str, ...]]:
    images = pictures(count)
    return [answer.captions for answer in found.answer(images, [[]] * count, ask or Ask())]


def each(found: RemoteTeacher, count: int) -> list[str]:
    """The caption of each picture, or why there is none."""
    answers = found.answer_each(pictures(count), [[]] * count, Ask())
    return [answer if isinstance(answer, str) else answer.captions[0] for answer in answers]


def sent(number: int) -> str:
    """What picture `number` looks like to the server."""
    return data_url(pictures(number + 1)[number], QUICK.longest_side)


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


def test_a_server_that_says_not_to_wait_is_waited_for_all_the_same(server: Server) -> None:
    server.script = [(429, b"", {"Retry-After": "0"})] * 2
    captions(teacher(server, RemoteConfig(pause=0.1, timeout=5)))
    assert server.times[1] - server.times[0] >= 0.1
    assert server.times[2] - server.times[1] >= 0.2


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


@pytest.mark.parametrize("status", [401, 402, 403, 404, 405, 410])
def test_what_concerns_every_request_is_an_error_at_once(server: Server, status: int) -> None:
    server.script = [(status, b'{"error": "no\nsuch model"}', {})]
    with pytest.raises(RemoteError, match=rf'status {status}: {{"error": "no such model"}}'):
        each(teacher(server, ONE_BY_ONE), 30)
    assert len(server.requests) < 5, "one failure stops the rest"


@pytest.mark.parametrize("status", [400, 413, 415, 422])
def test_a_picture_that_is_refused_has_the_reason_for_an_answer(server: Server, status: int) -> None:
    server.of_picture[sent(1)] = (status, b'{"error":\n"not such a picture"}', {})
    reason = f'the server refuses it: status {status}: {{"error": "not such a picture"}}'
    assert each(teacher(server, ONE_BY_ONE), 3) == ["picture 0 seed None", reason, "picture 2 seed None"]
    assert len(server.requests) == 3, "asked once; the answer after it says that the server works"
    with pytest.raises(RemoteError, match=f"picture 2 of 3: the server refuses it: status {status}"):
        captions(teacher(server), 3)


@pytest.mark.parametrize("failure", [(500, b"oops", {}), said(""), (200, b"<html>", {})])
def test_a_picture_that_never_gets_a_caption_has_the_reason_for_an_answer(
    server: Server, failure: Reply
) -> None:
    server.of_picture[sent(0)] = failure
    bad, good = each(teacher(server, RemoteConfig(pause=0.001, attempts=3, workers=1)), 2)
    assert re.match("no caption after 3 attempts, the last: (status 500: oops|the reply )", bad)
    assert good == "picture 1 seed None"
    assert len(server.requests) == 4


def test_a_plain_picture_tells_whether_the_server_works(server: Server) -> None:
    found = teacher(server, ONE_BY_ONE)
    for number in range(3):
        server.of_picture[sent(number)] = (400, b"no", {})
    assert each(found, 3) == ["the server refuses it: status 400: no"] * 3
    assert len(server.requests) == 4, "one plain picture, since no answer came after the last refusal"
    assert each(found, 4)[3] == "picture 3 seed None"
    assert len(server.requests) == 8, "none, since an answer came"


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (
            (400, b"unknown field", {}),
            "status 400: unknown field; a plain grey picture fails as well, so every",
        ),
        (said(""), r"the reply holds no text \(finish_reason None\); a plain grey picture fails as well, so"),
    ],
)
def test_nothing_works_is_an_error_with_what_the_server_said(
    server: Server, reply: Reply, message: str
) -> None:
    found = teacher(server, RemoteConfig(pause=0.001, attempts=2))
    server.always = reply
    with pytest.raises(RemoteError, match=message):
        each(found, 3)
    server.always = None
    assert each(found, 1) == ["picture 0 seed None"]
    server.always = reply
    with pytest.raises(RemoteError, match=message):
        each(found, 1)


def test_a_server_that_is_down_is_no_fault_of_a_picture(server: Server) -> None:
    server.of_picture[sent(0)] = (503, b"", {})
    with pytest.raises(
        RemoteError, match=r"no answer from 'tiny-vlm' after 2 attempts, the last: status 503"
    ):
        each(teacher(server, RemoteConfig(pause=0.001, attempts=2, workers=1)), 2)


@pytest.mark.parametrize(
    ("choice", "reason"),
    [
        ({"message": {"content": None, "refusal": "I\ncannot"}, "finish_reason": "stop"}, "I cannot "),
        ({"message": {"content": ""}, "finish_reason": "content_filter"}, ""),
    ],
)
def test_what_the_model_refuses_is_not_asked_again(
    server: Server, choice: dict[str, Any], reason: str
) -> None:
    server.of_picture[sent(0)] = (200, json.dumps({"choices": [choice]}).encode(), {})
    ended = choice["finish_reason"]
    expected = f"the server refuses it: {reason}(finish_reason {ended!r})"
    assert each(teacher(server, ONE_BY_ONE), 2) == [expected, "picture 1 seed None"]
    assert len(server.requests) == 2


def test_one_missing_caption_of_several_is_a_missing_answer(server: Server) -> None:
    server.script = [said("one"), (400, b"no", {})]
    found = teacher(server, ONE_BY_ONE).answer_each(
        pictures(2), [[]] * 2, Ask(captions=2, generation=SAMPLED)
    )
    assert found[0] == "the server refuses it: status 400: no"
    assert isinstance(found[1], Answer)
    assert len(found[1].captions) == 2


def test_the_key_is_sent_and_told_nobody(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY, "sk-secret")
    found = teacher(server)
    captions(found)
    assert server.headers[0]["Authorization"] == "Bearer sk-secret"
    for status in (400, 401, 429):
        server.script = [(status, b"bad key: sk-secret" + b"." * 400, {"Retry-After": "999"})] * 2
        with pytest.raises(RemoteError, match=rf"status {status}.*: bad key: \*\*\*") as error:
            each(found, 1)
        shown = "".join(traceback.format_exception(error.value))
        assert "sk-secret" not in f"{shown} {found.identity}"


@pytest.mark.parametrize("key", ["sk-sec\nret", "sk-s\N{CYRILLIC SMALL LETTER IE}cret"])
def test_a_key_that_no_header_can_carry_is_refused(monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.setenv(KEY, key)
    with pytest.raises(ConfigError, match=f"{KEY}: holds line breaks") as error:
        load_teacher("http://127.0.0.1:9/v1#m")
    assert key not in str(error.value)


def test_redirects_are_not_followed(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY, "sk-secret")
    server.script = [(302, b"", {"Location": f"{server.url}/elsewhere"})]
    with pytest.raises(RemoteError, match="status 302"):
        captions(teacher(server))
    assert server.paths == ["/v1/chat/completions"]


def test_the_rate_is_kept_over_all_threads(server: Server) -> None:
    started = time.monotonic()
    captions(teacher(server, RemoteConfig(workers=4, per_minute=600)), 5)  # one in 0.1 s
    assert time.monotonic() - started >= 0.39
    assert len(server.times) == 5


@pytest.mark.parametrize(
    ("content", "caption"),
    [
        ('"a dog runs"\n', "a dog runs"),
        ("a dog\nruns", "a dog runs"),
        ([{"type": "text", "text": "a dog"}, {"type": "text", "text": " runs"}], "a dog runs"),
        ('the sign says "stop"', 'the sign says "stop"'),
        ([{"type": "text", "text": None}, "odd", {"type": "text", "text": "a dog"}], "a dog"),
        ("a dog \ud83d", "a dog ?"),
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
    "settings",
    [
        {"workers": 0},
        {"attempts": 0},
        {"timeout": 0},
        {"timeout": math.inf},
        {"pause": -1.0},
        {"per_minute": -1.0},
        {"per_minute": math.nan},
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any]) -> None:
    [(name, value)] = settings.items()
    with pytest.raises(ConfigError, match=f"remote.{name}={value:g}: must be"):
        RemoteConfig(**settings)


def test_settings_are_taken_and_are_no_part_of_who_answers(tmp_path: Path) -> None:
    url = "http://127.0.0.1:9/v1#m"
    found = load_teacher(url, prompt="Say less.", remote={"workers": 9, "per_minute": 30, "timeout": 5.0})
    assert isinstance(found, RemoteTeacher)
    config = found.config
    assert (config.workers, config.per_minute, config.timeout, config.prompt) == (9, 30, 5.0, "Say less.")
    assert found.seconds_apart == 2
    assert found.identity == load_teacher(url, prompt="Say less.").identity
    with pytest.raises(ConfigError, match=r"workers, timeout: only a server, http\(s\)://host/v1#model, has"):
        load_teacher(str(tmp_path), remote={"workers": 9, "timeout": 5.0})
