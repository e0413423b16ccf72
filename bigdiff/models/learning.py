"""Which parameters of a module learn."""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

from torch import nn

from bigdiff.config.errors import UsageError


def trained(module: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that learn, by name ("unet.conv_in.weight"), in a fixed order."""
    return {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}


def freeze(learning: Mapping[str, nn.Parameter], patterns: Sequence[str]) -> None:
    """Let the parameters that match keep their values; `*` in a pattern stands for dots, too.

    Raises:
        UsageError: for a pattern that matches nothing that learns, or when nothing is left to learn.
    """
    for pattern in patterns:
        matched = [name for name in learning if fnmatchcase(name, pattern)]
        if not matched:
            raise UsageError(
                f"model.frozen: {pattern} matches no parameter that would learn; they have names such as "
                f"{', '.join(list(learning)[:2])}"
            )
        for name in matched:
            learning[name].requires_grad_(False)
    if patterns and not any(parameter.requires_grad for parameter in learning.values()):
        raise UsageError(f"model.frozen: {', '.join(patterns)} match all parameters, so that nothing would learn")
