"""The whole job on the embedded dataset, as the commands that a user would type, in order."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import Popen
from typing import Final

from bigdiff.cluster import task
from bigdiff.config.errors import RunError
from bigdiff.quickstart.components import write_components
from bigdiff.quickstart.dataset import Options, draw
from bigdiff.quickstart.proof import Table, prove
from bigdiff.quickstart.scenes import caption, held_out_scenes
from bigdiff.quickstart.server import serve
from bigdiff.runtime.files import write_bytes, write_json

SIZES: Final = (32, 64)  # pixels of the two stages
SCORES: Final = "scores.json"  # in a run's folder, when it was judged; of a step "scores-100.json"
SHOWN: Final = 18  # pictures in the grid
GRID_SEED: Final = 2  # of the grid's captions; the judged ones have another


@dataclass(frozen=True, kw_only=True, slots=True)
class Places:
    """Where the quickstart keeps what it makes; the shards are the same for every seed, the runs are not."""

    seed: int = 0  # of the training
    runs: Path = Path("runs")  # the run folders of the stages
    base: Path = Path("runs/quickstart")

    @classmethod
    def of_seed(cls, seed: int) -> "Places":
        """Those of `make quickstart`."""
        return cls(seed=seed, runs=Path("runs") if seed == 0 else Path(f"runs/seed-{seed}"))

    @property
    def meta(self) -> Path:
        """The parquet of URLs and scores."""
        return self.base / "meta"

    @property
    def images(self) -> Path:
        """The image shard set and its report."""
        return self.base / "images"

    @property
    def components(self) -> Path:
        """VAE, text encoder and tokenizer."""
        return self.base / "components"

    def run(self, size: int) -> Path:
        """The run folder of one stage."""
        return self.runs / f"quickstart-{size}px"

    def pipeline(self, size: int, step: int = 0) -> Path:
        """The exported pipeline of one stage: of its end, or of a step."""
        return self.run(size) / (f"pipeline-{step}" if step else "pipeline")

    @property
    def overrides(self) -> list[str]:
        """What turns the stage files into this seed's."""
        return [f"seed={self.seed}", f"runs={self.runs}"] if self.seed else []


@dataclass(kw_only=True)
class Clock:
    """Seconds of each phase, in order."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def phase(self, name: str, say: Callable[[str], None]) -> Iterator[None]:
        """Announce and time one phase."""
        say(f"\n== {name}")
        began = time.monotonic()
        yield
        self.seconds[name] = time.monotonic() - began
        say(f"   {self.seconds[name]:.1f} s")


def build_shards(places: Places) -> list[str]:
    """URLs -> image shards."""
    output = ["--input", str(places.meta), "--output", str(places.images)]
    return ["data_prep/build_shards.py", "--config", "quickstart", *output]


def encode(places: Places, size: int) -> list[str]:
    """Image shards -> latent shards of one stage."""
    return ["data_prep/encode_latents.py", "--stage", f"quickstart-{size}px", "--images", str(places.images)]


def train(places: Places, size: int) -> list[str]:
    """Latent shards -> a trained stage."""
    return ["launch/local.py", "--stage", f"quickstart-{size}px", *places.overrides]


def audit(places: Places, size: int) -> list[str]:
    """The proof of what a stage was trained on."""
    return ["-m", "bigdiff.data.audit", str(places.run(size))]


def export(places: Places, size: int, step: int = 0) -> list[str]:
    """A trained stage, or its checkpoint of a step -> a diffusers pipeline."""
    words = ["launch/export.py", "--run", str(places.run(size)), "--output", str(places.pipeline(size, step))]
    return [*words, "--step", str(step)] if step else words


def report(places: Places, size: int) -> list[str]:
    """A trained and judged stage -> a page about its run."""
    return ["launch/report.py", "--run", str(places.run(size))]


def run(command: Sequence[str], say: Callable[[str], None]) -> None:
    """Run one of the project's commands as a user would, on this terminal.

    Raises:
        RunError: when it does not exit 0; its own message is on the terminal.
    """
    say("$ python " + " ".join(command))
    with Popen(task.command(command)) as process:
        try:
            code = process.wait()
        except KeyboardInterrupt:
            process.wait()  # it got the same Ctrl-C and is saving; `door` turns the rest into exit code 130
            raise
    if code:
        name = " ".join(command[:2]) if command[0] == "-m" else command[0]
        raise RunError(f"python {name} ended with exit code {code}; the same command again continues")


def images(places: Places, options: Options, clock: Clock, say: Callable[[str], None]) -> None:
    """Draw, serve, download and pack. The frozen components come first: that the set is there tells that all is."""
    with clock.phase("make the frozen components", say):
        write_components(places.components)
    with clock.phase(f"draw {options.count:,} captioned scenes", say):
        draw(places.base, options)
    with clock.phase("serve, download, verify and pack them", say), serve(places.base, options.port):
        run(build_shards(places), say)


def prepare(places: Places, clock: Clock, say: Callable[[str], None]) -> None:
    """Draw, serve, download, pack and encode: everything that training reads."""
    images(places, Options(), clock, say)
    for size in SIZES:
        with clock.phase(f"encode {size} px latents", say):
            run(encode(places, size), say)


def stage(places: Places, size: int, clock: Clock, say: Callable[[str], None]) -> Table:
    """Train and judge one stage."""
    with clock.phase(f"train quickstart-{size}px", say):
        run(train(places, size), say)
    return judge(places, size, clock, say)


def judge(places: Places, size: int, clock: Clock, say: Callable[[str], None], step: int = 0) -> Table:
    """Audit, export and judge a stage that was trained, and write its report; of a step, export and judge that.

    The scores are in the run's folder when this returns.
    """
    if not step:
        with clock.phase("audit: was every position read once, and the right sample at each?", say):
            run(audit(places, size), say)
    with clock.phase(f"export the {size} px pipeline", say):
        run(export(places, size, step), say)
    with clock.phase(f"judge 128 held-out captions at {size} px", say):
        scores = prove(places.pipeline(size, step), size, say)
    file = f"scores-{step}.json" if step else SCORES
    write_json(places.run(size) / file, {"seconds": clock.seconds, "scores": scores})
    if not step:
        run(report(places, size), say)
    return scores


def sample(places: Places, say: Callable[[str], None]) -> Path:
    """A grid of pictures of held-out captions from the last stage."""
    grid, prompts = places.run(SIZES[-1]) / "samples.png", places.run(SIZES[-1]) / "prompts.txt"
    write_bytes(prompts, ("\n".join(held_out_captions(SHOWN)) + "\n").encode())
    pipeline = ["--pipeline", str(places.pipeline(SIZES[-1])), "--prompts", str(prompts), "--batch", str(SHOWN)]
    run(["launch/sample.py", *pipeline, "--output", str(grid), "--columns", "6"], say)
    return grid


def held_out_captions(count: int) -> list[str]:
    """Captions of scenes whose combinations are never trained on."""
    wanted = held_out_scenes(count, seed=GRID_SEED)
    return [caption(scene, GRID_SEED, index) for index, scene in enumerate(wanted)]
