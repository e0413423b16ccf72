import numpy as np
from hypothesis import given
from hypothesis import strategies as some

from bigdiff.prep.graph import components, stars

edges = some.lists(some.tuples(some.integers(-9, 30), some.integers(-9, 30)).filter(lambda pair: pair[0] != pair[1]))


def ends(pairs: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    found = np.array(pairs, np.int64).reshape(-1, 2)
    return found[:, 0], found[:, 1]


def reached(start: int, pairs: list[tuple[int, int]]) -> set[int]:
    seen, fresh = {start}, {start}
    while fresh:
        fresh = {b for pair in pairs for a, b in (pair, pair[::-1]) if a in fresh} - seen
        seen |= fresh
    return seen


def one_after_the_other(pairs: list[tuple[int, int]]) -> dict[int, int]:
    kept: list[int] = []
    gone = {}
    for node in sorted({end for pair in pairs for end in pair}):
        alike = [other for other in kept if (other, node) in pairs]
        if alike:
            gone[node] = min(alike)
        else:
            kept.append(node)
    return gone


@given(edges)
def test_components_are_what_can_be_reached(pairs: list[tuple[int, int]]) -> None:
    nodes, labels = components(*ends(pairs))
    assert nodes.tolist() == sorted({end for pair in pairs for end in pair})
    assert labels.tolist() == [min(reached(node, pairs)) for node in nodes.tolist()]


@given(edges)
def test_stars_are_what_one_after_the_other_would_keep(pairs: list[tuple[int, int]]) -> None:
    ranked = [(min(pair), max(pair)) for pair in pairs]
    dropped, kept = stars(*ends(ranked))
    assert dict(zip(dropped.tolist(), kept.tolist(), strict=True)) == one_after_the_other(ranked)


def test_a_chain_is_one_component_and_every_other_node_stays() -> None:
    chain = np.arange(20_000)
    nodes, labels = components(chain[1:], chain[:-1])
    assert len(nodes) == 20_000
    assert not labels.any()
    dropped, kept = stars(chain[:100], chain[1:101])
    assert dropped.tolist() == list(range(1, 101, 2))
    assert kept.tolist() == list(range(0, 100, 2))
