from dataclasses import replace
from itertools import chain

import pytest

from bigdiff.runtime.peers import Reading, ahead, apart, judge, partners

SOUND = Reading(
    rank=0,
    host="",
    device="H200",
    matmul=700e12,
    copy=4e12,
    free=139 * 2**30,
    product=3.25,
    link=45e9,
    versions={"torch": "2.13", "python": "3.11.9"},
)


def cluster(nodes: int, per_node: int, **odd: Reading) -> list[Reading]:
    """Sound ranks, block by block; those of the nodes in `odd` as given there."""
    names = [f"n{rank // per_node + 1}" for rank in range(nodes * per_node)]
    return [replace(odd.get(name, SOUND), rank=rank, host=name) for rank, name in enumerate(names)]


def test_a_sound_cluster_has_no_faults() -> None:
    assert judge(cluster(4, 8), 0.7) == ()
    a_little = replace(SOUND, matmul=600e12, copy=3e12, link=35e9, product=3.25001)
    assert judge(cluster(4, 2, n3=a_little), 0.7) == ()


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"matmul": 210e12}, "rank 4 multiplies at 0.30 of the median"),
        ({"copy": 2e12}, "rank 4 copies memory at 0.50 of the median"),
        ({"link": 4.5e9}, "rank 4 exchanges data at 0.10 of the median"),
        ({"free": 100 * 2**30}, "rank 4 has free memory of 0.72 of the median"),
    ],
)
def test_a_slow_node_is_named_with_what_it_is_slow_at(change: dict[str, float], why: str) -> None:
    (fault,) = judge(cluster(4, 2, n3=replace(SOUND, **change)), 0.7)  # type: ignore[arg-type]
    assert (fault.host, fault.slow, fault.why) == ("n3", True, why)
    assert judge(cluster(4, 2, n3=replace(SOUND, **change)), 0.0) == ()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"wrong": "fails on H200: CUDA error"}, "rank 4 fails on H200: CUDA error"),
        ({"product": float("nan")}, "rank 4 multiplies to nan, others to 3.25"),
        ({"product": 3.4}, "rank 4 multiplies to 3.4, others to 3.25"),
        ({"versions": {"torch": "2.12", "python": "3.11.9"}}, "torch is 2.12, others 2.13"),
        ({"versions": {"python": "3.11.9"}}, "torch is absent, others 2.13"),
    ],
)
def test_a_broken_node_is_named_even_where_speed_is_not_judged(change: dict[str, object], why: str) -> None:
    (fault,) = judge(cluster(4, 2, n3=replace(SOUND, **change)), 0.0)  # type: ignore[arg-type]
    assert (fault.host, fault.slow, fault.why) == ("n3", False, why)


def test_one_slow_rank_speaks_for_its_node() -> None:
    readings = cluster(4, 8)
    readings[11] = replace(readings[11], matmul=1e12)
    (fault,) = judge(readings, 0.7)
    assert (fault.host, fault.why) == ("n2", "rank 11 multiplies at 0.00 of the median")


def test_only_like_devices_are_compared() -> None:
    older = replace(SOUND, device="A100", matmul=250e12, copy=1.6e12, free=39 * 2**30)
    assert judge(cluster(4, 2, n3=older, n4=older), 0.7) == ()


def test_where_there_is_no_majority_both_are_at_fault() -> None:
    other = replace(SOUND, versions={"torch": "2.12", "python": "3.11.9"})
    assert {fault.host: fault.why for fault in judge(cluster(2, 1, n2=other), 0.7)} == {
        "n1": "torch is 2.13, which most do not have",
        "n2": "torch is 2.12, which most do not have",
    }
    assert [fault.host for fault in judge(cluster(2, 1, n2=replace(SOUND, product=4.0)), 0.7)] == ["n1", "n2"]


@pytest.mark.parametrize(
    ("nodes", "per_node"), [(1, 1), (1, 2), (1, 3), (2, 1), (2, 4), (3, 2), (4, 1), (5, 3), (8, 8)]
)
def test_pairs_are_mutual_and_every_node_meets_others(nodes: int, per_node: int) -> None:
    hosts = [f"n{rank // per_node}" for rank in range(nodes * per_node)]
    rounds = partners(hosts)
    for pairs in rounds:
        assert all(pairs[other] == one != other for one, other in pairs.items())
    met = {
        host: {hosts[pairs[rank]] for pairs in rounds for rank in pairs if hosts[rank] == host} - {host}
        for host in hosts
    }
    if nodes > 1:
        assert all(met.values())
    if nodes > 2 and nodes % 2 == 0:
        assert all(len(others) == 2 for others in met.values())
    if per_node == 2:
        assert set(chain(*rounds)) == set(range(len(hosts)))


def test_a_node_that_met_a_slow_one_is_not_slow() -> None:
    """Each rank keeps the better of its partners."""
    hosts = [f"n{rank + 1}" for rank in range(4)]
    speed = {host: 1e9 if host == "n3" else 45e9 for host in hosts}
    best = [
        max(min(speed[hosts[rank]], speed[hosts[pairs[rank]]]) for pairs in partners(hosts) if rank in pairs)
        for rank in range(4)
    ]
    readings = [replace(one, link=link) for one, link in zip(cluster(4, 1), best, strict=True)]
    assert [fault.host for fault in judge(readings, 0.7)] == ["n3"]


def test_who_does_not_share_the_folder() -> None:
    apart_3 = {0: [3], 1: [3], 2: [3], 3: [0, 1, 2]}
    assert [bool(apart(rank, apart_3)) for rank in range(4)] == [False, False, False, True]
    mute_3: dict[int, list[int]] = {0: [3], 1: [3], 2: [3], 3: []}
    assert [apart(rank, mute_3) for rank in range(4)] == [
        "",
        "",
        "",
        "writes to the run's folder what other nodes do not see",
    ]
    assert [bool(apart(rank, {0: [1], 1: [0]})) for rank in (0, 1)] == [True, True]
    assert apart(0, {0: []}) == "" and apart(1, {0: [], 1: []}) == ""


def test_clocks_that_differ_are_told() -> None:
    readings = cluster(3, 1, n2=replace(SOUND, clock=12.34))
    assert ahead(readings, 2.0) == "clocks differ: node n2 +12.3 s; let ntpd or chrony set them"
    assert ahead(readings, 13.0) == ""
