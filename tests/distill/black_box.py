"""A real HTTP server on loopback that speaks chat completions and misbehaves on demand."""

import base64
import contextlib
import io
import json
import threading
import time
from collections.abc import Callable
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from PIL import Image

Reply = tuple[int, bytes, dict[str, str]]


def said(text: Any) -> Reply:
    return 200, json.dumps({"choices": [{"message": {"content": text}}]}).encode(), {}


class Server:
    """Answers with the colour of the picture; `script` holds replies to be given first, or functions.

    `of_picture` holds the replies to pictures, by what `data_url` makes of them; `always` goes before it.
    """

    def __init__(self) -> None:
        self.script: list[Reply | Callable[[], Reply]] = []
        self.of_picture: dict[str, Reply] = {}
        self.always: Reply | None = None
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
                    reply = outer.script.pop(0) if outer.script else outer.usual(body)
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
    def picture(body: dict[str, Any]) -> str:
        url: str = body["messages"][0]["content"][1]["image_url"]["url"]
        return url

    def usual(self, body: dict[str, Any]) -> Reply:
        url = self.picture(body)
        if self.always or url in self.of_picture:
            return self.always or self.of_picture[url]
        data = base64.b64decode(url.removeprefix("data:image/jpeg;base64,"))
        red = Image.open(io.BytesIO(data)).getpixel((46, 38))[0]
        return said(f"picture {round(red / 40)} seed {body.get('seed')}")

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()
