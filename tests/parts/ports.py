"""Ports for the servers and ranks of tests."""

import fcntl
import os
import random
import socket
import tempfile
import time
from contextlib import suppress
from pathlib import Path

KEPT = 600  # seconds for which a port is not given twice: who asked for it may not listen yet


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on, below 20000: Linux and submitit hand out those above, to what runs beside.

    Nor are they those that another test of this user, in whichever process, was given a short while ago.
    """
    found: list[int] = []
    draw = random.SystemRandom()  # hypothesis seeds the other one, in each of two pytests alike
    with (Path(tempfile.gettempdir()) / f"bigdiff-ports-{os.getuid()}").open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        given = {int(port): float(at) for port, at in (line.split() for line in file)}
        given = {port: at for port, at in given.items() if abs(time.time() - at) < KEPT}
        while len(found) < count:
            port = draw.randrange(10_000, 20_000)
            with socket.socket() as one, suppress(OSError):
                one.bind(("", port))
                found += [port] if port not in given else []
                given[port] = time.time()
        file.truncate(0)
        file.writelines(f"{port} {at}\n" for port, at in given.items())
    return found
