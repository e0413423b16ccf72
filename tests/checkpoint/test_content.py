import json
from collections.abc import Sequence

import pytest
import torch

from bigdiff.checkpoint.content import AVERAGES, MASTER, MOMENTS, Content, began
from bigdiff.checkpoint.state import Identity, TrainState
from bigdiff.config.averages import DEFAULT, held, names
from bigdiff.config.schema import Ema
from bigdiff.engine.partition import Partition, Piece, dense
from bigdiff.models.ema import Averages

EMA = Ema(decays=[0.9999, 0.5], power=[0.1, 0.05], snapshot_every=5)


def partition() -> Partition:
    whole = (Piece(local=0, start=0, length=6),)
    return Partition(layout=dense([("a", (2, 3))]), pieces=whole, masters=(torch.zeros(4), torch.zeros(2)))


def test_a_content_names_the_masters_first_then_its_tensors_in_their_order() -> None:
    owned = partition()
    tensors: dict[str, Sequence[torch.Tensor]] = {
        **dict.fromkeys(MOMENTS, owned.masters),
        **Averages(owned.masters, EMA).tensors,
    }
    content = Content(
        partition=owned,
        tensors=tensors,
        state=TrainState(step=0, samples_seen=0),
        identity=Identity(seed=0, manifest="m", total=8, order="o"),
        about={},
    )
    assert content.names == (MASTER, "exp_avg", "exp_avg_sq", "ema/0.9999", "ema/0.5", "power/0.1", "power/0.05")
    assert len(set(content.names)) == len(content.names)


def test_what_was_said_of_the_averages_is_read_back_in_their_order() -> None:
    averages = Averages(partition().masters, EMA)
    averages.began |= {"ema/0.5": 7, "power/0.1": -3}  # one that was added at a resume, one that goes on
    found = began({"stage": "toy", AVERAGES: json.dumps(averages.began)})
    assert list(found.items()) == [("ema/0.9999", 0), ("ema/0.5", 7), ("power/0.1", -3), ("power/0.05", 0)]
    assert tuple(found) == names(EMA)
    assert held(DEFAULT, tuple(found), "it") == "ema/0.9999"


@pytest.mark.parametrize("about", [{}, {"stage": "toy"}, {AVERAGES: json.dumps(Averages((), Ema(decays=[])).began)}])
def test_a_run_without_averages_has_none(about: dict[str, str]) -> None:
    assert began(about) == {}
    assert held(DEFAULT, tuple(began(about)), "it") == "raw"
