"""The kernels of the fused norm compile for GPUs that are not here; what they compute is test_norm.py's."""

from pathlib import Path

import pytest
from triton_runs import Kernels, compiled

from bigdiff.models import norm_kernels

SIZES = {"ROWS": norm_kernels.ROWS, "WIDE": norm_kernels.WIDE, "SPLITS": 32, "EACH": 16}
CASE = Kernels(
    module="bigdiff.models.norm_kernels",
    kernels=("_statistics", "_merge", "_apply", "_sums", "_merge_sums", "_backward"),
    of_kind=("x", "shift", "weight", "bias", "gradient", "out"),
    numbers={"pixels": "i32", "channels": "i32", "splits": "i32", "each": "i32", "eps": "fp32"},
    constants=tuple({**SIZES, "HAS_SHIFT": shifted} for shifted in (False, True)),
    warps=norm_kernels._WARPS,
)


@pytest.mark.parametrize(("capability", "kind"), [("80", "bf16"), ("90", "bf16"), ("90", "fp32"), ("100", "fp16")])
def test_the_kernels_compile_for(capability: str, kind: str, tmp_path: Path) -> None:
    compiled(CASE, capability, kind, tmp_path)
