"""Stock webdataset over the same tars: `stock.py SET`. safetensors decodes members, numpy stacks batches of $BATCH."""

import json
import os
import sys
import time
from pathlib import Path

import numpy as np
import safetensors.numpy
import webdataset as wds

BATCH = int(os.environ["BATCH"])


def read(tars: list[str]) -> int:
    samples = wds.WebDataset(tars, shardshuffle=False).map(lambda one: safetensors.numpy.load(one["safetensors"]))
    seen = 0
    for batch in samples.batched(BATCH, collation_fn=lambda many: np.stack([one["moments"] for one in many])):
        seen += len(batch)
    return seen


def main() -> None:
    tars = sorted(str(path) for path in Path(sys.argv[1]).glob("*.tar"))
    read(tars[:1])
    cpu, wall = time.process_time(), time.perf_counter()
    seen = read(tars)
    print(json.dumps({"samples": seen, "cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall}))


if __name__ == "__main__":
    main()
