"""Train one stage on this machine's devices; run again, it continues, and when the stage is done it says so."""

import argparse

from bigdiff.checkpoint.layout import run_folder
from bigdiff.cluster import machine, submit
from bigdiff.cluster.follow import follow
from bigdiff.cluster.ready import reached
from bigdiff.config.errors import door
from bigdiff.config.load import CARD, dump, load_cluster, load_stage


def main() -> None:
    """Parse, load, submit, follow."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stage", required=True, help="a file of configs/stages, or a path to one")
    parser.add_argument("--profile", default=CARD, help="card or as-run, a folder of configs/profiles (default: card)")
    parser.add_argument("--processes", type=int, default=0, help="default: the GPUs, else configs/cluster/local.yaml's")
    parser.add_argument("--dry-run", action="store_true", help="print what would run and stop")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings of the stage, such as steps=100")
    arguments = parser.parse_intermixed_args()
    stage = load_stage(arguments.stage, arguments.overrides, profile=arguments.profile)
    here = machine.this()
    cluster = machine.fit(load_cluster("local"), here, arguments.processes)
    folder = run_folder(stage.runs, stage.name)
    if arguments.dry_run:
        command = submit.command(stage, cluster)
        from bigdiff.plan.parameters import parameters  # torch and diffusers: seconds
        from bigdiff.plan.summary import summary

        print(dump(stage))
        print(summary(stage, cluster, parameters(stage)), command, sep="\n\n")
        return
    if reached(stage) >= stage.steps:
        print(f"{stage.name} is finished: {folder} holds step {reached(stage)} of {stage.steps}; nothing to do")
        return
    ended = follow(submit.local(stage, cluster, here), print)[0]
    print(f"{stage.name} {'is finished' if ended.finished else 'was stopped'} at step {ended.step}: {folder}")


if __name__ == "__main__":
    door(main)
