"""The accelerators that stages are planned for and measured on: one table, each row from its maker's data sheet."""

from dataclasses import dataclass
from typing import Final

from bigdiff.config.errors import UsageError


@dataclass(frozen=True, kw_only=True, slots=True)
class Device:
    """What the maker states; rates are upper bounds that no network reaches."""

    name: str
    called: str  # what the driver calls it, as torch.cuda.get_device_name gives it
    peak: float  # dense bf16 FLOP/s, without sparsity
    memory: float  # bytes
    bandwidth: float  # of its memory, bytes/s
    link: float  # to the other devices of its node, bytes/s in one direction
    watts: float  # limit of the board
    node_watts: float  # most that a node of eight takes, all in
    source: str


TABLE: Final = {
    one.name: one
    for one in (
        Device(
            name="a100-40",
            called="NVIDIA A100-SXM4-40GB",
            peak=312e12,
            memory=40e9,
            bandwidth=1.555e12,
            link=300e9,
            watts=400,
            node_watts=6500,
            source="NVIDIA A100 Tensor Core GPU data sheet (SXM, 40 GB); DGX A100 system: 6.5 kW",
        ),
        Device(
            name="a100-80",
            called="NVIDIA A100-SXM4-80GB",
            peak=312e12,
            memory=80e9,
            bandwidth=2.039e12,
            link=300e9,
            watts=400,
            node_watts=6500,
            source="NVIDIA A100 Tensor Core GPU data sheet (SXM, 80 GB); DGX A100 system: 6.5 kW",
        ),
        Device(
            name="h100",
            called="NVIDIA H100 80GB HBM3",
            peak=989e12,
            memory=80e9,
            bandwidth=3.35e12,
            link=450e9,
            watts=700,
            node_watts=10200,
            source="NVIDIA H100 Tensor Core GPU data sheet (SXM; half of its sparse rate); DGX H100 guide: 10.2 kW",
        ),
        Device(
            name="h200",
            called="NVIDIA H200",
            peak=989e12,
            memory=141e9,
            bandwidth=4.8e12,
            link=450e9,
            watts=700,
            node_watts=10200,
            source="NVIDIA H200 Tensor Core GPU data sheet (SXM; half of its sparse rate); DGX H200 guide: 10.2 kW",
        ),
        Device(
            name="b200",
            called="NVIDIA B200",
            peak=2250e12,
            memory=180e9,
            bandwidth=8.0e12,
            link=900e9,
            watts=1000,
            node_watts=14300,
            source="NVIDIA DGX B200 data sheet (an eighth of its 72 PFLOPS FP8, halved; 1,440 GB; 64 TB/s; 14.3 kW)",
        ),
    )
}


def device(name: str) -> Device:
    """The row of `name`.

    Raises:
        UsageError: naming the rows.
    """
    if name not in TABLE:
        raise UsageError(f"--device {name}: the table of bigdiff/runtime/devices.py has {', '.join(TABLE)}")
    return TABLE[name]


def called(reported: str) -> Device | None:
    """The row of a device by the driver's name for it; None for one that the table does not have.

    The whole name counts: "NVIDIA H100 PCIe" and "NVIDIA H200 NVL" have other peaks than the rows of the SXM boards.
    """
    return next((one for one in TABLE.values() if one.called == reported), None)
