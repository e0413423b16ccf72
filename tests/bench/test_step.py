"""The benchmark of a step on a small UNet, all but its rates; and how it names the kernels of a GPU."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parent


@pytest.fixture(scope="module")
def stepping() -> Iterator[Any]:
    sys.path.insert(0, str(FOLDER))
    import stepping
    from stepping import kernels, table

    assert kernels and table
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


def test_a_result_that_lacks_something_is_told(stepping: Any) -> None:
    kernels, table = stepping.kernels, stepping.table
    times = dict.fromkeys(kernels.CLASSES, 0.1)
    row = {"rates": [1.0], "agrees": "", "said": [], "kernels": times, "largest": [("norm", "kernel", 0.1)]}
    run = {"pixels": 64, "micro": 2, "ended": "", "rows": {"off": row}}
    assert table.lacks({"runs": [run]}) == []
    faults = {"agrees": "a gradient is wrong", "rates": [], "largest": [], "kernels": times | {"norm": 0.0}}
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
