"""The averages against the equations in float64, on one tensor, on parts of it and on real ranks under ZeRO."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from bigdiff.config.errors import UsageError
from bigdiff.config.schema import Ema
from bigdiff.models.ema import Averages, Profile, distances, effective_decay, profiles, squares
from bigdiff.models.posthoc import exponent

BOTH = Ema(decays=[0.9, 0.99], power=[0.05, 0.1], snapshot_every=10)


def test_warm_up_then_decay() -> None:
    assert effective_decay(0.9999, 0) == pytest.approx(0.1)
    assert effective_decay(0.9999, 90) == pytest.approx(0.91)
    assert effective_decay(0.9999, 10**6) == 0.9999


def test_a_power_function_forgets_the_first_weights_at_once() -> None:
    assert Profile(gamma=exponent(0.05)).kept(0) == 0.0
    assert Profile(gamma=exponent(0.05)).kept(99) == pytest.approx(0.99 ** (exponent(0.05) + 1))


def test_names_come_in_the_order_of_the_configuration() -> None:
    assert list(profiles(BOTH)) == ["ema/0.9", "ema/0.99", "power/0.05", "power/0.1"]
    assert list(Averages([torch.zeros(3)], BOTH).power) == ["power/0.05", "power/0.1"]
    assert not profiles(Ema(decays=[]))


def naive(steps: list[torch.Tensor], first: torch.Tensor) -> dict[str, torch.Tensor]:
    """Each average of whole weights in float64, as the equations say."""
    told = {name: first.double() for name in profiles(BOTH)}
    for n, weights in enumerate(steps):
        for name in told:
            number = float(name.split("/")[1])
            kept = (
                (n / (n + 1)) ** (exponent(number) + 1) if name.startswith("power") else min(number, (1 + n) / (10 + n))
            )
            told[name] = kept * told[name] + (1 - kept) * weights.double()
    return told


def test_partitions_average_like_the_whole() -> None:
    torch.manual_seed(0)
    whole = torch.randn(10)
    first, steps = whole.clone(), []
    masters = (whole[:4], whole[4:7], whole[7:])  # views: moving the whole moves them
    sharded = Averages(masters, BOTH)
    for step in range(200):
        whole += torch.randn(10)
        steps.append(whole.clone())
        sharded.update(masters, step)
    for name, wanted in naive(steps, first).items():
        torch.testing.assert_close(torch.cat(sharded.tensors[name]).double(), wanted, rtol=1e-6, atol=1e-6)


def test_each_costs_four_bytes_a_weight_and_nothing_else() -> None:
    masters = (torch.randn(1000), torch.randn(24))
    sharded = Averages(masters, BOTH)
    storages = [part.untyped_storage() for parts in sharded.tensors.values() for part in parts]
    assert len({storage.data_ptr() for storage in storages}) == 8
    assert sum(storage.nbytes() for storage in storages) == 4 * 4 * 1024
    before = [storage.data_ptr() for storage in storages]
    sharded.update(masters, 0)
    after = [part.data_ptr() for parts in sharded.tensors.values() for part in parts]
    assert after == before  # updated in place


def trained(ema: Ema, updates: int) -> tuple[tuple[torch.Tensor, ...], Averages]:
    torch.manual_seed(1)
    masters = (torch.randn(6), torch.randn(3))
    averages = Averages(masters, ema)
    for number in range(updates):
        for master in masters:
            master.add_(torch.randn(len(master)))
        averages.update(masters, number)
    return masters, averages


def test_what_was_saved_goes_on_bit_for_bit() -> None:
    masters, before = trained(BOTH, 20)
    after = Averages(masters, BOTH)
    saved = {name: tuple(part.clone() for part in parts) for name, parts in before.tensors.items()}
    assert after.restore(saved, before.began, masters, 20) == []
    for averages in (before, after):
        averages.update(tuple(master + 1 for master in masters), 20)
    for name, parts in before.tensors.items():
        assert all(torch.equal(one, other) for one, other in zip(parts, after.tensors[name], strict=True))
        assert all(
            part.data_ptr() != kept.data_ptr() for part, kept in zip(after.tensors[name], saved[name], strict=True)
        )


def test_a_decay_that_is_new_begins_at_the_weights_and_says_so() -> None:
    masters, before = trained(Ema(decays=[0.9]), 20)
    after = Averages(masters, Ema(decays=[0.99, 0.9]))
    (line,) = after.restore(before.tensors, before.began, masters, 20)
    assert line == "ema/0.99 is not in the checkpoint and begins anew at the weights of update 20"
    assert after.began == {"ema/0.99": 20, "ema/0.9": 0}
    assert all(torch.equal(part, master) for part, master in zip(after.tensors["ema/0.99"], masters, strict=True))
    moved = tuple(master + 1 for master in masters)
    after.update(moved, 20)
    # its own warm-up: the first update keeps a tenth; the other one is past its warm-up
    torch.testing.assert_close(after.tensors["ema/0.99"][0], masters[0] + 0.9)
    kept = 21 / 30
    torch.testing.assert_close(after.tensors["ema/0.9"][0], kept * before.tensors["ema/0.9"][0] + (1 - kept) * moved[0])


def test_an_average_that_is_no_longer_wanted_ends_and_says_so() -> None:
    masters, before = trained(BOTH, 5)
    after = Averages(masters, Ema(decays=[0.9]))
    lines = after.restore(before.tensors, before.began, masters, 5)
    assert [line.split(" ")[0] for line in lines] == ["ema/0.99", "power/0.05", "power/0.1"]
    assert all("ends here" in line for line in lines)


def test_power_functions_begin_together_or_not_at_all() -> None:
    masters, before = trained(Ema(decays=[0.9], power=[0.05], snapshot_every=1), 5)
    after = Averages(masters, BOTH)
    with pytest.raises(UsageError, match=r"holds power/0\.05 but not power/0\.1, which can only begin with them"):
        after.restore(before.tensors, before.began, masters, 5)
    plain, none = trained(Ema(decays=[0.9]), 5)
    together = Averages(plain, BOTH)
    assert len(together.restore(none.tensors, none.began, plain, 5)) == 3
    assert (together.began["power/0.05"], together.began["power/0.1"]) == (5, 5)


def test_distances_are_relative_to_the_weights_over_all_ranks() -> None:
    masters, averages = trained(BOTH, 20)
    halves = [
        squares({name: (parts[rank],) for name, parts in averages.tensors.items()}, (masters[rank],), [(0, 9)])
        for rank in (0, 1)
    ]
    told = distances(tuple(averages.tensors), (halves[0] + halves[1]) / 2)
    whole = torch.cat(masters).double()
    for name, parts in averages.tensors.items():
        wanted = float((torch.cat(parts).double() - whole).norm() / whole.norm())
        assert told[name] == pytest.approx(wanted, rel=1e-5)
        assert told[name] > 0
    assert distances(["ema/0.9"], torch.zeros(2)) == {"ema/0.9": 0.0}


def test_distances_of_parts_larger_than_a_chunk_and_without_the_padding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bigdiff.models.ema.CHUNK", 7)
    masters, averages = (torch.randn(60), torch.randn(40)), (torch.randn(60), torch.randn(40))
    ranges = [(2, 70), (75, 98)]
    for part in (masters, averages):  # padding may hold anything
        part[0][:2], part[1][10:15], part[1][38:] = torch.nan, torch.inf, torch.nan
    weights, averaged = (torch.cat([torch.cat(p)[2:70], torch.cat(p)[75:98]]) for p in (masters, averages))
    wanted = [float(weights.square().sum()), float((averaged - weights).square().sum())]
    assert squares({"ema/0.9": averages}, masters, ranges).tolist() == pytest.approx(wanted, rel=1e-5)


STAGE = {
    "name": "toy",
    "resolution": 64,
    "steps": 200,
    "data": {"latents": "none"},
    "batch": {"total": 6, "micro": 1},
    "model": {"vae": {"source": "none"}, "text": {"encoder": "none", "tokenizer": "none"}},
    "optim": {"lr": 0.01, "warmup_steps": 2},
    "ema": {"decays": [0.9999, 0.99], "power": [0.05, 0.2], "snapshot_every": 100},
}
SCRIPT = """
import json, sys, torch
from bigdiff.config.load import load_stage
from bigdiff.engine.deepspeed import Engine
from bigdiff.models.ema import Averages, distances, profiles, squares
from bigdiff.runtime.world import enter, leave
stage = load_stage(sys.argv[1], sys.argv[2:])
w = enter(120)
torch.manual_seed(0)
net = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.SiLU(), torch.nn.Linear(7, 3))
engine = Engine(net, dict(net.named_parameters()), stage, w)
masters, x, y = engine.partition.masters, torch.randn(96, 5), torch.randn(96, 3)
owned = [(piece.local, piece.local + piece.length) for piece in engine.partition.pieces]
averages, kept, updates, norms = Averages(masters, stage.ema), profiles(stage.ema), 0, []
whole = lambda parts: torch.cat([t.flatten() for t in engine.gather(parts).values()]).double()
naive = {name: whole(masters) for name in kept}
for step in range(200):
    for k in range(engine.accumulation):
        at = (step * 6 + k * w.size + w.rank) % 96
        loss = (engine(x[at:at + 1]) - y[at:at + 1]).pow(2).mean()
        # one rank alone sees a number that is none, in one step
        engine.backward(loss * float("nan") if (step, w.rank) == (40, w.size - 1) else loss)
        stepped = engine.step(step)
    if stepped.norm.isfinite():
        averages.update(masters, updates)
        weights = whole(masters)
        for name, profile in kept.items():
            naive[name] = torch.lerp(weights, naive[name], profile.kept(updates))
        updates += 1
