import pytest

from bigdiff.config import averages
from bigdiff.config.errors import UsageError
from bigdiff.config.schema import Ema

TRACKED = averages.names(Ema(decays=[0.9999, 0.99995], power=[0.05], snapshot_every=5))


def test_names_keep_every_digit_and_their_order() -> None:
    assert TRACKED == ("ema/0.9999", "ema/0.99995", "power/0.05")
    assert averages.decay_name(0.99999999) == "ema/0.99999999"


def test_the_default_is_the_first_average_or_the_weights() -> None:
    assert averages.held("ema", TRACKED, "x") == "ema/0.9999"
    assert averages.held("ema", ("power/0.05",), "x") == "power/0.05"
    assert averages.held("ema", (), "x") == "raw"
    assert averages.held("raw", TRACKED, "x") == "raw"
    assert averages.held("power/0.05", TRACKED, "x") == "power/0.05"


@pytest.mark.parametrize("weights", ["ema/0.999", "power/0.1", "sigma=0.08", ""])
def test_what_is_not_held_is_refused_with_the_choices(weights: str) -> None:
    with pytest.raises(UsageError, match=r"runs/a holds raw, ema/0\.9999, ema/0\.99995, power/0\.05"):
        averages.held(weights, TRACKED, "runs/a")


def test_a_width_is_asked_for_as_sigma() -> None:
    assert averages.width("sigma=0.08") == 0.08
    assert averages.width("ema") is None
    for wrong in ("sigma=", "sigma=x", "sigma=0", "sigma=0.3", "sigma=nan", "sigma=-0.1"):
        with pytest.raises(UsageError, match=r"number between 0 and 0\.2887"):
            averages.width(wrong)
