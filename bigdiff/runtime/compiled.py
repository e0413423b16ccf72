"""The package's own C code: built with it, loaded through ctypes, so that it needs no headers of Python or numpy."""

import ctypes
from importlib.util import find_spec

from bigdiff.config.errors import UsageError


def library(name: str) -> ctypes.CDLL:
    """The shared library of the extension `name` ("bigdiff.data._preads").

    Raises:
        UsageError: when it is not built.
    """
    found = find_spec(name)
    if found is None or found.origin is None:
        raise UsageError(
            f"{name.replace('.', '/')}.c is not built: run `pip install -e .` "
            f"(it needs gcc or clang and Python's headers)"
        )
    return ctypes.CDLL(found.origin)
