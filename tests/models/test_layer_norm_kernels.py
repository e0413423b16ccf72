"""The kernels of LayerNorm compile for GPUs that are not here; what they compute is test_layer_norm.py's."""

from pathlib import Path

import pytest
from triton_runs import Kernels, compiled

from bigdiff.models import layer_norm_kernels

WIDTHS = (512, 1024, 2048)  # for 320, 640 and 1,280 channels
CASE = Kernels(
    module="bigdiff.models.layer_norm_kernels",
    kernels=("_forward", "_backward"),
    of_kind=("x", "weight", "bias", "gradient", "out"),
    numbers={"rows": "i32", "channels": "i32", "tiles": "i32", "eps": "fp32"},
    constants=tuple({"ROWS": layer_norm_kernels.TILE // wide, "WIDE": wide} for wide in WIDTHS),
    warps=layer_norm_kernels._WARPS,
)


@pytest.mark.parametrize(("capability", "kind"), [("80", "bf16"), ("90", "bf16"), ("90", "fp32"), ("100", "fp16")])
def test_the_kernels_compile_for(capability: str, kind: str, tmp_path: Path) -> None:
    compiled(CASE, capability, kind, tmp_path)
