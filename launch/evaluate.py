"""FID, CLIP-SCORE, CMMD, precision and recall of a model at each guidance, or of a folder; again, it continues."""

import sys

from bigdiff.config import evaluation
from bigdiff.config.errors import UsageError, door
from bigdiff.config.evaluation_words import CLUSTER, IN_A_JOB, inside, parser


def main() -> None:
    """Parse, evaluate or submit, print."""
    arguments = parser(__doc__).parse_args()
    wanted = evaluation.asked(vars(arguments))
    in_a_job = getattr(arguments, IN_A_JOB)
    if arguments.cluster and not in_a_job:
        raise UsageError("--cluster has no effect without --async: leave it out")

    from bigdiff.evaluate import judging, report  # torch and diffusers: seconds

    if arguments.dry_run:
        print(judging.plan(wanted))
        return
    if in_a_job:
        from bigdiff.cluster.chain import alone, check, submitted
        from bigdiff.config.load import load_cluster

        print(judging.plan(wanted))
        cluster = load_cluster(arguments.cluster or CLUSTER)
        words = ("launch/evaluate.py", *inside(sys.argv[1:]))
        chain = alone("evaluate", words, judging.result(wanted), cluster)
        for line in submitted(chain, cluster, check(chain, cluster)):
            print(line)
        return
    points = judging.run(wanted, print)
    if points:  # the first process alone has them
        print(*report.table(points), wanted.output / report.RESULTS, sep="\n")


if __name__ == "__main__":
    door(main)
