"""Our kernels of random numbers without a GPU: run by Triton's interpreter, and compiled for GPUs that are not here."""

import warnings
from pathlib import Path

import pytest
import torch
from triton_runs import run

from bigdiff.runtime import seeding

ROOT = Path(__file__).resolve().parents[2]
INTERPRETED = """
import torch
from bigdiff.runtime import draws, seeding
key = (0xDEADBEEF, 0x12345678)
for start in (0, 1, 2**31 - 2, 2**32 - 3, 2**40 + 7):
    for count, blocks in ((1, 1), (5, 3), (4, 300), (3, 256)):
        given = (key, 7, torch.arange(start, start + count))
        found, wanted = draws.words(*given, blocks), seeding.by_torch(*given, blocks)
        assert found.dtype == wanted.dtype and torch.equal(found, wanted), (start, count, blocks)
        normal, plain = draws.normal(*given, 8 * blocks), seeding._box_muller(seeding.by_torch(*given, 2 * blocks))
        assert normal.shape == plain.shape and (normal - plain).abs().max() < 1e-5, (start, count, blocks)
for key in ((0, 0), (2**32 - 1, 2**32 - 1), (1, 16)):
    given = (key, 0, torch.arange(3), 2)
    assert torch.equal(draws.words(*given), seeding.by_torch(*given)), key
assert draws.words((1, 2), 3, torch.arange(0), 4).shape == (0, 16)
"""
COMPILED = """
import sys, warnings
warnings.simplefilter("ignore")
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from bigdiff.runtime import draws
for kernel, out in ((draws.words_kernel, "*i64"), (draws.normal_kernel, "*fp32")):
    for kind in ("i32", "i64"):
        plain = dict.fromkeys(("low", "high"), kind) | dict.fromkeys(("number", "blocks"), "i32")
        signature = {"out": out, "positions": "*i64", **plain, "BLOCK": "constexpr"}
        source = ASTSource(fn=kernel, signature=signature, constexprs={"BLOCK": 256})
        made = triton.compile(source, target=GPUTarget("cuda", int(sys.argv[1]), 32))
        assert len(made.asm["cubin"]) > 1000
"""


def test_the_kernels_draw_what_torch_draws() -> None:
    run(INTERPRETED, TRITON_INTERPRET="1")


@pytest.mark.parametrize("capability", ["80", "90", "100"])
def test_the_kernels_compile_for(capability: str, tmp_path: Path) -> None:
    run(COMPILED, capability, TRITON_CACHE_DIR=str(tmp_path))


def test_a_gpu_that_cannot_run_them_is_a_warning_and_torch_draws() -> None:
    seeding.fused.cache_clear()
    with pytest.warns(UserWarning, match="random numbers are drawn by torch's operations, not by kernels of ours: "):
        assert seeding.fused(torch.device("cuda", 7)) is None  # there is none
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert seeding.fused(torch.device("cuda", 7)) is None  # asked once
        assert seeding.fused(torch.device("cpu")) is None
    seeding.fused.cache_clear()
