"""A file server over HTTP/1.1 for tests, with latency, faults and a bounded link: `python shard_server.py '{JSON}'`.

Settings: folder; latency (seconds before an answer); link (bytes a second of all connections together, 0: unbounded);
faults (share of requests) of `kinds`, drawn by (seed, path, how many times it was asked for); planted ({path: [kinds]},
one per request of that path, None for a good answer, the last one for ever if it ends with "!"); ranges (false:
ignored); etags. Prints its port; GET /.counts gives requests and body bytes by path; ends with its standard input.
"""

import json
import os
import random
import socket
import struct
import sys
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

DEFAULTS: dict[str, Any] = {
    "folder": ".",
    "latency": 0.0,
    "link": 0.0,
    "faults": 0.0,
    "kinds": ["500", "503", "reset", "short", "wrong"],
    "seed": 0,
    "planted": {},
    "ranges": True,
    "etags": True,
}
PIECE = 1 << 18


class Link:
    """A token bucket of 20 ms over all connections."""

    def __init__(self, rate: float) -> None:
        self.rate, self.lock, self.free_at = rate, threading.Lock(), 0.0

    def take(self, size: int) -> None:
        if self.rate:
            with self.lock:
                self.free_at = max(self.free_at, time.monotonic() - 0.02) + size / self.rate
                wait = self.free_at - time.monotonic()
            if wait > 0:
                time.sleep(wait)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1
    server: "Server"

    def do_GET(self) -> None:
        if self.path == "/.counts":
            with self.server.lock:
                counts = {"requests": self.server.requests, "bytes": self.server.sent, "faults": self.server.made}
                content = json.dumps(counts).encode()
            self.head(200, {"Content-Length": str(len(content))})
            self.wfile.write(content)
            return
        time.sleep(self.server.settings["latency"])
        path = self.path.partition("?")[0]
        with self.server.lock:
            number = self.server.requests[path]
            self.server.requests[path] += 1
        kind = self.fault(path, number)
        if kind:
            with self.server.lock:
                self.server.made[kind] += 1
        file = Path(self.server.settings["folder"]) / path.lstrip("/")
        if kind == "404" or not file.is_file():
            self.head(404, {"Content-Length": "0"})
        elif kind in ("500", "503", "503now", "403"):
            self.head(int(kind[:3]), {"Content-Length": "0", **({"Retry-After": "1"} if kind == "503" else {})})
        elif kind == "redirect":
            self.head(302, {"Content-Length": "0", "Location": f"{path}?moved"})
        else:
            self.send(path, file, kind)

    def fault(self, path: str, number: int) -> str | None:
        settings = self.server.settings
        planted = settings["planted"].get(path)
        if planted:
            kind = planted[min(number, len(planted) - 1)]
            if number < len(planted) or (kind or "").endswith("!"):
                return (kind or "").rstrip("!") or None
            return None
        draw = random.Random(f"{settings['seed']} {path} {number}")  # text: the same in every process
        return draw.choice(settings["kinds"]) if draw.random() < settings["faults"] else None

    def send(self, path: str, file: Path, kind: str | None) -> None:
        size, mtime = file.stat().st_size, file.stat().st_mtime_ns
        etag, asked = f'"{mtime:x}-{size:x}"', self.headers.get("Range")
        named = {"ETag": etag} if self.server.settings["etags"] else {}
        if named and self.headers.get("If-None-Match") == etag:
            self.head(304, named)
            return
        start, status = 0, 200
        if asked and self.server.settings["ranges"] and self.headers.get("If-Range", etag) == etag:
            start, status = int(asked.removeprefix("bytes=").rstrip("-")), 206
            named["Content-Range"] = f"bytes {start}-{size - 1}/{size}"
        if start >= size and status == 206:
            self.head(416, {"Content-Length": "0", "Content-Range": f"bytes */{size}"})
            return
        length = size - start
        self.head(status, {"Content-Length": str(length), **named})
        self.wfile.flush()
        with file.open("rb") as stream:
            stream.seek(start)
            self.body(
                path, stream.fileno(), start, length // 2 if kind in ("reset", "short", "stall") else length, kind
            )
        if kind == "stall":
            self.connection.settimeout(60)
            self.connection.recv(1)  # until the client gives up
        if kind == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if kind in ("reset", "short", "stall"):
            self.close_connection = True

    def body(self, path: str, source: int, at: int, length: int, kind: str | None) -> None:
        while length:
            piece = min(length, PIECE)
            self.server.link.take(piece)
            if kind == "wrong":
                content = bytearray(os.pread(source, piece, at))
                content[-1] ^= 1
                self.connection.sendall(content)
                sent, kind = piece, None
            else:
                sent = os.sendfile(self.connection.fileno(), source, at, piece)
            at, length = at + sent, length - sent
            with self.server.lock:
                self.server.sent[path] += sent

    def head(self, status: int, headers: dict[str, str]) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256

    def __init__(self, settings: dict[str, Any]) -> None:
        super().__init__(("127.0.0.1", settings.get("port", 0)), Handler)
        self.settings, self.link, self.lock = settings, Link(settings["link"]), threading.Lock()
        self.requests: Counter[str] = Counter()
        self.sent: Counter[str] = Counter()
        self.made: Counter[str] = Counter()

    def handle_error(self, *_: object) -> None:
        pass  # clients that go away are what is tested


if __name__ == "__main__":
    given = DEFAULTS | json.loads(sys.argv[1])
    assert given.keys() <= DEFAULTS.keys() | {"port"}
    server = Server(given)
    sys.stdout.write(f"{server.server_address[1]}\n")
    sys.stdout.flush()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    sys.stdin.read()
