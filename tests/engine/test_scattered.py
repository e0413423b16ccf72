"""What is particular to ZeRO-3."""

from collections.abc import Callable
from typing import Any


def test_every_rank_has_a_share_of_each_parameter_and_a_tensor_for_each_sub_group(
    course: Callable[[int], list[dict[str, Any]]], cases: Callable[..., list[str]]
) -> None:
    one_group, _, small_groups = [case for case in cases(3, "own") if "stage=3" in case]
    for case, groups in ((one_group, 1), (small_groups, 2)):  # 12; then 3, 3, 3, 7: each ends at 10 or more
        for number, rank in enumerate(course(3)):
            owned = rank["cases"][case]
            assert owned["masters"] == groups
            assert len(owned["local"]) == 12 + 3 + 3 + 3 + 7  # of 35, 7, 7, 7, 21 weights on three ranks
            # the last rank's padding: 35 = 12 + 12 + 11, 7 = 3 + 3 + 1
            assert sum(length for _, _, length in owned["pieces"]) == (28, 28, 21)[number]
