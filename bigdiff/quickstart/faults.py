"""What the embedded dataset does wrong, in known numbers: each kind of row, how many, and what must become of it."""

from dataclasses import dataclass, replace
from typing import Final

SOUND: Final = "sound"


@dataclass(frozen=True, kw_only=True, slots=True)
class Kind:
    """A kind of row. Rows of a kind that is kept must come out right; the others must be lost for the named cause."""

    name: str
    count: int
    step: str  # "kept", or where it is lost: "select", "download", "verify", "duplicate"
    cause: str = ""  # as the report names it


# Of the pictures that the set ends with, these come in a form that a careless pipeline gets wrong.
AWKWARD: Final = (
    Kind(name="throttled", count=12, step="kept"),  # 429 with Retry-After at first
    Kind(name="redirected", count=12, step="kept"),
    Kind(name="other_robot", count=8, step="kept"),  # an opt-out that is addressed to another robot
    Kind(name="rotated", count=24, step="kept"),  # EXIF orientation 3, 6, 8
    Kind(name="grey", count=24, step="kept"),
    Kind(name="rgba", count=24, step="kept"),  # transparent where it should be white
    Kind(name="sixteen_bit", count=12, step="kept"),  # grey PNG of 16 bits
    Kind(name="sixteen_bit_rgb", count=12, step="kept"),
)
# These come on top and must not be in the set.
FAULTY: Final = (
    Kind(name="watermarked", count=80, step="select", cause="pwatermark < 0.5"),
    Kind(name="low_scored", count=120, step="select", cause="aesthetic > 5"),
    Kind(name="unsafe", count=40, step="select", cause="punsafe < 0.5"),
    Kind(name="other_language", count=60, step="select", cause="language is en"),
    Kind(name="small", count=20, step="select", cause="width >= 64"),  # and says so
    Kind(name="no_caption", count=10, step="select", cause="caption present"),
    Kind(name="local_file", count=4, step="select", cause="url is http or https"),  # file:///...
    Kind(name="duplicate_url", count=40, step="select", cause="url not seen before"),
    Kind(name="not_found", count=40, step="download", cause="HTTP 404"),
    Kind(name="unavailable", count=6, step="download", cause="HTTP 503"),
    Kind(name="hanging", count=2, step="download", cause="timed out"),
    Kind(name="dripping", count=2, step="download", cause="deadline passed"),
    Kind(name="short_body", count=6, step="download", cause="short body"),
    Kind(name="oversized", count=2, step="download", cause="too many bytes"),  # promises more than the limit
    Kind(name="noai", count=10, step="download", cause="opted out: X-Robots-Tag noai"),
    Kind(name="noimageai", count=6, step="download", cause="opted out: X-Robots-Tag noimageai"),
    Kind(name="none", count=6, step="download", cause="opted out: X-Robots-Tag none"),
    Kind(name="our_robot", count=6, step="download", cause="opted out: X-Robots-Tag noindex"),  # "bigdiff: noindex"
    Kind(name="tdm", count=6, step="download", cause="opted out: tdm-reservation"),
    Kind(name="truncated", count=20, step="verify", cause="damaged or cut short"),
    Kind(name="html", count=20, step="verify", cause="not a picture"),
    Kind(name="empty", count=2, step="verify", cause="empty file"),
    Kind(name="tiny", count=10, step="verify", cause="smaller than pack.min_side"),  # and does not say so
    Kind(name="bomb", count=1, step="verify", cause="more than pack.max_pixels"),
    Kind(name="duplicate_bytes", count=20, step="duplicate", cause="same picture as another row's"),
)


def fewer(kinds: tuple[Kind, ...], most: int) -> tuple[Kind, ...]:
    """The same kinds, each at most `most` times: for small sets."""
    return tuple(replace(kind, count=min(kind.count, most)) for kind in kinds)
