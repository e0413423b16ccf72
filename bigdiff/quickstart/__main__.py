"""`make quickstart`: the whole job on this machine, from drawn pictures behind a web server to a judged pipeline."""

import argparse
import json
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bigdiff.config.errors import door
from bigdiff.quickstart import job
from bigdiff.quickstart.job import SIZES, Clock, Places
from bigdiff.quickstart.proof import Table as Scores
from bigdiff.report.page import NAME
from bigdiff.runtime.files import write_json


def main() -> None:
    """Prepare data, train both stages, export, judge, and say where everything is."""
    parser = argparse.ArgumentParser(prog="python -m bigdiff.quickstart", description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="of the training; the pictures stay the same")
    places, clock = Places.of_seed(parser.parse_args().seed), Clock()
    console = Console(file=sys.stdout, soft_wrap=True, highlight=False)

    def say(line: str) -> None:
        console.print(line, markup=False)
        sys.stdout.flush()

    job.prepare(places, clock, say)
    scores = {size: job.stage(places, size, clock, say) for size in SIZES}
    with clock.phase("sample a grid", say):
        grid = job.sample(places, say)
    console.print(table(scores))
    paths = {
        "samples": grid,
        "run report": places.run(SIZES[-1]) / NAME,
        "data report": places.images / "report" / "index.html",
        "pipeline": places.pipeline(SIZES[-1]),
        "TensorBoard": f"tensorboard --logdir {places.runs}",
    }
    for name, path in paths.items():
        say(f"{name + ':':13}{path}")
    speed = images_per_second(places)
    say(f"training:    {', '.join(f'{rate:.0f} images/s at {size} px' for size, rate in speed.items())}")
    say(f"total time:  {sum(clock.seconds.values()):.0f} s")
    result = {"seed": places.seed, "seconds": clock.seconds, "images_per_second": speed, "scores": scores}
    write_json(places.runs / f"quickstart-seed-{places.seed}.json", result)


def table(scores: dict[int, Scores]) -> Table:
    """Attribute, chance, the oracle on true pictures, and the accuracy after each stage."""
    shown = Table(title="held-out combinations: attributes right, judged by an oracle that knows the scenes")
    for column in ("attribute", "chance", "oracle on true pictures", *(f"after {size} px" for size in scores)):
        shown.add_column(column, justify="left" if column == "attribute" else "right")
    last = scores[SIZES[-1]]
    for attribute, row in last.items():
        accuracies = [f"{scores[size][attribute]['accuracy']:.2f}" for size in scores]
        shown.add_row(attribute, f"{row['chance']:.2f}", f"{row['oracle']:.2f}", *accuracies)
    return shown


def images_per_second(places: Places) -> dict[int, float]:
    """Training speed of each stage: the median of its log lines."""
    rates = {}
    for size in SIZES:
        lines = (Path(places.run(size)) / "metrics.jsonl").read_text().splitlines()
        found = sorted(json.loads(line)["speed/images_per_second"] for line in lines)
        rates[size] = found[len(found) // 2]
    return rates


if __name__ == "__main__":
    door(main)
