"""A forecast as text: tables on a terminal, plain columns elsewhere; figures are marked, assumptions stand below."""

from collections.abc import Iterable, Sequence
from typing import Final

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from bigdiff.plan.cost import Cost
from bigdiff.plan.forecast import Forecast, Row
from bigdiff.plan.machine import Basis
from bigdiff.plan.storage import hours
from bigdiff.plan.table import blank
from bigdiff.train.memory import peak

_LEGEND: Final = (
    "c counted from the network and the engine's calls, m measured by the probe, ~ modelled from these and from what "
    "stands below"
)


def report(forecasts: Sequence[Forecast], given: Basis, out: Console) -> RenderableType:
    """All stages, one after another, and what they take together."""
    parts: list[RenderableType] = []
    for one in forecasts:
        parts += [*_stage(one, given, out), Text()]
    if len(forecasts) > 1:
        parts += [*_together(forecasts, given, out), Text()]
    assumed = dict.fromkeys(sentence for one in forecasts for sentence in one.assumed)
    return Group(*parts, Text(_LEGEND, style="dim"), *(Text(one, style="dim") for one in assumed))


def _stage(one: Forecast, given: Basis, out: Console) -> list[RenderableType]:
    stage, flops = one.stage, one.flops
    extra = f" + {flops.recomputed / 1e9:,.1f} recomputed" if flops.recomputed else ""
    head = (
        f"{stage.name}: {one.weights.total:,} trained parameters (c), ZeRO-{stage.engine.zero_stage}, "
        f"{'bf16 over fp32' if one.half else 'fp32'}\n"
        f"GFLOP an image (c): {flops.forward / 1e9:,.1f} forward + {flops.backward / 1e9:,.1f} backward{extra} + "
        f"{flops.frozen / 1e9:,.1f} of frozen networks\n"
        f"activations an image (c): {_bytes(one.activations.held)} held, {_bytes(one.activations.peak)} at most"
    )
    return [
        Text(head),
        Text(),
        _times(one, given, out),
        Text(),
        _memory(one.rows, out),
        Text(),
        _traffic(one.rows, out),
        Text(),
        *_buckets(one.rows, out),
        *_better(one.rows, given),
        _cost(one, out),
        Text(),
        _storage(one, given, out),
    ]


def _storage(one: Forecast, given: Basis, out: Console) -> Table:
    stored, samples = one.storage, given.pictures.samples
    lines = [("its checkpoints, at most c", _bytes(stored.checkpoints))]
    if stored.pictures:
        lines.append((f"{samples:,} pictures ~", _bytes(stored.pictures)))
    if stored.latents:
        lines.append((f"{samples:,} latents c", _bytes(stored.latents)))
    if stored.latents and stored.encoding:
        lines.append(("encoding one c", f"{stored.encoding / 1e9:,.1f} GFLOP"))
    if stored.encoding and given.device:
        taken = hours(stored, samples, given.device.peak)
        lines.append(("encoding all ~", f"{taken:,.1f} device-hours"))
    return _filled(out, ["on disks", ""], lines)


def _times(one: Forecast, given: Basis, out: Console) -> Table:
    mark = "m" if given.probe else "~"
    names = ["nodes", "ranks", "batch", "step ms ~", f"passes {mark}", "links ~", f"update {mark}"]
    names += ["images/s ~", "a rank ~", "eff. ~", "MFU ~"]
    rows = []
    for row in one.rows:
        step = row.step
        rate = step.images_per_second / step.ranks
        used = f"{rate * one.flops.needed / given.device.peak:.0%}" if given.device else ""
        rows.append(
            (
                f"{row.nodes:,}",
                f"{step.ranks:,}",
                f"{step.micro} x {step.passes}",
                *(f"{1e3 * value:,.1f}" for value in (step.seconds, step.compute, step.exposed, step.update)),
                f"{step.images_per_second:,.0f}",
                f"{rate:,.1f}",
                f"{row.efficiency:.1%}",
                used,
            )
        )
    return _filled(out, names, rows)


def _memory(rows: Sequence[Row], out: Console) -> Table:
    """A line per part; the columns are the numbers of nodes."""
    names = dict.fromkeys((part.span, part.name) for row in rows for part in row.parts)
    lines = [
        (f"{name} ({span}) {'c' if span == 'always' else '~'}", *(_part(row, span, name) for row in rows))
        for span, name in names
    ]
    lines.append(("at most ~", *(_bytes(peak(row.parts)) for row in rows)))
    if any(row.largest for row in rows):
        lines.append(("largest micro-batch ~", *(f"{row.largest:,}" for row in rows)))
    return _filled(out, ["memory of a rank", *(f"{row.nodes:,} nodes" for row in rows)], lines)


