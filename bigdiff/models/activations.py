"""What a forward and backward pass keeps in memory, by following every tensor's life on the meta device.

Counted are the bytes of all tensors that operators make, from their making until nobody holds them. Attention is taken
to be a flash kernel, which keeps its output and a number per row, not its scores; other kernels' scratch space and the
allocator's gaps are not seen.
"""

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bigdiff.config.schema import Stage
from bigdiff.models.network import Network, network


@dataclass(frozen=True, kw_only=True, slots=True)
class Activations:
    """Of one image, unless more are asked for; they grow with the micro-batch."""

    held: int  # bytes that the forward pass leaves for the backward pass
    peak: int  # bytes at most, anywhere in both
    kernels: int  # operators that are not views, whatever the micro-batch: a device starts about as many kernels


def per_image(stage: Stage, half: bool) -> Activations:
    """Of `stage`, in bf16 or fp32; gradients of weights are not counted, as the engine takes each away at once.

    Raises:
        UsageError: as `network`.
    """
    return of(network(stage), half)


def of(found: Network, half: bool, images: int = 1) -> Activations:
    """Of `images` at once through `found`, whose denoiser is in bf16 or fp32 from then on."""
    module = found.denoiser.to(torch.bfloat16 if half else torch.float32)
    for weight in found.denoiser.trained().values():
        weight.register_post_accumulate_grad_hook(_dropped)  # type: ignore[no-untyped-call]
    with flash(), Lives(module.parameters()) as lives:
        output = module(*found.inputs(images, found.tokens and found.denoiser.train_text))
        held, lives.peak = lives.bytes, lives.bytes
        torch.autograd.backward(output.sum())
    return Activations(held=held, peak=lives.peak, kernels=lives.kernels)


class Lives(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of the storages that operators make and that live, all but those of `known` tensors."""

    def __init__(self, known: Iterator[torch.Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes = self.peak = self.kernels = 0
        self._known = [one.untyped_storage() for one in known]  # kept: a storage is forgotten with its Python object
        self._seen = weakref.WeakSet(self._known)

    def __torch_dispatch__(
        self,
        func: torch._ops.OpOverload,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401 (whatever the operator gives)
        output = func(*args, **(kwargs or {}))
        self.kernels += not func.is_view
        for one in tree_leaves(output):
            if isinstance(one, torch.Tensor):
                self._made(one.untyped_storage())
        return output

    def _made(self, storage: torch.UntypedStorage) -> None:
        if storage in self._seen:
            return
        self._seen.add(storage)
        size = storage.nbytes()
        self.bytes += size
        self.peak = max(self.peak, self.bytes)
        weakref.finalize(storage, self._gone, size)

    def _gone(self, size: int) -> None:
        self.bytes -= size


@contextmanager
def flash() -> Iterator[None]:
    """Within it torch's attention makes and keeps what a flash kernel does, and computes nothing (Dao 2023)."""
    plain: Callable[..., torch.Tensor] = functional.scaled_dot_product_attention

    def attention(
        query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: object, **__: object
    ) -> torch.Tensor:
        return _Flash.apply(query, key, value)  # type: ignore[no-any-return]

    functional.scaled_dot_product_attention = attention
    try:
        yield
    finally:
        functional.scaled_dot_product_attention = plain


class _Flash(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:  # noqa: ANN401
        output = torch.empty_like(query)  # laid out as the query, so that joining the heads again copies nothing
        ctx.save_for_backward(query, key, value, output, query.new_empty(query.shape[:-1], dtype=torch.float32))
        return output

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, ...]:  # noqa: ANN401
        return tuple(torch.empty_like(one) for one in ctx.saved_tensors[:3])


def _dropped(weight: torch.Tensor) -> None:
    weight.grad = None
