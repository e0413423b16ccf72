"""The run's clock and identity: all that a resume needs besides weights and optimizer."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Window:
    """Steps [begin, end) that took their samples and left no trace in weights, optimizer and averages."""

    begin: int
    end: int
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainState:
    """Where a run stands. The data's whole state is `samples_seen`; random draws are computed from it."""

    step: int  # global batches of the data order that were taken, used or not
    samples_seen: int  # positions of the data order consumed: step x batch.total
    skipped: tuple[Window, ...] = ()  # ascending and apart, neighbours of one reason joined

    @property
    def updates(self) -> int:
        """Optimizer updates that the weights have had: Adam's count and the averages' n."""
        return self.step - sum(window.end - window.begin for window in self.skipped)

    def after(self, samples: int) -> "TrainState":
        """The state one optimizer step of `samples` later."""
        return replace(self, step=self.step + 1, samples_seen=self.samples_seen + samples)

    def without_update(self, samples: int, reason: str) -> "TrainState":
        """The state behind one step of `samples` that moved no weights."""
        window = Window(begin=self.step, end=self.step + 1, reason=reason)
        return replace(self.after(samples), skipped=_joined([*self.skipped, window]))

    def rolled_back(self, to: "TrainState", reason: str) -> "TrainState":
        """The state in which the run goes on here with the weights of the earlier state `to` of the same run.

        The steps in between are one skipped window; those among them that had moved no weights are part of it.
        """
        assert to.step <= self.step and to.samples_seen <= self.samples_seen, f"{to} is not before {self}"
        between = [Window(begin=to.step, end=self.step, reason=reason)] if to.step < self.step else []
        return replace(self, skipped=_joined([*to.skipped, *between]))

    def as_json(self) -> dict[str, Any]:
        """Plain values, for an index."""
        return asdict(self)

    @classmethod
    def from_json(cls, plain: dict[str, Any]) -> "TrainState":
        """What `as_json` gave, also after a way through JSON."""
        windows = tuple(Window(**window) for window in plain["skipped"])
        return cls(step=plain["step"], samples_seen=plain["samples_seen"], skipped=windows)


def _joined(windows: Iterable[Window]) -> tuple[Window, ...]:
    found: list[Window] = []
    for window in windows:
        last = found[-1] if found else None
        if last and last.end == window.begin and last.reason == window.reason:
            found[-1] = replace(last, end=window.end)
        else:
            found.append(window)
    return tuple(found)


@dataclass(frozen=True, kw_only=True, slots=True)
class Identity:
    """What must be equal for a resume to continue the same run."""

    seed: int
    manifest: str  # of the sets: sha256 over those of their manifests
    total: int  # samples of a global batch
    order: str  # fingerprint of the data order
    framing: str = ""  # crop and flip; "" on latents of the centre that are not mirrored
    frozen: str = ""  # sha256 of the run's frozen weights; "" where there are none

    def differences(self, saved: "Identity") -> list[str]:
        """Sentences for what differs from a saved run."""
        names = {
            "seed": "seed",
            "manifest": "the data (sha256 over the manifests)",
            "total": "batch.total",
            "order": "the data order (data.window, data.canonical_nodes or the sources' shares)",
            "framing": "how pictures are framed (data.crop, data.flip)",
            "frozen": "the sha256 of frozen.safetensors, the weights that are not trained,",
        }
        return [
            f"{label} is {getattr(self, key)!r}, the checkpoint was made with {getattr(saved, key)!r}"
            for key, label in names.items()
            if getattr(self, key) != getattr(saved, key)
        ]
