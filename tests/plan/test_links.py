import pytest

from bigdiff.plan.links import Fabric, seconds
from bigdiff.train.volumes import Kind, Volume

H100 = Fabric(per_node=8, inside=360e9, between=40e9)


def volume(kind: Kind, size: int, calls: int = 1) -> Volume:
    return Volume(what="", kind=kind, when="step", bytes=size, calls=calls)


def test_large_messages_go_at_the_links_rate() -> None:
    size = 8_000_000_000
    assert seconds(volume("all-reduce", size), 8, H100) == pytest.approx(2 * 7 / 8 * size / 360e9, rel=0.01)
    assert seconds(volume("all-gather", size), 64, H100) == pytest.approx(63 / 64 * size / 320e9, rel=0.02)


def test_small_messages_take_the_trees_latency_not_the_rings() -> None:
    ring = 1.9 * (8.4 + 2 * (511 - 63) * 3.4 + 2 * 63 * 9.6) * 1e-6
    tree = (4.4 + 2 * (7 * 1.2 + 6 * 8.5)) * 1e-6
    assert seconds(volume("all-reduce", 8), 512, H100) == pytest.approx(tree, rel=0.01)
    assert tree < ring / 20
    assert seconds(volume("all-gather", 8), 512, H100) == pytest.approx((8.4 + 448 * 3.4 + 63 * 9.6) * 1e-6, rel=0.01)


def test_calls_pay_their_latency_each_and_share_the_bytes() -> None:
    one, ten = (seconds(volume("all-gather", 10**9, calls), 64, H100) for calls in (1, 10))
    assert ten - one == pytest.approx(9 * (8.4 + 56 * 3.4 + 7 * 9.6) * 1e-6, rel=1e-6)


def test_groups_far_apart_have_a_network_card_for_each_rank() -> None:
    size = 8_000_000_000
    near = Volume(what="", kind="all-reduce", when="step", bytes=size, calls=1, group=8)
    assert seconds(near, 512, H100) == seconds(volume("all-reduce", size), 8, H100)
    far = Volume(what="", kind="all-gather", when="step", bytes=size, calls=1, group=64, apart=8)
    assert seconds(far, 512, H100) == pytest.approx(63 / 64 * size / 40e9, rel=0.01)
    small = Volume(what="", kind="all-reduce", when="step", bytes=8, calls=1, group=64, apart=8)
    assert seconds(small, 512, H100) == pytest.approx((4.4 + 2 * 6 * 8.5) * 1e-6, rel=0.01)  # a tree of 64 nodes


def test_a_published_measurement_of_two_nodes() -> None:
    """nccl-tests on 2 x 8 H100 with 8 x 200 Gb/s cards: 47.5 ms for 8.59 GB, 6.8 for 1.07 GB, 1.65 for 134 MB.

    The cards' TCP has larger latencies than NCCL's model of InfiniBand, so that small messages come out too fast.
    """
    found = Fabric(per_node=8, inside=360e9, between=25e9 * 0.95)
    measured = {8_589_934_592: 47.5e-3, 1_073_741_824: 6.76e-3, 134_217_728: 1.65e-3}
    ratios = [seconds(volume("all-reduce", size), 16, found) / taken for size, taken in measured.items()]
    assert ratios == pytest.approx([1.8, 1.6, 1.0], abs=0.15)  # their tree passes less over the network than a ring
    assert seconds(volume("all-reduce", 8), 16, found) < 123e-6


def test_what_was_measured_takes_the_models_place() -> None:
    gloo = Fabric(per_node=2, inside=1e9, between=1e9, latency=1e-4)
    assert seconds(volume("all-reduce", 10**6), 2, gloo) == pytest.approx(1e-4 + 1e-3)
    assert seconds(volume("all-reduce", 10**6, calls=3), 1, gloo) == pytest.approx(3e-4)