full = {name: whole(parts) for name, parts in averages.tensors.items()}
told = distances(tuple(full), w.mean(squares(averages.tensors, masters, owned)))
now = whole(masters)
print(json.dumps({
    "updates": updates,
    "apart": {name: float((full[name] - naive[name]).abs().max()) for name in full},
    "distances": told,
    "naive": {name: float((naive[name] - now).norm() / now.norm()) for name in full},
    "bytes": [part.untyped_storage().nbytes() for parts in averages.tensors.values() for part in parts],
    "owned": sum(end - begin for begin, end in owned),
}))
leave()
"""


@pytest.mark.parametrize(("size", "zero_stage"), [(1, 2), (2, 3), (3, 1)])
def test_ranks_hold_a_share_of_what_one_process_would_hold(
    run_ranks: Callable[..., list[str]], tmp_path: Path, size: int, zero_stage: int
) -> None:
    file = tmp_path / "toy.yaml"
    file.write_text(yaml.safe_dump(STAGE))
    told = [
        json.loads(output.splitlines()[-1])
        for output in run_ranks(SCRIPT, size, str(file), f"engine.zero_stage={zero_stage}")
    ]
    parameters, averages = 5 * 7 + 7 + 7 * 3 + 3, 4
    for one in told:
        assert one["updates"] == 199  # of 200 steps; the other moved nothing on any rank
        assert max(one["apart"].values()) < 1e-6
        assert one["distances"] == pytest.approx(one["naive"], rel=1e-4)
        assert min(one["distances"].values()) > 1e-3  # they do differ from the weights
        # a rank's share of 4 bytes a weight, and what makes the shares of all ranks equally long
        assert sum(one["bytes"]) <= averages * 4 * (parameters / size + 32)
    assert sum(one["owned"] for one in told) == parameters
