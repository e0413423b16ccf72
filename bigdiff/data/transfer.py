"""One file of a remote set to disk, verified: streamed in order, taken up again where it broke, hashed on the way.

A file is one request, not many ranges: a range is only asked for behind a fault, from the byte where it broke. That is
the fewest requests and no gap of a round trip between parts; parallel streams come from fetching several files at once.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from hashlib import sha256
from http.client import HTTPException, HTTPResponse
from ssl import SSLCertVerificationError
from typing import Final, Protocol

from bigdiff.config.errors import RunError
from bigdiff.data.origin import Origin
from bigdiff.data.wire import Ended, Wire

CHUNK: Final = 1 << 18  # bytes asked of a socket at once: hashed and written while the processor's cache has them
FRESH: Final = 3  # whole fetches before a file with other bytes than it should have counts as damaged
REFUSALS: Final = 6  # answers such as 403 in a row, in about 3 s, before they count as meant
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 30.0  # seconds; doubled from one to the other
SMALL_LIMIT: Final = 1 << 30  # bytes of a file without known size: a manifest of a million shards has 0.2 GB
_PROGRESS: Final = 1 << 20  # bytes after which a fault counts as a first one again


class Absent(Exception):
    """A file of the set that is not there: what and where, in words."""


class Corrupt(Exception):
    """A shard of another size or sha256 than the manifest's, also after a fresh fetch: what was seen, in words."""


class _Mismatch(Exception):
    """The file there is not the one that was asked for."""


class _Refused(Exception):
    """An answer that trying again hardly mends."""


class _Busy(Exception):
    """An answer that asks for patience; `pause` seconds, if it said so."""

    def __init__(self, words: str, pause: float = 0.0) -> None:
        super().__init__(words)
        self.pause = pause


@dataclass(slots=True)
class _Sink:
    """A file that is being written in order, and the hash of what is there."""

    descriptor: int
    size: int | None  # None: what the server says
    known: str = ""  # the version that the caller has
    moved: int = 0
    etag: str = ""
    hashed: "_Hash" = field(default_factory=sha256)

    def restart(self, size: int | None) -> None:
        self.size, self.moved, self.etag, self.hashed = size, 0, "", sha256()

    def take(self, content: bytes) -> None:
        self.hashed.update(content)
        left = memoryview(content)
        try:
            while left:
                written = os.pwrite(self.descriptor, left, self.moved)
                self.moved, left = self.moved + written, left[written:]
        except OSError as error:
            raise RunError(f"a fetched file cannot be written to the cache: {error.strerror}") from error


class _Hash(Protocol):
    def update(self, content: bytes, /) -> None: ...
    def hexdigest(self) -> str: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Small:
    """A whole small file and the server's strong name of its version ("" when it gives none)."""

    content: bytes
    etag: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Patience:
    """How long a server may be out of order."""

    seconds: float = 600.0  # without any progress, before the run ends
    stall_seconds: float = 30.0  # without a byte, before a request is given up and made again


def to_stderr(line: str) -> None:
    """Write a warning line."""
    sys.stderr.write(f"{line}\n")


