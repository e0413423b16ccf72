"""Submit one stage, or a recipe's tasks and stages one after another, to a SLURM cluster; run again, it continues."""

import argparse
from dataclasses import replace

from bigdiff.cluster import chain
from bigdiff.cluster.chosen import chosen, takes
from bigdiff.cluster.watch import until_done
from bigdiff.config.errors import door
from bigdiff.config.load import dump, load_cluster
from bigdiff.config.schema import Stage


def main() -> None:
    """Parse, load, submit."""
    epilog = "docs/cluster.md says what becomes of a job at each fault."
    parser = argparse.ArgumentParser(description=__doc__, epilog=epilog)
    takes(parser)
    parser.add_argument("--cluster", default="sd-v1-card", help="a file of configs/cluster (default: %(default)s)")
    parser.add_argument("--nodes", type=int, help="instead of the cluster file's number")
    parser.add_argument(
        "--dry-run", action="store_true", help="print the config, the plan and the script; submit nothing"
    )
    parser.add_argument(
        "--follow", action="store_true", help="print states and logs until all is done; Ctrl-C leaves it"
    )
    arguments = parser.parse_intermixed_args()
    cluster = load_cluster(arguments.cluster)
    if arguments.nodes is not None:
        cluster = replace(cluster, nodes=arguments.nodes)
    wanted = chosen(arguments, arguments.cluster)
    if arguments.dry_run:
        scripts = list(chain.scripts(wanted, cluster))
        from bigdiff.plan.parameters import parameters  # torch and diffusers: seconds
        from bigdiff.plan.summary import summary

        for node, script in scripts:
            if isinstance(node.work, Stage):
                print(dump(node.work))
                print(summary(node.work, cluster, parameters(node.work)), end="\n\n")
            print(script)
        return
    jobs = chain.check(wanted, cluster)
    stages = [node.work for node in wanted.nodes if isinstance(node.work, Stage) and not chain.is_done(node)]
    if stages:
        from bigdiff.plan import room
        from bigdiff.plan.parameters import parameters

        room.check(stages, {one.name: sum(parameters(one).values()) for one in stages})
    for line in chain.submitted(wanted, cluster, jobs):
        print(line)
    if arguments.follow:
        until_done(wanted, print)
    elif not all(map(chain.is_done, wanted.nodes)):
        print("to watch: the same command with --follow, or launch/status.py")


if __name__ == "__main__":
    door(main)
