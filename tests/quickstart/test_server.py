import http.client
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bigdiff.config.errors import UsageError
from bigdiff.quickstart.dataset import Options, Row, draw, rows
from bigdiff.quickstart.faults import AWKWARD, FAULTY, fewer
from bigdiff.quickstart.files import content
from bigdiff.quickstart.scenes import scene
from bigdiff.quickstart.server import serve

SMALL = Options(count=40, size=32, awkward=fewer(AWKWARD, 2), faulty=fewer(FAULTY, 2))
FIRST: dict[str, Row] = {}
for _row in reversed(rows(SMALL)):
    FIRST[_row.kind] = _row


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("dataset")
    draw(made, SMALL, processes=1)
    return made


@pytest.fixture(scope="module")
def port(folder: Path) -> Iterator[int]:
    with serve(folder, 0) as chosen:
        yield chosen


def ask(port: int, path: str) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, {name.lower(): value for name, value in response.getheaders()}, response.read()
    finally:
        connection.close()


def test_a_sound_file_comes_as_it_was_drawn_over_one_connection(port: int) -> None:
    row = FIRST["sound"]
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
    for _ in range(3):
        connection.request("GET", row.path)
        response = connection.getresponse()
        assert (response.status, response.version) == (200, 11)
        assert response.read() == content(row.kind, scene(0, row.scene), row.form, 32)
    connection.close()


def test_answers_by_status(port: int) -> None:
    assert ask(port, FIRST["not_found"].path)[0] == 404
    assert ask(port, "/../../etc/hostname")[0] == 404
    assert ask(port, FIRST["unavailable"].path)[0] == 503
    status, headers, _ = ask(port, FIRST["redirected"].path)
    assert status == 302
    assert ask(port, headers["location"])[0] == 200


def test_the_throttled_file_comes_after_the_wait_it_asks_for(port: int) -> None:
    path = FIRST["throttled"].path
    status, headers, _ = ask(port, path)
    assert (status, headers["retry-after"]) == (429, "1")
    assert ask(port, path)[0] == 429
    time.sleep(1.05)
    assert ask(port, path)[0] == 200


@pytest.mark.parametrize("kind", ["hanging", "dripping"])
def test_slow_files_do_not_come(port: int, kind: str) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=0.5) as connection:
        connection.sendall(f"GET {FIRST[kind].path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        received = b""
        begin = time.monotonic()
        while time.monotonic() - begin < 0.5:
            try:
                received += connection.recv(4096)
            except TimeoutError:
                break
        _, _, body = received.partition(b"\r\n\r\n")
        assert len(body) <= (0 if kind == "hanging" else 10)
        assert bool(received) == (kind == "dripping")


def test_files_that_are_not_what_was_promised(port: int) -> None:
    with pytest.raises(http.client.IncompleteRead):
        ask(port, FIRST["short_body"].path)
    assert ask(port, FIRST["html"].path)[1]["content-type"] == "text/html"


@pytest.mark.parametrize(
    ("kind", "header", "value"),
    [("noai", "x-robots-tag", "noai"), ("none", "x-robots-tag", "none"), ("tdm", "tdm-reservation", "1")],
)
def test_wishes_are_in_the_headers(port: int, kind: str, header: str, value: str) -> None:
    assert ask(port, FIRST[kind].path)[1][header] == value


def test_many_at_once(port: int) -> None:
    sound = [row.path for row in rows(SMALL) if row.kind == "sound"]
    connections = [http.client.HTTPConnection("127.0.0.1", port, timeout=5) for _ in range(40)]
    for connection, path in zip(connections, sound * 2, strict=False):
        connection.request("GET", path, headers={"Connection": "close"})
    assert all(connection.getresponse().status == 200 for connection in connections)
    for connection in connections:
        connection.close()


def test_a_port_that_is_taken_and_a_folder_without_a_dataset(folder: Path, port: int, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"port {port} of 127.0.0.1 cannot be used"), serve(folder, port):
        pass
    with pytest.raises(UsageError, match="draw the embedded dataset first"), serve(tmp_path, 0):
        pass


def test_a_request_that_is_none(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=2) as connection:
        connection.sendall(b"BREW /coffee HTCPCP/1.0\r\n\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 400 ")
