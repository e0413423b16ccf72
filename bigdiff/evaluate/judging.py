"""An evaluation from its settings to its results: pictures, what networks see in them, numbers, for each guidance.

All that takes time is blocks (bigdiff.evaluate.blocks), which any number of processes make and none makes twice; the
same command after a stop goes on where it was, and after its end does nothing.
"""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from diffusers import StableDiffusionPipeline

from bigdiff.config.errors import UsageError
from bigdiff.config.evaluation import Evaluation, refuse_few
from bigdiff.evaluate import blocks, exported, networks, pictures, point, prompts, reference, report, sampling
from bigdiff.evaluate.blocks import Work
from bigdiff.evaluate.exported import Model
from bigdiff.evaluate.pictures import Drawn, Source, Stored
from bigdiff.evaluate.point import Point
from bigdiff.evaluate.reference import Reference
from bigdiff.evaluate.sampling import Sampling
from bigdiff.export.measured import ORIGIN
from bigdiff.runtime import world as worlds
from bigdiff.runtime.files import write_json
from bigdiff.runtime.versions import commit, versions
from bigdiff.runtime.workers import Workers
from bigdiff.runtime.world import World

SETTINGS: Final = "settings.json"
RESULT: Final = "result.json"
_ASIDE: Final = ("samples_seen", "processes", "batch")  # settings that change no number
_TIMEOUT: Final = 4 * 3600  # seconds that a process waits for the slowest: the numbers of large sets on a CPU


def run(wanted: Evaluation, say: Callable[[str], None]) -> list[Point]:
    """Do `wanted`, or what is left of it; the points in the order of their guidance, on rank 0.

    Raises:
        UsageError: when something that is named cannot be used, or the output holds another evaluation.
    """
    world = worlds.enter(_TIMEOUT)
    try:
        alone = Workers(1)
        with alone.on_devices(wanted.processes) if world.size == 1 else alone as workers:
            return _all(wanted, world, workers, say if world.first else lambda _: None)
    finally:
        worlds.leave()


def plan(wanted: Evaluation) -> str:
    """What would be done, in a sentence; reads settings, prompts and names alone.

    Raises:
        UsageError: as `run`, as far as that can be known.
    """
    count, wanted = _count(wanted), exported.placed(wanted)
    sweep = ", ".join(f"{one:g}" for one in wanted.guidance) if wanted.pipeline and wanted.prompts else ""
    what = f"{count:,} pictures" + (f" at each guidance of {sweep}" if sweep else "")
    done = [name for name, _ in _sets(wanted, count) if (wanted.output / name / RESULT).is_file()]
    return f"would judge {what}, in {wanted.output}" + (f"; done: {', '.join(done)}" if done else "")


def result(wanted: Evaluation) -> Path:
    """The file that is there once all of `wanted` is done; one of another sweep, or of fewer pictures, is removed."""
    file = wanted.output / report.RESULTS
    if file.is_file():
        mine, theirs = _plain(exported.placed(wanted)), json.loads(file.read_bytes())["settings"]
        if any(theirs.get(name) != value for name, value in mine.items() if name not in _ASIDE):
            file.unlink()
    return file


def _plain(wanted: Evaluation) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(json.dumps(asdict(wanted), default=str))
    return plain


def _all(wanted: Evaluation, world: World, workers: Workers, say: Callable[[str], None]) -> list[Point]:
    count = world.first_does(lambda: _count(wanted))
    wanted = exported.resolved(wanted, world)
    fingerprint = networks.loaded(wanted.judges).fingerprint
    sets = _sets(wanted, count)
    made_of = world.first_does(lambda: _claim(wanted, sets[0][1], fingerprint))
    for sentence in _doubts(fingerprint):
        say(sentence)
    real = reference.prepare(wanted, fingerprint, world, workers) if wanted.real else None
    about = {
        "made_of": made_of,
        "real": real.about if real else None,
        "settings": _plain(wanted),
        "versions": versions(),
        "commit": commit(),
    }
    if world.first and not all(_known(wanted.output, name, count, real) for name, _ in sets):
        (wanted.output / report.RESULTS).unlink(missing_ok=True)  # of fewer pictures, or other real ones
    for name, source in sets:
        folder = wanted.output / name
        if world.first_says(_known(wanted.output, name, count, real) if world.first else None) is None:
            guidance = source.settings.guidance if isinstance(source, Drawn) and source.prompts else None
            begun = Point(guidance=guidance, images=count)
            _look(folder, source, wanted, count, world, workers)
            found = point.judge(folder / "blocks", tuple(fingerprint), real, world, begun)
            if world.first:
                _keep(folder, source, found, real)
                report.show(wanted, _points(wanted.output, count, real), about)
        if world.first:
            _to_board(folder / RESULT, wanted)
    if not world.first:
        return []
    points = _points(wanted.output, count, real)
    report.write(wanted, points, about)
    return points


