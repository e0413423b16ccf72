"""Ports for the servers and ranks of tests."""

import random
import socket
from contextlib import suppress


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on, below 20000: Linux and submitit hand out those above, to what runs beside."""
    found: list[int] = []
    draw = random.SystemRandom()  # hypothesis seeds the other one, in each of two pytests alike
    while len(found) < count:
        port = draw.randrange(10_000, 20_000)
        with socket.socket() as one, suppress(OSError):
            one.bind(("", port))
            found += [port] if port not in found else []
    return found
