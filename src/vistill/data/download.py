"""One download from an address that nobody vouches for: http and https, public hosts, bounded bytes and time.

A list of addresses may hold ones of the machine's own network, and a public server may redirect there. So the
name is resolved here, every address it has must be public, the connection goes to exactly the address that
was checked, and each redirect is checked anew. Proxies of the environment are not used.
"""

import http.client
import ipaddress
import socket
import ssl
import threading
import urllib.parse
from dataclasses import dataclass

from vistill.errors import ConfigError, VistillError

AGENT = "Mozilla/5.0 (compatible; vistill; +https://pypi.org/project/vistill)"
REDIRECTS = (301, 302, 303, 307, 308)
LATER = (408, 425, 429, 500, 502, 503, 504)
"""Statuses after which the same request may succeed later."""
_CHUNK = 2**16


class DownloadError(VistillError):
    """A download that failed: `reason` in one word, `final` unless the same may work later."""

    def __init__(self, reason: str, detail: str, *, final: bool) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.final = final


@dataclass(frozen=True)
class Limits:
    """How much a download may take. timeout: seconds without a byte; deadline: seconds for one request.

    private: also addresses of the machine and its network, for servers of your own.
    """

    max_bytes: int = 20 * 2**20
    timeout: float = 10.0
    deadline: float = 60.0
    redirects: int = 5
    private: bool = False

    def __post_init__(self) -> None:
        if self.max_bytes < 1 or self.timeout <= 0 or self.deadline <= 0 or self.redirects < 0:
            raise ConfigError("max_bytes, timeout and deadline must be above 0, redirects 0 or more")


def is_public(address: str) -> bool:
    """Whether an IP address is one of the public internet.

    `ipaddress.is_global` of Python 3.11 takes IPv6 forms of private IPv4 addresses for public ones, so those
    forms are looked into (mapped, 6to4, NAT64) or refused (IPv4-compatible, Teredo, local NAT64).
    """
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address):
        if any(ip in network for network in _REFUSED):
            return False
        inner = ip.ipv4_mapped or ip.sixtofour
        if ip in _NAT64:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
    return ip.is_global and not (ip.is_multicast or ip.is_reserved or ip.is_unspecified)


_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_REFUSED = tuple(map(ipaddress.IPv6Network, ("::/96", "2001::/32", "64:ff9b:1::/48", "fec0::/10")))


def download(url: str, limits: Limits) -> bytes:
    """The bytes behind an address. Raises DownloadError, and nothing else that a server could cause."""
    for _ in range(limits.redirects + 1):
        answer = _request(url, limits)
        if isinstance(answer, bytes):
            return answer
        url = answer
    raise DownloadError("too_many_redirects", f"more than {limits.redirects}, the last to {url}", final=True)


def _request(url: str, limits: Limits) -> bytes | str:
    """The bytes, or the address that the server redirects to."""
    secure, host, port, target = _split(url)
    address = _resolve(host, port, limits)
    connection = _Connection(host, port, address, limits, secure)
    headers = {"User-Agent": AGENT, "Accept": "image/*,*/*;q=0.1", "Accept-Encoding": "identity"}
    try:
        connection.request("GET", target, headers=headers)
        response = connection.getresponse()
        location = response.headers.get("Location")
        if response.status in REDIRECTS and location:
            return urllib.parse.urljoin(url, location)
        if response.status != 200:
            final = response.status not in LATER
            raise DownloadError(f"status_{response.status}", response.reason, final=final)
        data = _body(response, limits)
        if connection.expired.is_set():  # without a stated length a body that was cut looks whole
            raise TimeoutError("the deadline is over")
        return data
    except DownloadError:
        raise
    except ssl.SSLCertVerificationError as error:
        raise DownloadError("certificate", f"{url}: {error.verify_message}", final=True) from error
    except (OSError, http.client.HTTPException, ValueError) as error:  # ValueError: headers that are none
        reason = (
            "too_slow" if connection.expired.is_set() or isinstance(error, TimeoutError) else "connection"
        )
        raise DownloadError(reason, f"{url}: {type(error).__name__}: {error}", final=False) from error
    finally:
        connection.timer.cancel()
        connection.close()


def _body(response: http.client.HTTPResponse, limits: Limits) -> bytes:
    """The body, at most `max_bytes` of it. Raises DownloadError if it is longer or ends too early."""
    stated = response.length  # None where the server does not say
    data = bytearray()
    while stated is None or stated <= limits.max_bytes:
        chunk = response.read1(_CHUNK)
        data += chunk
        if not chunk or len(data) > limits.max_bytes:
            break
    if (stated or 0) > limits.max_bytes or len(data) > limits.max_bytes:
        raise DownloadError("too_many_bytes", f"more than {limits.max_bytes:,}", final=True)
    if stated is not None and len(data) < stated:
        raise DownloadError("incomplete", f"{len(data):,} of {stated:,} bytes came", final=False)
    return bytes(data)


def _split(url: str) -> tuple[bool, str, int, str]:
    """(whether https, host in ASCII, port, path with query) of an address. Raises DownloadError."""
    try:
        parts = urllib.parse.urlsplit(url)
        host = (parts.hostname or "").encode("idna").decode()
        port = parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError as error:  # a port that is no number, a host that is none
        raise DownloadError("bad_url", f"{url[:200]!r}: {error}", final=True) from error
    if parts.scheme not in ("http", "https") or not host or parts.username or parts.password:
        raise DownloadError("bad_url", f"{url[:200]!r} is not http(s)://host/path", final=True)
    target = urllib.parse.urlunsplit(("", "", parts.path or "/", parts.query, ""))
    return parts.scheme == "https", host, port, urllib.parse.quote(target, safe="/%:@!$&'()*+,;=~?-._")


def _resolve(host: str, port: int, limits: Limits) -> str:
    """An address of a host, all of whose addresses are public. Raises DownloadError."""
    try:
        found = [str(info[4][0]) for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    except socket.gaierror as error:
        final = error.errno != socket.EAI_AGAIN
        raise DownloadError("no_such_host", f"{host}: {error.strerror}", final=final) from error
    except (OSError, ValueError) as error:
        raise DownloadError("no_such_host", f"{host}: {error}", final=True) from error
    private = [address for address in found if not is_public(address)]
    if private and not limits.private:
        raise DownloadError("private_address", f"{host} is {private[0]}", final=True)
    return found[0]


class _Connection(http.client.HTTPConnection):
    """A connection to one address under the name of its host, which the deadline cuts."""

    def __init__(self, host: str, port: int, address: str, limits: Limits, secure: bool) -> None:
        super().__init__(host, port, timeout=limits.timeout)
        self.default_port = 443 if secure else 80  # decides whether the Host header names the port
        self.address, self.secure = address, secure
        self.cut: socket.socket | None = None
        self.expired = threading.Event()
        self.timer = threading.Timer(limits.deadline, self._expire)
        self.timer.daemon = True

    def connect(self) -> None:
        self.timer.start()
        self.sock = self.cut = socket.create_connection((self.address, self.port), self.timeout)
        if self.secure:
            context = ssl.create_default_context()
            self.sock = self.cut = context.wrap_socket(self.sock, server_hostname=self.host)

    def _expire(self) -> None:
        self.expired.set()
        if self.cut is not None:  # the base class forgets `sock` while the answer is still read
            try:
                self.cut.shutdown(socket.SHUT_RDWR)
            except OSError:
                return  # it ended just now