def _look(folder: Path, source: Source, wanted: Evaluation, count: int, world: World, workers: Workers) -> None:
    """Make the blocks of one set of pictures."""
    keep = folder / "pictures" if wanted.keep else None
    works = [
        Work(folder=folder / "blocks", source=source, judges=wanted.judges, begin=begin, end=end, keep=keep)
        for begin, end in blocks.cut(count)
    ]
    blocks.make(works, world, workers, folder.name)


def _keep(folder: Path, source: Source, found: Point, real: Reference | None) -> None:
    """Write what was found of one set."""
    if found.clip_cosine is not None:
        texts = pictures.opened(source).captions(0, found.images)
        point.write_scores(folder / "scores.parquet", folder / "blocks", found.images, texts)
    write_json(folder / RESULT, {"point": asdict(found), "real": real.about if real else None})


def _to_board(file: Path, wanted: Evaluation) -> None:
    """Put a point into TensorBoard, unless it is there already."""
    held, place = json.loads(file.read_bytes()), [str(wanted.tensorboard), wanted.samples_seen]
    if wanted.tensorboard is not None and held.get("board") != place:
        report.board(wanted, Point(**held["point"]))
        write_json(file, {**held, "board": place})


def _points(output: Path, count: int, real: Reference | None) -> list[Point]:
    """All points that the output holds of as many pictures and against the same real ones, by rising guidance."""
    found = [_known(output, file.parent.name, count, real) for file in output.glob(f"*/{RESULT}")]
    return sorted((one for one in found if one is not None), key=lambda one: one.guidance or 0)


def _known(output: Path, name: str, count: int, real: Reference | None) -> Point | None:
    """The point of the set `name`, when it was found of as many pictures and against the same real ones."""
    file = output / name / RESULT
    if not file.is_file():
        return None
    held = json.loads(file.read_bytes())
    same = held["real"] == (json.loads(json.dumps(real.about)) if real else None)
    return Point(**held["point"]) if same and held["point"]["images"] == count else None


def _count(wanted: Evaluation) -> int:
    """Pictures of each set, after all that can be refused without networks is."""
    networks.refuse_absent(wanted.judges)
    texts = prompts.read(wanted.prompts, wanted.column) if wanted.prompts else []
    if wanted.pictures is not None:
        held, what = len(pictures.of_folder(wanted.pictures)), f"--pictures {wanted.pictures}"
    else:
        held, what = len(texts), f"--prompts {wanted.prompts}"
        model = _model(wanted)
        if not model.text:
            return _without_text(wanted, model)
        if wanted.prompts is None:
            raise UsageError("this model draws what a text says: name a file of prompts with --prompts")
        _check_drawing(model, _sampling(wanted, wanted.guidance[0]))
    if wanted.images > held:
        raise UsageError(f"--images {wanted.images:,} is more than the {held:,} of {what}: lower it, or leave it out")
    count = wanted.images or held
    refuse_few(wanted, count, what)
    return count


def _without_text(wanted: Evaluation, model: Model) -> int:
    for name, given in (("prompts", wanted.prompts), ("guidance", wanted.guidance != (Sampling().guidance,))):
        if given:
            raise UsageError(f"--{name} has no effect on a model without text: leave it out")
    if not wanted.images:
        raise UsageError("this model draws without text: say with --images how many pictures")
    _check_drawing(model, _sampling(wanted, Sampling().guidance))
    refuse_few(wanted, wanted.images, "--images")
    return wanted.images


