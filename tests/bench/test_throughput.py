"""The benchmark of latents and scores on small networks, all but its rates; and what it says holds them back."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

FOLDER = Path(__file__).parent
ROW = {
    "work": "latents 512 px",
    "precision": "fp16",
    "path": [300.0, 310.0],
    "alone": 330.0,
    "tried": 340.0,
    "decode": 400.0,
    "decode_one": 100.0,
    "threads": 4,
    "waits": None,
    "flops": 10**12,
    "bytes": 10**9,
    "ended": "",
}


@pytest.fixture(scope="module")
def feeding() -> Iterator[Any]:
    sys.path.insert(0, str(FOLDER))
    import feeding
    from feeding import limits, table

    assert limits and table
    yield feeding
    sys.path.remove(str(FOLDER))


def test_each_work_is_measured_whole_and_in_its_parts(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(FOLDER / "throughput.py"), "--quick", "--write", "--results", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    (file,) = tmp_path.glob("*-throughput.json")
    found = json.loads(file.read_text())
    works = [(row["work"], row["precision"]) for row in found["rows"]]
    assert works == [(work, precision) for work in ("latents 32 px", "scores") for precision in ("fp32", "fp16")]
    assert all(len(row["path"]) == 1 and row["flops"] > 10**6 and row["bytes"] > 10**4 for row in found["rows"])
    (text,) = tmp_path.glob("*-throughput.txt")
    assert text.read_text() in done.stdout and "of these cores" in text.read_text()


@pytest.mark.parametrize(
    ("change", "cores", "told"),
    [
        ({}, 8, "the network; half of the limit (300) takes 3 of these cores"),
        ({"path": [250.0], "alone": 260.0}, 8, "the network; the network alone stays below half of the limit (300)"),
        ({"path": [350.0], "alone": 500.0}, 8, "reaches half of the limit; half of the limit (300) takes 3"),
        ({"path": [190.0], "decode": 200.0}, 2, "decoding: the network alone takes 4 cores, 2 are there; half of the "),
        ({"path": [190.0], "decode": 200.0}, 2, "takes 3 of these cores, of which there are 2: too few to decode for"),
        ({"path": [100.0]}, 8, "the path: 30% of the slower of network and decoding; half of the limit (300) takes 3"),
        ({"ended": "CUDA out of memory"}, 8, "CUDA out of memory"),
    ],
)
def test_what_holds_a_work_back_is_said(feeding: Any, change: dict[str, Any], cores: int, told: str) -> None:
    row, ceiling = {"path": [290.0], **{key: value for key, value in ROW.items() if key != "path"}, **change}, 6e14
    if not change:
        row["path"] = [299.0]
    assert told in feeding.table.holds(row, ceiling, cores)


def test_a_result_that_lacks_something_is_told(feeding: Any) -> None:
    lacks = feeding.table.lacks
    assert lacks({"rows": [ROW]}) == [] and lacks({"rows": []}) == ["no row"]
    for key in ("alone", "decode", "decode_one", "flops", "bytes"):
        assert lacks({"rows": [{**ROW, key: 0}]}) == [f"latents 512 px, fp16: no {key}"]
    assert lacks({"rows": [{**ROW, "path": []}]}) == ["latents 512 px, fp16: no path"]
    assert lacks({"rows": [{**ROW, "ended": "too large"}]}) == ["latents 512 px, fp16: too large"]


def test_traffic_is_of_what_is_no_product(feeding: Any) -> None:
    """Of a convolution, SiLU and a sum in half precision: 2 and 3 passes over the convolution's output."""

    class Small(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convolution = torch.nn.Conv2d(3, 8, 3, padding=1)

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            found = self.convolution(pixels)
            return torch.nn.functional.silu(found).transpose(2, 3) + found

    small = Small()
    found = feeding.limits.of(small, lambda network, pixels: network(pixels), 16)
    assert found == {"flops": 2 * 8 * 3 * 9 * 256, "bytes": 5 * 8 * 256 * 2}
    assert small.convolution.weight.dtype == torch.float32 and small.convolution.weight.device.type == "cpu"
