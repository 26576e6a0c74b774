"""A black box as a teacher: any server that speaks OpenAI's chat completions. It gives captions only.

Each caption is one request with one picture, so it works with servers that know no `n` and no batches; a few
requests run at the same time. What is busy, slow or garbled is asked again after a pause that doubles. What
concerns every request (key, address, model, no connection) is an error at once; what may be the fault of one
picture is that picture's, as long as the server answers about others (`answer_each`). A run that stops keeps
what its cache has written and goes on there.
"""

import base64
import hashlib
import io
import json
import math
import os
import random
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from datetime import datetime
from email.message import Message
from email.utils import parsedate_to_datetime
from http.client import HTTPException
from typing import Any

from PIL import Image

from vistill.distill.answers import Answer, Ask, TeacherIdentity, check_able
from vistill.distill.teachers_common import picture_seed, settings_hash
from vistill.errors import ConfigError, VistillError

KEY = "VISTILL_API_KEY"
"""Environment variable with the key, sent as bearer token. It is written nowhere."""
PROMPT = "Describe this picture in one short sentence. Answer with the sentence alone."
BUSY = (408, 409, 425, 429, 500, 502, 503, 504, 529)
"""Statuses after which the same request may succeed later."""
OF_THE_PICTURE = (400, 413, 415, 422)
"""Statuses that may be about this picture alone: its size, its kind, what it shows."""
SERVER_BROKE = 500
"""The status of BUSY that may be about this picture, if it comes after all attempts."""
MOST_BYTES = 2**20
"""Longest reply that is read."""
LONGEST_PAUSE = 120.0
"""Seconds that a pause may last; a server that asks for more is not waited for."""
SHORTEST_KEY = 8
"""Characters of a key that is hidden where a server repeats it; shorter ones stand in for none."""


class RemoteError(VistillError):
    """A server that refuses a request, or that gives no usable answer after all attempts."""


@dataclass(frozen=True)
class NoCaption:
    """Why there is no caption of one picture."""

    reason: str


@dataclass(frozen=True)
class RemoteConfig:
    """How a server is asked."""

    prompt: str = PROMPT
    """What it is told beside the picture."""
    workers: int = 4
    """Requests at the same time."""
    per_minute: float = 0.0
    """Most requests a minute, evenly spread; 0 sets no limit."""
    timeout: float = 60.0
    """Seconds without a byte after which a request counts as failed."""
    attempts: int = 6
    """How often a request is sent before it is an error."""
    pause: float = 1.0
    """Seconds before the second attempt; doubled (with up to half more at random) before each further one."""
    longest_side: int = 768
    """Larger pictures are scaled down to this many pixels before they are sent as JPEG."""

    def __post_init__(self) -> None:
        for name in ("workers", "attempts", "longest_side"):
            if getattr(self, name) < 1:
                raise ConfigError(f"remote.{name}={getattr(self, name)}: must be at least 1")
        for name in ("pause", "per_minute"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"remote.{name}={getattr(self, name):g}: must be 0 or more")
        if not 0 < self.timeout < math.inf:
            raise ConfigError(f"remote.timeout={self.timeout:g}: must be above 0")


