"""The rules that metadata must pass, each a named SQL predicate over our own column names."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from bigdiff.config.prep import Select
from bigdiff.prep.query import quoted

SCORES: Final = ("aesthetic", "pwatermark", "punsafe", "similarity")
DUPLICATE: Final = "url not seen before"

# Setting, what is measured, comparison, columns.
_BOUNDS: Final[tuple[tuple[str, str, str, tuple[str, ...]], ...]] = (
    ("min_caption_length", "caption length", ">=", ("caption",)),
    ("max_caption_length", "caption length", "<=", ("caption",)),
    ("min_width", "width", ">=", ("width",)),
    ("min_height", "height", ">=", ("height",)),
    ("max_aspect", "aspect", "<=", ("width", "height")),
    ("similarity_above", "similarity", ">", ("similarity",)),
    ("similarity_at_least", "similarity", ">=", ("similarity",)),
    ("aesthetic_above", "aesthetic", ">", ("aesthetic",)),
    ("aesthetic_at_least", "aesthetic", ">=", ("aesthetic",)),
    ("pwatermark_below", "pwatermark", "<", ("pwatermark",)),
    ("pwatermark_at_most", "pwatermark", "<=", ("pwatermark",)),
    ("punsafe_below", "punsafe", "<", ("punsafe",)),
)
_MEASURES: Final = {
    "caption length": "length(caption)",
    "aspect": "greatest(width, height) / CASE WHEN least(width, height) > 0 THEN least(width, height) END",
}
# Literal addresses that are not on the public internet, and names that never are. What a name resolves to is checked
# when it is connected to (bigdiff.prep.fetch). A host in one number, octal or hexadecimal is an address in disguise.
_HOST: Final = "[^/:?#@]*"
_PRIVATE_HOST: Final = (
    rf"localhost\.?|{_HOST}\.(localhost|local|internal)\.?|0x{_HOST}|\d+|0\d*\.{_HOST}|10\.{_HOST}|127\.{_HOST}"
    rf"|169\.254\.{_HOST}|192\.168\.{_HOST}|172\.(1[6-9]|2\d|3[01])\.{_HOST}|100\.(6[4-9]|[7-9]\d|1[01]\d|12[0-7])\.{_HOST}"
    rf"|(22[4-9]|2[3-5]\d)\.\d+\.\d+\.\d+|\[(::|f[cdef]|64:ff9b:)[^\]]*\]{_HOST}"
)
# One expression that captures nothing, because it is tried on every row. What looks like a user's name before an @ is
# not the host; the host ends where a port, the path, a query or a fragment begins.
_PRIVATE: Final = rf"^[a-z]+://([^/?#]*@)?({_PRIVATE_HOST})(:[^/?#@]*)?([/?#]|$)"
# What nearly every URL matches, and none that a rule on URLs refuses: a name with a dot, whose last part begins like no
# private one's. Tried first, it takes half the time of the rules' own expressions.
_ORDINARY: Final = r"^https?://[a-z][a-z0-9.-]*\.[a-hjkm-z][a-z0-9-]*/"


@dataclass(frozen=True, kw_only=True, slots=True)
class Bound:
    """What a rule says when it compares one column with a number."""

    column: str  # ours
    comparison: str
    value: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Rule:
    """A predicate; `sql` is true or false, never null, for any row."""

    name: str  # "aesthetic > 5.0"
    sql: str
    columns: tuple[str, ...]  # ours, that it reads
    setting: str  # what turns it on or off; empty for a rule that is always on
    bound: Bound | None = None

    @property
    def reads_text(self) -> bool:
        """Whether it looks into URLs or captions, which takes many times as long as comparing a number."""
        return not {"url", "caption"}.isdisjoint(self.columns)


def rules(select: Select, allow_private: bool) -> tuple[Rule, ...]:
    """The rules that are on, in the order in which the funnel counts them: those that read no text come first."""
    found = [
        _rule("url present", "ltrim(url) <> ''", "url"),
        _rule("url is http or https", "regexp_matches(url, '^https?://[^/?#]', 'i')", "url"),
    ]
    if not allow_private:
        public = f"NOT regexp_matches(url, '{_PRIVATE}', 'i')"
        found.append(_rule("url is public", public, "url", setting="download.allow_private_addresses"))
    # '!' is the first character after the space: what begins with it or a later one is not blank
    present = "CASE WHEN caption >= '!' THEN TRUE ELSE ltrim(caption) <> '' END"
    found.append(_rule("caption present", present, "caption"))
    for setting, label, comparison, columns in _BOUNDS:
        bound = getattr(select, setting)
        if bound is not None:
            sql = f"{_MEASURES.get(label, label)} {comparison} {bound}"
            rule = _rule(f"{label} {comparison} {bound:g}", sql, *columns, setting=f"select.{setting}")
            plain = Bound(column=label, comparison=comparison, value=bound) if (label,) == columns else None
            found.append(replace(rule, bound=plain))
    if select.languages:
        names = ", ".join(quoted(name.lower()) for name in select.languages)
        label = f"language is {' or '.join(select.languages)}"
        found.append(_rule(label, f"lower(language) IN ({names})", "language", setting="select.languages"))
    return tuple(sorted(found, key=lambda rule: rule.reads_text))


def failed_sql(active: Sequence[Rule], text: bool) -> str:
    """SQL for the failed rules that read text, or for the others: the sum of 2 to the power of their places."""
    chosen = [(rule, 1 << bit) for bit, rule in enumerate(active) if rule.reads_text is text]
    of_urls, others = ([each for each in chosen if (each[0].columns == ("url",)) is urls] for urls in (True, False))
    shortened = f"CASE WHEN regexp_matches(url, '{_ORDINARY}') THEN 0 ELSE {_sum(of_urls)} END"
    return f"{shortened} + {_sum(others)}" if text else _sum(others)


def threshold(select: Select, score: str) -> float | None:
    """The value that a score is compared with, for drawing it."""
    for setting, label, _, _ in _BOUNDS:
        if label == score and getattr(select, setting) is not None:
            return float(getattr(select, setting))
    return None


def _sum(chosen: Sequence[tuple[Rule, int]]) -> str:
    return " + ".join(f"CASE WHEN {rule.sql} THEN 0 ELSE {bit} END" for rule, bit in chosen) or "0"


def _rule(name: str, sql: str, *columns: str, setting: str = "") -> Rule:
    return Rule(name=name, sql=f"COALESCE({sql}, FALSE)", columns=columns, setting=setting)
