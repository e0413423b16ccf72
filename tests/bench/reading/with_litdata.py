"""LitData over its own format: `with_litdata.py prepare SET OUT` or `with_litdata.py read OUT shuffled|in-order`."""

import json
import os
import sys
import time
from pathlib import Path

import litdata
import numpy as np
import safetensors.numpy
import webdataset as wds

BATCH = int(os.environ["BATCH"])


def load(tar: str):  # noqa: ANN201 (runs in another environment)
    for sample in wds.WebDataset([tar], shardshuffle=False):
        yield {name: np.array(array) for name, array in safetensors.numpy.load(sample["safetensors"]).items()}


def main() -> None:
    if sys.argv[1] == "prepare":
        tars = sorted(str(path) for path in Path(sys.argv[2]).glob("*.tar"))
        litdata.optimize(load, tars, sys.argv[3], chunk_bytes="64MB", num_workers=1)
        return
    data = litdata.StreamingDataset(sys.argv[2], shuffle=sys.argv[3] == "shuffled", seed=0)
    for epoch in range(2):  # the first warms up
        data.set_epoch(epoch + 1)
        cpu, wall, seen, batch = time.process_time(), time.perf_counter(), 0, []
        for sample in data:
            batch.append(sample["moments"])
            if len(batch) == BATCH:
                seen += len(np.stack(batch))
                batch = []
        took = {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall}
    print(json.dumps({"samples": seen, **took}))


if __name__ == "__main__":
    main()
