"""This project's reader: `ours.py SET THREADS [GB]` reads the set once to warm up and once more; prints what that took.

With so many GB the first time keeps the samples in memory, from where the second has them. $BATCH samples a step.
"""

import json
import os
import sys
import time
from contextlib import closing, nullcontext

from bigdiff.data.arena import Arena
from bigdiff.data.course import Course
from bigdiff.data.damage import Quarantine
from bigdiff.data.latents import LatentReader, LatentSet
from bigdiff.data.mixture import Source
from bigdiff.data.stream import Ahead, Slice, batches

BATCH = int(os.environ["BATCH"])


def main() -> None:
    memory = closing(Arena(int(float(sys.argv[3]) * 1e9))) if len(sys.argv) > 3 else nullcontext()
    with memory as arena, LatentSet(sys.argv[1], arena=arena) as opened:
        source = Source(name="set", sizes=opened.manifest.sizes)
        course = Course(sources=(source,), seed=0, window=64, lanes=1, total=BATCH)
        part = Slice(total=BATCH, micro=BATCH, rank=0, size=1)
        ahead = Ahead(threads=int(sys.argv[2]))
        stream = batches(LatentReader([opened]), course, part, 0, ahead, Quarantine())
        steps = opened.manifest.samples // BATCH
        for _ in range(steps):
            next(stream)
        cpu, wall, mine = time.process_time(), time.perf_counter(), time.thread_time()
        assert arena is None or (arena.used and not arena.full), "all are kept"
        total = 0.0
        for _ in range(steps):
            (batch,) = next(stream)
            total += float(batch.moments[0, 0, 0, 0])
        took = {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall, "main": time.thread_time() - mine}
        stream.close()
    print(json.dumps({"samples": steps * BATCH, "steps": steps, "checksum": total, **took}))


if __name__ == "__main__":
    main()
