import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from bigdiff.runtime.allocator import keep_freed

ROOT = Path(__file__).resolve().parents[2]
ROUNDS = """
import resource, sys, torch
from bigdiff.runtime.allocator import keep_freed
print(keep_freed() if sys.argv[1] == "keep" else False)
def train():
    blocks = [torch.ones(1 << 21, requires_grad=True)]  # 8 MiB each
    for _ in range(12):
        blocks.append(blocks[-1].sin())
    blocks[-1].sum().backward()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        train()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(faults())
"""

glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt's settings are glibc's")


def rounds(how: str, **variables: str) -> tuple[str, int]:
    """What keep_freed says in a new process, and the page faults of ten passes of 100 MiB each way."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    command = [sys.executable, "-c", ROUNDS, how]
    done = subprocess.run(command, cwd=ROOT, env=own | variables, capture_output=True, text=True, check=True)
    said, faults = done.stdout.split()
    return said, int(faults)


@glibc
def test_memory_that_was_freed_is_not_asked_for_again() -> None:
    (kept, few), (plain, many) = rounds("keep"), rounds("leave")
    assert (kept, plain) == ("True", "False")
    assert 4 * few < many
    assert many > 20_000  # of 25,000 pages that a pass writes to


@glibc
def test_who_has_chosen_malloc_s_settings_keeps_them() -> None:
    said, faults = rounds("keep", MALLOC_TRIM_THRESHOLD_="131072", MALLOC_MMAP_THRESHOLD_="131072")
    assert said == "False"
    assert faults > 200_000  # all pages, each time
    assert not keep_freed({"GLIBC_TUNABLES": "glibc.malloc.arena_max=1"})
