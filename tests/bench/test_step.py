"""The benchmark of a step on a small UNet, all but its rates; and how it names the kernels of a GPU."""

import json
import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

FOLDER = Path(__file__).parent
ENGINES = """
import json, sys
sys.path.insert(0, "tests/bench")
import torch
import torch.distributed as dist
from stepping import taken
from bigdiff.config.load import load_stage
from bigdiff.engine import norms
from bigdiff.engine.deepspeed import Engine
from bigdiff.engine.reduction import Reduction
from bigdiff.engine.weights import Weights
from bigdiff.models.agreement import Sample
from bigdiff.models.denoiser import build_denoiser
from bigdiff.runtime.world import enter, leave

world, told = enter(120), {}
common = ["batch={total: 8, micro: %d}" % (8 // world.size), "optim.grad_clip=0.1", "engine.bucket_elements=60000"]

def sample(number):
    random = torch.Generator().manual_seed(10 * number + world.rank)  # of each rank its own
    noisy, target = torch.randn(2, 8 // world.size, 16, 4, 4, generator=random)
    text = torch.randn(8 // world.size, 32, 64, generator=random)
    return Sample(noisy=noisy, timesteps=torch.arange(8 // world.size) * 9, text=text, target=target)

def tried(name, sharding, *more, of=None, put=None, group=None):
    stage = load_stage("quickstart-32px", [*common, f"engine.sharding={sharding}", *more])
    net = build_denoiser(stage, None)
    engine = Engine(net, net.trained(), stage, world)
    if of is not None:
        plain = getattr(*of)
        setattr(*of, put(plain))
    for key, value in (group or {}).items():
        engine._adam.param_groups[0][key] = value
    told[name] = taken.wrong(engine, [sample(1), sample(2)])
    if of is not None:
        setattr(*of, plain)

for sharding in ("deepspeed", "overlapped"):
    for kind in ("fp32", "bf16"):
        tried(f"{sharding} is right in {kind}", sharding, f"engine.precision={kind}", "engine.zero_stage=1")
calls = [0]
def alone(plain):
    def scattered(into, flat, **named):
        calls[0] += 1
        if calls[0] > 1:
            return plain(into, flat, **named)
        into.copy_(flat[world.rank * len(into) : (world.rank + 1) * len(into)])
    return scattered
tried("a bucket is not summed", "overlapped", of=(dist, "reduce_scatter_tensor"), put=alone)
def lost(plain):
    return lambda self, number: plain(self, number).clone() if number == 0 else plain(self, number)
tried("a bucket does not arrive", "overlapped", of=(Reduction, "_target"), put=lost)
def shifted(plain):
    def target(self, number):
        bucket = self._buckets.buckets[number]
        return self._into[bucket.own + (number == 0) : bucket.own + (number == 0) + bucket.share]
    return target
tried("a share is off by one", "overlapped", of=(Reduction, "_target"), put=shifted)
def added(plain):
    def finish(self, first):
        before, kept = self.own.clone(), getattr(self, "kept", 0)
        plain(self, first)
        self.kept = self.own.clone()
        self.own.add_(kept)
    return finish
tried("the last step's gradient stays", "overlapped", of=(Reduction, "finish"), put=added)
tried("nothing is clipped", "overlapped", of=(norms, "scale"), put=lambda plain: lambda *given: None)
tried("no weight decays", "deepspeed", group={"weight_decay": 0.0})
tried("Adam's second moment is the first", "overlapped", group={"betas": (0.9, 0.9)})
def held_back(plain):
    def publish(self, order):
        self.settle()
        mine = self._flat[0].clone()
        plain(self, order)
        self.settle()
        self._flat[0].copy_(mine)
    return publish
tried("a bucket is not published", "overlapped", of=(Weights, "publish"), put=held_back)
print(json.dumps(told))
leave()
"""


@pytest.fixture(scope="module")
def stepping() -> Iterator[Any]:
    sys.path.insert(0, str(FOLDER))
    import stepping
    from stepping import kernels, table, taken

    assert kernels and table and taken
    yield stepping
    sys.path.remove(str(FOLDER))


