"""Real processes that save without a pause are killed at random: what is found is whole, the newest, and nobody cleans.

Two ranks save every few milliseconds and tell when a commit is theirs. After each kill the next life resumes from what
it finds, on another number of ranks now and then, and must find every value of the step it resumes from.
"""

import os
import random
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

from bigdiff.checkpoint import layout, reader

if TYPE_CHECKING:
    from conftest import Forker, Rank

KILLS = 50
SHAPES = {"a": (30_000,), "b": (7,), "c": (100, 100)}
LIFE = f"""
import os
from bigdiff.checkpoint import layout
run, kind = Path(sys.argv[1]), sys.argv[2]
world = enter(30)
toy, told = Toy(run, kind, world, {SHAPES!r}), []
writer = toy.writer(every=5, keep=2, keep_every=25, wait_seconds=20)  # for the file of a peer that was killed
found = sorted(path.name for path in layout.checkpoints(run).iterdir())
saved = toy.load(told)
step = saved.state.step if saved else 0
say(step=step, wrong=toy.wrong(saved) if saved else "", told=told, found=found)
while True:
    step += 1
    writer.save(toy.content(step))
    world.barrier()  # a step of the training; the writer itself does not talk to the others
    if step % 5 == 0:
        writer.wait(world)
        say(committed=step)
"""


def committed(rank: "Rank") -> int:
    return max((line["committed"] for line in rank.told() if "committed" in line), default=0)


def begun(ranks: "list[Rank]") -> dict[str, object]:
    """What a life found; waits until all its ranks have told it."""
    deadline = time.monotonic() + 60
    while not all(rank.told() for rank in ranks):
        assert time.monotonic() < deadline and all(rank.alive() for rank in ranks), ranks[0].err.read_text()[-3000:]
        time.sleep(0.002)
    first = ranks[0].told()[0]
    assert all(rank.told()[0]["step"] == first["step"] and rank.told()[0]["wrong"] == "" for rank in ranks)
    return first


def newest(run: Path) -> int:
    found = layout.latest(run)
    return layout.step_of(found) if found else 0


def test_kills_at_any_time_lose_nothing_that_was_committed(forker: "Forker", tmp_path: Path) -> None:
    dice, promised, resumed, interrupted = random.Random(7), 0, [], 0
    for number in range(KILLS):
        size = 1 if number % 10 == 9 else 2
        ranks = forker.start(LIFE, size, tmp_path, dice.choice(("even", "flat", "scattered")))
        if number % 8 == 5:
            time.sleep(dice.random() * 0.4)  # in the start, while it joins, clears, or loads
        else:
            before = begun(ranks)
            assert before["told"] == [], before  # nothing that was found is damaged
            assert int(str(before["step"])) >= promised
            resumed.append(before["step"])
            names = before["found"]
            assert isinstance(names, list) and all(name.startswith("step-") for name in names), names
            time.sleep(dice.random() * 0.25)
        victims = [dice.choice(ranks)] if number % 3 == 1 else dice.sample(ranks, len(ranks))
        for victim in victims:
            victim.kill()
        time.sleep(dice.random() * 0.05 if len(victims) < size else 0)  # the other one lives on for a while
        for rank in ranks:
            rank.kill()
            rank.ended()
        interrupted += any(layout.checkpoints(tmp_path).glob("writing-*"))
        promised = max(promised, *(committed(rank) for rank in ranks))
        assert newest(tmp_path) >= promised
        assert [reader.damaged(folder) for folder in layout.saved(tmp_path)] == [""] * len(layout.saved(tmp_path))
    # the kills hit what they were to hit: saves under way, in a run that nevertheless comes along
    assert promised >= 30 and len(resumed) >= 40 and interrupted >= 10, (promised, resumed, interrupted)
    kept = [layout.step_of(folder) for folder in layout.saved(tmp_path)]
    assert {step for step in range(25, promised - 1, 25)} <= set(kept)


def test_an_earlier_life_that_lives_on_does_no_harm(forker: "Forker", tmp_path: Path) -> None:
    """Its rank 1, then its rank 0, are stopped in the middle of a save, and go on beside the next life's saves."""
    for sleeper in (1, 0):
        old = forker.start(LIFE, 2, tmp_path, "flat")
        begun(old)
        time.sleep(0.13)
        old[sleeper].kill(signal.SIGSTOP)
        time.sleep(0.05)
        old[1 - sleeper].kill()
        young = forker.start(LIFE, 2, tmp_path, "flat")
        before = begun(young)
        deadline = time.monotonic() + 60
        while committed(young[0]) < int(str(before["step"])) + 10:
            assert time.monotonic() < deadline and young[0].alive(), young[0].err.read_text()[-3000:]
            time.sleep(0.01)
        at = committed(young[0])
        old[sleeper].kill(signal.SIGCONT)
        old[sleeper].ended(60)  # its peer is gone
        while committed(young[0]) < at + 10:
            assert time.monotonic() < deadline and young[0].alive(), young[0].err.read_text()[-3000:]
            time.sleep(0.01)
        for rank in young:
            rank.kill()
            rank.ended()
        promised = committed(young[0])
        assert newest(tmp_path) >= promised
        (last,) = forker.start(LIFE, 1, tmp_path, "even")
        after = begun([last])
        assert after["told"] == [] and int(str(after["step"])) >= promised
        names = after["found"]
        assert isinstance(names, list) and all(name.startswith("step-") for name in names)
        last.kill()
        last.ended()
    assert os.listdir(layout.checkpoints(tmp_path))
