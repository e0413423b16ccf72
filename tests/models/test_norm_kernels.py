"""The kernels of the fused norm compile for GPUs that are not here; what they compute is test_norm.py's."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
COMPILED = """
import sys, warnings
warnings.simplefilter("ignore")
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from bigdiff.models import norm_kernels
kind = sys.argv[2]
sizes, sums = {"ROWS": norm_kernels.ROWS, "WIDE": norm_kernels.WIDE}, {"SPLITS": 32, "EACH": 16}
of_kind = {"x", "shift", "weight", "bias", "gradient", "out"}
numbers = {"pixels": "i32", "channels": "i32", "splits": "i32", "each": "i32", "eps": "fp32"}
for name in ("_statistics", "_merge", "_apply", "_sums", "_merge_sums", "_backward"):
    kernel = getattr(norm_kernels, name)
    for shifted in (False, True):
        known = {**sizes, **sums, "HAS_SHIFT": shifted}
        constants = {one: known[one] for one in kernel.arg_names if one in known}
        signature = {
            one: "constexpr" if one in constants else numbers.get(one, f"*{kind}" if one in of_kind else "*fp32")
            for one in kernel.arg_names
        }
        source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
        made = triton.compile(source, target=GPUTarget("cuda", int(sys.argv[1]), 32), options={"num_warps": 8})
        assert len(made.asm["cubin"]) > 1000
        # of 48 KiB that each GPU gives a program without being asked
        assert made.metadata.shared <= 48 * 1024, (name, made.metadata.shared)
"""


@pytest.mark.parametrize(("capability", "kind"), [("80", "bf16"), ("90", "bf16"), ("90", "fp32"), ("100", "fp16")])
def test_the_kernels_compile_for(capability: str, kind: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", COMPILED, capability, kind],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "TRITON_CACHE_DIR": str(tmp_path)},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
