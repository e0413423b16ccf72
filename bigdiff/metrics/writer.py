"""TensorBoard and metrics.jsonl, from rank 0. The step axis is images seen, so batch sizes compare."""

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy.typing as npt
from torch.utils.tensorboard import SummaryWriter

from bigdiff.config.errors import RunError
from bigdiff.runtime.files import write_bytes


class Writer:
    """Appends to a run's TensorBoard folder and metrics.jsonl.

    What an earlier life of the run wrote beyond `samples_seen`, where this one resumes, is dropped from both: each
    position of the run has one line.
    """

    def __init__(self, tensorboard: Path, metrics: Path, samples_seen: int) -> None:
        _cut(metrics, samples_seen)
        metrics.parent.mkdir(parents=True, exist_ok=True)
        self._metrics, self._lines = metrics, metrics.open("ab", buffering=0)  # a failed write leaves nothing for later
        purge = samples_seen + 1 if samples_seen else None
        self._board = SummaryWriter(str(tensorboard), purge_step=purge, flush_secs=10)

    def scalars(self, step: int, samples_seen: int, values: dict[str, float]) -> None:
        """One line and one point per tag.

        Raises:
            RunError: when the disk does not take the line.
        """
        line = {"step": step, "samples_seen": samples_seen, "time": round(time.time(), 3), **values}
        try:
            self._lines.write(f"{json.dumps(line)}\n".encode())
        except OSError as error:
            raise RunError(
                f"{self._metrics} cannot be written ({error.strerror}): make room, and start again to go on"
            ) from error
        for tag, value in values.items():
            self._board.add_scalar(tag, value, samples_seen)

    def text(self, tag: str, content: str, samples_seen: int) -> None:
        """A preformatted text, such as the resolved config."""
        self._board.add_text(tag, f"```\n{content}\n```", samples_seen)

    def layout(self, charts: Mapping[str, Sequence[str]]) -> None:
        """What TensorBoard's page of custom scalars shows: each chart's tags, as regular expressions."""
        self._board.add_custom_scalars({"run": {name: ["Multiline", list(tags)] for name, tags in charts.items()}})

    def image(self, tag: str, picture: npt.NDArray[Any], samples_seen: int) -> None:
        """A uint8 [H, W, 3] picture."""
        self._board.add_image(tag, picture, samples_seen, dataformats="HWC")

    def close(self) -> None:
        """Flush and close both."""
        self._lines.close()
        self._board.close()


def points(tensorboard: Path, samples_seen: int, values: dict[str, float]) -> None:
    """One point per tag in a TensorBoard folder of its own, at any time and in any order: as evaluations come."""
    board = SummaryWriter(str(tensorboard))
    for tag, value in values.items():
        board.add_scalar(tag, value, samples_seen)
    board.close()


def picture(tensorboard: Path, samples_seen: int, tag: str, content: npt.NDArray[Any]) -> None:
    """A uint8 [H, W, 3] picture in a TensorBoard folder of its own, as `points`."""
    board = SummaryWriter(str(tensorboard))
    board.add_image(tag, content, samples_seen, dataformats="HWC")
    board.close()


def _cut(metrics: Path, samples_seen: int) -> None:
    if not metrics.is_file():
        return
    whole = [line for line in metrics.read_text().splitlines(keepends=True) if line.endswith("\n")]
    kept = [line for line in whole if json.loads(line)["samples_seen"] <= samples_seen]
    write_bytes(metrics, "".join(kept).encode())
