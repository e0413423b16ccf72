"""The kernels of QuickGELU compile for GPUs that are not here; what they compute is test_quick_gelu.py's."""

from pathlib import Path

import pytest
from triton_runs import Kernels, compiled

from bigdiff.models import quick_gelu_kernels

CASE = Kernels(
    module="bigdiff.models.quick_gelu_kernels",
    kernels=("_forward", "_backward"),
    of_kind=("given", "gradient", "out"),
    numbers={"count": "i32"},
    constants=({"WIDE": quick_gelu_kernels.WIDE},),
    warps=quick_gelu_kernels._WARPS,
)


@pytest.mark.parametrize(("capability", "kind"), [("80", "bf16"), ("90", "fp16"), ("90", "fp32"), ("100", "bf16")])
def test_the_kernels_compile_for(capability: str, kind: str, tmp_path: Path) -> None:
    compiled(CASE, capability, kind, tmp_path)
