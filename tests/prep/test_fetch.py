import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from email.message import Message

import pytest

from bigdiff.config.prep import Download
from bigdiff.prep import fetch as module
from bigdiff.prep.fetch import FetchError, fetch, fetch_patiently, is_public, is_retryable, opted_out

LIMITS = Download(
    allow_private_addresses=True, timeout_seconds=0.5, deadline_seconds=1.5, max_bytes=1000, max_retry_after_seconds=2.0
)
Answer = Callable[[socket.socket, str], None]


@contextmanager
def server(answer: Answer) -> Iterator[str]:
    """A real server that gives each connection, with its request's head, to `answer`."""
    listening = socket.create_server(("127.0.0.1", 0))
    stopping = threading.Event()

    def serve(connection: socket.socket) -> None:
        with connection:
            head = connection.recv(4096).decode("latin-1")
            try:
                answer(connection, head)
            except OSError:
                assert stopping.is_set() or head  # the client may go away early

    def accept() -> None:
        while not stopping.is_set():
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        stopping.set()
        listening.close()


def plain(status: str, headers: str = "", body: bytes = b"") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{headers}\r\n".encode() + body


def cause(url: str, limits: Download = LIMITS) -> str:
    with pytest.raises(FetchError) as failed:
        fetch(url, limits)
    return failed.value.cause


def test_a_picture_comes_whole_and_the_robot_gives_its_name() -> None:
    heads: list[str] = []

    def answer(connection: socket.socket, head: str) -> None:
        heads.append(head)
        connection.sendall(plain("200 OK", body=b"x" * 1000))

    with server(answer) as url:
        assert fetch(f"{url}/a b/\u00fc.jpg?q=%20&r=1", LIMITS) == b"x" * 1000
    assert heads[0].startswith("GET /a%20b/%C3%BC.jpg?q=%20&r=1 HTTP/1.1\r\n")
    assert "compatible; bigdiff)" in heads[0]


def test_chunks_are_put_together() -> None:
    body = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"
    with server(lambda connection, _: connection.sendall(body)) as url:
        assert fetch(url, LIMITS) == b"abcde"
    with server(lambda connection, _: connection.sendall(body[:-10])) as url:
        assert cause(url) == "short body"


def test_time_is_bounded_however_the_server_drips() -> None:
    def body(connection: socket.socket, _: str) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n")
        for _ in range(100):
            time.sleep(0.1)
            connection.sendall(b"x")

    def head(connection: socket.socket, _: str) -> None:
        for byte in b"HTTP/1.1 200 OK\r\n" + b"X-Long: yes\r\n" * 100:
            time.sleep(0.1)
            connection.sendall(bytes([byte]))

    for drip in (body, head):
        with server(drip) as url:
            begin = time.monotonic()
            assert cause(url) == "deadline passed"
            assert 1.4 < time.monotonic() - begin < 3.0


def test_a_silent_server_times_out_before_the_deadline() -> None:
    with server(lambda connection, _: time.sleep(3)) as url:
        begin = time.monotonic()
        assert cause(url) == "timed out"
        assert time.monotonic() - begin < 1.4


def test_bytes_are_bounded_with_and_without_a_length() -> None:
    with server(lambda connection, _: connection.sendall(plain("200 OK", body=b"x" * 1001))) as url:
        assert cause(url) == "too many bytes"
    endless = b"HTTP/1.0 200 OK\r\n\r\n" + b"x" * 5000
    with server(lambda connection, _: connection.sendall(endless)) as url:
        assert cause(url) == "too many bytes"


@pytest.mark.parametrize(
    ("answer", "named"),
    [
        (plain("404 Not Found"), "HTTP 404"),
        (plain("204 No Content"), "HTTP 204"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc", "short body"),
        (b"", "connection reset"),
        (b"garbage\r\n\r\n", "broken answer"),
    ],
)
def test_causes_have_names(answer: bytes, named: str) -> None:
    with server(lambda connection, _: connection.sendall(answer)) as url:
        assert cause(url) == named


def test_urls_that_cannot_be_fetched() -> None:
    free = socket.create_server(("127.0.0.1", 0))
    port = free.getsockname()[1]
    free.close()
    assert cause(f"http://127.0.0.1:{port}/") == "connection refused"
    for url in ("file:///etc/hostname", "http://", "http://a:b/", "ftp://127.0.0.1/", "http://[::1/"):
        assert cause(url) == "unusable URL"
    assert cause("http://name.invalid/") == "name not resolved"


def test_redirects_are_followed_a_few_times() -> None:
    def answer(connection: socket.socket, head: str) -> None:
        hops = int(head.split(" ")[1].lstrip("/"))
        here = plain("200 OK", body=b"done") if hops == 0 else plain("302 Found", f"Location: /{hops - 1}\r\n")
        connection.sendall(here)

    with server(answer) as url:
        assert fetch(f"{url}/5", LIMITS) == b"done"
        assert cause(f"{url}/6") == "too many redirects"


def test_private_addresses_are_refused_by_name_by_number_and_by_redirect(monkeypatch: pytest.MonkeyPatch) -> None:
    careful = replace(LIMITS, allow_private_addresses=False)
    reached: list[str] = []

    def answer(connection: socket.socket, head: str) -> None:
        reached.append(head)
        connection.sendall(plain("302 Found", "Location: http://10.0.0.1/\r\n"))

    with server(answer) as url:
        assert cause(url, careful) == "private address"
        assert cause(url.replace("127.0.0.1", "localhost"), careful) == "private address"
        rebound = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", int(url.rpartition(":")[2])))]
        monkeypatch.setattr(module.socket, "getaddrinfo", lambda *given, **more: rebound)
        assert cause("http://looks-public.example/", careful) == "private address"
        assert reached == []
        monkeypatch.undo()
        monkeypatch.setattr(module, "is_public", lambda address: address == "127.0.0.1")
        assert cause(url, careful) == "private address"  # where the redirect leads
        assert len(reached) == 1


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True),
        ("2606:4700::1111", True),
        ("127.0.0.1", False),
        ("10.0.0.1", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("0.0.0.0", False),
        ("224.0.0.1", False),
        ("::1", False),
        ("fe80::1%eth0", False),
        ("::ffff:192.168.0.1", False),
        ("64:ff9b::a00:1", False),
    ],
)
def test_public_addresses(address: str, public: bool) -> None:
    assert is_public(address) is public


