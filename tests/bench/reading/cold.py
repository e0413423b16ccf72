"""This project's reader once through a set that is not in memory: `cold.py SET THREADS BYTES_ASKED_FOR_AHEAD`."""

import json
import sys
import time

from bigdiff.data.course import Course
from bigdiff.data.damage import Quarantine
from bigdiff.data.latents import LatentReader, LatentSet
from bigdiff.data.mixture import Source
from bigdiff.data.stream import Ahead, Slice, batches

BATCH, WINDOW = 64, 8


def main() -> None:
    began = time.perf_counter()
    with LatentSet(sys.argv[1]) as opened:
        source = Source(name="set", sizes=opened.manifest.sizes, repeat=1)
        course = Course(sources=(source,), seed=0, window=WINDOW, lanes=1, total=BATCH)
        part = Slice(total=BATCH, micro=BATCH, rank=0, size=1)
        ahead = Ahead(steps=8, threads=int(sys.argv[2]), disk_bytes=int(sys.argv[3]))
        first = 0.0
        for (batch,) in batches(LatentReader([opened]), course, part, 0, ahead, Quarantine()):
            float(batch.moments[0, 0, 0, 0])
            first = first or time.perf_counter() - began
    print(json.dumps({"wall": time.perf_counter() - began, "first": first, "cpu": time.process_time()}))


if __name__ == "__main__":
    main()
