"""The embedded dataset's HTTP server on loopback: `python -m bigdiff.quickstart.server FOLDER --port PORT`.

Threads wait in `accept` on one listening socket and answer HTTP/1.1 by hand: the standard library's handler takes about
five times as long for a small picture, and the server shares two cores with its client. Faults go by the kind of the
file (bigdiff.quickstart.faults).
"""

import argparse
import mmap
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import pyarrow.parquet as pq

from bigdiff.config.errors import UsageError, door
from bigdiff.quickstart.dataset import INDEX, PICTURES, PORT, SOURCE

THREADS: Final = 48
RETRY_AFTER: Final = 1  # seconds
_IDLE_SECONDS: Final = 60.0  # a silent connection is closed after that
_DRIP_SECONDS: Final = 0.1  # between two bytes
_HEAD_LIMIT: Final = 16_384  # bytes of a request
_READY: Final = "serving"
_TYPES: Final = {"jpg": "image/jpeg", "png": "image/png", "webp": "image/webp"}
_REASONS: Final = {
    200: "OK",
    302: "Found",
    400: "Bad Request",
    404: "Not Found",
    429: "Too Many Requests",
    503: "Service Unavailable",
}
# Kind -> header lines of an owner's wishes.
_WISHES: Final = {
    "noai": "X-Robots-Tag: noai\r\n",
    "noimageai": "X-Robots-Tag: all\r\nX-Robots-Tag: max-snippet: 20, NoImageAI\r\n",
    "none": "X-Robots-Tag: none\r\n",
    "our_robot": "X-Robots-Tag: otherbot: noarchive, bigdiff: noindex\r\n",
    "other_robot": "X-Robots-Tag: otherbot: noai, noindex\r\n",
    "tdm": "tdm-reservation: 1\r\n",
}


@dataclass(frozen=True, slots=True)
class File:
    """Where a file's bytes lie in the pack, and what is wrong with it."""

    kind: str
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Shelf:
    """All files of the dataset, and since when each throttled one has been asked for."""

    pictures: mmap.mmap
    files: dict[str, File]
    asked: dict[str, float] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)


def open_shelf(folder: Path) -> Shelf:
    """The files that `bigdiff.quickstart.dataset.draw` wrote to `folder`.

    Raises:
        UsageError: when there are none.
    """
    source = folder / SOURCE
    if not (source / INDEX).exists():
        raise UsageError(f"{source} has no {INDEX}: draw the embedded dataset first")
    rows = pq.read_table(source / INDEX).to_pylist()
    with (source / PICTURES).open("rb") as stream:
        pictures = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    return Shelf(pictures, {row["path"]: File(row["kind"], row["offset"], row["length"]) for row in rows})


def listen(port: int) -> socket.socket:
    """A socket on loopback; port 0 takes a free one.

    Raises:
        UsageError: when the port is taken.
    """
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind(("127.0.0.1", port))
    except OSError as error:
        listening.close()
        raise UsageError(
            f"port {port} of 127.0.0.1 cannot be used ({error.strerror}): end what listens there, or choose another"
        ) from error
    listening.listen(512)
    return listening


def answer_all(listening: socket.socket, shelf: Shelf) -> None:
    """Answer connections until the process ends; one of `THREADS` equal threads."""
    while True:
        connection, _ = listening.accept()
        with connection:
            connection.settimeout(_IDLE_SECONDS)
            try:
                while _answer(connection, shelf):
                    pass
            except OSError:  # the client went away, or said nothing for a minute
                continue


def _answer(connection: socket.socket, shelf: Shelf) -> bool:
    """Answer one request; whether another may follow on this connection."""
    head = b""
    while b"\r\n\r\n" not in head:
        received = connection.recv(8192)
        if not received or len(head) > _HEAD_LIMIT:
            return False
        head += received
    line, _, rest = head.partition(b"\r\n")
    words = line.decode("latin-1").split(" ")
    stays = b"connection: close" not in rest.lower()
    if len(words) != 3 or words[0] != "GET":
        connection.sendall(_head(400, "text/plain", 0, ""))
        return False
    path, _, query = words[1].partition("?")
    file = shelf.files.get(path)
    if file is None or file.kind == "not_found":
        connection.sendall(_head(404, "text/plain", 0, ""))
        return stays
    if file.kind in ("hanging", "dripping", "short_body", "oversized"):
        _misbehave(connection, shelf, file, path)
        return False
    status, extra = _status(shelf, file, path, query)
    body = shelf.pictures[file.offset : file.offset + file.length] if status == 200 else b""
    kind = "text/html" if file.kind == "html" else _type(path)
    connection.sendall(_head(status, kind, len(body), extra) + body)
    return stays


def _status(shelf: Shelf, file: File, path: str, query: str) -> tuple[int, str]:
    """The status and further header lines of an answer that comes whole and at once."""
    if file.kind == "unavailable":
        return 503, ""
    if file.kind == "redirected" and not query:
        return 302, f"Location: {path}?here\r\n"
    if file.kind == "throttled":
        with shelf.lock:
            first = shelf.asked.setdefault(path, time.monotonic())
        if time.monotonic() < first + RETRY_AFTER:
            return 429, f"Retry-After: {RETRY_AFTER}\r\n"
    return 200, _WISHES.get(file.kind, "")


def _misbehave(connection: socket.socket, shelf: Shelf, file: File, path: str) -> None:
    body = shelf.pictures[file.offset : file.offset + file.length]
    if file.kind == "hanging":
        connection.recv(1)  # nothing comes; it returns when the client goes
    elif file.kind == "short_body":
        connection.sendall(_head(200, _type(path), len(body), "") + body[: len(body) // 2])
    elif file.kind == "oversized":
        connection.sendall(_head(200, _type(path), 1 << 40, "") + body)
    else:
        connection.sendall(_head(200, _type(path), len(body), ""))
        for index in range(len(body)):
            time.sleep(_DRIP_SECONDS)
            connection.sendall(body[index : index + 1])


def _head(status: int, kind: str, length: int, extra: str) -> bytes:
    reason = _REASONS[status]
    return (f"HTTP/1.1 {status} {reason}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n{extra}\r\n").encode()


def _type(path: str) -> str:
    return _TYPES.get(path.rpartition(".")[2], "application/octet-stream")


@contextmanager
def serve(folder: Path, port: int = PORT) -> Iterator[int]:
    """Run the server as a process of its own; yields the port once it answers, and ends it afterwards.

    Raises:
        UsageError: when it does not start, with its own sentence.
    """
    command = [sys.executable, "-m", "bigdiff.quickstart.server", str(folder), "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None and process.stderr is not None
            words = process.stdout.readline().split()
            if not words:
                raise UsageError(process.stderr.read().decode().strip().removeprefix("error: ") or "the server died")
            yield int(words[-1])
        finally:
            process.kill()


def main() -> None:
    """Serve until standard input ends (the process that started this one is gone) or the process is killed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--port", type=int, default=PORT)
    given = parser.parse_args()
    shelf, listening = open_shelf(given.folder), listen(given.port)
    for _ in range(THREADS):
        threading.Thread(target=answer_all, args=(listening, shelf), daemon=True).start()
    sys.stdout.write(f"{_READY} {listening.getsockname()[1]}\n")
    sys.stdout.flush()
    sys.stdin.read()


if __name__ == "__main__":
    door(main)
