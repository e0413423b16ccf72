"""Which units of a UNet keep their activations for the backward pass, and which are computed again in it.

Gradient checkpointing is Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost". diffusers hands each
residual block and each transformer block to one function per container, so that each can be chosen by itself.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import nn
from torch.utils.checkpoint import checkpoint

from bigdiff.config.engine_rules import AUTO
from bigdiff.config.errors import UsageError
from bigdiff.models.components import AnyUNet

_ON: Final = "gradient_checkpointing"  # diffusers' name; here on the units, too
Visit = Callable[..., Any]  # (unit, *its arguments) -> what the unit gives


def units(unet: AnyUNet) -> dict[str, nn.Module]:
    """Those that can be recomputed by themselves, by name ("down_blocks.0.resnets.1"), in the order of the modules.

    The first residual block of the middle is none, as diffusers calls it by itself.
    """
    return {name: unit for path, block in _containers(unet).items() for name, unit in _within(path, block).items()}


def chosen(unet: AnyUNet, how: bool | str) -> tuple[str, ...]:
    """The names of the units that engine.gradient_checkpointing says: a name stands for all units within it.

    Of "auto" there are none: what it takes is known when the memory is.

    Raises:
        UsageError: for a name without units.
    """
    every = tuple(units(unet))
    if isinstance(how, bool) or how == AUTO:
        return every if how is True else ()
    wanted = [one.strip() for one in how.split(",")]
    for one in wanted:
        if not any(_inside(name, one) for name in every):
            raise UsageError(
                f"engine.gradient_checkpointing={how}: the UNet has no unit {one} that can be recomputed; use true, "
                f"false, auto, or some of {', '.join(folded(every, every))} and what is within, such as {every[0]}"
            )
    return tuple(name for name in every if any(_inside(name, one) for one in wanted))


def recompute(unet: AnyUNet, names: Collection[str]) -> None:
    """Let the backward pass compute the units of these names again, and no others."""
    for path, block in _containers(unet).items():
        found = _within(path, block)
        for name, unit in found.items():
            setattr(unit, _ON, name in names)
        setattr(block, _ON, any(name in names for name in found))  # else diffusers' plain path, for compilers
        block._gradient_checkpointing_func = _again  # type: ignore[assignment]


@contextmanager
def visited(unet: AnyUNet, visit: Visit) -> Iterator[None]:
    """Have `visit` called meanwhile in place of each unit, by whoever calls the UNet."""
    before = [name for name, unit in units(unet).items() if getattr(unit, _ON, False)]
    for block in _containers(unet).values():
        setattr(block, _ON, True)
        block._gradient_checkpointing_func = visit  # type: ignore[assignment]
    try:
        yield
    finally:
        recompute(unet, before)


def folded(names: Collection[str], every: Sequence[str]) -> tuple[str, ...]:
    """The same units as `names`, with a shorter name wherever all that `every` has within it are among them."""
    found: dict[str, None] = {}
    for name in every:
        if name not in names:
            continue
        parts = name.split(".")
        least = 1 if parts[0] == "mid_block" else 2
        shorter = (".".join(parts[:length]) for length in range(least, len(parts)))
        whole = (one for one in shorter if all(other in names for other in every if _inside(other, one)))
        found[next(whole, name)] = None
    return tuple(found)


def _again(unit: nn.Module, *arguments: Any) -> Any:  # noqa: ANN401 (whatever the unit takes and gives)
    """As diffusers' own function, for the units that are switched on."""
    if not getattr(unit, _ON, False):
        return unit(*arguments)
    return checkpoint(unit.__call__, *arguments, use_reentrant=False)


def _inside(name: str, outer: str) -> bool:
    return name == outer or name.startswith(f"{outer}.")


def _containers(unet: AnyUNet) -> dict[str, nn.Module]:
    """The modules in which diffusers calls units through a function."""
    return {
        path: module
        for path, module in unet.named_modules()
        if isinstance(module, Transformer2DModel) or (hasattr(module, _ON) and hasattr(module, "resnets"))
    }


def _within(path: str, block: nn.Module) -> dict[str, nn.Module]:
    """The units of a container alone."""
    if isinstance(block, Transformer2DModel):
        return {f"{path}.transformer_blocks.{at}": unit for at, unit in enumerate(block.transformer_blocks)}
    called = {f"{path}.resnets.{at}": unit for at, unit in enumerate(block.get_submodule("resnets").children())}
    return dict([*called.items()][1:]) if path == "mid_block" else called
