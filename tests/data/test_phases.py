import numpy as np
import pytest

from bigdiff.config.errors import UsageError
from bigdiff.data.mixture import Source, cells
from bigdiff.data.phases import Grid, Mixture, Plan, plan


def planned(*sources: Source, total: int, lanes: int = 1) -> Plan:
    return plan(Mixture(sources=sources, cells=cells(sources), seed=0, grid=Grid(total=total, lanes=lanes)))


def source(name: str, samples: int, **shares: float) -> Source:
    return Source(name=name, sizes=np.array([samples]), **shares)  # type: ignore[arg-type]


def test_one_endless_source_is_one_phase() -> None:
    found = planned(source("a", 1000), total=10)
    assert [phase.start for phase in found.phases] == [0]
    assert found.end is None
    assert found.phases[0].turns_before(123, Grid(total=10, lanes=1)) == [1230]


def test_repeat_ends_a_source_at_the_next_step_boundary() -> None:
    found = planned(source("a", 1001, repeat=2), total=10)
    assert found.end == 201  # 2002 samples: the last of 201 steps gives eight more than was asked for
    assert found.given == (2010,)


def test_until_ends_a_source_at_the_next_step_boundary() -> None:
    found = planned(source("a", 100, until=95), source("b", 100), total=10)
    assert [phase.start for phase in found.phases] == [0, 10]
    assert [phase.cells for phase in found.phases] == [((0, 1),), ((1,),)]
    assert found.phases[1].given == (50, 50)


def test_a_source_ends_by_whichever_comes_first() -> None:
    assert planned(source("a", 100, until=10**6, repeat=1), total=10).end == 10
    assert planned(source("a", 100, until=50, repeat=1), total=10).end == 5


def test_when_a_source_ends_the_others_get_its_share() -> None:
    found = planned(
        source("a", 100, proportion=0.5, repeat=1), source("b", 1000), source("c", 3000, until=1000), total=40
    )
    assert [phase.start for phase in found.phases] == [0, 5, 25]
    assert [shares.weights for phase in found.phases for shares in phase.shares] == [(4, 1, 3), (1, 3), (1,)]
    assert found.phases[1].given == (100, 25, 75)
    assert found.phases[2].given == (100, 225, 675)


def test_turns_are_samples_of_a_lane() -> None:
    found = planned(source("a", 1001, repeat=1), total=12, lanes=4)
    assert found.end == 84  # 251 turns of 4 lanes, 3 turns a step
    assert found.given == (252,)


def test_each_bucket_ends_on_its_own() -> None:
    both = Source(name="a", sizes=np.array([100, 33]), buckets=("x", "y"), repeat=1)
    found = planned(both, total=10)
    assert found.end == 10 + 4  # nothing is dropped: the last step of y gives 3 and then begins another pass
    assert found.given == (100, 40)


def test_a_run_of_a_trillion_samples_is_planned_without_visiting_its_steps() -> None:
    sizes = np.full(1000, 10**6)
    buckets = tuple(f"bucket {number % 40}" for number in range(1000))
    found = planned(
        Source(name="a", sizes=sizes, buckets=buckets, repeat=900, proportion=0.3),
        Source(name="b", sizes=sizes, buckets=buckets, until=10**11),
        Source(name="c", sizes=sizes[:40], buckets=buckets[:40]),
        total=2048,
        lanes=32,
    )
    assert found.phases[1].start == -(-(10**11) // 2048)
    assert len(found.phases) > 30


def test_a_source_that_ends_before_it_gave_anything_is_refused() -> None:
    with pytest.raises(UsageError, match=r"tiny: .* gives nothing before until = 40: raise its share or until"):
        planned(source("tiny", 1, until=40), source("b", 10**6), total=10)
