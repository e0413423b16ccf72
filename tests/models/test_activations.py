import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from bigdiff.config.load import load_stage
from bigdiff.config.schema import Stage
from bigdiff.models.activations import Lives, per_image
from bigdiff.models.network import network

SMALL = ["model.text.encoder=nowhere", "resolution=128"]
MARK = 12_345  # elements of a tensor that tells the forward pass from the backward pass


def allocated(stage: Stage, batch: int) -> tuple[int, int]:
    """Bytes that torch's CPU allocator holds after a forward pass, and at most."""
    found = network(stage, "cpu")
    for weight in found.denoiser.trained().values():
        weight.register_post_accumulate_grad_hook(lambda weight: setattr(weight, "grad", None))
    inputs = found.inputs(batch, tokens=False, device="cpu")
    found.denoiser(*inputs).sum().backward()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        output = found.denoiser(*inputs)
        mark = torch.empty(MARK)
        del mark
        output.sum().backward()
    events = [one for one in seen.profiler.kineto_results.events() if one.name() == "[memory]"]
    now = most = held = 0
    for one in sorted(events, key=lambda one: one.start_ns()):
        held = now if one.nbytes() == 4 * MARK else held
        now += one.nbytes()
        most = max(most, now)
    return held, most


@pytest.mark.parametrize("checkpointing", ["false", "true", "down_blocks.0,up_blocks.1.resnets"])
def test_the_count_is_what_the_allocator_gives_out(checkpointing: str) -> None:
    stage = load_stage("quickstart-32px", [*SMALL, f"engine.gradient_checkpointing={checkpointing}"])
    counted = per_image(stage, half=False)
    held, most = allocated(stage, batch=4)
    assert held / 4 == pytest.approx(counted.held, rel=0.01)
    assert most / 4 == pytest.approx(counted.peak, rel=0.01)


def test_bf16_halves_it_and_checkpointing_keeps_less_and_starts_more_kernels() -> None:
    plain = load_stage("quickstart-32px", SMALL)
    again = load_stage("quickstart-32px", [*SMALL, "engine.gradient_checkpointing=true"])
    fp32, bf16, checked = per_image(plain, half=False), per_image(plain, half=True), per_image(again, half=False)
    assert bf16.held == pytest.approx(fp32.held / 2, rel=0.02)
    assert checked.held < 0.3 * fp32.held
    assert checked.kernels > fp32.kernels


def test_sd_v1_keeps_what_was_counted_before() -> None:
    found = per_image(load_stage("256px"), half=True)
    assert found.held / 1e6 == pytest.approx(237.2, abs=0.1)
    assert found.kernels == pytest.approx(2_000, rel=0.1)


def test_a_storage_is_counted_once_and_as_long_as_it_lives() -> None:
    known = torch.zeros(1000)
    with Lives(iter([known])) as lives:
        one = torch.empty(10)
        view, other = one[2:], known[1:]
        assert lives.bytes == 40
        del one
        assert lives.bytes == 40
        del view, other
        assert (lives.bytes, lives.peak) == (0, 40)
