"""The SLURM of tests/cluster, for measurements, too."""

import importlib.util
from pathlib import Path

_FILE = Path(__file__).parents[1] / "cluster" / "conftest.py"
_spec = importlib.util.spec_from_file_location("slurm_of_tests", _FILE)
assert _spec is not None and _spec.loader is not None
_found = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_found)

_slurm, slurm, start = _found._slurm, _found.slurm, _found.start
