import pytest

from bigdiff.config.errors import UsageError
from bigdiff.runtime.devices import TABLE, called, device


def test_rows_have_their_names_a_source_and_sound_ratios() -> None:
    for name, one in TABLE.items():
        assert device(name) is one
        assert one.name == name
        assert one.source
        assert 100 < one.peak / one.bandwidth < 400  # operations a byte: all of these are of a kind
        assert 8 * one.watts < one.node_watts < 2.1 * 8 * one.watts
        assert one.link < one.bandwidth / 3


def test_known_figures() -> None:
    assert device("h200").peak / 1e12 == 989
    assert device("a100-80").memory / 1e9 == 80


def test_another_name_is_refused_with_the_choices() -> None:
    with pytest.raises(UsageError, match="a100-40, a100-80, h100"):
        device("tpu")


def test_a_device_is_known_by_the_drivers_whole_name() -> None:
    assert all(called(one.called) is one for one in TABLE.values())
    assert called("NVIDIA H200") is device("h200")
    assert called("NVIDIA H200 NVL") is called("NVIDIA H100 PCIe") is called("cpu") is called("") is None
