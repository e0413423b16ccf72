"""What a forward pass cannot go below: its FLOPs, and the bytes of all that is no product, counted without a device."""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bigdiff.models import flops
from bigdiff.models.activations import flash

# products and attention in one kernel; and a view that torch does not call one
FREE = ("convolution", "mm", "addmm", "bmm", "baddbmm", "_scaled_dot_product", "_unsafe_view")


class Traffic(TorchDispatchMode):
    """Bytes that operators read and write, each input and each output once; views and products cost none."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(
        self,
        func: torch._ops.OpOverload,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        if not func.is_view and not func.overloadpacket.__name__.startswith(FREE):
            given = tree_leaves((args, kwargs, output))
            self.bytes += sum(one.numel() * one.element_size() for one in given if isinstance(one, torch.Tensor))
        return output


def of(network: torch.nn.Module, forward: Callable[[Any, torch.Tensor], object], side: int) -> dict[str, int]:
    """FLOPs of a picture of `side` pixels through a copy of `network`, and its bytes beside them in half precision."""
    twin = copy.deepcopy(network).to("meta")
    counted = flops.counted(lambda: forward(twin, torch.zeros(1, 3, side, side, device="meta", dtype=kind(twin))))
    half = torch.nn.Module.to(twin, torch.float16)  # diffusers' own would warn of nothing
    pixels = torch.zeros(1, 3, side, side, device="meta", dtype=torch.float16)
    with torch.no_grad(), flash(), Traffic() as traffic:
        forward(half, pixels)
    return {"flops": counted, "bytes": traffic.bytes}


def kind(network: torch.nn.Module) -> torch.dtype:
    """Of its weights."""
    return next(network.parameters()).dtype
