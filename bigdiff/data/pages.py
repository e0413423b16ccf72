"""What can be read of a ledger (bigdiff.data.ledger): all records up to the end, the cut or the damage."""

import json
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from bigdiff.config.errors import UsageError
from bigdiff.data.ledger import (
    FORMAT,
    FRAME,
    LONGEST_TEXT,
    OTHER,
    RUN,
    STEP,
    SUBSTITUTION,
    WINDOW,
    Header,
    Input,
)

READ: Final = (1, FORMAT)  # formats
Ending = Literal["whole", "torn", "damaged"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Skip:
    """Steps [begin, end) that took their samples and moved no weights."""

    begin: int
    end: int
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Pages:
    """What could be read of one file."""

    file: Path
    header: Header
    steps: npt.NDArray[np.int64]  # [records], as written
    owners: npt.NDArray[np.int64]  # [runs], the record of each run
    runs: npt.NDArray[np.void]  # [runs] of RUN
    substitutions: npt.NDArray[np.void]  # [unusable samples] of SUBSTITUTION
    reasons: dict[int, str]
    skips: tuple[Skip, ...]  # as written: a later one includes what it overlaps
    ending: Ending
    readable: int  # bytes before the end, the cut or the damage

    @property
    def end(self) -> int:
        """The step behind the last one recorded."""
        return int(self.steps[-1]) + 1 if len(self.steps) else self.header.step


def read(file: Path) -> Pages | None:
    """All records up to the end, the cut or the damage; None when the file was cut inside its header.

    Raises:
        UsageError: when it cannot be read, is no ledger, or has another format.
    """
    try:
        content = file.read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read {file} ({error.strerror})") from error
    found = _Found()
    ending: Ending = "whole"
    at = 0
    while at < len(content):
        problem, end = _next(content, at)
        if problem:
            ending = problem
            break
        found.take(content[at + FRAME.size : end])
        at = end
    if found.header is None:
        if ending == "damaged":
            raise UsageError(f"{file} is no ledger, or its header is damaged")
        return None
    header = _header(found.header, file)
    return Pages(
        file=file,
        header=header,
        steps=np.array(found.steps, np.int64),
        owners=np.repeat(np.arange(len(found.steps), dtype=np.int64), found.counts),
        runs=np.frombuffer(b"".join(found.runs), RUN),
        substitutions=np.frombuffer(b"".join(found.substitutions), SUBSTITUTION),
        reasons=found.reasons,
        skips=tuple(found.skips),
        ending=ending,
        readable=at,
    )


class _Found:
    """The bodies of a file, sorted by kind."""

    def __init__(self) -> None:
        self.header: bytes | None = None
        self.reasons: dict[int, str] = {OTHER: "other"}
        self.steps: list[int] = []
        self.counts: list[int] = []
        self.runs: list[bytes] = []
        self.substitutions: list[bytes] = []
        self.skips: list[Skip] = []

    def take(self, body: bytes) -> None:
        kind = body[:1]
        if kind == b"S":
            _, step, runs, _ = STEP.unpack_from(body)
            middle = STEP.size + runs * RUN.itemsize
            self.steps.append(step)
            self.counts.append(runs)
            self.runs.append(body[STEP.size : middle])
            self.substitutions.append(body[middle:])
        elif kind == b"R":
            self.reasons[body[1]] = body[2:].decode()
        elif kind == b"W":
            _, begin, end = WINDOW.unpack_from(body)
            self.skips.append(Skip(begin=begin, end=end, reason=body[WINDOW.size :].decode(errors="replace")))
        else:
            self.header = body[1:]


def _next(content: bytes, at: int) -> tuple[Literal["", "torn", "damaged"], int]:
    """What is wrong with the frame at `at`, and where it ends.

    A kill leaves the beginning of a frame. Since a step's length follows from its counts, a flipped bit in it is told
    from a cut. What a lost node leaves behind the last `sync` may be anything, and is damage.
    """
    left = len(content) - at
    if left < FRAME.size:
        return "torn", at
    crc, length = FRAME.unpack_from(content, at)
    begin, end = at + FRAME.size, at + FRAME.size + length
    kind = content[begin : begin + 1]
    plausible = kind in (b"", b"H") if at == 0 else kind in (b"", b"S", b"R", b"W")
    if kind == b"S" and len(content) - begin >= STEP.size:
        _, _, runs, unusable = STEP.unpack_from(content, begin)
        plausible &= length == STEP.size + runs * RUN.itemsize + unusable * SUBSTITUTION.itemsize
    else:
        plausible &= 0 < length <= (LONGEST_TEXT if at == 0 else 1024)
    if not plausible:
        return "damaged", at
    if end > len(content):
        return "torn", at
    if zlib.crc32(memoryview(content)[at + 4 : end]) != crc:
        return "damaged", at
    return "", end


def _header(text: bytes, file: Path) -> Header:
    values = json.loads(text)  # its checksum is right, so it is as it was written
    if values.pop("format", None) not in READ:
        raise UsageError(f"{file} has another format than {FORMAT}, which this version reads")
    inputs = tuple(Input(**item) for item in values.pop("inputs"))
    return Header(**values, inputs=inputs)
