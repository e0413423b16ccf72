from dataclasses import replace

import pytest

from bigdiff.checkpoint.state import Identity, TrainState

IDENTITY = Identity(seed=1, manifest="abc", total=64, order="o")


def test_a_step_moves_both_clocks() -> None:
    assert TrainState(step=2, samples_seen=128).after(64) == TrainState(step=3, samples_seen=192)


def test_the_same_run_has_no_differences() -> None:
    assert IDENTITY.differences(IDENTITY) == []


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"seed": 2}, "seed"),
        ({"manifest": "x"}, "latent data"),
        ({"total": 32}, "batch.total"),
        ({"order": "p"}, "data order"),
    ],
)
def test_what_differs_is_named_with_both_values(change: dict[str, object], word: str) -> None:
    other = replace(IDENTITY, **change)  # type: ignore[arg-type]
    (sentence,) = other.differences(IDENTITY)
    assert word in sentence
    assert repr(next(iter(change.values()))) in sentence
