"""The ledger of a UNet against what autograd keeps, the allocator's peak and the operator counter; the choice."""

import itertools
from collections.abc import Collection, Sequence
from functools import cache

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd.graph import saved_tensors_hooks

from bigdiff.config.load import load_stage
from bigdiff.config.schema import Stage
from bigdiff.models import activations, checkpointing, flops, recomputing
from bigdiff.models.network import network
from bigdiff.models.recomputing import Ledger, Unit, cheapest

SMALL = ["model.text.encoder=nowhere", "resolution=64", "model.unet.block_out_channels=[16,32]"]
BLOCKS = "{down_block_types: [%s, %s], up_block_types: [%s, %s]}"
KINDS = {
    "text": [f"model.unet={BLOCKS % ('CrossAttnDownBlock2D', 'DownBlock2D', 'UpBlock2D', 'CrossAttnUpBlock2D')}"],
    "no text": [
        f"model.unet={BLOCKS % ('DownBlock2D', 'AttnDownBlock2D', 'AttnUpBlock2D', 'UpBlock2D')}",
        "model.unet.cross_attention_dim=0",
        "model.text=null",
        "text_dropout=0",
        "preview.prompts=[]",
        "preview.every=0",
    ],
}
SETS = ("mid_block", "down_blocks", "up_blocks.1.resnets,down_blocks.0", "down_blocks,mid_block,up_blocks")
# without text the meta device lays out one joined tensor behind an attention otherwise than a CPU, which copies less
EXACT = {"text": 0.0, "no text": 0.03}


def stage(kind: str, names: str = "false") -> Stage:
    settings = [*SMALL, "model.unet.layers_per_block=1", *KINDS[kind], f"engine.gradient_checkpointing={names}"]
    return load_stage("quickstart-32px", settings)


@cache
def ledger(kind: str, *, half: bool = False) -> Ledger:
    return recomputing.measured(network(stage(kind)), half)


def units(kind: str, names: str) -> tuple[str, ...]:
    return checkpointing.chosen(network(stage(kind)).denoiser.unet, names)


def kept(kind: str, names: Collection[str]) -> int:
    """Bytes that autograd keeps of a forward pass on a CPU when these are recomputed, with what they are given."""
    found = network(stage(kind, ",".join(names) or "false"), "cpu")
    inputs = found.inputs(1, tokens=False, device="cpu")
    known = {one.untyped_storage() for one in (*found.denoiser.parameters(), *inputs)}
    saved: set[torch.UntypedStorage] = set()

    def note(tensors: Sequence[object]) -> None:
        saved.update(one.untyped_storage() for one in tensors if isinstance(one, torch.Tensor))

    def pack(tensor: torch.Tensor) -> None:
        note([tensor])

    for name, unit in checkpointing.units(found.denoiser.unet).items():
        if name in names:
            unit.register_forward_pre_hook(lambda _, arguments: note(arguments))
    with saved_tensors_hooks(pack, lambda _: torch.empty(0)):
        found.denoiser(*inputs)
    return sum(one.nbytes() for one in saved - known)


@pytest.mark.parametrize("kind", KINDS)
def test_what_each_unit_and_each_set_keeps_is_what_autograd_keeps(kind: str) -> None:
    known = ledger(kind)
    assert [one.name for one in known.units] != [] and known.keeps(()) == known.saved
    assert {one.name for one in known.units} == set(checkpointing.units(network(stage(kind)).denoiser.unet))
    for names in ((), *((one.name,) for one in known.units), *(units(kind, one) for one in SETS)):
        assert kept(kind, names) == pytest.approx(known.keeps(names), rel=EXACT[kind]), names
    assert all(one.kept > 0 and one.flops > 0 for one in known.units)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_recomputed_is_what_the_operator_counter_sees(kind: str) -> None:
    known = ledger(kind)
    for names in (*SETS, known.units[0].name, known.units[-1].name):
        assert known.again(units(kind, names)) == flops.per_image(stage(kind, names)).recomputed, names


@pytest.mark.parametrize("half", [False, True])
def test_the_peak_is_bounded_and_reached(half: bool) -> None:
    """By following every tensor's life with many images, of which one is a small part of a weight's gradient."""
    known, images = ledger("text", half=half), 64
    plain = activations.per_image(stage("text"), half)
    assert known.peak == plain.peak
    beside = plain.held - known.saved  # what is held and not saved: the output
    for names in SETS:
        found = activations.of(network(stage("text", names)), half, images)
        assert found.held == images * (known.keeps(units("text", names)) + beside)
        assert found.held <= found.peak <= images * known.most(units("text", names))
    every = [one.name for one in known.units]
    assert found.peak == pytest.approx(images * known.most(every), rel=0.03)


some = st.lists(st.tuples(st.integers(-2, 12), st.integers(0, 9)), max_size=9)


def lowered(chosen: Sequence[Unit]) -> int:
    return sum(one.kept for one in chosen) - max((one.kept for one in chosen), default=0)


@given(some, st.integers(-3, 60))
def test_the_choice_is_the_cheapest_of_all_sets(sizes: list[tuple[int, int]], excess: int) -> None:
    every = [Unit(name=f"u{at}", kept=kept, flops=flops) for at, (kept, flops) in enumerate(sizes)]
    sets = (chosen for size in range(len(every) + 1) for chosen in itertools.combinations(every, size))
    works = [sum(one.flops for one in chosen) for chosen in sets if lowered(chosen) >= excess]
    names = cheapest(every, excess)
    if names is None:
        assert not works
        return
    chosen = [one for one in every if one.name in names]
    assert [one.name for one in chosen] == list(names)
    assert lowered(chosen) >= excess
    assert sum(one.flops for one in chosen) == min(works)


def test_nothing_is_recomputed_where_all_fits_and_equal_input_gives_equal_sets() -> None:
    known = ledger("text")
    assert cheapest(known.units, 0) == cheapest(known.units, -5) == ()
    assert cheapest(known.units, known.peak) is None
    half = cheapest(known.units, 0.3 * known.peak)
    assert half and half == cheapest(known.units, 0.3 * known.peak)
    assert known.most(half) <= 0.7 * known.peak + 1
    every = [one.name for one in known.units]
    assert known.again(half) < known.again(every)
    assert known.most(every) == min(known.most(half), known.most(every))


def test_sd_v1_at_512_px_keeps_what_the_planner_counts() -> None:
    """In bf16; following every tensor's life gave the peak, and the operator counter the FLOPs (docs/planning.md)."""
    known = recomputing.measured(network(load_stage("512px")), half=True)
    every = [one.name for one in known.units]
    assert known.keeps(()) / 1e6 == pytest.approx(936.8, abs=0.1)
    assert known.keeps(every) / 1e6 == pytest.approx(154.7, abs=0.1)
    assert (known.peak, known.most(every)) == (952_483_204, 241_664_644)
    assert known.again(every) == 595_039_846_400
