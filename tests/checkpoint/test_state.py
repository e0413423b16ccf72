import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bigdiff.checkpoint.state import Identity, TrainState, Window

IDENTITY = Identity(seed=1, manifest="abc", total=64, order="o")
TOTAL = 64
START = TrainState(step=0, samples_seen=0)


def state(step: int, *skipped: tuple[int, int, str]) -> TrainState:
    windows = tuple(Window(begin=begin, end=end, reason=reason) for begin, end, reason in skipped)
    return TrainState(step=step, samples_seen=TOTAL * step, skipped=windows)


def test_a_step_moves_both_clocks() -> None:
    assert state(2).after(TOTAL) == state(3)
    assert state(3).updates == 3


def test_a_step_without_update_takes_its_samples_and_joins_its_neighbour() -> None:
    one = state(2).without_update(TOTAL, "not finite")
    assert one == state(3, (2, 3, "not finite"))
    assert one.updates == 2
    assert one.without_update(TOTAL, "not finite") == state(4, (2, 4, "not finite"))
    assert one.without_update(TOTAL, "other") == state(4, (2, 3, "not finite"), (3, 4, "other"))
    assert one.after(TOTAL).without_update(TOTAL, "not finite").skipped == (
        Window(begin=2, end=3, reason="not finite"),
        Window(begin=4, end=5, reason="not finite"),
    )


def test_rolling_back_keeps_the_clock_and_swallows_what_lies_between() -> None:
    saved = state(10, (2, 3, "not finite"), (8, 10, "spike"))
    now = saved.after(TOTAL).without_update(TOTAL, "not finite").after(TOTAL)
    assert now.rolled_back(saved, "spike") == state(13, (2, 3, "not finite"), (8, 13, "spike"))
    assert now.rolled_back(saved, "other") == state(13, (2, 3, "not finite"), (8, 10, "spike"), (10, 13, "other"))
    assert saved.rolled_back(saved, "spike") == saved
    with pytest.raises(AssertionError, match="is not before"):
        saved.rolled_back(now, "spike")


@given(st.lists(st.sampled_from(["step", "not finite", "save", "spike"]), max_size=60))
def test_laws_of_any_course(course: list[str]) -> None:
    """Samples are counted once, windows are ascending and apart, and updates are those that the weights had."""
    now = saved = START
    weights = kept = 0  # updates that the weights have had, here and in the checkpoint
    for event in course:
        if event == "save":
            saved, kept = now, weights
            continue
        if event == "not finite":
            now = now.without_update(TOTAL, event)
            continue
        now, weights = now.after(TOTAL), weights + 1
        if event == "spike":
            now, weights = now.rolled_back(saved, event), kept
            saved = now
        assert now.updates == weights
    assert now.samples_seen == TOTAL * now.step == TOTAL * sum(event != "save" for event in course)
    for one, next_one in zip(now.skipped, now.skipped[1:], strict=False):
        assert one.end < next_one.begin or (one.end == next_one.begin and one.reason != next_one.reason)
    assert all(0 <= one.begin < one.end <= now.step for one in now.skipped)
    assert TrainState.from_json(json.loads(json.dumps(now.as_json()))) == now


def test_the_same_run_has_no_differences() -> None:
    assert IDENTITY.differences(IDENTITY) == []


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"seed": 2}, "seed"),
        ({"manifest": "x"}, "the data (sha256"),
        ({"total": 32}, "batch.total"),
        ({"order": "p"}, "data order"),
        ({"framing": "crop"}, "framed"),
        ({"frozen": "ab"}, "frozen.safetensors"),
    ],
)
def test_what_differs_is_named_with_both_values(change: dict[str, object], word: str) -> None:
    other = replace(IDENTITY, **change)  # type: ignore[arg-type]
    (sentence,) = other.differences(IDENTITY)
    assert word in sentence
    assert repr(next(iter(change.values()))) in sentence
