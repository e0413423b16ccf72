"""Which starts count, by hand; laws over random histories are in test_proof.py."""

from pathlib import Path

import pytest

from bigdiff.config.errors import UsageError
from bigdiff.data.damage import Consumed
from bigdiff.data.history import Fault, chain, cover, read_starts, skips
from bigdiff.data.ledger import Header, Ledger, file_name
from bigdiff.data.pages import Skip

TOTAL = 8


def start(
    run: Path,
    number: int,
    steps: range,
    size: int = 2,
    parent: str = "",
    ends: dict[int, int] | None = None,
    skips: tuple[Skip, ...] = (),
) -> str:
    """Ledgers of a start that did `steps`; `ends` has ranks that stopped elsewhere."""
    name = f"{number:020d}-aa"
    for rank in range(size):
        opened = Ledger(
            run,
            Header(
                start=name,
                parent=parent,
                step=steps.start,
                rank=rank,
                size=size,
                fingerprint="f",
                total=TOTAL,
                seed=0,
                window=1,
                lanes=1,
                kind="latents",
                inputs=(),
            ),
        )
        share = TOTAL // size
        for step in range(steps.start, (ends or {}).get(rank, steps.stop)):
            consumed = Consumed(position=step * TOTAL + rank * share, samples=share, digest=0, substituted=())
            opened.write(step, [consumed])
            for skip in skips:
                if skip.end == step + 1:
                    opened.skip(skip.begin, skip.end, skip.reason)
        opened.close()
    return name


def stretches(run: Path, until: int | None = None) -> tuple[list[tuple[str, int, int]], list[Fault]]:
    found, faults = chain(read_starts(run), until)
    faults += [fault for one in found for fault in cover(one, TOTAL).faults]
    return [(one.start.name, one.begin, one.end) for one in found], faults


def test_a_later_start_takes_the_steps_from_its_checkpoint_on(tmp_path: Path) -> None:
    first = start(tmp_path, 1, range(0, 9))
    start(tmp_path, 2, range(6, 8), size=4)
    third = start(tmp_path, 3, range(6, 6))
    fourth = start(tmp_path, 4, range(6, 10), size=8)
    assert third < fourth
    assert stretches(tmp_path) == ([(first, 0, 6), (fourth, 6, 10)], [])
    assert stretches(tmp_path, until=3) == ([(first, 0, 3)], [])
    _, faults = stretches(tmp_path, until=12)
    assert [fault.kind for fault in faults] == ["missing"] * 8
    assert faults[0].sentence == (
        f"step 10: rank 0 is missing: {tmp_path}/audit/{fourth}/{file_name(0, 8)} has no record of 2 of the steps to 11"
    )


def test_of_two_that_ran_at_once_the_one_whose_checkpoint_was_taken_counts(tmp_path: Path) -> None:
    first = start(tmp_path, 1, range(0, 12))  # lost sight of, and went on until 12
    second = start(tmp_path, 2, range(4, 7))
    third = start(tmp_path, 3, range(10, 14), parent=first)
    assert stretches(tmp_path) == ([(first, 0, 10), (third, 10, 14)], [])
    fourth = start(tmp_path, 4, range(6, 8), parent=second)
    assert stretches(tmp_path) == ([(first, 0, 4), (second, 4, 6), (fourth, 6, 8)], [])


def test_a_parent_that_is_not_there_is_named(tmp_path: Path) -> None:
    first = start(tmp_path, 1, range(0, 4))
    for number, parent in ((2, "00000000000000000009-zz"), (3, f"{3:020d}-aa")):  # none, itself
        start(tmp_path, number, range(4, 6), parent=parent)
        _, faults = stretches(tmp_path)
        assert [fault.kind for fault in faults] == ["header", "missing"]
        assert f"continues start {parent}, which is not" in faults[0].sentence
        assert "no start has steps 0 to 3" in faults[1].sentence
    assert first


def test_an_audit_that_begins_late_proves_nothing_of_before(tmp_path: Path) -> None:
    name = start(tmp_path, 1, range(5, 9))
    found, faults = stretches(tmp_path)
    assert found == [(name, 5, 9)]
    assert [fault.sentence for fault in faults] == [f"no start has steps 0 to 4: {tmp_path}/audit/{name} begins at 5"]


def test_the_last_step_is_the_one_that_all_ranks_recorded(tmp_path: Path) -> None:
    name = start(tmp_path, 1, range(0, 9), ends={1: 8})
    assert stretches(tmp_path) == ([(name, 0, 8)], [])


def test_a_rank_two_steps_behind_has_lost_records(tmp_path: Path) -> None:
    name = start(tmp_path, 1, range(0, 9), ends={1: 7})
    found, faults = stretches(tmp_path)
    assert found == [(name, 0, 9)]
    assert [fault.sentence for fault in faults] == [
        f"step 7: rank 1 is missing: {tmp_path}/audit/{name}/{file_name(1, 2)} has no record of 2 of the steps to 8"
    ]


