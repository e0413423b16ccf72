"""What to do about a step that went wrong: pure decisions from what all ranks know, so that all decide the same.

A spike is measured in robust deviations of the logarithm: median and median absolute deviation over the newest applied
steps. So it needs no scale of its own, and one earlier outlier moves neither. The curve belongs to the weights: it is
saved with them, and comes back with them.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Final, Literal

from bigdiff.checkpoint.state import TrainState
from bigdiff.config.schema import Recovery, Stage

NORMAL: Final = 1.4826  # standard deviations of a normal distribution in its median absolute deviation
# Of a logarithm. At batches of thousands the loss of a step varies by 2 %, and a rise that the run forgets by itself
# would be many deviations: with the default of 10, no rise to less than exp(0.7), twice the usual, is a spike.
FLOOR: Final = 0.07
_LEAST: Final = 1e-30  # of what a logarithm is taken
NONFINITE: Final = "non-finite"  # reasons begin with it


@dataclass(frozen=True, kw_only=True, slots=True)
class Curve:
    """Natural logarithms of loss and gradient norm of the newest applied steps, oldest first."""

    losses: tuple[float, ...] = ()
    norms: tuple[float, ...] = ()

    def after(self, loss: float, norm: float, window: int) -> "Curve":
        """With one step more, and no more than `window` of them."""
        return Curve(
            losses=(*self.losses[1 - window :], _log(loss)) if window > 1 else (_log(loss),),
            norms=(*self.norms[1 - window :], _log(norm)) if window > 1 else (_log(norm),),
        )

    def text(self) -> str:
        """For a checkpoint; exact."""
        return json.dumps([self.losses, self.norms])

    @classmethod
    def parse(cls, text: str, window: int) -> "Curve":
        """What `text` gave, "" being no curve, of which the newest `window` steps are kept."""
        losses, norms = json.loads(text or "[[], []]")
        return cls(losses=tuple(losses[-window:]), norms=tuple(norms[-window:]))


@dataclass(frozen=True, kw_only=True, slots=True)
class Seen:
    """What all ranks know of a step when it is over."""

    loss: float  # mean over the global batch
    norm: float  # of the gradient
    applied: bool  # whether weights moved


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What becomes of a step."""

    action: Literal["keep", "skip", "roll back"]
    reason: str = ""  # as the state, the ledger and the log name it; "" of a step that is kept
    detail: str = ""  # figures, for a sentence
    loss: float = math.nan  # of a step that is kept, the mean over the global batch
    norm: float = math.nan  # of a step that is kept, that of the gradient


def judge(curve: Curve, before: TrainState, seen: Seen, rules: Recovery) -> Verdict:
    """What to do about the step that `before` had ahead; `curve` has the applied steps before it."""
    if not (seen.applied and math.isfinite(seen.loss)):
        what = "gradient" if math.isfinite(seen.loss) else "loss"
        row = nonfinite_row(before) + 1
        detail = f"loss {seen.loss:g}, gradient norm {seen.norm:g}"
        if seen.applied or row >= rules.nonfinite_in_a_row:
            return Verdict(action="roll back", reason=f"{NONFINITE} {what}", detail=f"{detail}, {row} in a row")
        return Verdict(action="skip", reason=f"{NONFINITE} {what}", detail=detail)
    if rules.spike and len(curve.losses) >= rules.window:
        for what, values, value in (("loss", curve.losses, seen.loss), ("gradient norm", curve.norms, seen.norm)):
            height = deviations(values, _log(value))
            if height > rules.spike:
                usual = math.exp(median(values))
                detail = f"{value:.4g}, {height:.0f} deviations above the median {usual:.4g} of {len(values)} steps"
                return Verdict(action="roll back", reason=f"{what} spike", detail=f"{what} {detail}")
    return Verdict(action="keep", loss=seen.loss, norm=seen.norm)


def deviations(values: Sequence[float], value: float) -> float:
    """How many robust deviations `value` lies above the median of `values`."""
    middle = median(values)
    spread = NORMAL * median([abs(one - middle) for one in values])
    return (value - middle) / max(spread, FLOOR)


def nonfinite_row(state: TrainState) -> int:
    """How many steps right before `state` moved no weights as something in them was not finite."""
    end = state.step
    for window in reversed(state.skipped):
        if window.end != end or not window.reason.startswith(NONFINITE):
            break
        end = window.begin
    return state.step - end


def over_budget(state: TrainState, steps: int, rules: Recovery) -> str:
    """What to say when more of a stage's `steps` moved no weights than the budget allows; "" when they do not."""
    lost = state.step - state.updates
    if lost <= rules.budget * steps:
        return ""
    last = state.skipped[-1]
    return (
        f"{lost} of the stage's {steps} steps moved no weights, more than recovery.budget={rules.budget:g} allows, the "
        f"last ones {said(last.begin, last.end)} ({last.reason}): recovery.jsonl names the samples; lower optim.lr, "
        f"take out bad data with data.tombstones, or raise the budget or recovery.spike"
    )


def said(begin: int, end: int) -> str:
    """Steps [begin, end) for a sentence."""
    return f"step {begin}" if end == begin + 1 else f"steps {begin}-{end - 1}"


def first_save(curve: Curve, saved: bool, rules: Recovery, ahead: int = 0) -> bool:
    """Whether a run without a checkpoint should save one now: it sees spikes from here on, and may have to go back.

    With so many steps `ahead`: whether it may have to behind them.
    """
    return bool(rules.spike) and not saved and len(curve.losses) + ahead >= rules.window


def another_regime(stage: Stage, step: int) -> bool:
    """Whether from `step` on a stage's losses and gradients are not those of before, so that its curve begins anew."""
    autoencoder = stage.model.autoencoder
    return autoencoder is not None and autoencoder.disc_weight > 0 and step == autoencoder.disc_start


def _log(value: float) -> float:
    return math.log(max(value, _LEAST))
