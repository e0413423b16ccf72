"""Triton kernels without a GPU: by its interpreter, which a process takes for good, and compiled for GPUs elsewhere."""

import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
COMPILED = """
import importlib, json, sys, warnings
warnings.simplefilter("ignore")
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
case, target, kind = json.loads(sys.argv[1]), GPUTarget("cuda", int(sys.argv[2]), 32), sys.argv[3]
for name in case["kernels"]:
    kernel = getattr(importlib.import_module(case["module"]), name)
    for known in case["constants"]:
        constants = {one: known[one] for one in kernel.arg_names if one in known}
        kinds = {one: f"*{kind}" if one in case["of_kind"] else "*fp32" for one in kernel.arg_names}
        kinds |= {one: case["numbers"][one] for one in kernel.arg_names if one in case["numbers"]}
        source = ASTSource(fn=kernel, signature=kinds | dict.fromkeys(constants, "constexpr"), constexprs=constants)
        made = triton.compile(source, target=target, options={"num_warps": case["warps"]})
        assert len(made.asm["cubin"]) > 1000
        # of 48 KiB that each GPU gives a program without being asked
        assert made.metadata.shared <= 48 * 1024, (name, known, made.metadata.shared)
"""
# Triton 3.9's interpreter cuts fp32 off where it makes bf16 of it, which is twice the error of a GPU's rounding, and
# always to one side
NEAREST = """
import numpy, torch
from triton.language import bfloat16, float32
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle
cut = InterpreterBuilder.cast_impl
def nearest(builder, source, kind):
    if (source.dtype.scalar, kind.scalar) != (float32, bfloat16):
        return cut(builder, source, kind)
    rounded = torch.from_numpy(numpy.array(source.data)).to(torch.bfloat16)
    return TensorHandle(rounded.view(torch.int16).numpy().view(numpy.uint16), kind.scalar)
InterpreterBuilder.cast_impl = nearest
"""
# By switches, functions that take the place of torch's, and a type. In bf16 the error of a gradient of 8 numbers comes
# and goes by more than twice itself, also of a network that rounds less often: so four samples count together.
NETWORK = """
import json, math, sys
from collections import Counter
import torch
import torch.distributed as dist
from diffusers import UNet2DConditionModel
from bigdiff.config.speed import Speed
from bigdiff.engine.precision import sum_in_fp32
from bigdiff.models import agreement, speed
from bigdiff.models.agreement import Sample
from bigdiff.models.denoiser import Denoiser
from bigdiff.runtime.world import World
switches, functions, kind = Speed(**json.loads(sys.argv[1])), json.loads(sys.argv[2]), getattr(torch, sys.argv[3])
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
world = World(rank=0, local_rank=0, size=1, device=torch.device("cpu"))
torch.manual_seed(0)
unet = UNet2DConditionModel(
    sample_size=8, in_channels=2, out_channels=2, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4,
    down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    cross_attention_dim=8, attention_head_dim=2,
)
network = Denoiser(unet, None, False).train().to(kind)
if kind == torch.bfloat16:
    sum_in_fp32(network)  # as the engine does on a CPU
samples, times = [], torch.tensor([3, 900])
for _ in range(4 if kind == torch.bfloat16 else 1):
    noisy, target, text = *torch.randn(2, 2, 2, 8, 8), torch.randn(2, 5, 8)
    samples.append(Sample(noisy=noisy, timesteps=times, text=text, target=target))
names = list(network.state_dict())
known = [agreement.known(network, one) for one in samples]
assert speed.apply(network, switches, [], world) == []
found = [agreement.gradients(network, one) for one in samples]
for one, other in zip(found, known):
    ours, plain = (abs(float(each.loss) / float(other.exact.loss) - 1) for each in (one, other.plain))
    assert ours <= other.tolerance + 2 * plain, (ours, plain)
errors, plain = ([agreement.distances(one, other.exact) for one, other in zip(each, known)]
    for each in (found, [one.plain for one in known]))
for name in errors[0]:
    ours, torchs = (math.hypot(*(one[name] for one in each)) / math.sqrt(len(each)) for each in (errors, plain))
    assert ours <= known[0].tolerance + 2 * torchs, (name, ours, torchs)
seen, left = set(), [network(*agreement.inputs(network, samples[0])).grad_fn]
while left:
    node = left.pop()
    if node is not None and node not in seen:
        seen.add(node)
        left += [one for one, _ in node.next_functions]
called = Counter(type(node).__name__ for node in seen)
assert {name: called[name] for name in functions} == functions, called
unet.enable_gradient_checkpointing()
again = agreement.gradients(network, samples[0])
assert all(torch.equal(one, found[0].gradients[name]) for name, one in again.gradients.items())
assert list(network.state_dict()) == names
speed.reset(network)
unet.disable_gradient_checkpointing()
again = agreement.gradients(network, samples[0])
assert all(torch.equal(one, known[0].plain.gradients[name]) for name, one in again.gradients.items())
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Kernels:
    """Of a module, with the types of their arguments by name: tensors are fp32, where nothing else is said."""

    module: str
    kernels: tuple[str, ...]
    of_kind: tuple[str, ...]  # tensors of the network's type
    numbers: dict[str, str]
    constants: tuple[dict[str, int | bool], ...]  # each kernel is compiled with each, as far as it has them
    warps: int


def network(switches: dict[str, str | bool], functions: dict[str, int], kind: str) -> None:
    """Raises where the switches do not give a small UNet's loss and gradients, or not by as many of these functions."""
    interpreted(NETWORK, json.dumps(switches), json.dumps(functions), kind)


def interpreted(script: str, *arguments: str) -> None:
    """Raises what `script` raises."""
    run(NEAREST + script, *arguments, TRITON_INTERPRET="1")


def compiled(case: Kernels, capability: str, kind: str, cache: Path) -> None:
    """Raises what compiling for a GPU of that capability raises."""
    run(COMPILED, json.dumps(asdict(case)), capability, kind, TRITON_CACHE_DIR=str(cache))


def run(script: str, *arguments: str, **environment: str) -> None:
    """Raises what `script` raises, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, **environment},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