@pytest.mark.parametrize(
    ("headers", "signal"),
    [
        (["X-Robots-Tag: noai"], "X-Robots-Tag noai"),
        (["x-robots-tag: all, NOIMAGEAI"], "X-Robots-Tag noimageai"),
        (["X-Robots-Tag: all", "X-Robots-Tag: noindex"], "X-Robots-Tag noindex"),
        (["X-Robots-Tag: none"], "X-Robots-Tag none"),
        (["X-Robots-Tag: BigDiff: noml"], "X-Robots-Tag noml"),
        (["X-Robots-Tag: otherbot: noarchive, bigdiff: noai"], "X-Robots-Tag noai"),
        (["X-Robots-Tag: unavailable_after: 1 Jan 2020, noai"], "X-Robots-Tag noai"),
        (["tdm-reservation: 1"], "tdm-reservation"),
        (["X-Robots-Tag: otherbot: noai, noindex"], None),
        (["X-Robots-Tag: max-snippet: 20, nofollow"], None),
        (["tdm-reservation: 0"], None),
        ([], None),
    ],
)
def test_opt_outs(headers: list[str], signal: str | None) -> None:
    message = Message()
    for line in headers:
        name, _, value = line.partition(": ")
        message[name] = value
    assert opted_out(message, LIMITS) == signal
    assert opted_out(message, replace(LIMITS, optout_directives=(), optout_tdm_reservation=False)) is None


def test_an_opt_out_is_obeyed() -> None:
    with server(lambda connection, _: connection.sendall(plain("200 OK", "X-Robots-Tag: noai\r\n", b"x"))) as url:
        assert cause(url) == "opted out: X-Robots-Tag noai"


def test_retry_after_is_honoured_up_to_its_bound() -> None:
    waits = ["1", "99"]
    asked: list[float] = []

    def answer(connection: socket.socket, head: str) -> None:
        asked.append(time.monotonic())
        wait = waits[0] if "/short" in head else waits[1]
        first = len(asked) == 1 or "/long" in head
        connection.sendall(plain("429 Slow", f"Retry-After: {wait}\r\n") if first else plain("200 OK", body=b"x"))

    with server(answer) as url:
        assert fetch_patiently(f"{url}/short", LIMITS, 2) == b"x"
        assert asked[1] - asked[0] >= 1.0
        begin = time.monotonic()
        with pytest.raises(FetchError) as failed:
            fetch_patiently(f"{url}/long", LIMITS, 3)
    assert failed.value.wait == 99.0
    assert time.monotonic() - begin < 1.0
    assert len(asked) == 3  # a server that asks for more than the bound is not asked again


def test_what_is_worth_another_try() -> None:
    worth = {"HTTP 429", "HTTP 503", "HTTP 408", "timed out", "deadline passed", "connection reset"}
    for named in (*worth, "HTTP 404", "HTTP 410", "private address", "short body", "opted out: tdm-reservation"):
        assert is_retryable(named) == (named in worth)


def test_a_server_sees_no_more_connections_at_a_time_than_it_is_granted() -> None:
    lock, now, most = threading.Lock(), [0], [0]

    def answer(connection: socket.socket, head: str) -> None:
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        time.sleep(0.1)
        with lock:
            now[0] -= 1
        connection.sendall(plain("200 OK", body=b"x"))

    patient = replace(LIMITS, per_host=2, timeout_seconds=0.3, deadline_seconds=0.4)  # the last waits for longer
    with server(answer) as url, ThreadPoolExecutor(12) as pool:
        found = list(pool.map(lambda number: fetch(f"{url}/{number}", patient), range(12)))
    assert found == [b"x"] * 12
    assert most == [2]
