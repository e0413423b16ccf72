import pytest
from torch import nn

from bigdiff.config.errors import UsageError
from bigdiff.models.learning import freeze, trained


@pytest.fixture
def module() -> nn.Module:
    return nn.Sequential(nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1)), nn.Linear(1, 1, bias=False))


def test_a_star_stands_for_dots_too(module: nn.Module) -> None:
    freeze(trained(module), ["0.*.bias", "1.weight"])
    assert list(trained(module)) == ["0.0.weight", "0.1.weight"]


def test_no_pattern_leaves_all(module: nn.Module) -> None:
    freeze(trained(module), [])
    assert list(trained(module)) == ["0.0.weight", "0.0.bias", "0.1.weight", "0.1.bias", "1.weight"]


def test_what_matches_nothing_or_everything_is_refused(module: nn.Module) -> None:
    with pytest.raises(
        UsageError, match=r"2\.weight matches no parameter that would learn; they have names such as 0\.0"
    ):
        freeze(trained(module), ["2.weight"])
    with pytest.raises(UsageError, match="nothing would learn"):
        freeze(trained(module), ["0.*", "1.*"])
