"""What a run wrote of itself in metrics.jsonl: a curve for each tag, and the first and the last line."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bigdiff.config.errors import UsageError
from bigdiff.report.curves import Curve, Thinner
from bigdiff.report.records import lines

SEEN: Final = "samples_seen"  # what curves are drawn over
_PLACES: Final = ("step", SEEN, "time", "train/samples_seen")  # numbers that say where, not how it goes


@dataclass(frozen=True, kw_only=True, slots=True)
class Readings:
    """Of all lines; empty before the first."""

    count: int  # lines
    first: Mapping[str, float]
    last: Mapping[str, float]
    curves: Mapping[str, Curve]  # by tag

    def curve(self, tag: str) -> Curve:
        """Of a tag; without a reading when the run has none."""
        return self.curves.get(tag, Curve())

    def under(self, prefix: str) -> list[str]:
        """Tags that are `prefix` and a name without a slash, numbers in their order."""
        tags = [tag for tag in self.curves if tag.startswith(prefix)]
        return sorted(tags, key=lambda tag: (len(tag), tag) if tag[-1].isdigit() else (0, tag))


def read(file: Path) -> Readings:
    """Line by line, in memory that does not grow with the file.

    Raises:
        UsageError: naming the line that is no reading.
    """
    found: defaultdict[str, Thinner] = defaultdict(Thinner)
    count, first, last = 0, dict[str, float](), dict[str, float]()
    for count, line in enumerate(lines(file), 1):
        place = line.get(SEEN)
        if not isinstance(place, (int, float)):
            raise UsageError(f"{file} line {count} has no number {SEEN}: delete the line")
        for tag, value in line.items():
            if not isinstance(value, (int, float)):
                raise UsageError(f"{file} line {count} has a {tag} that is no number: delete the line")
            if tag not in _PLACES:
                found[tag].add(place, value)
        first, last = first or line, line
    return Readings(count=count, first=first, last=last, curves={tag: one.curve() for tag, one in found.items()})