def _part(row: Row, span: str, name: str) -> str:
    return _bytes(sum(part.bytes for part in row.parts if (part.span, part.name) == (span, name)))


def _traffic(rows: Sequence[Row], out: Console) -> Table:
    names = dict.fromkeys((volume.what, volume.kind) for row in rows for volume in row.volumes if volume.bytes > 1000)
    lines = []
    for what, kind in names:
        found = [[one for one in row.volumes if (one.what, one.kind) == (what, kind)] for row in rows]
        sent = [sum(one.sent(row.step.ranks) for one in some) for row, some in zip(rows, found, strict=True)]
        lines.append((f"{what}, {kind} c", *map(_bytes, sent)))
    lines.append(("in all c", *(_bytes(row.step.sent) for row in rows)))
    return _filled(out, ["a rank sends in a step", *(f"{row.nodes:,} nodes" for row in rows)], lines)


def _buckets(rows: Sequence[Row], out: Console) -> list[RenderableType]:
    """The stage's size of bucket beside the one that leaves the least; nothing where none has an effect."""
    lines = []
    for row in rows:
        if row.bucket is not None:
            here = row.stage.engine.bucket_elements, row.step.exposed
            best = row.bucket.elements, row.bucket.exposed
            shown = (cell for size, taken in (here, best) for cell in (f"{size:,}", f"{1e3 * taken:,.1f}"))
            lines.append((f"{row.nodes:,}", *shown))
    names = ["nodes", "engine.bucket_elements", "links ms ~", "least with ~", "links ms ~"]
    return [_filled(out, names, lines), Text()] if lines else []


def _better(rows: Sequence[Row], given: Basis) -> list[RenderableType]:
    """Settings of the sharding that the model has better than the stage's own; nothing where there are none."""
    found = [(row, row.better) for row in rows if row.better is not None]
    if not found:
        return []
    doubts = []
    if given.gpu and any(better.setting.sharding == "overlapped" for _, better in found):
        doubts.append("no GPU has run engine.sharding=overlapped yet")
    if given.probe and any(better.setting.sharding != row.stage.engine.sharding for row, better in found):
        doubts.append("the probe's passes and update are the measured engine's")
    if not all(better.fits for _, better in found):
        doubts.append("no memory is known to hold them against")
    lines = [
        f"{row.nodes:,} nodes: {better.efficiency:.1%} efficiency for {row.efficiency:.1%}, "
        f"{1e3 * better.step.seconds:,.1f} ms a step for {1e3 * row.step.seconds:,.1f}, with "
        f"{' '.join(better.setting.words(row.stage.engine))}"
        for row, better in found
    ]
    head = "better by this model ~" + (f" ({'; '.join(doubts)}):" if doubts else ":")
    return [Text("\n".join([head, *lines])), Text()]


def _together(forecasts: Sequence[Forecast], given: Basis, out: Console) -> list[RenderableType]:
    lines = []
    for at, row in enumerate(forecasts[0].rows):
        total = forecasts[0].rows[at].cost
        for one in forecasts[1:]:
            total = total + one.rows[at].cost
        lines.append((f"{row.nodes:,}", *_costs(total)))
    return [Text("all stages", style="bold"), _filled(out, ["nodes", *_COSTS], lines)]


def _filled(out: Console, names: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    table = blank(out)
    for number, name in enumerate(names):
        table.add_column(name, justify="left" if number == 0 else "right", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def _cost(one: Forecast, out: Console) -> Table:
    """Days, device-hours, money and energy of a stage."""
    return _filled(out, ["nodes", *_COSTS], [(f"{row.nodes:,}", *_costs(row.cost)) for row in one.rows])


_COSTS: Final = ("days ~", "device-hours ~", "money ~", "MWh at most ~")


def _costs(cost: Cost) -> tuple[str, ...]:
    return (
        f"{cost.days:,.2f}",
        f"{cost.device_hours:,.0f}",
        f"{cost.money:,.0f}" if cost.money else "",
        f"{cost.energy / 1e3:,.1f}" if cost.energy else "",
    )


def _bytes(count: float) -> str:
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:,.2f} {unit}"
    return f"{count:,.0f} B" if count else "-"
