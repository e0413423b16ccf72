import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from bigdiff.prep.politeness import Turns, turns


def test_a_host_has_no_more_visitors_than_the_limit_and_others_do_not_wait_for_it() -> None:
    found, lock, most = Turns(3), threading.Lock(), {"a": 0, "b": 0}
    now = dict(most)

    def visit(host: str) -> float:
        with found.at(host) as waited:
            with lock:
                now[host] += 1
                most[host] = max(most[host], now[host])
            time.sleep(0.2)
            with lock:
                now[host] -= 1
        return waited

    with ThreadPoolExecutor(20) as pool:
        crowd = [pool.submit(visit, "a") for _ in range(15)]
        alone = pool.submit(visit, "b")
        assert alone.result() < 0.2
        waits = sorted(each.result() for each in crowd)
    assert most == {"a": 3, "b": 1}
    assert waits[0] < 0.2 < 0.7 < waits[-1]  # five turns of three


def test_a_host_is_forgotten_when_all_have_left_even_by_an_error() -> None:
    found = Turns(1)
    with pytest.raises(ValueError, match="refused"), found.at("a"):
        assert list(found._doors) == ["a"]
        raise ValueError("refused")
    assert found._doors == {}
    with found.at("a"):
        pass


def test_a_process_has_one_set_of_turns_a_limit() -> None:
    assert turns(4) is turns(4)
    assert turns(4) is not turns(5)
