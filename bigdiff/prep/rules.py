"""The rules that metadata must pass, each a named SQL predicate over our own column names."""

from dataclasses import dataclass
from typing import Final

from bigdiff.config.prep import Select

# Our name -> the names in LAION's, COYO's and img2dataset's files, compared without case.
COLUMNS: Final[dict[str, tuple[str, ...]]] = {
    "url": ("url",),
    "caption": ("text", "caption", "top_caption"),
    "width": ("width", "original_width"),
    "height": ("height", "original_height"),
    "similarity": ("similarity", "clip_similarity_vitl14"),
    "hash": ("hash",),
    "pwatermark": ("pwatermark", "watermark_score"),
    "punsafe": ("punsafe",),
    "aesthetic": ("aesthetic_score", "aesthetic", "aesthetic_score_laion_v2"),
    "language": ("language",),
}
TYPES: Final[dict[str, str]] = {
    "url": "VARCHAR",
    "caption": "VARCHAR",
    "width": "BIGINT",
    "height": "BIGINT",
    "similarity": "DOUBLE",
    "hash": "BIGINT",
    "pwatermark": "DOUBLE",
    "punsafe": "DOUBLE",
    "aesthetic": "DOUBLE",
    "language": "VARCHAR",
}
SCORES: Final = ("aesthetic", "pwatermark", "punsafe", "similarity")
ALWAYS: Final = ("url", "caption")  # columns that no set goes without
DUPLICATE: Final = "url not seen before"

# (setting, what is measured, comparison, columns): LAION's raw sets have WIDTH and HEIGHT exchanged, which only matters
# where the two bounds differ.
_BOUNDS: Final[tuple[tuple[str, str, str, tuple[str, ...]], ...]] = (
    ("min_caption_length", "caption length", ">=", ("caption",)),
    ("max_caption_length", "caption length", "<=", ("caption",)),
    ("min_width", "width", ">=", ("width",)),
    ("min_height", "height", ">=", ("height",)),
    ("max_aspect", "aspect", "<=", ("width", "height")),
    ("similarity_above", "similarity", ">", ("similarity",)),
    ("aesthetic_above", "aesthetic", ">", ("aesthetic",)),
    ("aesthetic_at_least", "aesthetic", ">=", ("aesthetic",)),
    ("pwatermark_below", "pwatermark", "<", ("pwatermark",)),
    ("punsafe_below", "punsafe", "<", ("punsafe",)),
)
_MEASURES: Final = {
    "caption length": "length(caption)",
    "aspect": "greatest(width, height) / nullif(least(width, height), 0)",
}
_HOST: Final = r"lower(regexp_extract(url, '^[a-zA-Z]+://(?:[^/?#]*@)?(\[[^\]]*\]|[^/:?#]*)', 1))"
# Literal addresses that are not on the public internet, and names that never are. What a name resolves to is checked
# when it is connected to (bigdiff.prep.fetch). A host in one number, octal or hexadecimal is an address in disguise.
_PRIVATE_HOST: Final = (
    r"localhost\.?|.*\.(localhost|local|internal)\.?|0x.*|\d+|0\d*\..*|10\..*|127\..*|169\.254\..*|192\.168\..*"
    r"|172\.(1[6-9]|2\d|3[01])\..*|100\.(6[4-9]|[7-9]\d|1[01]\d|12[0-7])\..*|(22[4-9]|2[3-5]\d)\.\d+\.\d+\.\d+"
    r"|\[(::.*|f[cdef].*|64:ff9b:.*)\]"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Rule:
    """A predicate; `sql` is true or false, never null, for any row."""

    name: str  # "aesthetic > 5.0"
    sql: str
    columns: tuple[str, ...]  # ours, that it reads
    setting: str  # what turns it on or off; empty for a rule that is always on


def rules(select: Select, allow_private: bool) -> tuple[Rule, ...]:
    """The rules that are on, in the order in which the funnel counts them."""
    found = [
        _rule("url present", "trim(url) <> ''", "url"),
        _rule("url is http or https", "regexp_matches(url, '^https?://[^/?#]', 'i')", "url"),
    ]
    if not allow_private:
        public = f"NOT regexp_full_match({_HOST}, '{_PRIVATE_HOST}')"
        found.append(_rule("url is public", public, "url", setting="download.allow_private_addresses"))
    found.append(_rule("caption present", "trim(caption) <> ''", "caption"))
    for setting, label, comparison, columns in _BOUNDS:
        bound = getattr(select, setting)
        if bound is not None:
            sql = f"{_MEASURES.get(label, label)} {comparison} {bound}"
            found.append(_rule(f"{label} {comparison} {bound:g}", sql, *columns, setting=f"select.{setting}"))
    if select.languages:
        names = ", ".join("'" + name.replace("'", "''").lower() + "'" for name in select.languages)
        label = f"language is {' or '.join(select.languages)}"
        found.append(_rule(label, f"lower(language) IN ({names})", "language", setting="select.languages"))
    return tuple(found)


def threshold(select: Select, score: str) -> float | None:
    """The value that a score is compared with, for drawing it."""
    for setting, label, _, _ in _BOUNDS:
        if label == score and getattr(select, setting) is not None:
            return float(getattr(select, setting))
    return None


def _rule(name: str, sql: str, *columns: str, setting: str = "") -> Rule:
    return Rule(name=name, sql=f"COALESCE({sql}, FALSE)", columns=columns, setting=setting)
