"""HTTP/1.1 connections that several threads keep alive and one `close` ends, whatever they wait for.

Blocking sockets: a thread that receives holds no interpreter lock, so fetching costs the training loop next to
nothing. `shutdown` on a socket wakes its thread at once, which no client library offers from outside.
"""

import base64
import socket
import ssl
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from http.client import HTTPConnection, HTTPResponse, HTTPSConnection
from threading import Event, Lock
from urllib.parse import SplitResult, unquote, urljoin, urlsplit
from urllib.request import getproxies, proxy_bypass

from bigdiff.config.errors import RunError

CONNECT_SECONDS = 10.0
IDLE_SECONDS = 4.0  # servers close silent connections after 5 s and more; one that is older is not used again
REDIRECTS = 5
DRAINED = 65_536  # bytes of an unwanted body that are read, so that the connection can be used again
_MOVED = (301, 302, 303, 307, 308)


class Ended(Exception):
    """The connections were closed while this was under way."""


class Wire:
    """Connections to any host. `stall_seconds` without a byte end a request with TimeoutError."""

    def __init__(self, stall_seconds: float) -> None:
        self.stall_seconds = stall_seconds
        self._over, self._lock = Event(), Lock()
        self._handles: dict[HTTPConnection, socket.socket] = {}  # duplicates: TLS takes the original away
        self._idle: dict[tuple[str, str], list[tuple[float, HTTPConnection]]] = {}
        self._tls = ssl.create_default_context()

    @property
    def over(self) -> bool:
        """Whether `close` was called."""
        return self._over.is_set()

    def close(self) -> None:
        """Wake and end every request and every `sleep`; they raise `Ended`."""
        self._over.set()
        with self._lock:
            for handle in self._handles.values():
                try:
                    handle.shutdown(socket.SHUT_RDWR)
                except OSError:  # not connected: nothing waits for it
                    continue
            idle = [connection for kept in self._idle.values() for _, connection in kept]
            self._idle.clear()
        for connection in idle:
            self._drop(connection)

    def sleep(self, seconds: float) -> None:
        """Wait, unless `close` is called."""
        if self._over.wait(seconds):
            raise Ended

    @contextmanager
    def get(self, address: str, headers: Mapping[str, str]) -> Iterator[HTTPResponse]:
        """The answer to a GET, redirects followed, its body not yet read.

        Raises:
            OSError, HTTPException: when it fails; TimeoutError among them.
            RunError: for redirects that go round, or from https to http.
            Ended: after `close`.
        """
        for _ in range(REDIRECTS + 1):
            with self._answer(address, headers) as answer:
                target = answer.getheader("Location") if answer.status in _MOVED else None
                if target is None:
                    yield answer
                    return
            new = urlsplit(urljoin(address, target))
            if new.scheme != "https" and (new.scheme != "http" or address.startswith("https:")):
                raise RunError(f"a redirect leads from {urlsplit(address).netloc} to {new.scheme}://{new.netloc}")
            address = new.geturl()
        raise RunError(f"more than {REDIRECTS} redirects at {urlsplit(address).netloc}")

    @contextmanager
    def _answer(self, address: str, headers: Mapping[str, str]) -> Iterator[HTTPResponse]:
        parts = urlsplit(address)
        connection, target = self._connection(parts), f"{parts.path or '/'}{'?' if parts.query else ''}{parts.query}"
        proxy = _proxy(parts)
        if proxy is not None and parts.scheme == "http":
            target, headers = parts._replace(fragment="").geturl(), {**headers, **_permission(proxy)}
        whole = False
        try:
            connection.request("GET", target, headers=headers)
            answer = connection.getresponse()
            yield answer
            if not answer.isclosed() and answer.length is not None and answer.length <= DRAINED:
                answer.read()
            whole = answer.isclosed() and not answer.will_close
        finally:
            if whole and not self.over:
                with self._lock:
                    self._idle.setdefault((parts.scheme, parts.netloc), []).append((time.monotonic(), connection))
            else:
                self._drop(connection)

    def _connection(self, parts: SplitResult) -> HTTPConnection:
        if self.over:
            raise Ended
        stale: list[HTTPConnection] = []
        with self._lock:
            kept = self._idle.get((parts.scheme, parts.netloc), [])
            while kept:
                since, connection = kept.pop()
                if time.monotonic() < since + IDLE_SECONDS:
                    return connection
                stale.append(connection)
        for connection in stale:
            self._drop(connection)
        proxy = _proxy(parts)
        host, port = (proxy or parts).hostname or "", (proxy or parts).port
        if parts.scheme == "https":
            connection = HTTPSConnection(host, port, timeout=self.stall_seconds, context=self._tls)
            if proxy is not None:
                connection.set_tunnel(parts.hostname or "", parts.port or 443, headers=_permission(proxy))
        else:
            connection = HTTPConnection(host, port, timeout=self.stall_seconds)
        # http.client's own hook, the only way to hold a socket before it is connected, so that `close` reaches it
        connection._create_connection = partial(self._dial, connection)  # type: ignore[attr-defined]
        return connection

    def _dial(
        self, connection: HTTPConnection, place: tuple[str, int], timeout: float, source: object = None
    ) -> socket.socket:
        error: OSError | None = None
        for family, kind, protocol, _, address in socket.getaddrinfo(*place, type=socket.SOCK_STREAM):
            dialled = socket.socket(family, kind, protocol)
            with self._lock:
                self._handles[connection] = dialled.dup()
            try:
                dialled.settimeout(min(timeout, CONNECT_SECONDS))
                dialled.connect(address)
                if self.over:
                    raise Ended
                dialled.settimeout(timeout)
            except BaseException as failure:
                dialled.close()
                self._drop(connection)
                if not isinstance(failure, OSError):
                    raise
                error = failure
            else:
                return dialled
        raise error or OSError(f"{place[0]} has no address")

    def _drop(self, connection: HTTPConnection) -> None:
        connection.close()
        with self._lock:
            handle = self._handles.pop(connection, None)
        if handle is not None:
            handle.close()


def _proxy(parts: SplitResult) -> SplitResult | None:
    named = getproxies().get(parts.scheme)
    if not named or proxy_bypass(parts.hostname or ""):
        return None
    return urlsplit(named if "://" in named else f"http://{named}")


def _permission(proxy: SplitResult) -> dict[str, str]:
    if proxy.username is None:
        return {}
    word = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}"
    return {"Proxy-Authorization": f"Basic {base64.b64encode(word.encode()).decode()}"}
