"""MosaicML Streaming over its MDS: `with_streaming.py prepare SET OUT` or `with_streaming.py read OUT shuffled`."""

import json
import os
import sys
import time
from pathlib import Path

import numpy as np
import safetensors.numpy
import streaming
import webdataset as wds

BATCH = int(os.environ["BATCH"])


def main() -> None:
    if sys.argv[1] == "prepare":
        columns = None
        tars = sorted(str(path) for path in Path(sys.argv[2]).glob("*.tar"))
        for sample in wds.WebDataset(tars, shardshuffle=False):
            tensors = safetensors.numpy.load(sample["safetensors"])
            tensors["tokens"] = tensors["tokens"].astype(np.int32)
            if columns is None:
                columns = {name: f"ndarray:{array.dtype}" for name, array in tensors.items()}
                writer = streaming.MDSWriter(out=sys.argv[3], columns=columns)
            writer.write(tensors)
        writer.finish()
        return
    data = streaming.StreamingDataset(local=sys.argv[2], shuffle=sys.argv[3] == "shuffled", batch_size=BATCH)
    for _ in range(2):  # the first warms up
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
