import os
import signal
from collections.abc import Callable, Iterator

import pytest

from bigdiff.runtime.stop import SIGNALS, Stop

SCRIPT = """
import os, signal
from bigdiff.runtime.stop import Stop
from bigdiff.runtime.world import enter, leave
stop = Stop(); stop.listen()
w = enter(60)
answers = []
for step in range(3):
    if step == 1 and w.rank == 1:
        os.kill(os.getpid(), signal.SIGUSR2)
    answers.append(stop.agreed(w))
leave()
print(answers)
"""


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_remembered(number: signal.Signals) -> None:
    stop = Stop()
    stop.listen()
    assert stop.requested == ""
    os.kill(os.getpid(), number)
    assert stop.requested == number.name


def test_a_second_ctrl_c_means_it() -> None:
    stop = Stop()
    stop.listen()
    os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)


def test_all_ranks_stop_in_the_same_step(run_ranks: Callable[..., list[str]]) -> None:
    assert [output.splitlines()[-1] for output in run_ranks(SCRIPT, 2)] == ["[False, True, True]"] * 2
