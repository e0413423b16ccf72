"""What comes before what: names in an order in which each is behind those that it waits for. Pure."""

from collections.abc import Collection, Mapping


def ordered(after: Mapping[str, Collection[str]]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The names that `after` has, each behind those that it is after, and the names that no order has a place for.

    Of the names that could come next the first one given does. Without a place are those in a circle, those that wait
    for a name that is not given, and what is behind either.
    """
    found: dict[str, None] = {}
    while True:
        ready = next((name for name, before in after.items() if name not in found and set(before) <= set(found)), None)
        if ready is None:
            return tuple(found), tuple(name for name in after if name not in found)
        found[ready] = None
