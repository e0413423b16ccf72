"""Measure this machine for launch/plan.py: a stage's passes, the update and the links, about a minute."""

import argparse
from pathlib import Path

from bigdiff.cluster import machine
from bigdiff.config.errors import door
from bigdiff.config.load import CARD, load_cluster, load_stage


def main() -> None:
    """Parse, load, measure, write."""
    epilog = "docs/planning.md says what is measured and what is computed from it."
    parser = argparse.ArgumentParser(description=__doc__, epilog=epilog)
    parser.add_argument("--stage", required=True, help="a file of configs/stages, or a path to one")
    parser.add_argument("--profile", default=CARD, help="card or as-run, a folder of configs/profiles (default: card)")
    parser.add_argument("--processes", type=int, default=0, help="default: the GPUs, else configs/cluster/local.yaml's")
    parser.add_argument("--output", type=Path, required=True, help="the JSON file to write")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="settings of the stage, such as batch.micro=8"
    )
    arguments = parser.parse_intermixed_args()
    stage = load_stage(arguments.stage, arguments.overrides, profile=arguments.profile)
    cluster = machine.fit(load_cluster("local"), machine.this(), arguments.processes)

    from bigdiff.plan import measure, probe  # torch and diffusers: seconds

    found = measure.measure(stage, cluster.processes_per_node)
    probe.write(found, arguments.output)
    print(
        f"{found.device}, {found.ranks} ranks: {1e3 * found.image:.4g} ms an image and {1e3 * found.fixed:.4g} ms a "
        f"pass, {1e9 * found.element:.4g} ns an element of the update, {1e3 * found.step:.4g} ms a step beside; "
        f"{found.matmul / 1e9:,.1f} GFLOP/s in a product, {found.rate / 1e9:.4g} GB/s and "
        f"{1e6 * found.latency:.4g} us between ranks; {found.seconds:.0f} s: {arguments.output}"
    )


if __name__ == "__main__":
    door(main)
