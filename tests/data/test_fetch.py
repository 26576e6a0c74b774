"""Downloads against a real HTTP server on loopback, killed and gone on with; addresses that are refused."""

import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from tests.killing import kill_and_compare

from vistill.data import download as module
from vistill.data.dataset import build, open_split
from vistill.data.download import DownloadError, Limits, download, is_public
from vistill.data.fetch import FetchConfig, fetch
from vistill.data.sources.conceptual_captions import picture_name
from vistill.errors import ConfigError, DataError

OPEN = Limits(private=True, timeout=2, deadline=5, max_bytes=100_000)
CONFIG = FetchConfig(workers=4, attempts=2, pause=0.01, limits=OPEN)


class Server:
    """Pictures and trouble by path; counts what was asked for."""

    def __init__(self, photo) -> None:
        self.asked: Counter[str] = Counter()
        self.busy_once: set[str] = set()
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                owner.asked[self.path] += 1
                name = self.path.strip("/").partition("?")[0]
                if name.startswith("photo"):
                    self.give(photo(int(name[5:])))
                elif name == "huge":
                    self.give(b"\xff\xd8\xff" + bytes(200_000))
                elif name == "endless":
                    self.send_response(200)
                    self.end_headers()
                    self.wfile.write(bytes(200_000))
                elif name == "half":
                    self.send_response(200)
                    self.send_header("Content-Length", "5000")
                    self.end_headers()
                    self.wfile.write(photo(1)[:100])
                elif name == "html":
                    self.give(b"<html>gone</html>")
                elif name == "pixels":
                    self.give(photo(1, size=(400, 300)))
                elif name == "busy":
                    status = 503 if self.path not in owner.busy_once else 200
                    owner.busy_once.add(self.path)
                    self.give(photo(9), status)
                elif name == "down":
                    self.give(b"", 503)
                elif name == "drip":
                    self.send_response(200)
                    self.end_headers()
                    for _ in range(100):
                        self.wfile.write(b"x")
                        time.sleep(0.1)
                elif name == "moved":
                    self.send_response(302)
                    self.send_header("Location", "/photo2")
                    self.end_headers()
                elif name == "circle":
                    self.send_response(301)
                    self.send_header("Location", "/circle")
                    self.end_headers()
                elif name.startswith("to/"):
                    self.send_response(307)
                    self.send_header("Location", name[3:])
                    self.end_headers()
                else:
                    self.give(b"", 404)

            def give(self, data: bytes, status: int = 200) -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def handle(self) -> None:
                try:
                    super().handle()
                except ConnectionError:
                    owner.asked["cut"] += 1  # the client had enough

            def log_message(self, *words: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.http.server_address[1]
        self.base = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()


@pytest.fixture
def server(photo) -> Iterator[Server]:
    found = Server(photo)
    yield found
    found.http.shutdown()
    found.http.server_close()


def write_list(path: Path, base: str, names: list[str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"a caption of {name}\t{base}/{name}\n" for name in names))
    return path


def test_fetch_then_build(server: Server, tmp_path: Path, photo) -> None:
    names = ["photo1", "moved", "gone", "html", "huge", "photo3?a=b c", "busy", "down", "photo1", "pixels"]
    tsv = write_list(tmp_path / "Train_GCC-training.tsv", server.base, names)
    tsv.write_text(tsv.read_text() + "no tab\n")
    config = FetchConfig(workers=4, attempts=2, pause=0.01, max_pixels=10_000, limits=OPEN)
    ends: list[tuple[int, int]] = []
    out = tmp_path / "out"
    found = fetch(tsv, out, config, progress=lambda done, total: ends.append((done, total)))
    failed = {
        "status_404": 1,
        "image_not_an_image": 1,
        "too_many_bytes": 1,
        "later_status_503": 1,
        "image_too_many_pixels": 1,
    }
    assert (found.fetched, found.there, found.blocked, found.bad_rows) == (4, 0, 0, 1)
    assert found.failed == failed
    assert server.asked["/down"] == 2
    assert server.asked["/photo1"] == 1, "an address in two rows is asked for once"
    assert ends[-1][0] == ends[-1][1]
    assert sorted(line.split("\t")[1] for line in (out / "blocklist.txt").read_text().splitlines()) == sorted(
        reason for reason in failed if not reason.startswith("later_")
    )
    name = picture_name(f"{server.base}/photo1")
    assert (out / "pictures" / name[:2] / f"{name}.jpg").read_bytes() == photo(1)

    before = Counter(server.asked)
    again = fetch(tsv, out, config)
    assert (again.fetched, again.there, again.blocked) == (0, 4, 4)
    assert again.failed == {"later_status_503": 1}
    assert server.asked - before == Counter({"/down": 2}), "nothing but what may work now is asked for"

    report = build("conceptual_captions", out, tmp_path / "built")
    rows = {row["key"]: row["captions"] for row in open_split(tmp_path / "built", "train")}
    assert rows[name] == ["a caption of photo1", "a caption of photo1"]
    assert len(rows) == 4
    assert report["dropped"]["counts"] == {"missing_picture": 5, "bad_row": 1}


def test_blocklists_of_others(server: Server, tmp_path: Path) -> None:
    tsv = write_list(tmp_path / "list.tsv", server.base, ["photo1", "photo2"])
    (tmp_path / "bad.txt").write_text(f"# known to be dead\n{server.base}/photo1\twhy\n")
    found = fetch(tsv, tmp_path / "out", CONFIG, blocklists=[tmp_path / "bad.txt"])
    assert (found.fetched, found.blocked) == (1, 1)
    assert server.asked == Counter({"/photo2": 1})
    with pytest.raises(DataError, match="no such file; expected a blocklist"):
        fetch(tsv, tmp_path / "out", CONFIG, blocklists=[tmp_path / "none.txt"])
    with pytest.raises(DataError, match="no such file; expected captions and addresses"):
        fetch(tmp_path / "none.tsv", tmp_path / "out", CONFIG)


def test_a_blocklist_that_a_kill_cut_off(server: Server, tmp_path: Path) -> None:
    tsv = write_list(tmp_path / "list.tsv", server.base, ["gone", "missing"])
    fetch(tsv, tmp_path / "out", FetchConfig(workers=1, limits=OPEN))
    whole = (tmp_path / "out" / "blocklist.txt").read_bytes()
    (tmp_path / "out" / "blocklist.txt").write_bytes(whole[:-5])
    found = fetch(tsv, tmp_path / "out", FetchConfig(workers=1, limits=OPEN))
    assert (found.blocked, found.failed) == (1, {"status_404": 1})
    assert (tmp_path / "out" / "blocklist.txt").read_bytes() == whole


def test_killed_and_gone_on(server: Server, tmp_path: Path) -> None:
    tsv = write_list(tmp_path / "list.tsv", server.base, ["photo1", "gone", "photo2", "moved", "html"])
    target = tmp_path / "runs"
    target.mkdir()
    config = FetchConfig(workers=1, pause=0, limits=OPEN)
    assert kill_and_compare(lambda out: fetch(tsv, out, config), target, 7, 6, again_before=10) > 20


# One download


@pytest.mark.parametrize(
    ("name", "reason", "final"),
    [
        ("gone", "status_404", True),
        ("down", "status_503", False),
        ("huge", "too_many_bytes", True),
        ("endless", "too_many_bytes", True),
        ("half", "incomplete", False),
        ("circle", "too_many_redirects", True),
        ("to/file:///etc/passwd", "bad_url", True),
        ("to/http://nobody@127.0.0.1/", "bad_url", True),
    ],
)
def test_what_fails(server: Server, name: str, reason: str, final: bool) -> None:
    with pytest.raises(DownloadError) as caught:
        download(f"{server.base}/{name}", OPEN)
    assert (caught.value.reason, caught.value.final) == (reason, final)


def test_a_server_that_drips_is_cut_off(server: Server) -> None:
    with pytest.raises(DownloadError, match=r"^too_slow") as caught:
        download(f"{server.base}/drip", Limits(private=True, timeout=5, deadline=0.5))
    assert not caught.value.final


def test_nobody_listens(server: Server) -> None:
    server.http.server_close()
    with pytest.raises(DownloadError, match=r"^connection: ") as caught:
        download(f"{server.base}/photo1", OPEN)
    assert not caught.value.final


@pytest.mark.parametrize(
    "url", ["ftp://example.org/a", "http:///a", "http://host:port/", "file:///etc/passwd", "", "http://a..b/"]
)
def test_addresses_that_are_none(url: str) -> None:
    with pytest.raises(DownloadError, match=r"^bad_url"):
        download(url, OPEN)


def test_private_addresses_are_refused(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for host in ("127.0.0.1", "localhost", "0177.0.0.1", "2130706433", "[::1]"):
        with pytest.raises(DownloadError, match=r"private_address|no_such_host"):
            download(f"http://{host}:{server.port}/photo1", Limits())
    assert not server.asked
    # A public server that redirects into the network: only what this one address looks like is changed.
    monkeypatch.setattr(module, "is_public", lambda address: address == "127.0.0.1")
    assert download(f"{server.base}/moved", Limits())
    with pytest.raises(DownloadError, match=r"private_address: 127\.0\.0\.2"):
        download(f"{server.base}/to/http://127.0.0.2:{server.port}/photo1", Limits())


def test_a_host_with_one_private_address_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = [(0, 0, 0, "", ("93.184.216.34", 80)), (0, 0, 0, "", ("10.0.0.1", 80))]
    monkeypatch.setattr(module.socket, "getaddrinfo", lambda *args, **words: answer)
    with pytest.raises(DownloadError, match=r"private_address: example\.org is 10\.0\.0\.1"):
        download("http://example.org/", Limits())


@pytest.mark.parametrize(
    "address", ["93.184.216.34", "2606:2800:220:1::1", "64:ff9b::808:808", "2002:808:808::1"]
)
def test_public(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    "address",
    "127.0.0.1 10.1.2.3 172.16.0.1 192.168.1.1 169.254.169.254 100.64.0.1 0.0.0.0 224.0.0.1 255.255.255.255 "
    "240.0.0.1 ::1 :: fe80::1 fe80::1%eth0 fc00::1 fec0::1 ff02::1 ::ffff:10.0.0.1 ::10.0.0.1 2002:a00:1:: "
    "64:ff9b::10.0.0.1 64:ff9b:1::a00:1 2001::1 2001:db8::1 nonsense".split(),
)
def test_not_public(address: str) -> None:
    assert not is_public(address)


def test_settings_are_checked() -> None:
    with pytest.raises(ConfigError, match="workers must be at least 1"):
        FetchConfig(workers=0)
    with pytest.raises(ConfigError, match="pause must be 0 or more"):
        FetchConfig(pause=-1)
    with pytest.raises(ConfigError, match="max_bytes, timeout and deadline"):
        Limits(max_bytes=0)
