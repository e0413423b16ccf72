"""A minute's measurement of one machine, from which other sizes are computed: what it says, and where it lies."""

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from bigdiff.config.errors import UsageError
from bigdiff.runtime.files import write_json

FORMAT = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Probe:
    """What was measured, by all ranks of a machine at once."""

    format: int = FORMAT
    date: str
    device: str  # of each rank
    ranks: int
    stage: str
    flops: int  # of an image of that stage, all in
    half: bool
    image: float  # seconds of forward and backward passes for each image more in a micro-batch
    fixed: float  # seconds of a pass beside them
    micro: int  # the larger micro-batch that was measured
    spread: float  # standard deviation of a pass of it, relative
    element: float  # seconds of AdamW, casts and averages for each element of a rank's share
    step: float  # seconds of an engine's step that the other figures do not explain, on one rank
    matmul: float  # FLOP/s of a large matrix product
    rate: float  # bytes/s that each rank of a ring sends in a large all-reduce; 0 for one rank
    latency: float  # seconds of a small all-reduce; 0 for one rank
    seconds: float  # that the measurement took


def write(probe: Probe, file: Path) -> None:
    """As JSON for people and `read`."""
    write_json(file, asdict(probe))


def read(file: Path) -> Probe:
    """The measurement in `file`.

    Raises:
        UsageError: when it is not there or is not one.
    """
    try:
        found = json.loads(file.read_text())
    except OSError as error:
        raise UsageError(f"--probe {file}: {error.strerror}; launch/probe.py writes one") from error
    except ValueError as error:
        raise UsageError(f"--probe {file} is not JSON ({error}); launch/probe.py writes one") from error
    names = {one.name for one in fields(Probe)}
    if not isinstance(found, dict) or set(found) != names or found["format"] != FORMAT:
        raise UsageError(f"--probe {file} is not a measurement of this version; measure again with launch/probe.py")
    for one in fields(Probe):
        kinds = (int, float) if one.type is float else (one.type,)
        if type(found[one.name]) not in kinds:
            raise UsageError(f"--probe {file}: {one.name}={found[one.name]!r} is no {one.type}; measure again")
    return Probe(**found)