def _model(wanted: Evaluation) -> Model:
    """What draws the pictures, without loading it."""
    if wanted.checkpoint is not None:
        return exported.model(wanted.checkpoint)
    assert wanted.pipeline is not None, "checked with the settings"
    kind, file = sampling.kind_of(wanted.pipeline), wanted.pipeline / "scheduler" / "scheduler_config.json"
    try:
        return Model(text=kind is StableDiffusionPipeline, scheduler=json.loads(file.read_bytes()))
    except (OSError, ValueError) as error:
        raise UsageError(f"{file} cannot be read ({error}): export the pipeline again") from error


def _check_drawing(model: Model, settings: Sampling) -> None:
    """Refuse what its pipeline would."""
    sampling.check(settings)
    sampling.refuse_unfit(settings.scheduler, model.scheduler)
    sampling.refuse_steps(settings.steps, model.scheduler)


def _sampling(wanted: Evaluation, guidance: float) -> Sampling:
    return Sampling(
        steps=wanted.steps,
        guidance=guidance,
        scheduler=wanted.scheduler,
        seed=wanted.seed,
        batch=wanted.batch,
        height=wanted.size,
        width=wanted.size,
    )


def _sets(wanted: Evaluation, count: int) -> list[tuple[str, Source]]:
    """Folder and description of each set of pictures, by rising guidance."""
    if wanted.pictures is not None:
        return [("pictures", Stored(place=str(wanted.pictures), prompts=wanted.prompts, column=wanted.column))]
    assert wanted.pipeline is not None, "checked with the settings"
    drawn = [
        Drawn(
            pipeline=wanted.pipeline,
            prompts=wanted.prompts,
            column=wanted.column,
            count=count,
            settings=_sampling(wanted, guidance),
            dtype=wanted.dtype,
        )
        for guidance in sorted(wanted.guidance)
    ]
    return [(f"guidance-{one.settings.guidance:g}" if wanted.prompts else "pictures", one) for one in drawn]


def _claim(wanted: Evaluation, source: Source, fingerprint: dict[str, str]) -> dict[str, Any]:
    """What the blocks are made of; the output must be empty, or hold those of the same.

    Raises:
        UsageError: when it holds something else.
    """
    texts = prompts.read(wanted.prompts, wanted.column) if wanted.prompts else []
    made_of: dict[str, Any] = {
        "pictures": pictures.opened(source).identity(),
        "prompts": prompts.fingerprint(texts) if texts else "",
        "networks": fingerprint,
    }
    if isinstance(source, Drawn):
        one = source.settings
        drawn = {"steps": one.steps, "scheduler": one.scheduler, "seed": one.seed, "size": one.height}
        made_of["drawing"] = {**drawn, "dtype": source.dtype}
    file = wanted.output / SETTINGS
    if not file.is_file():
        ours = (exported.PIPELINE, ORIGIN)
        if wanted.output.is_dir() and any(one.name not in ours for one in wanted.output.iterdir()):
            raise UsageError(f"--output {wanted.output} is not empty, and no evaluation: choose another folder")
        write_json(file, made_of)
        return made_of
    earlier = json.loads(file.read_bytes())
    mine, theirs = _flat(made_of), _flat(earlier)
    for name in sorted(mine.keys() | theirs.keys()):
        if mine.get(name) != theirs.get(name):
            raise UsageError(
                f"--output {wanted.output} holds an evaluation with another {name} ({theirs.get(name, 'none')}; here "
                f"{mine.get(name, 'none')}): choose another folder, or delete it"
            )
    return made_of


def _flat(made_of: dict[str, Any]) -> dict[str, Any]:
    """Its values by names such as "drawing.seed"."""
    found: dict[str, Any] = {}
    for name, value in made_of.items():
        found |= {f"{name}.{key}": one for key, one in value.items()} if isinstance(value, dict) else {name: value}
    return found


def _doubts(fingerprint: dict[str, str]) -> list[str]:
    """What a reader of the numbers must know before them."""
    doubtful = [name for name, one in fingerprint.items() if "not the published weights" in one]
    return [
        f"{name}: these are not the published weights: the numbers do not compare with any other" for name in doubtful
    ]
