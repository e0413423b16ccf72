"""What copying as many bytes costs at least: `limits.py SET memory|mapped`, $BATCH samples a step.

`memory`: random members of the set, all in this process's memory, to a batch. `mapped`: the same out of files that are
mapped afresh, as bytes that no one has touched are: the least that a reader of files can do.
"""

import json
import mmap
import os
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

BATCH = int(os.environ["BATCH"])


def copy(sources: list[np.ndarray], places: list[tuple[int, int]], ring: list[np.ndarray]) -> None:
    size = ring[0].shape[1]
    for start in range(0, len(places) - BATCH + 1, BATCH):
        batch = ring[start // BATCH % len(ring)]
        for row, (tar, offset) in enumerate(places[start : start + BATCH]):
            batch[row] = sources[tar][offset : offset + size]


def main() -> None:
    tars = sorted(Path(sys.argv[1]).glob("*.tar"))
    index = [pq.read_table(tar.with_suffix(".parquet")) for tar in tars]
    places = [(tar, at) for tar, table in enumerate(index) for at in table["safetensors_offset"].to_pylist()]
    places = [places[at] for at in np.random.default_rng(0).permutation(len(places))]
    size = index[0]["safetensors_length"][0].as_py()
    ring = [np.zeros((BATCH, size), np.uint8) for _ in range(3)]
    whole = [np.frombuffer(tar.read_bytes(), np.uint8) for tar in tars] if sys.argv[2] == "memory" else []
    for _ in range(2):  # the first warms up
        cpu, wall = time.process_time(), time.perf_counter()
        files = [tar.open("rb") for tar in tars]
        mapped = [np.frombuffer(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ), np.uint8) for file in files]
        copy(whole or mapped, places, ring)
        took = {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall}
        del mapped
    print(json.dumps({"samples": len(places) // BATCH * BATCH, **took}))


if __name__ == "__main__":
    main()