class RemoteTeacher:
    """The model behind `http(s)://host/v1#model`. Raises ConfigError for a URL or key that cannot be one.

    Greedy unless `generation.do_sample`; beams, and penalties on lengths, do not exist there. Whether asking
    twice gives the same is up to the server: temperature 0 or a seed of the picture's own is all we can send.
    """

    can = frozenset({"captions"})

    def __init__(self, url: str, config: RemoteConfig | None = None) -> None:
        self.config = config or RemoteConfig()
        self.url, self.model = _split(url)
        self.key = _key()
        self.pace = Pace(self.config.per_minute)
        self.seconds_apart = self.pace.between
        self.works = False  # whether the request that ended last got its caption
        self.opener = urllib.request.build_opener(_NoRedirect)
        sent = {"prompt": self.config.prompt, "longest_side": self.config.longest_side}
        self.identity = TeacherIdentity(
            kind="openai",
            name=self.model,
            weights=hashlib.sha256(f"{self.url}#{self.model}".encode()).hexdigest(),
            preprocess=settings_hash(sent),
            tokenizer="",
            vocab_size=0,
            details={"url": self.url, "prompt": self.config.prompt},
        )

    def answer(self, images: Sequence[Image.Image], gold: Sequence[Sequence[str]], ask: Ask) -> list[Answer]:
        """See `Teacher.answer`. ConfigError for what it cannot make, RemoteError if there is a picture
        without an answer."""
        answers = []
        for number, found in enumerate(self._ask(images, ask), 1):
            if isinstance(found, NoCaption):
                raise RemoteError(f"{self.url}: picture {number} of {len(images)}: {found.reason}")
            answers.append(found)
        return answers

    def answer_each(
        self, images: Sequence[Image.Image], gold: Sequence[Sequence[str]], ask: Ask
    ) -> list[Answer | str]:
        """As `answer`, but a picture that the server gives no caption of has the reason in its place.

        A failure is the picture's own if the server gives an answer after it: to another picture of the batch
        or else to a plain grey one, which is shown to it then. If that fails too, so would every request: a
        RemoteError with what the server said.
        """
        found = self._ask(images, ask)
        first = next((one.reason for one in found if isinstance(one, NoCaption)), "")
        if first and not self.works:
            plain = self._caption(Image.new("RGB", (224, 224), (128, 128, 128)), 0, ask, threading.Event())
            if isinstance(plain, NoCaption):
                same = "" if plain.reason == first else f" ({plain.reason})"
                raise RemoteError(
                    f"{self.url}: {first}; a plain grey picture fails as well{same}, so every picture would: "
                    f"see that {self.model!r} reads pictures and takes the request, then run again"
                )
        return [one.reason if isinstance(one, NoCaption) else one for one in found]

    def _ask(self, images: Sequence[Image.Image], ask: Ask) -> list[Answer | NoCaption]:
        """Each picture's captions, or the reason why one is missing. Raises what `answer_each` raises."""
        check_able(self, ask)
        _check_search(ask)
        stop = threading.Event()
        with ThreadPoolExecutor(self.config.workers) as pool:
            try:
                jobs = []
                for image in images:
                    image.load()  # here, since several threads read it
                    of_one = range(ask.captions)
                    jobs.append([pool.submit(self._caption, image, number, ask, stop) for number in of_one])
                wait([job for of in jobs for job in of], return_when=FIRST_EXCEPTION)
                failed = [job for of in jobs for job in of if job.done() and job.exception()]
                if failed:
                    failed[0].result()
                return [_joined([job.result() for job in of]) for of in jobs]
            finally:  # what waits or pauses now would fail as well
                stop.set()
                pool.shutdown(cancel_futures=True)

    def _caption(self, image: Image.Image, number: int, ask: Ask, stop: threading.Event) -> str | NoCaption:
        """One caption, asked for until it comes, or why it does not; RemoteError if no other would come."""
        body = json.dumps(self._request(image, number, ask)).encode()
        for attempt in range(1, self.config.attempts + 1):
            self.pace.wait(stop)
            if stop.is_set():
                break
            try:
                caption = read_reply(self._send(body))
                self.works = True
                return caption
            except _RefusedError as error:
                self.works = False
                return NoCaption(f"the server refuses it: {self._masked(str(error))}")
            except (_BusyError, OSError, HTTPException) as error:  # OSError: no connection, or time is up
                self.works = False
                after = error.after if isinstance(error, _BusyError) else None
                if attempt == self.config.attempts or (after or 0) > LONGEST_PAUSE:
                    last = f"after {attempt} attempts, the last: {self._masked(str(error))}"
                    if isinstance(error, _BusyError) and error.of_picture:
                        return NoCaption(f"no caption {last}")
                    raise RemoteError(
                        f"{self.url}: no answer from {self.model!r} {last}; "
                        "start again later, or with fewer workers"
                    ) from None  # what the server said is in the message, without the key
                if after is not None:
                    self.pace.hold(after)
                pause = self.config.pause * 2 ** (attempt - 1) * (1 + random.random() / 2)
                stop.wait(min(pause, LONGEST_PAUSE))
        raise RemoteError(f"{self.url}: stopped, since another request failed")

    def _request(self, image: Image.Image, number: int, ask: Ask) -> dict[str, Any]:
        config = ask.generation
        picture = {"type": "image_url", "image_url": {"url": data_url(image, self.config.longest_side)}}
        request = {
            "model": self.model,
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": self.config.prompt}, picture]}
            ],
            "max_tokens": config.max_new_tokens,
            "temperature": config.temperature if config.do_sample else 0,
        }
        if config.do_sample:
            # 31 bits: what every server takes for a seed
            request |= {
                "top_p": config.top_p,
                "seed": picture_seed(config.seed + number, image) & (2**31 - 1),
            }
        return request

    def _send(self, body: bytes) -> bytes:
        """Send one request. _BusyError for what may succeed later, _RefusedError for what will not with this
        picture, RemoteError for what will not with any."""
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        request = urllib.request.Request(f"{self.url}/chat/completions", body, headers)
        try:
            with self.opener.open(request, timeout=self.config.timeout) as reply:
                data: bytes = reply.read(MOST_BYTES + 1)
        except urllib.error.HTTPError as error:
            with error:
                said = _line(self._masked(error.read(2000).decode("utf-8", "replace"))) or error.reason
            if error.code in BUSY:
                after = retry_after(error.headers)
                asked = f", asks to wait {after:.0f} s" if after is not None else ""
                raise _BusyError(
                    f"status {error.code}{asked}: {said}", after, of_picture=error.code == SERVER_BROKE
                ) from error
            if error.code in OF_THE_PICTURE:
                raise _RefusedError(f"status {error.code}: {said}") from error
            hint = f"; set {KEY}" if error.code == 401 and not self.key else ""
            raise RemoteError(f"{self.url} refuses the request: status {error.code}: {said}{hint}") from None
        if len(data) > MOST_BYTES:
            raise _BusyError(f"a reply of more than {MOST_BYTES:,} bytes", of_picture=True)
        return data

    def _masked(self, text: str) -> str:
        """A text without the key, which some servers repeat when they refuse it."""
        return text.replace(self.key, "***") if len(self.key) >= SHORTEST_KEY else text


