"""The kernels of GEGLU compile for GPUs that are not here; what they compute is test_geglu.py's."""

from pathlib import Path

import pytest
from triton_runs import Kernels, compiled

from bigdiff.models import geglu_kernels

CASE = Kernels(
    module="bigdiff.models.geglu_kernels",
    kernels=("_forward", "_backward"),
    of_kind=("given", "gradient", "out"),
    numbers={"rows": "i32", "channels": "i32"},
    constants=({"ROWS": geglu_kernels.ROWS, "WIDE": geglu_kernels.WIDE},),
    warps=geglu_kernels._WARPS,
)


@pytest.mark.parametrize(("capability", "kind"), [("80", "bf16"), ("90", "bf16"), ("90", "fp32"), ("100", "fp16")])
def test_the_kernels_compile_for(capability: str, kind: str, tmp_path: Path) -> None:
    compiled(CASE, capability, kind, tmp_path)
