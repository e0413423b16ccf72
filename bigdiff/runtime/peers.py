"""Processes side by side: which node is broken, and which is slower than the others. Pure."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from statistics import median
from typing import Final

ABSENT: Final = "absent"  # for a version
NAMED: Final = 8  # nodes that a sentence names; the rest are counted
PRODUCT: Final = 1e-2  # relative difference of the same product on two devices that is none of rounding
MEMORY: Final = 0.9  # share of the others' free memory below which somebody else uses the device


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """What one process found on its device, at the time at which all others did the same."""

    rank: int
    host: str
    device: str  # "cpu", or the GPU's name
    wrong: str = ""  # what did not work at all; the figures below are 0 where they could not be had
    matmul: float = 0.0  # FLOP/s
    copy: float = 0.0  # bytes/s, read and written
    free: int = 0  # bytes of the GPU's memory; 0 on the CPU
    product: float = 0.0  # of the matrices that all multiply
    link: float = 0.0  # bytes/s each way, with the better of its partners; 0 where there is none
    clock: float = 0.0  # seconds ahead of the median
    versions: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Fault:
    """A node that should not be used."""

    host: str
    why: str
    slow: bool  # it works, but the others would wait for it


def judge(readings: Sequence[Reading], slow: float) -> tuple[Fault, ...]:
    """The nodes that are broken or, below `slow` of their peers' median rate, slow; one fault a node, by its name.

    Only processes on devices of one kind are compared. Of two nodes that differ where there is no majority, both are
    at fault: nobody knows which.
    """
    found: dict[str, Fault] = {}
    for host, why in (*_wrong(readings), *_versions(readings), *_products(readings)):
        found.setdefault(host, Fault(host=host, why=why, slow=False))
    for host, why in _slow(readings, slow) if slow else ():
        found.setdefault(host, Fault(host=host, why=why, slow=True))
    return tuple(found[host] for host in sorted(found))


def partners(hosts: Sequence[str]) -> tuple[dict[int, int], ...]:
    """Rounds of pairs {rank: partner}: neighbours on a node, then each node with two others, index by index.

    A node that is slow with all its partners is slow itself; two partners tell it from a node that met a slow one.
    `hosts` is each rank's host, in rank order.
    """
    nodes: dict[str, list[int]] = {}
    for rank, host in enumerate(hosts):
        nodes.setdefault(host, []).append(rank)
    groups = list(nodes.values())
    rounds = [_paired((group[at], group[at + 1]) for group in groups for at in range(0, len(group) - 1, 2))]
    for first in (0, 1) if len(groups) > 2 else (0,):
        order = groups[first:] + groups[:first]
        meet = zip(order[::2], order[1::2], strict=False)
        rounds.append(_paired(pair for one, other in meet for pair in zip(one, other, strict=False)))
    return tuple(one for one in rounds if one)


def apart(rank: int, unseen: Mapping[int, Sequence[int]]) -> str:
    """What is wrong with the folder that `rank` should share with others; "" where nothing is.

    `unseen` has for each rank those whose files it does not see. One that misses half of the others', or whose own
    half of the others miss, is at fault: of two that do not see each other, both.
    """
    half = (len(unseen) - 1) / 2
    if unseen[rank] and len(unseen[rank]) >= half:
        return "does not see what other nodes write to the run's folder: `runs` must be a folder that all share"
    missed = sum(rank in each for each in unseen.values())
    return "writes to the run's folder what other nodes do not see" if missed and missed >= half else ""


def ahead(readings: Sequence[Reading], limit: float) -> str:
    """Which nodes' clocks are more than `limit` seconds off the median; "" where none is."""
    off = {one.host: one.clock for one in readings if abs(one.clock) > limit}
    named = ", ".join(f"node {host} {clock:+.1f} s" for host, clock in list(off.items())[:NAMED])
    return f"clocks differ: {named}; let ntpd or chrony set them" if off else ""


def _paired(pairs: Iterable[tuple[int, int]]) -> dict[int, int]:
    both = list(pairs)
    return {**dict(both), **{other: one for one, other in both}}


def _wrong(readings: Sequence[Reading]) -> list[tuple[str, str]]:
    return [(one.host, f"rank {one.rank} {one.wrong}") for one in readings if one.wrong]


def _versions(readings: Sequence[Reading]) -> list[tuple[str, str]]:
    """Nodes whose software is not that of most."""
    found = []
    for name in sorted({name for one in readings for name in one.versions}):
        usual = _usual(one.versions.get(name, ABSENT) for one in readings)
        others = f"others {usual}" if usual else "which most do not have"
        differing = [one for one in readings if one.versions.get(name, ABSENT) != usual]
        found += [(one.host, f"{name} is {one.versions.get(name, ABSENT)}, {others}") for one in differing]
    return found


def _products(readings: Sequence[Reading]) -> list[tuple[str, str]]:
    """Nodes that compute something else than most, without an error: a device that is worse than dead."""
    found = []
    for group in _kinds([one for one in readings if not one.wrong]):
        middle = median([one.product for one in group if isfinite(one.product)] or [0.0])
        off = [one for one in group if not abs(one.product - middle) <= PRODUCT * abs(middle)]
        found += [(one.host, f"rank {one.rank} multiplies to {one.product:g}, others to {middle:g}") for one in off]
    return found


def _slow(readings: Sequence[Reading], limit: float) -> list[tuple[str, str]]:
    """The slowest rank of each node that is too slow, in any of the rates."""
    rates: dict[str, tuple[Callable[[Reading], float], float]] = {
        "multiplies at": (lambda one: one.matmul, limit),
        "copies memory at": (lambda one: one.copy, limit),
        "exchanges data at": (lambda one: one.link, limit),
        "has free memory of": (lambda one: float(one.free), MEMORY),
    }
    found = []
    for group in _kinds([one for one in readings if not one.wrong]):
        for words, (rate, least) in rates.items():
            middle = median(map(rate, group))
            for one in sorted(group, key=rate):
                if rate(one) < least * middle:
                    found.append((one.host, f"rank {one.rank} {words} {rate(one) / middle:.2f} of the median"))
    return found


def _kinds(readings: Sequence[Reading]) -> list[list[Reading]]:
    """Those on one kind of device together."""
    return [[one for one in readings if one.device == device] for device in sorted({one.device for one in readings})]


def _usual(values: Iterable[str]) -> str:
    """What more than half have; "" where nothing is so usual."""
    counted = Counter(values)
    ((first, times),) = counted.most_common(1)
    return first if 2 * times > counted.total() else ""
