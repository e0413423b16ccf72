"""One picture over HTTP, bounded in time, bytes and reach, and only where its owner has not opted out.

img2dataset's own fetch limits the time of a socket operation only (a server that drips never ends), reads any number of
bytes, follows redirects into private networks and knows a part of the opt-out signals. This one replaces it inside
img2dataset's downloader (bigdiff.prep.img2dataset_rows). The resolution of a host name is bounded by the system's
resolver alone.
"""

import http.client
import io
import ipaddress
import socket
import ssl
import time
import urllib.parse
import urllib.request
from email.message import Message
from email.utils import parsedate_to_datetime
from functools import cache, partial
from typing import Any, Final

from bigdiff.config.prep import Download
from bigdiff.prep.politeness import turns

_CHUNK: Final = 1 << 16  # bytes
_RETRYABLE_STATUS: Final = frozenset({408, 425, 429, 500, 502, 503, 504})
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
# Directives of X-Robots-Tag that carry a value after a colon, so that the word before it is not a robot's name.
_VALUED: Final = frozenset({"unavailable_after", "max-snippet", "max-image-preview", "max-video-preview"})
TIMED_OUT: Final = "timed out"
TOO_LONG: Final = "deadline passed"
OPTED_OUT: Final = "opted out: "
PRIVATE: Final = "private address"
_PORTS: Final = {"http": 80, "https": 443}
_NAT64: Final = ipaddress.ip_network("64:ff9b::/96")
# The first that fits; a subclass stands before its base.
_CAUSES: Final[tuple[tuple[type[Exception], str], ...]] = (
    (ssl.SSLError, "TLS failed"),
    (socket.gaierror, "name not resolved"),
    (ConnectionRefusedError, "connection refused"),
    (ConnectionError, "connection reset"),
    (http.client.InvalidURL, "unusable URL"),
    (http.client.IncompleteRead, "short body"),
    (http.client.HTTPException, "broken answer"),
    (OSError, "connection failed"),
    (ValueError, "unusable URL"),
)


class FetchError(Exception):
    """Why a picture was not fetched; the message is a cause out of a small set, fit for counting."""

    def __init__(self, cause: str, *, status: int | None = None, wait: float | None = None) -> None:
        super().__init__(cause)
        self.cause = cause
        self.status = status
        self.wait = wait  # seconds, from Retry-After

    @property
    def retryable(self) -> bool:
        """Whether another try may succeed."""
        return self.cause in (TIMED_OUT, TOO_LONG, "connection reset") or self.status in _RETRYABLE_STATUS


def is_retryable(cause: str) -> bool:
    """The same, from a stored cause."""
    status = cause.removeprefix("HTTP ")
    return FetchError(cause, status=int(status) if cause.startswith("HTTP ") else None).retryable


def fetch(url: str, limits: Download) -> bytes:
    """The bytes behind `url`, after at most `limits.max_redirects` redirects.

    Raises:
        FetchError: with the cause.
    """
    deadline = time.monotonic() + limits.deadline_seconds
    for _ in range(limits.max_redirects + 1):
        try:
            with turns(limits.per_host).at(urllib.parse.urlsplit(url).hostname or "") as waited:
                deadline += waited
                answer = _get(url, limits, deadline)
        except TimeoutError as error:
            raise FetchError(TOO_LONG if time.monotonic() >= deadline else TIMED_OUT) from error
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise FetchError(next(cause for kind, cause in _CAUSES if isinstance(error, kind))) from error
        if isinstance(answer, bytes):
            return answer
        url = urllib.parse.urljoin(url, answer)
    raise FetchError("too many redirects")


def fetch_patiently(url: str, limits: Download, tries: int) -> bytes:
    """`fetch`, tried again after a retryable status, waiting as the server asks (bounded) or half a second, one, two...

    A server that says nothing is not asked again here: it has had two passes.

    Raises:
        FetchError: that of the last try.
    """
    for attempt in range(1, tries):
        try:
            return fetch(url, limits)
        except FetchError as error:
            if error.status not in _RETRYABLE_STATUS:
                raise
            asked = error.wait if error.wait is not None else 0.5 * 2 ** (attempt - 1)
            if asked > limits.max_retry_after_seconds:
                raise
            time.sleep(asked)
    return fetch(url, limits)


def opted_out(headers: Message, limits: Download) -> str | None:
    """The signal by which the owner asks not to be used for training, if there is one.

    `X-Robots-Tag: [robot:] directive, ...` may occur several times; a directive for another robot is not for us.
    """
    wanted = {directive.lower() for directive in limits.optout_directives}
    ours = {"", limits.user_agent_token.lower()}
    for value in headers.get_all("X-Robots-Tag", []):
        robot = ""
        for part in value.lower().split(","):
            name, colon, rest = part.partition(":")
            if colon and name.strip() not in _VALUED:
                robot, part = name.strip(), rest
            if robot in ours and part.strip() in wanted:
                return f"X-Robots-Tag {part.strip()}"
    if limits.optout_tdm_reservation and headers.get("tdm-reservation", "").strip() == "1":
        return "tdm-reservation"
    return None


