"""Submit one stage, or a recipe's stages one after another, to a SLURM cluster; run again, it continues."""

import argparse
from dataclasses import replace

from bigdiff.cluster import submit
from bigdiff.cluster.watch import until_done
from bigdiff.config.errors import door
from bigdiff.config.load import CARD, dump, load_cluster, load_stage
from bigdiff.config.recipe import load_recipe


def main() -> None:
    """Parse, load, submit."""
    epilog = "docs/cluster.md says what becomes of a job at each fault."
    parser = argparse.ArgumentParser(description=__doc__, epilog=epilog)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--stage", help="a file of configs/stages, or a path to one")
    what.add_argument("--recipe", help="a file of configs/recipes, or a path to one")
    parser.add_argument("--profile", default=CARD, help="card or as-run, a folder of configs/profiles (default: card)")
    parser.add_argument("--cluster", default="sd-v1-card", help="a file of configs/cluster (default: %(default)s)")
    parser.add_argument("--nodes", type=int, help="instead of the cluster file's number")
    parser.add_argument(
        "--dry-run", action="store_true", help="print the config, the plan and the script; submit nothing"
    )
    parser.add_argument(
        "--follow", action="store_true", help="print states and logs until all is done; Ctrl-C leaves it"
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings of the stage(s), such as seed=1")
    arguments = parser.parse_intermixed_args()
    cluster = load_cluster(arguments.cluster)
    if arguments.nodes is not None:
        cluster = replace(cluster, nodes=arguments.nodes)
    if arguments.recipe:
        planned = load_recipe(arguments.recipe, arguments.overrides, profile=arguments.profile)[1]
        stages = tuple(one.stage for one in planned)
    else:
        stages = (load_stage(arguments.stage, arguments.overrides, profile=arguments.profile),)
    if arguments.dry_run:
        scripts = list(submit.scripts(stages, cluster))
        from bigdiff.plan.parameters import parameters  # torch and diffusers: seconds
        from bigdiff.plan.summary import summary

        for stage, script in scripts:
            print(dump(stage))
            print(summary(stage, cluster, parameters(stage)), end="\n\n")
            print(script)
        return
    for line in submit.chain(stages, cluster):
        print(line)
    if arguments.follow:
        until_done(stages, print)


if __name__ == "__main__":
    door(main)
