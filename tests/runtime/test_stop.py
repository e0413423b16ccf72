import os
import signal
from collections.abc import Iterator

import pytest

from bigdiff.runtime.stop import SIGNALS, Stop


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
    os.kill(os.getpid(), signal.SIGUSR2)
    os.kill(os.getpid(), signal.SIGINT)
    assert stop.requested == "SIGUSR2"
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)


def test_nothing_keeps_a_run_that_ends_from_saving() -> None:
    stop = Stop()
    stop.listen()
    os.kill(os.getpid(), signal.SIGINT)
    stop.heed()
    for number in (*SIGNALS, signal.SIGINT):
        os.kill(os.getpid(), number)
    assert stop.requested == "SIGINT"
