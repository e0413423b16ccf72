"""Where a step's time goes, by class: on a GPU the time of its kernels, on a CPU that of torch's operators."""

import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

CLASSES = ("convolution", "attention", "linear", "norm", "elementwise", "optimizer", "idle")
UPDATE = "optimizer"  # what the steps call their update for the profiler
# of an operator, or of the autograd function that called it; attention's own products are attention
OPERATORS = {
    "attention": r"scaled_dot_product|ScaledDotProduct|flash_attention|efficient_attention|cudnn_attention",
    "convolution": r"convolution|conv\dd|Convolution",
    "norm": r"group_norm|layer_norm|GroupNorm|LayerNorm",
    "linear": r"aten::(addmm|mm|bmm|baddbmm|matmul|linear)\b|\b(Addmm|Mm|Bmm)Backward",
}
# of a kernel that no operator called; what fits none is elementwise
KERNELS = {
    "attention": r"flash|fmha|sdpa|attention",
    "convolution": r"fprop|dgrad|wgrad|conv\dd|convolve|winograd",
    "linear": r"gemm|nvjet|cutlass|splitk",
}
# of inductor's own, which are named after the operators that they fuse: a convolution's there is its bias
FUSED = {
    "norm": r"group_norm|layer_norm|var_mean",
    "linear": r"triton_tem_.*mm",
    "convolution": r"triton_tem_.*conv",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Profile:
    """Of some steps together."""

    seconds: dict[str, float]  # by class; idle is what is left of the wall clock
    largest: tuple[tuple[str, str, float], ...]  # class, name and seconds of single kernels or operators


def profiled(work: Callable[[], object], wall: float, device: torch.device) -> Profile:
    """Of `work`, which takes `wall` seconds where nobody watches it."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    with profile(activities=activities) as found:
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
    events = list(found.events() or [])
    spent = list(_kernels(events) if device.type == "cuda" else _operators(events))
    seconds: Counter[str] = Counter(dict.fromkeys(CLASSES, 0.0))
    single: Counter[tuple[str, str]] = Counter()
    for kind, name, taken in spent:
        seconds[kind] += taken
        single[kind, name] += taken
    seconds["idle"] = max(0.0, wall - sum(seconds.values()))
    largest = tuple((kind, name[:100], taken) for (kind, name), taken in single.most_common(40))
    return Profile(seconds=dict(seconds), largest=largest)


def classified(kernel: str, callers: list[str]) -> str:
    """The class of a kernel, or of an operator, that `callers`, from the innermost on, have led to."""
    if UPDATE in callers:
        return UPDATE
    for caller in callers:
        for kind, pattern in OPERATORS.items():
            if re.search(pattern, caller):
                return kind
    for kind, pattern in (FUSED if kernel.startswith("triton_") else KERNELS).items():
        if re.search(pattern, kernel, re.IGNORECASE):
            return kind
    return "elementwise"


def _callers(event: object) -> list[str]:
    names = []
    while event is not None:
        names.append(event.name)  # type: ignore[attr-defined]
        event = event.cpu_parent  # type: ignore[attr-defined]
    return names


def _operators(events: list) -> Iterator[tuple[str, str, float]]:
    for event in events:
        if event.device_type == DeviceType.CPU and event.name != UPDATE:
            yield classified("", _callers(event)), event.name, event.self_cpu_time_total / 1e6


def _kernels(events: list) -> Iterator[tuple[str, str, float]]:
    """What two streams do at once counts twice, and less is left to be idle."""
    left: Counter[str] = Counter()
    for event in events:
        if event.device_type == DeviceType.CUDA and not getattr(event, "is_user_annotation", False):
            left[event.name] += event.time_range.elapsed_us() / 1e6
    for event in events:
        if event.device_type == DeviceType.CPU:
            for kernel in event.kernels:
                if kernel.name in left:  # and not the span of an annotation
                    left[kernel.name] -= kernel.duration / 1e6
                    yield classified(kernel.name, _callers(event)), kernel.name, kernel.duration / 1e6
    for name, taken in left.items():  # of kernels that no operator is known for, as those of a graph
        if taken > 1e-6 and name != UPDATE:
            yield classified(name, []), name, taken
