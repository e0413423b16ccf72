"""glibc's malloc, told to keep what is freed: on a CPU torch frees activations and asks for the same ones again.

By itself malloc maps large blocks anew each time and gives the heap's end back to the kernel, which must then clear
every page again when it is first written to: thousands of page faults a batch. tests/bench/test_allocator.py measures
what that costs. Numbers do not change, as only addresses do.
"""

import ctypes
import os
import sys
from collections.abc import Mapping
from typing import Final

# mallopt's parameters (malloc.h) and bytes. Larger blocks are mapped as before: malloc takes no higher threshold
_SETTINGS: Final = {
    -3: 32 << 20,  # M_MMAP_THRESHOLD: the largest that glibc takes
    -2: 32 << 20,  # M_TOP_PAD: by how much more the heap grows each time
    -1: 256 << 20,  # M_TRIM_THRESHOLD: free memory at its end that is kept, at most, by each process
}


def keep_freed(environment: Mapping[str, str] = os.environ) -> bool:
    """Have this process, and those that it forks, keep freed memory; whether that was done.

    Costs up to 256 MiB of free memory a process. Nothing is done where malloc is not glibc's, or where MALLOC_
    variables or GLIBC_TUNABLES in the `environment` show that somebody has chosen for themselves.
    """
    chosen = any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in environment)
    if chosen or not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    return mallopt is not None and all(mallopt(number, value) == 1 for number, value in _SETTINGS.items())
