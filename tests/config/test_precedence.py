from graphlib import CycleError, TopologicalSorter

from hypothesis import given
from hypothesis import strategies as st

from bigdiff.config.precedence import ordered

NAMES = st.sampled_from("abcdefg")
GRAPHS = st.dictionaries(NAMES, st.frozensets(NAMES)).map(
    lambda graph: {name: before & graph.keys() for name, before in graph.items()}
)


@given(GRAPHS)
def test_each_is_behind_those_it_is_after_and_left_over_is_only_what_waits_in_vain(
    graph: dict[str, frozenset[str]],
) -> None:
    placed, left = ordered(graph)
    assert sorted(placed + left) == sorted(graph)
    for number, name in enumerate(placed):
        assert graph[name] <= set(placed[:number])
    assert all(graph[name] & set(left) for name in left)
    assert list(left) == [name for name in graph if name in left]


@given(GRAPHS)
def test_names_are_left_over_exactly_where_the_standard_library_sees_a_circle(graph: dict[str, frozenset[str]]) -> None:
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        assert {*error.args[1]} <= {*ordered(graph)[1]}
    else:
        assert not ordered(graph)[1]


@given(GRAPHS)
def test_no_name_is_ahead_of_an_earlier_one_that_was_ready(graph: dict[str, frozenset[str]]) -> None:
    placed, _ = ordered(graph)
    listed = list(graph)
    for number, name in enumerate(placed):
        passed = [other for other in placed[number:] if listed.index(other) < listed.index(name)]
        assert all(not graph[other] <= set(placed[:number]) for other in passed)


def test_a_name_that_is_not_given_has_no_place_nor_has_what_is_behind_it() -> None:
    assert ordered({"a": ("x",), "b": ("a",), "c": ()}) == (("c",), ("a", "b"))
    assert ordered({}) == ((), ())
