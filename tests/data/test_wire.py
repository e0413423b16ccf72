"""Connections that are kept, led elsewhere, proxied, and ended from outside."""

import os
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from bigdiff.config.errors import RunError
from bigdiff.data.manifest import Shard
from bigdiff.data.origin import origin
from bigdiff.data.transfer import Patience, Transfer
from bigdiff.data.wire import Ended, Wire

SIZE = 3_000_000
PATH = "/00000.tar"


def test_a_connection_is_used_again(
    serve: Callable[..., Any], plain_set: Callable[..., list[Shard]], tmp_path: Path
) -> None:
    plain_set(SIZE)
    served = serve(tmp_path / "set", planted={PATH: [None, "500", "404", None]})
    before = len(os.listdir("/proc/self/fd"))
    with closing(Wire(5)) as wire:
        for status in (200, 500, 404, 200):
            with wire.get(served.location + PATH, {}) as answer:
                assert answer.status == status
                while answer.read1(1 << 20):
                    pass
            assert len(os.listdir("/proc/self/fd")) == before + 2  # the socket, and the handle that ends it
    assert len(os.listdir("/proc/self/fd")) == before


def test_redirects_are_followed_but_not_round_and_round(
    serve: Callable[..., Any], plain_set: Callable[..., list[Shard]], tmp_path: Path
) -> None:
    plain_set(SIZE)
    served = serve(tmp_path / "set", planted={PATH: ["redirect"] * 3, "/00000.parquet": ["redirect!"]})
    with closing(Wire(5)) as wire:
        with wire.get(served.location + PATH, {"Range": "bytes=2999990-"}) as answer:
            assert answer.status == 206 and len(answer.read()) == 10
        with pytest.raises(RunError, match="more than 5 redirects"), wire.get(f"{served.location}/00000.parquet", {}):
            pass


def test_a_proxy_of_the_environment_is_used(
    serve: Callable[..., Any], plain_set: Callable[..., list[Shard]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain_set(10)
    with socket.socket() as listening, closing(Wire(5)) as wire, ThreadPoolExecutor(1) as pool:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        monkeypatch.setenv("http_proxy", f"http://user:p%40ss@127.0.0.1:{listening.getsockname()[1]}")
        monkeypatch.setenv("no_proxy", "127.0.0.1")

        def proxy() -> bytes:
            connection, _ = listening.accept()
            with connection:
                head = connection.recv(65_536)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
            return head

        asked = pool.submit(proxy)
        with wire.get("http://elsewhere.invalid/set/a.tar?x=1", {}) as answer:
            assert answer.read() == b"ok"
        assert asked.result().startswith(b"GET http://elsewhere.invalid/set/a.tar?x=1 HTTP/1.1\r\n")
        assert b"Proxy-Authorization: Basic dXNlcjpwQHNz" in asked.result()
        with wire.get(serve(tmp_path / "set").location + PATH, {}) as answer:  # no_proxy
            assert answer.status == 200


def test_after_close_nothing_begins() -> None:
    wire = Wire(5)
    wire.close()
    with pytest.raises(Ended):
        wire.sleep(60)
    with pytest.raises(Ended), wire.get("http://127.0.0.1:1/", {}):
        pass


def test_close_ends_what_hangs(
    serve: Callable[..., Any], plain_set: Callable[..., list[Shard]], tmp_path: Path
) -> None:
    """In a body that stalls, in a pause between attempts, before an answer, and while connecting."""
    (shard,) = plain_set(SIZE)
    target = os.open(tmp_path / "target", os.O_RDWR | os.O_CREAT)
    stalls, busy = (
        serve(tmp_path / "set", planted={PATH: ["stall!"]}),
        serve(tmp_path / "set", planted={PATH: ["503!"]}),
    )
    slow = serve(tmp_path / "set", latency=30)
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        with socket.create_connection(full.getsockname()):  # the only place in its queue
            places = [stalls.location, busy.location, slow.location, f"http://127.0.0.1:{full.getsockname()[1]}"]
            for place in places:
                before = len(os.listdir("/proc/self/fd"))
                transfer = Transfer(origin(place), Patience())
                with ThreadPoolExecutor(1) as pool:
                    pulled = pool.submit(transfer.fetch, "00000.tar", SIZE, shard.sha256, target)
                    time.sleep(0.4)
                    began = time.monotonic()
                    transfer.close()
                    with pytest.raises(Ended):
                        pulled.result(5)
                assert time.monotonic() - began < 0.5, place
                assert len(os.listdir("/proc/self/fd")) == before
    os.close(target)
