"""New weights of all ranks, and who waits for which of them."""

import json
from collections.abc import Callable

import pytest
from diffusers import UNet2DConditionModel

from bigdiff.engine.weights import blocks_of

Ranks = Callable[..., list[str]]
SMALL = {
    "block_out_channels": (8, 16),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "layers_per_block": 1,
    "cross_attention_dim": 8,
    "attention_head_dim": 4,
    "norm_num_groups": 4,
}
SCRIPT = """
import json, sys, torch
import torch.distributed as dist
from diffusers import UNet2DConditionModel
from torch import nn
from bigdiff.engine.buckets import cut
from bigdiff.engine.groups import Groups
from bigdiff.engine.weights import Weights, blocks_of
from bigdiff.runtime.clock import Clock
from bigdiff.runtime.world import enter, leave

class Denoiser(nn.Module):
    def __init__(self):
        super().__init__()
        self.unet = UNet2DConditionModel(**json.loads(sys.argv[1]))

    def forward(self, *given):
        return self.unet(*given).sample

world, apart, kind = enter(60), sys.argv[2] == "apart", getattr(torch, sys.argv[3])
torch.manual_seed(0)
net = Denoiser().to(kind)
trained = dict(net.named_parameters())
before = {name: one.detach().clone() for name, one in trained.items()}
sizes = [one.numel() for one in trained.values()]
buckets = cut(sizes, 2500, world.size)
groups = Groups(size=world.size, count=1, member=world.rank, number=0)
weights = Weights(trained, buckets, groups, Clock(world.device), apart)
bucket_of = {name: n for n, one in enumerate(buckets.buckets) for name in [list(trained)[p] for p in one.parameters]}
begins = all(torch.equal(one, before[name]) for name, one in trained.items())
weights.waited_for_by(net)

log, given = [], dist.all_gather_into_tensor
begun = {one.begin: n for n, one in enumerate(buckets.buckets)}
class Told:
    def __init__(self, number, work): self.number, self.work = number, work
    def wait(self): self.work.wait(); log.append(self.number)
dist.all_gather_into_tensor = lambda flat, mine, **named: Told(begun[flat.storage_offset()], given(flat, mine, **named))

blocks = {name: one for name, one in net.named_modules() if any(one is block for block in blocks_of(net))}
entered = []
for name, block in blocks.items():  # behind the hook that waits
    block.register_forward_pre_hook(lambda module, given, name=name: entered.append((name, sorted(log))))
weights.master.add_(1)
weights.publish(range(len(buckets.buckets)))
text = torch.zeros(1, 3, 8, dtype=kind)
sample = torch.randn(1, 4, 8, 8, dtype=kind, generator=torch.Generator().manual_seed(0))
with torch.no_grad():
    found = net(sample, torch.tensor([3]), text)
    fresh = Denoiser().to(kind)
    fresh.load_state_dict({name: (one.float() + 1).to(kind) for name, one in before.items()})
    same = torch.equal(found, fresh(sample, torch.tensor([3]), text))
needs = {name: sorted({bucket_of[full] for full in trained if full.startswith(name + ".")}) for name in blocks}
others = [full for full in trained if not any(full.startswith(name + ".") for name in blocks)]
weights.publish(range(len(buckets.buckets)))
log.clear()
weights.settle()
print(json.dumps({"begins": begins, "same": same, "entered": entered, "needs": needs, "settled": sorted(log),
                  "root": sorted({bucket_of[full] for full in others}), "buckets": len(buckets.buckets)}))
leave()
"""


def test_the_blocks_of_diffusers_networks_wait_by_themselves() -> None:
    network = UNet2DConditionModel(**SMALL)
    found = {id(one) for one in blocks_of(network)}
    assert found == {id(one) for one in (*network.down_blocks, network.mid_block, *network.up_blocks)}


@pytest.mark.parametrize(("size", "kind"), [(2, "float32"), (3, "bfloat16")])
def test_each_block_has_its_new_weights_and_waits_for_no_more(run_ranks: Ranks, size: int, kind: str) -> None:
    for output in run_ranks(SCRIPT, size, json.dumps(SMALL), "apart", kind):
        told = json.loads(output.splitlines()[-1])
        assert told["begins"] and told["same"]
        expected = set(told["root"])
        assert 0 < len(expected) < told["buckets"]
        assert [name for name, _ in told["entered"]] == [
            "unet.down_blocks.0",
            "unet.down_blocks.1",
            "unet.mid_block",
            "unet.up_blocks.0",
            "unet.up_blocks.1",
        ]
        for name, seen in told["entered"]:
            expected |= set(told["needs"][name])
            assert set(seen) == expected and len(seen) == len(expected)
        assert told["settled"] == list(range(told["buckets"]))


def test_a_compiled_network_waits_for_all_at_once(run_ranks: Ranks) -> None:
    for output in run_ranks(SCRIPT, 2, json.dumps(SMALL), "whole", "float32"):
        told = json.loads(output.splitlines()[-1])
        assert told["begins"] and told["same"]
        assert all(seen == list(range(told["buckets"])) for _, seen in told["entered"])


def test_one_process_waits_for_nobody(run_ranks: Ranks) -> None:
    (output,) = run_ranks(SCRIPT, 1, json.dumps(SMALL), "apart", "float32")
    told = json.loads(output.splitlines()[-1])
    assert told["begins"] and told["same"] and told["settled"] == []
