"""Frozen modules kept from ZeRO-3, which would scatter their weights, too, and gather them at every use."""

from collections.abc import Iterable

import torch
from torch import nn

CONTAINERS = (nn.ModuleList, nn.ModuleDict, nn.Sequential)  # these find their children by number or key


def set_apart(module: nn.Module, trained: Iterable[nn.Parameter]) -> list[nn.Module]:
    """Make the largest descendants without a trained parameter plain attributes of their parents, and name them.

    They stay callable and themselves under the same name, but are no submodules any more: whoever walks through
    `module` (its parameters, hooks, casts, moves, `train()`) does not meet them. A frozen parameter beside a trained
    one, and a frozen member of a container, stay.
    """
    kept = {id(parameter) for parameter in trained}
    found: list[nn.Module] = []
    for name, child in list(module.named_children()):
        learns = any(id(parameter) in kept for parameter in child.parameters())
        if learns or isinstance(module, CONTAINERS):
            found += set_apart(child, trained)
        elif any(True for _ in child.parameters()):
            del module._modules[name]
            module.__dict__[name] = child
            found.append(child)
    return found


def moved(modules: Iterable[nn.Module], device: torch.device, kind: torch.dtype) -> None:
    """Bring modules that were set apart to the device and the type that the others get."""
    for module in modules:
        module.to(device=device, dtype=kind)
