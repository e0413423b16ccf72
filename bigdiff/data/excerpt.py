"""The first pictures of a course: the same ones for every run of a stage, for previews and measurements."""

from collections.abc import Iterator
from typing import Final

import torch

from bigdiff.config.errors import RunError
from bigdiff.data.course import Course
from bigdiff.data.images import ImageReader

TOGETHER: Final = 64  # pictures read at once, which bounds the memory


def first(reader: ImageReader, course: Course, count: int) -> Iterator[torch.Tensor]:
    """uint8 [n, 3, H, W] pictures from position 0 on, up to 64 at a time, until `count` positions are read.

    What cannot be read is left out, not substituted. Fetches the shards that are needed and lets go of all others: call
    it before the reader's stream begins.

    Raises:
        RunError: when none of them can be read.
    """
    found = 0
    for position in range(0, count, TOGETHER):
        for begin, end in _within_steps(position, min(position + TOGETHER, count), course.total):
            step, row = divmod(begin, course.total)
            if course.steps is not None and step >= course.steps:
                break
            picks = course.locate(step, row, row + end - begin)
            reader.want(sorted({*zip(picks.sources.tolist(), picks.shards.tolist(), strict=True)}))
            held = reader.hold(end - begin)
            bad = {one.index for one in reader.fill(held, 0, begin, picks)}
            good = [at for at in range(end - begin) if at not in bad]
            found += len(good)
            if good:
                yield held.pixels(*reader.framing.size(picks.bucket))[good].permute(0, 3, 1, 2)
    if not found:
        raise RunError(f"none of the first {count} pictures can be read: the set is damaged; rebuild it")


def _within_steps(begin: int, end: int, total: int) -> Iterator[tuple[int, int]]:
    """[begin, end) cut where a step of `total` samples ends."""
    while begin < end:
        cut = min(end, (begin // total + 1) * total)
        yield begin, cut
        begin = cut
