import pytest
import torch

from bigdiff.runtime.transfer import Results, aside, there

CPU = torch.device("cpu")
WITHOUT = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device: copies run on another stream")
DEVICES = [CPU, pytest.param(torch.device("cuda"), marks=WITHOUT)]


@pytest.mark.parametrize("device", DEVICES, ids=str)
def test_batches_in_flight_keep_their_values(device: torch.device) -> None:
    """Each is fetched when two later ones have begun, and their memory is given back in between."""
    batches = [torch.full((64, 1000), float(number), pin_memory=device.type == "cuda") for number in range(12)]
    begun = []
    for batch in batches:
        seen = there(batch, device)
        assert seen.device.type == device.type
        begun.append(Results(seen.cumsum(1), seen.sum(), seen[:, ::2]))
        with aside(device):
            assert float(there(torch.ones(3), device).sum()) == 3
    for number, one in enumerate(begun):
        sums, total, half = one.tensors()
        assert torch.equal(sums, batches[number].cumsum(1)) and float(total) == 64_000 * number
        assert half.is_contiguous() and half.shape == (64, 500) and bool((half == number).all())
        assert sums.device == CPU