class Pace:
    """Spreads the requests of all threads evenly over time, and holds them when a server asks for it."""

    def __init__(self, per_minute: float) -> None:
        self.between = 60 / per_minute if per_minute else 0.0
        self.next = 0.0
        self._lock = threading.Lock()

    def wait(self, stop: threading.Event) -> None:
        """Sleep until the next request may be sent, or until `stop` is set."""
        while not stop.is_set():
            with self._lock:
                now = time.monotonic()
                if now >= self.next:
                    self.next = now + self.between
                    return
                rest = self.next - now
            stop.wait(rest)

    def hold(self, seconds: float) -> None:
        """Let nothing be sent for so long."""
        with self._lock:
            self.next = max(self.next, time.monotonic() + seconds)


def read_reply(data: bytes) -> str:
    """The caption in the JSON of a chat completion, on one line.

    _RefusedError if the model refuses to say something, _BusyError if there is no caption for another reason.
    """
    try:
        choice = json.loads(data)["choices"][0]
        content, refusal = choice["message"].get("content"), choice["message"].get("refusal")
        ended = choice.get("finish_reason")
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
        raise _BusyError(f"the reply is no chat completion: {data[:200]!r}", of_picture=True) from error
    if isinstance(content, list):  # some servers answer in parts, as they are asked
        texts = [part.get("text") for part in content if isinstance(part, dict)]
        content = "".join(text for text in texts if isinstance(text, str))
    caption = " ".join(content.split()) if isinstance(content, str) else ""
    if len(caption) > 1 and caption[0] == caption[-1] == '"':
        caption = caption[1:-1].strip()
    if caption:
        return caption.encode("utf-8", "replace").decode()  # JSON can spell halves of characters
    if refusal or ended == "content_filter":
        raise _RefusedError(f"{_line(str(refusal or ''))} (finish_reason {ended!r})".strip())
    raise _BusyError(f"the reply holds no text (finish_reason {ended!r})", of_picture=True)


def data_url(image: Image.Image, longest_side: int) -> str:
    """An RGB picture as `data:image/jpeg;base64,...`, at most `longest_side` pixels wide and high."""
    scale = longest_side / max(image.size)
    if scale < 1:
        width, height = (max(1, round(side * scale)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def retry_after(headers: Message) -> float | None:
    """Seconds that `Retry-After` asks for (a number, or a date); None if it is missing or makes no sense."""
    value = (headers.get("Retry-After") or "").strip()
    if value.isascii() and value.isdigit():
        return float(value)
    try:
        date = parsedate_to_datetime(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return max(0.0, (date - datetime.now(date.tzinfo)).total_seconds())


def _joined(captions: Sequence[str | NoCaption]) -> Answer | NoCaption:
    """The answer of all captions of a picture, or what the first missing one is missing for."""
    missing = [caption for caption in captions if isinstance(caption, NoCaption)]
    there = tuple(caption for caption in captions if isinstance(caption, str))
    return missing[0] if missing else Answer(captions=there)


def _line(text: str) -> str:
    """A server's words on one line, the first 300 characters."""
    return " ".join(text.split())[:300]


class _RefusedError(Exception):
    """A request that will not succeed, perhaps because of its picture."""


class _BusyError(Exception):
    """An attempt that failed in a way that may pass; `after` seconds, if the server said so.

    of_picture: whether the picture may be the reason, if it does not pass.
    """

    def __init__(self, reason: str, after: float | None = None, *, of_picture: bool = False) -> None:
        super().__init__(reason)
        self.after = after
        self.of_picture = of_picture


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect is an error: following it would hand picture and key to a host that nobody named."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


def _key() -> str:
    """The key of the environment. ConfigError, without showing it, if no header could carry it."""
    key = os.environ.get(KEY, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise ConfigError(f"{KEY}: holds line breaks or other characters that no key has; set it anew")
    return key


def _split(url: str) -> tuple[str, str]:
    """(base URL, model name) of `http(s)://host/v1#model`."""
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or not parts.fragment or parts.query:
        raise ConfigError(f"teacher {url!r}: expected http(s)://host/v1#model")
    if parts.username or parts.password:
        raise ConfigError(f"teacher: keep the key out of the URL and set {KEY} instead")
    base = urllib.parse.urlunsplit((parts.scheme, parts.netloc, parts.path.rstrip("/"), "", ""))
    return base, urllib.parse.unquote(parts.fragment)


def _check_search(ask: Ask) -> None:
    config = ask.generation
    if ask.captions > 1 and not config.do_sample:
        raise ConfigError(
            f"ask.captions={ask.captions}: a server gives several different captions only if they are sampled"
        )
    for name, off in (("top_k", 0), ("no_repeat_ngram", 0), ("repetition_penalty", 1.0)):
        if getattr(config, name) != off:
            raise ConfigError(
                f"generation.{name}={getattr(config, name)}: an OpenAI-shaped server has no such"
            )
