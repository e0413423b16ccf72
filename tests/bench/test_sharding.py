"""What DeepSpeed's ZeRO-1 and ours (`engine.sharding`) cost beside the passes themselves, by turns in one process.

`make bench` runs it; the figures go to tests/bench/results/ with the date. The host's time: one process steps a UNet
with SD 1.x's 684 tensors, narrow ones, by either engine and by plain autograd, in CPU time of the thread that a GPU
would wait for. Images a second: two processes over gloo train the quickstart's networks on the same noise.
"""

import json
import platform
import statistics
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
import torch

RESULTS = Path(__file__).parent / "results"
HOST = """
import json, time, torch
from diffusers import UNet2DConditionModel
from bigdiff.config.load import load_stage
from bigdiff.engine.deepspeed import Engine
from bigdiff.runtime.allocator import keep_freed
from bigdiff.runtime.world import enter, leave

torch.set_num_threads(1)
keep_freed()
world = enter(60)

def network():
    torch.manual_seed(0)
    narrow = {"block_out_channels": (32, 64, 64, 64), "cross_attention_dim": 32, "attention_head_dim": 8}
    return UNet2DConditionModel(**narrow, norm_num_groups=8)

def engine(sharding):
    one = ["batch={total: 4, micro: 4}", "data.canonical_nodes=1", "init_from=", "engine.zero_stage=1"]
    stage = load_stage("512px", [*one, "engine.precision=bf16", "engine.bucket_elements=300000", sharding])
    net = network()
    return Engine(net, dict(net.named_parameters()), stage, world)

given = torch.randn(4, 4, 8, 8).bfloat16(), torch.zeros(4, dtype=torch.long), torch.randn(4, 7, 32).bfloat16()
ways = {name: engine(f"engine.sharding={name}") for name in ("deepspeed", "overlapped")}
plain, spent = network().bfloat16(), {name: [] for name in (*ways, "plain")}
for number in range(45):
    for name, one in ways.items():
        times = [time.thread_time()]
        loss = one(*given).sample.float().square().mean()
        times.append(time.thread_time())
        one.backward(loss)
        times.append(time.thread_time())
        one.step(number)
        spent[name].append([*times, time.thread_time()])
    times = [time.thread_time()]
    loss = plain(*given).sample.float().square().mean()
    times.append(time.thread_time())
    loss.backward()
    times.append(time.thread_time())
    plain.zero_grad()
    spent["plain"].append([*times, time.thread_time()])
print(json.dumps({"spent": {name: many[5:] for name, many in spent.items()}, "tensors": len(list(plain.parameters())),
                  "weights": sum(one.numel() for one in plain.parameters())}))
leave()
"""
PAIR = """
import json, time, torch
import torch.distributed as dist
from bigdiff.config.load import load_stage
from bigdiff.engine.deepspeed import Engine
from bigdiff.models.denoiser import build_denoiser
from bigdiff.runtime.allocator import keep_freed
from bigdiff.runtime.world import enter, leave

torch.set_num_threads(1)
keep_freed()
world, told = enter(60), {}
for side in (4, 8):
    stages = [load_stage(f"quickstart-{8 * side}px", [f"engine.sharding={one}"]) for one in ("deepspeed", "overlapped")]
    nets = [build_denoiser(stage, None) for stage in stages]
    engines = [Engine(net, net.trained(), stage, world) for net, stage in zip(nets, stages)]
    given = torch.randn(16, 16, side, side), torch.arange(16), torch.randn(16, 32, 64)
    turns = [[], []]
    for turn in range(22):
        for engine, found in zip(engines, turns):
            dist.barrier()
            wall, cpu = time.perf_counter(), time.process_time()
            for number in range(5):
                engine.backward(engine(*given).square().mean())
                engine.step(number)
            found.append([(time.perf_counter() - wall) / 5, (time.process_time() - cpu) / 5])
    told[f"{8 * side} px"] = [found[2:] for found in turns]
print(json.dumps(told))
leave()
"""


@pytest.mark.bench
def test_what_sharding_costs(run_ranks: Callable[..., list[str]]) -> None:
    (output,) = run_ranks(HOST, 1)
    told = json.loads(output.splitlines()[-1])
    today, lines = datetime.now(UTC).date().isoformat(), []
    lines.append(
        f"{today}, Python {platform.python_version()}, torch {torch.__version__}, {platform.machine()}; others may "
        f"have used the cores"
    )
    lines.append(
        f"one process, a UNet of SD 1.x's shape with {told['tensors']} tensors of {told['weights']:,} weights in all, "
        f"bf16, 4 latents of 8 x 8:"
    )
    lines.append("ms of CPU time of the host's thread, medians of 40 turns of each    forward   backward     update")
    middle = {
        name: [1e3 * statistics.median(one[part + 1] - one[part] for one in many) for part in range(3)]
        for name, many in told["spent"].items()
    }
    names = {
        "deepspeed": "ZeRO-1 of DeepSpeed",
        "overlapped": "ZeRO-1 of our own",
        "plain": "plain, which updates nothing",
    }
    lines += [
        f"{names[name]:64}{forward:11.1f}{backward:11.1f}{update:11.1f}"
        for name, (forward, backward, update) in middle.items()
    ]
    each = {
        name: 1e3 * (middle[name][1] - middle["plain"][1]) / told["tensors"] for name in ("deepspeed", "overlapped")
    }
    lines.append(
        f"of the backward pass, beside the plain one: {each['deepspeed']:.0f} us a tensor, and {each['overlapped']:.0f}"
    )
    lines.append("")
    lines.append("two processes over gloo on the quickstart's networks, 16 latents each, 20 turns of 5 steps of each:")
    outputs = run_ranks(PAIR, 2)
    for size, (theirs, ours) in json.loads(outputs[0].splitlines()[-1]).items():
        rates = [32 / statistics.median(wall for wall, _ in turns) for turns in (theirs, ours)]
        wall, cpu = (
            statistics.median(one[part] / other[part] for one, other in zip(ours, theirs, strict=True))
            for part in (0, 1)
        )
        lines.append(
            f"{size}: {rates[0]:.0f} images/s of DeepSpeed, {rates[1]:.0f} of our own; a step of ours takes {wall:.2f} "
            f"of DeepSpeed's time and {cpu:.2f} of its CPU time (medians of neighbours)"
        )
    (RESULTS / f"{today}-sharding.txt").write_text("\n".join(lines) + "\n")