def test_all_variants_take_turns_and_agree(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(FOLDER / "step.py"), "--quick", "--write", "--results", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    (file,) = tmp_path.glob("*-step.json")
    found = json.loads(file.read_text())
    (run,) = found["runs"]
    assert {"diffusers script", "off", "channels_last", "all, blocks"} <= set(run["rows"])
    assert run["flops"] > 10**6
    (text,) = tmp_path.glob("*-step.txt")
    assert text.read_text() in done.stdout
    told = [line for line in text.read_text().splitlines() if "torch has no such kernel" in line]
    assert len(told) == 1 and told[0].startswith("cudnn: ")
    assert any(line.startswith("fp8: its gradients are ") for line in text.read_text().splitlines())
    assert "each engine steps as AdamW does" in done.stdout


@pytest.mark.parametrize("size", [1, 2])
def test_what_an_engine_does_wrong_is_told(run_ranks: Callable[..., list[str]], size: int) -> None:
    for output in run_ranks(ENGINES, size):
        told = json.loads(output.splitlines()[-1])
        right = {name: wrong for name, wrong in told.items() if "right" in name}
        assert len(right) == 4 and not any(right.values()), right
        faults = {name: wrong for name, wrong in told.items() if name not in right}
        sentences = {
            "a bucket is not summed": "gradients" if size == 2 else "",
            "a bucket does not arrive": "norms 1 are wrong",
            "a share is off by one": "gradients",
            "the last step's gradient stays": "step 1 of its engine: of ",
            "nothing is clipped": "gradients",
            "no weight decays": "updates",
            "Adam's second moment is the first": "updates",
            "a bucket is not published": "of the network's weights are not their masters",
        }
        assert set(faults) == set(sentences)
        for name, sentence in sentences.items():
            assert sentence in faults[name] and bool(faults[name]) is bool(sentence), (name, faults[name])
        assert "of 284 gradients 284 are wrong" not in faults["a bucket does not arrive"]  # those in it are


def test_a_result_that_lacks_something_is_told(stepping: Any) -> None:
    kernels, table = stepping.kernels, stepping.table
    times = dict.fromkeys(kernels.CLASSES, 0.1)
    told_of: dict[str, Any] = {"agrees": "", "engine": "", "said": []}
    row = told_of | {"rates": [1.0], "kernels": times, "largest": [("norm", "kernel", 0.1)]}
    run = {"pixels": 64, "micro": 2, "ended": "", "rows": {"off": row}}
    assert table.lacks({"runs": [run]}) == []
    faults = {"agrees": "a gradient is wrong", "engine": "an update is wrong", "rates": [], "largest": []}
    faults["kernels"] = times | {"norm": 0.0}
    for key, value in faults.items():
        (told,) = table.lacks({"runs": [{**run, "rows": {"off": {**row, key: value}}}]})
        assert told.startswith("64 px, 2, off: ")
    assert table.lacks({"runs": [{**run, "rows": {}, "ended": "out of memory"}]}) == ["64 px, 2: out of memory"]


# names of the kind that profiles on Hopper GPUs have; none was read from one for this test
@pytest.mark.parametrize(
    ("kind", "kernel", "callers"),
    [
        ("convolution", "sm90_xmma_fprop_implicit_gemm_bf16bf16_bf16f32_f32_nhwckrsc_nhwc_tilesize128x128x64", []),
        ("convolution", "nvjet_hsh_128x256_64x4", ["aten::cudnn_convolution", "aten::_convolution"]),
        ("convolution", "void at::native::reduce_kernel<512, 1>", ["aten::sum", "ConvolutionBackward0"]),
        ("linear", "nvjet_hsh_128x256_64x4_1x2_h_bz_coopA_TNT", ["aten::addmm", "aten::linear"]),
        ("linear", "void cublasLt::splitKreduce_kernel<32, 16>", []),
        ("linear", "triton_tem_fused_addmm_4", ["Torch-Compiled Region: 0/0"]),
        ("attention", "void pytorch_flash::flash_fwd_kernel<Flash_fwd_kernel_traits<64, 128>>", []),
        ("attention", "cudnn_generated_fort_native_sdpa_sm90_flash_bprop_wgmma_f16_knob_32", []),
        ("norm", "void at::native::RowwiseMomentsCUDAKernel<c10::BFloat16>", ["aten::native_group_norm"]),
        ("norm", "_backward", ["_LayerNormBackward"]),  # of bigdiff's own, which are named as what calls them
        ("norm", "_statistics", ["_GroupNormSiLU"]),
        ("elementwise", "_forward", ["_GEGLU"]),
        ("norm", "triton_red_fused_native_group_norm_silu_7", ["## Call CompiledFxGraph abc ##"]),
        ("elementwise", "triton_poi_fused_convolution_silu_12", ["CompiledFunctionBackward"]),
        (
            "elementwise",
            "void at::native::vectorized_elementwise_kernel<8, at::native::CUDAFunctor_add>",
            ["aten::add"],
        ),
        ("optimizer", "void at::native::multi_tensor_apply_kernel<FusedAdamMathFunctor>", ["aten::x", "optimizer"]),
    ],
)
def test_a_kernel_has_the_class_of_what_called_it(stepping: Any, kind: str, kernel: str, callers: list[str]) -> None:
    assert stepping.kernels.classified(kernel, callers) == kind


def test_a_weight_that_moves_where_it_should_not_is_told(stepping: Any) -> None:
    one, nan = torch.ones(3), torch.full((3,), math.nan)
    moved = stepping.taken.moved
    assert moved({"w": one}, {"w": one.clone()}, {"w": one.clone()}) == {"w": 0.0}
    assert moved({"w": one}, {"w": one + 0.1}, {"w": one.clone()}) == {"w": math.inf}
    assert math.isnan(moved({"w": one + 1}, {"w": nan}, {"w": one})["w"])
    for found in (one + 0.1, nan):
        assert stepping.taken.far(moved({"w": one}, {"w": found}, {"w": one.clone()}), 1e-5, "updates")
