"""Values that facts are compared with and that no setting holds: they follow from a stage, or from the code itself."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from types import SimpleNamespace
from typing import Any, Final, cast

import torch
from transformers import CLIPTextModel

from bigdiff.config.errors import UsageError
from bigdiff.config.recipe import Planned
from bigdiff.config.schema import Stage, UNet
from bigdiff.diffusion.objective import per_sample_loss
from bigdiff.engine.optim import learning_rate
from bigdiff.models import ema
from bigdiff.models.encoders import text_states
from bigdiff.plan.parameters import unet_parameters

UNKNOWN: Final = "unknown"


@dataclass(frozen=True, kw_only=True, slots=True)
class Subject:
    """A stage of a recipe as facts see it."""

    planned: Planned
    before: Planned | None  # what it starts from
    began: int = 0  # step at which its schedule begins: more than 0 when it goes on from the stage before
    data: tuple[
        str, ...
    ] = ()  # names under configs/data of what its sets are made with; UNKNOWN for one that is not there

    @property
    def stage(self) -> Stage:
        """Its settings."""
        return self.planned.stage


def value(key: str, subject: Subject) -> Any:  # noqa: ANN401 (as facts state it: a number or a text)
    """What `subject` has for `key`; "NAME@N" asks for NAME at step (or count) N, from the end when negative.

    Raises:
        UsageError: for a key that nothing computes.
    """
    name, _, at = key.partition("@")
    if at:
        if name not in _AT:
            raise UsageError(f"nothing computes {key}: use one of {', '.join(_AT)} with @N")
        return _AT[name](subject, int(at))
    if name not in _PLAIN:
        raise UsageError(f"nothing computes {key}: use one of {', '.join(_PLAIN)}")
    return _PLAIN[name](subject)


def _rate(subject: Subject, step: int) -> float:
    stage = subject.stage
    asked = step if step >= 0 else stage.steps + step
    return learning_rate(stage.optim, subject.began + asked, subject.began + stage.steps)


def _ema(subject: Subject, updates: int) -> float | str:
    """What the first average, which is handed over and exported, keeps of itself after `updates` updates."""
    tracked = ema.profiles(subject.stage.ema)
    return next(iter(tracked.values())).kept(updates) if tracked else "none"


def _decay(subject: Subject) -> float | str:
    """Of the first average; a power function has none."""
    tracked = ema.profiles(subject.stage.ema)
    return next(iter(tracked.values())).decay or next(iter(tracked)) if tracked else "none"


def _start(subject: Subject) -> str:
    """The stage's file, whatever the profile calls its run; a run that is not of the recipe by its name."""
    return subject.before.file if subject.before else subject.stage.beginning


def _branch(subject: Subject) -> str:
    """Where on the run before this one branches off."""
    step, before = subject.stage.init_step, subject.before
    if step == 0 or before is None:
        return "the end"
    optim = before.stage.optim
    decays = optim.schedule != "constant"
    return "before the decay" if decays and step <= round(optim.decay_start * before.stage.steps) else f"step {step}"


def _attention(subject: Subject) -> list[int] | str:
    """Factors of down-sampling at which the UNet attends to the text."""
    unet = subject.stage.model.unet
    down, up = (
        [place for place, kind in enumerate(kinds) if kind.startswith("CrossAttn")]
        for kinds in (unet.down_block_types, tuple(reversed(unet.up_block_types)))
    )
    factors = [2**place for place in down]
    return factors if down == up else f"{factors} down, {[2**place for place in up]} up"


@cache
def _parameters(unet: UNet, latent_size: int) -> int:
    return unet_parameters(unet, latent_size)


@cache
def _loss() -> str:
    """Which loss the objective has, by what it makes of two errors."""
    errors = torch.tensor([1.0, 3.0]).reshape(2, 1, 1, 1).expand(2, 4, 2, 2)
    found = per_sample_loss(errors, torch.zeros_like(errors)).tolist()
    return {(1.0, 9.0): "mean squared error", (1.0, 3.0): "mean absolute error"}.get(tuple(found), f"another: {found}")


@cache
def _text_states() -> str:
    """Which of the text model's outputs conditions the UNet, by which of them comes back."""
    outputs = SimpleNamespace(**{name: name for name in ("last_hidden_state", "pooler_output", "hidden_states")})
    model = cast(CLIPTextModel, lambda *_, **__: outputs)
    return str(text_states(model, torch.zeros(1, 1, dtype=torch.int64)))


_AT: Final[dict[str, Callable[[Subject, int], Any]]] = {"rate": _rate, "ema": _ema}
_PLAIN: Final[dict[str, Callable[[Subject], Any]]] = {
    "parameters": lambda subject: _parameters(subject.stage.model.unet, subject.stage.latent_size),
    "images": lambda subject: subject.stage.steps * subject.stage.batch.total,
    "attention": _attention,
    "start": _start,
    "branch": _branch,
    "ema": _decay,
    "data": lambda subject: ", ".join(subject.data),
    "loss": lambda _: _loss(),
    "text_states": lambda _: _text_states(),
    # of every stage: rows are selected by data_prep/, and the order of the data is that of `seed` for the whole run
    "filters": lambda _: "before packing",
    "resume_seed": lambda _: "the same",
}
