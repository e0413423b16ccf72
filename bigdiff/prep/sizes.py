"""Whether a release holds its pictures' height under WIDTH and their width under HEIGHT, as LAION's raw sets do.

The metadata alone cannot tell, but many URLs can: a picture whose address ends in `-800x600.jpg` is 800 wide. Later the
fetched pictures themselves are compared with what the metadata said of them.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bigdiff.config.errors import UsageError
from bigdiff.config.prep import Select
from bigdiff.prep.query import quoted

_LEAST: Final = 10  # URLs: fewer say nothing
_AGREED: Final = 0.9  # share of them; pictures are replaced, so a few always differ
_NAMED: Final = r"[-_](\d{2,5})x(\d{2,5})\.(?:jpe?g|png|gif|webp)(?:[?#]|$)"


@dataclass(frozen=True, kw_only=True, slots=True)
class Votes:
    """Pictures that are not square and whose size is known in both places."""

    straight: int  # width is the width
    swapped: int  # width is the height, height is the width

    def __str__(self) -> str:
        """Counts, for a sentence."""
        return f"{self.straight:,} as they are named, {self.swapped:,} exchanged"


def is_needed(select: Select) -> bool:
    """Whether any rule depends on which is which."""
    return select.swapped_sizes == "auto" and select.min_width != select.min_height


def query(table: str) -> str:
    """SQL for the counts of a `Votes` over the URLs of `table`, in order."""
    read = f"regexp_extract(url, '{_NAMED}', ['w', 'h'], 'i')"
    return (
        "SELECT count(*) FILTER (w = width AND h = height), count(*) FILTER (w = height AND h = width) FROM ("
        "SELECT width, height, TRY_CAST(read.w AS BIGINT) AS w, TRY_CAST(read.h AS BIGINT) AS h "
        f"FROM (SELECT width, height, {read} AS read FROM {table})) WHERE w <> h"
    )


def decide(votes: Votes) -> bool:
    """Whether width and height are exchanged. Too few votes: they are not.

    Raises:
        UsageError: when both happens.
    """
    total = votes.straight + votes.swapped
    if total < _LEAST or votes.straight >= _AGREED * total:
        return False
    if votes.swapped >= _AGREED * total:
        return True
    raise UsageError(
        f"of the pictures whose URL ends in their size, width and height are {votes}: select each kind of release by "
        "itself, or set select.swapped_sizes to always or never"
    )


def note(votes: Votes) -> str:
    """What was decided, and from what."""
    read = "exchanged" if decide(votes) else "as they are named"
    return f"width and height are read {read}; by the URLs that end in a size: {votes}"


def fetched_query(selected: Path, samples: Path) -> str:
    """SQL for pictures that were stored and are not square: all of them, then the counts of a `Votes`, in order.

    `selected` holds what the metadata says of a row, the parquet files in `samples` what its file is. A picture that a
    camera marked as lying on its side counts as exchanged where the metadata is of the file before it was turned.
    """
    told = f"SELECT row, width AS w, height AS h FROM read_parquet({quoted(selected)})"
    real = f"SELECT row, original_width AS x, original_height AS y FROM read_parquet({quoted(samples / '*.parquet')})"
    return (
        "SELECT count(*), count(*) FILTER (w = x AND h = y), count(*) FILTER (w = y AND h = x) "
        f"FROM ({real}) JOIN ({told}) USING (row) WHERE x <> y"
    )


def fetched_note(pictures: int, votes: Votes) -> str:
    """What the stored pictures say of the metadata."""
    other = pictures - votes.straight - votes.swapped
    return (
        f"the metadata's width and height are exchanged in {votes.swapped:,} of {pictures:,} stored pictures that are "
        f"not square; {votes.straight:,} are as it says, {other:,} of another size"
    )