class Transfer:
    """Files of one remote set; any thread may fetch. Faults are retried with growing pauses and named in `say`."""

    def __init__(self, origin: Origin, patience: Patience, say: Callable[[str], None] = to_stderr) -> None:
        self.origin, self.patience, self.say = origin, patience, say
        self._wire = Wire(patience.stall_seconds)

    def close(self) -> None:
        """End every fetch under way with `Ended`, soon."""
        self._wire.close()

    def fetch(self, name: str, size: int, digest: str, descriptor: int) -> None:
        """Write the file's `size` bytes to `descriptor`; their sha256 is `digest`.

        Raises:
            Absent: the server says 404 or 410.
            Corrupt: size or sha256 are others, `FRESH` times.
            RunError: the server gave nothing for `patience.seconds`, or refuses.
            Ended: after `close`.
        """
        sink = _Sink(descriptor, size)
        for fresh in range(FRESH):
            sink.restart(size)
            try:
                self._pull(name, sink)
                if sink.hashed.hexdigest() == digest:
                    return
                seen = f"sha256 {sink.hashed.hexdigest()}, the manifest says {digest}"
            except _Mismatch as error:
                seen = str(error)
            if fresh < FRESH - 1:
                self.say(f"{self._where(name)}: {seen}; fetching it again")
                self._wire.sleep(pause(name, fresh))
        raise Corrupt(f"{self._where(name)} has {seen}, {FRESH} fetches long")

    def read(self, name: str, etag: str = "", digest: str = "") -> Small | None:
        """A small file, whole; None when its version is still `etag`. With `digest` its sha256 must be that.

        Raises:
            Absent, Corrupt, RunError, Ended: as `fetch`.
        """
        descriptor = os.memfd_create(name)
        try:
            sink = _Sink(descriptor, None, etag)
            for fresh in range(FRESH):
                try:
                    if not self._pull(name, sink):
                        return None
                    seen = sink.hashed.hexdigest()
                    if digest in ("", seen):
                        return Small(content=os.pread(descriptor, sink.moved, 0), etag=sink.etag)
                    sink.restart(None)
                except _Mismatch:  # another version appeared in between
                    sink.restart(None)
                    self._wire.sleep(pause(name, fresh))
        finally:
            os.close(descriptor)
        if digest:
            raise Corrupt(f"{self._where(name)} has another sha256 than the manifest's {digest}, {FRESH} fetches long")
        raise RunError(f"{self._where(name)} changes while it is read")

    def _pull(self, name: str, sink: _Sink) -> bool:
        """Fill the sink, whatever happens on the way; False when the version is the one that is known."""
        attempt, refusals, since, most = 0, 0, time.monotonic(), sink.moved
        while True:
            try:
                return self._once(name, sink)
            except (OSError, HTTPException, _Busy, _Refused) as error:
                if self._wire.over:
                    raise Ended from None
                now, failure = time.monotonic(), error
            if sink.moved >= most + _PROGRESS:
                attempt = 0
            if sink.moved > most:
                since, most = now, sink.moved
            refusals = refusals + 1 if isinstance(failure, _Refused) else 0
            where = f"{self._where(name)} at offset {sink.moved}"
            if refusals >= REFUSALS or isinstance(failure, SSLCertVerificationError):
                raise RunError(f"{where}: {_words(failure)}") from failure
            if now - since > self.patience.seconds:
                raise RunError(
                    f"{where}: nothing came for {now - since:.0f} s, lastly: {_words(failure)}; start again when the "
                    f"server is back"
                ) from failure
            self._warn(where, failure, attempt)
            asked = failure.pause if isinstance(failure, _Busy) else 0.0
            left = max(0.0, since + self.patience.seconds - now)
            self._wire.sleep(min(max(asked, pause(name, attempt)), left + FIRST_PAUSE))
            attempt += 1

    def _warn(self, where: str, failure: Exception, attempt: int) -> None:
        if isinstance(failure, TimeoutError):
            self.say(f"{where}: no byte for {self.patience.stall_seconds:g} s; asking again")
        elif attempt in (3, 6, 9):  # first faults are daily business
            self.say(f"{where}: {_words(failure)}; asking again ({attempt + 1} times so far)")

    def _once(self, name: str, sink: _Sink) -> bool:
        headers = {"Accept-Encoding": "identity", "User-Agent": "bigdiff"}
        known = sink.known if not sink.moved else ""
        if known:
            headers["If-None-Match"] = known
        if sink.moved and sink.size is None and not sink.etag:
            sink.restart(None)  # parts of two versions could not be told apart
        if sink.moved:
            headers["Range"] = f"bytes={sink.moved}-"
            if sink.etag:
                headers["If-Range"] = sink.etag
        with self._wire.get(self.origin.address(name), headers) as answer:
            if answer.status == 304 and known:
                return False
            _classify(answer, self._where(name), sink)
            etag = answer.getheader("ETag", "")
            sink.etag = "" if etag.startswith("W/") else etag
            self._stream(answer, sink)
        return True

    def _stream(self, answer: HTTPResponse, sink: _Sink) -> None:
        end = sink.moved + answer.length if answer.length is not None else sink.size
        if sink.size is not None and end != sink.size:
            raise _Mismatch(f"{end} bytes, the manifest says {sink.size}")
        limit = SMALL_LIMIT if end is None else end
        if limit > SMALL_LIMIT and sink.size is None:
            raise RunError(f"a file of {limit} bytes is no manifest or index: more than {SMALL_LIMIT} are not read")
        while sink.moved < limit or end is None:
            content = answer.read1(CHUNK)
            if not content:
                break
            if sink.moved + len(content) > limit:
                raise _Mismatch(f"more than {limit} bytes")
            sink.take(content)
            if self._wire.over:
                raise Ended
        if end is not None and sink.moved < end:
            raise _Busy(f"the connection ended after {sink.moved} of {end} bytes")

    def _where(self, name: str) -> str:
        return f"{self.origin.location}/{name}"


def _classify(answer: HTTPResponse, where: str, sink: _Sink) -> None:
    """Return when the body is what was asked for; a body from the start restarts the sink."""
    status, words = answer.status, f"the server says {answer.status} {answer.reason}"
    if status in (404, 410):
        raise Absent(f"{where} is absent: {words}")
    if status == 200:
        if sink.moved:  # a server without ranges, or another version of the file
            sink.restart(sink.size)
        return
    if status == 206:
        unit, _, of = answer.getheader("Content-Range", "").partition("/")
        if not unit.startswith(f"bytes {sink.moved}-"):
            raise _Busy(f"asked from byte {sink.moved} on, the server gives {unit or 'an unnamed range'}")
        if sink.size is not None and of.isdigit() and int(of) != sink.size:
            raise _Mismatch(f"{of} bytes, the manifest says {sink.size}")
        return
    if status == 416:
        raise _Mismatch(f"fewer than {sink.moved + 1} bytes, the manifest says {sink.size}")
    if status >= 500 or status in (408, 425, 429):
        raise _Busy(words, retry_after(answer.getheader("Retry-After", ""), time.time()))
    hint = "; check the credentials (S3 also says 403 of an absent file where listing is not allowed)"
    raise _Refused(words + (hint if status in (401, 403) else ""))


def retry_after(value: str, now: float) -> float:
    """Seconds that a Retry-After header asks for (a number or a date), 0.0 for none."""
    if value.strip().isdigit():
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - now)
    except ValueError:
        return 0.0


def pause(name: str, attempt: int) -> float:
    """Seconds before attempt + 1: doubled each time, times 0.5-1.5 by name and attempt, so that no herd forms."""
    word = sha256(json.dumps([name, attempt]).encode()).digest()[0]
    return min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** min(attempt, 20)) * (0.5 + word / 255)


def _words(error: Exception) -> str:
    return str(error) or type(error).__name__