@pytest.mark.parametrize("size", [1, 2])
def test_any_flipped_bit_is_noticed(tmp_path: Path, size: int) -> None:
    name = start(tmp_path, 1, range(0, 9), size=size)
    file = tmp_path / "audit" / name / file_name(size - 1, size)
    content = file.read_bytes()
    for step in (3, 8):
        begin = len(content) - (9 - step) * 47
        for bit in range(8 * begin, 8 * (begin + 47)):
            flipped = bytearray(content)
            flipped[bit // 8] ^= 1 << (bit % 8)
            file.write_bytes(flipped)
            _, faults = stretches(tmp_path)
            sentences = {fault.kind: fault.sentence for fault in faults}
            assert sentences["damaged"] == f"step {step}: rank {size - 1}: {file} is damaged at byte {begin}"
            assert sentences["missing"].startswith(f"step {step}: rank {size - 1} is missing: {file} has no record")
    # what was done again does not matter
    later = start(tmp_path, 2, range(8, 10))
    assert stretches(tmp_path) == ([(name, 0, 8), (later, 8, 10)], [])


def test_a_lost_file_is_named(tmp_path: Path) -> None:
    name = start(tmp_path, 1, range(0, 9), size=4)
    file = tmp_path / "audit" / name / file_name(2, 4)
    file.unlink()
    _, faults = stretches(tmp_path)
    assert [fault.sentence for fault in faults] == [f"step 0: rank 2 is missing: {file} does not exist"]
    start(tmp_path, 2, range(0, 3))
    assert stretches(tmp_path)[1] == []


def test_ranks_of_a_start_must_agree(tmp_path: Path) -> None:
    start(tmp_path, 1, range(0, 4), size=2)
    folder = tmp_path / "audit" / f"{1:020d}-aa"
    other = start(tmp_path, 2, range(0, 4), size=4)
    (folder / file_name(1, 2)).unlink()
    (tmp_path / "audit" / other / file_name(1, 4)).rename(folder / file_name(1, 4))
    _, faults = stretches(tmp_path)
    sentences = [fault.sentence for fault in faults if fault.kind == "header"]
    assert any(f"{folder / file_name(1, 4)} is not where its header says" in one for one in sentences)
    assert any("says 4 ranks from step 0, rank 0 says 2 from 0" in one for one in sentences)


def test_a_run_without_an_audit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"has no audit: train with data\.audit=true"):
        read_starts(tmp_path)


def skipped(run: Path, until: int | None = None) -> list[tuple[int, int, str]]:
    return [(one.begin, one.end, one.reason) for one in skips(chain(read_starts(run), until)[0])]


def test_going_back_takes_along_what_was_skipped_behind_the_checkpoint(tmp_path: Path) -> None:
    nan, spike = "non-finite loss", "loss spike"
    windows = [(3, 4, nan), (4, 5, nan), (7, 8, nan), (6, 10, spike), (12, 13, spike)]
    marks = tuple(Skip(begin=begin, end=end, reason=reason) for begin, end, reason in windows)
    start(tmp_path, 1, range(0, 14), skips=marks)
    assert skipped(tmp_path) == [(3, 5, nan), (6, 10, spike), (12, 13, spike)]
    assert skipped(tmp_path, until=10) == [(3, 5, nan), (6, 10, spike)]
    # the checkpoint of step 9 knew nothing of the going back yet
    assert skipped(tmp_path, until=9) == [(3, 5, nan), (7, 8, nan)]
    assert chain(read_starts(tmp_path))[1] == []


def test_a_skip_that_a_crash_undid_is_forgotten(tmp_path: Path) -> None:
    start(tmp_path, 1, range(0, 9), skips=(Skip(begin=4, end=5, reason="a"), Skip(begin=4, end=8, reason="b")))
    start(tmp_path, 2, range(4, 6))  # the checkpoint behind the window was never whole
    assert skipped(tmp_path) == []
    start(tmp_path, 3, range(4, 9), skips=(Skip(begin=5, end=6, reason="c"),))
    assert skipped(tmp_path) == [(5, 6, "c")]
    start(tmp_path, 4, range(8, 12))
    assert skipped(tmp_path) == [(5, 6, "c")]


def test_going_back_behind_the_own_start_takes_steps_of_the_start_before(tmp_path: Path) -> None:
    start(tmp_path, 1, range(0, 8), skips=(Skip(begin=1, end=2, reason="a"), Skip(begin=5, end=6, reason="a")))
    start(tmp_path, 2, range(6, 12), skips=(Skip(begin=4, end=9, reason="b"),))  # checkpoint 6 was damaged by then
    assert skipped(tmp_path) == [(1, 2, "a"), (4, 9, "b")]


def test_one_rank_that_recorded_a_skip_is_enough(tmp_path: Path) -> None:
    name = start(tmp_path, 1, range(0, 6), skips=(Skip(begin=5, end=6, reason="a"),))
    file = tmp_path / "audit" / name / file_name(1, 2)
    file.write_bytes(file.read_bytes()[:-5])
    assert skipped(tmp_path) == [(5, 6, "a")]