def _get(url: str, limits: Download, deadline: float) -> bytes | str:
    """The body, or where a redirect leads."""
    parts = urllib.parse.urlsplit(url.strip())
    host, scheme = parts.hostname, parts.scheme.lower()
    if scheme not in ("http", "https") or not host:
        raise FetchError("unusable URL")
    host = host.encode("idna").decode() if not host.isascii() else host
    port = parts.port or _PORTS[scheme]
    if not limits.allow_private_addresses:
        _refuse_private_literal(host)
    # Percent signs stay: an address that is quoted already must not be quoted twice.
    path = urllib.parse.urlunsplit(("", "", parts.path or "/", parts.query, ""))
    target = urllib.parse.quote(path, safe="/%:=&?~+!$,;'@()*[]")
    named = f"[{host}]" if ":" in host else host
    place = named if port == _PORTS[scheme] else f"{named}:{port}"
    connection, whole = _connection((scheme, host, port), limits, deadline)
    headers = {
        "Host": place,
        "User-Agent": f"Mozilla/5.0 (compatible; {limits.user_agent_token})",
        "Accept": "image/*,*/*;q=0.1",
        "Connection": "close",
    }
    try:
        connection.request("GET", f"http://{place}{target}" if whole else target, headers=headers)
        with connection.getresponse() as response:
            return _read(response, limits)
    finally:
        connection.close()


def _read(response: http.client.HTTPResponse, limits: Download) -> bytes | str:
    location = response.headers.get("Location")
    if response.status in _REDIRECTS and location:
        return location
    if response.status != 200:
        wait = _retry_after(response.headers.get("Retry-After"))
        raise FetchError(f"HTTP {response.status}", status=response.status, wait=wait)
    signal = opted_out(response.headers, limits)
    if signal:
        raise FetchError(OPTED_OUT + signal)
    if response.length is not None and response.length > limits.max_bytes:
        raise FetchError("too many bytes")
    body = bytearray()
    while chunk := response.read(_CHUNK):
        body += chunk
        if len(body) > limits.max_bytes:
            raise FetchError("too many bytes")
    if response.length:  # what Content-Length promised and did not come
        raise FetchError("short body")
    return bytes(body)


def _retry_after(value: str | None) -> float | None:
    """Seconds to wait, from a number of seconds or an HTTP date; a value that is neither counts as absent."""
    if value is None:
        return None
    if value.strip().isdecimal():
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None


def _connection(
    server: tuple[str, str, int], limits: Download, deadline: float
) -> tuple[http.client.HTTPConnection, bool]:
    """A connection whose every wait is bounded, and whether it leads to a proxy that wants the whole URL.

    The environment's proxy is used where there is one; it, not this machine, then resolves and reaches the server.
    """
    scheme, host, port = server
    proxy = None if urllib.request.proxy_bypass(host) else _proxies().get(scheme)
    through = urllib.parse.urlsplit(proxy if "://" in proxy else f"http://{proxy}") if proxy else None
    near = (through.hostname or "", through.port or 80) if through else (host, port)
    connection: http.client.HTTPConnection
    if scheme == "https":
        connection = http.client.HTTPSConnection(*near, timeout=limits.timeout_seconds, context=_tls())
        if through:
            connection.set_tunnel(host, port)
    else:
        connection = http.client.HTTPConnection(*near, timeout=limits.timeout_seconds)
    guarded = not (limits.allow_private_addresses or through)
    # http.client has no public place for these two; both have been there since Python 3.2.
    connection._create_connection = partial(_connect, guarded=guarded, deadline=deadline)  # type: ignore[attr-defined]
    connection.response_class = partial(_Response, timeout=limits.timeout_seconds, deadline=deadline)  # type: ignore[assignment]
    return connection, bool(through) and scheme == "http"


def _connect(
    address: tuple[str, int], timeout: float, source: None = None, *, guarded: bool, deadline: float
) -> socket.socket:
    """Connect to one of the addresses that a name resolves to, after all of them were found to be public."""
    infos = socket.getaddrinfo(*address, type=socket.SOCK_STREAM)
    if guarded and not all(is_public(str(info[4][0])) for info in infos):
        raise FetchError(PRIVATE)
    failure: OSError = OSError(f"{address[0]} has no address")
    for family, kind, protocol, _, at in infos:
        remaining = deadline - time.monotonic()
        if remaining <= 0:
            raise TimeoutError
        connected = socket.socket(family, kind, protocol)
        try:
            connected.settimeout(min(timeout, remaining))
            connected.connect(at)
        except OSError as error:
            connected.close()
            failure = error
        else:
            return connected
    raise failure


def is_public(address: str) -> bool:
    """Whether a literal IP address is one of the public internet."""
    parsed = ipaddress.ip_address(address.partition("%")[0])
    if parsed.version == 6 and parsed in _NAT64:  # a gateway would turn it into any IPv4 address
        return False
    return parsed.is_global and not parsed.is_multicast


def _refuse_private_literal(host: str) -> None:
    """Before a proxy is asked: a proxy inside a network reaches it."""
    try:
        public = is_public(host)
    except ValueError:
        public = host != "localhost"
    if not public:
        raise FetchError(PRIVATE)


class _Response(http.client.HTTPResponse):
    """A response whose every read ends at the deadline."""

    def __init__(
        self,
        sock: socket.socket,
        debuglevel: int = 0,
        method: str | None = None,
        *,
        timeout: float,
        deadline: float,
    ) -> None:
        super().__init__(sock, debuglevel, method)
        unbounded = self.fp
        self.fp = io.BufferedReader(_Bounded(sock, timeout, deadline), _CHUNK)
        unbounded.close()


class _Bounded(io.RawIOBase):
    """A socket's bytes; a read waits for `timeout` seconds, and never beyond `deadline`."""

    def __init__(self, sock: socket.socket, timeout: float, deadline: float) -> None:
        self._socket = sock
        self._raw = sock.makefile("rb", buffering=0)  # holds the socket open after the connection has let go of it
        self._timeout = timeout
        self._deadline = deadline

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:  # noqa: ANN401 (any writable buffer)
        remaining = self._deadline - time.monotonic()
        if remaining <= 0:
            raise TimeoutError
        self._socket.settimeout(min(self._timeout, remaining))
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()


@cache
def _tls() -> ssl.SSLContext:
    return ssl.create_default_context()


@cache
def _proxies() -> dict[str, str]:
    return urllib.request.getproxies()
