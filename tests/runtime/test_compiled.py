import ctypes

import pytest

from bigdiff.config.errors import UsageError
from bigdiff.runtime.compiled import library


def test_a_library_has_its_functions() -> None:
    assert isinstance(library("bigdiff.runtime._philox").bigdiff_philox, ctypes._CFuncPtr)


def test_a_library_that_is_not_built_is_named_with_the_remedy() -> None:
    with pytest.raises(UsageError, match=r"^bigdiff/runtime/_absent\.c is not built: run `pip install -e \.`"):
        library("bigdiff.runtime._absent")
