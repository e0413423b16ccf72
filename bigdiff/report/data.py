"""What the run saw: its shard sets as their manifests tell, while they still lie where it read them."""

from pathlib import Path
from typing import Any, Final

import yaml

from bigdiff.config.schema import Stage
from bigdiff.data import manifest
from bigdiff.prep.page import Cell, Markup, bar, details, heading, note, section, size, table
from bigdiff.report.folder import Folder
from bigdiff.report.records import content

_PAGE: Final = Path("report/index.html")  # in an image set: what became of every row
_LONG: Final = 12  # values of a list above which it is counted


def written(run: Folder) -> Markup:
    """The section of the page.

    Raises:
        UsageError: when a manifest is damaged.
    """
    recorded: dict[str, str] = run.about.get("images") or run.about.get("latents") or {}
    places = locations(run.stage)
    total, parts = 0, []
    for place in places:
        samples, shown = _set(place, recorded.get(place, ""))
        total += samples
        parts += shown
    if not places:
        parts = [note("The stage names no shard set.")]
    if total and len(places) == 1:
        parts.insert(0, note(f"{run.seen:,} images seen of {total:,} samples: {run.seen / total:.2f} epochs."))
    return section("What it saw", parts)


def locations(stage: Stage) -> list[str]:
    """Of the stage's shard sets."""
    one = stage.data.images or stage.data.latents
    return [one] if one else [source.location for source in stage.data.sources]


def _set(place: str, recorded: str) -> tuple[int, list[Markup]]:
    """Samples of a set, 0 where that cannot be told, and what is shown of it."""
    parts = [heading(place)]
    folder = Path(place)
    found = content(folder / manifest.NAME)
    if not found:
        why = "It lies elsewhere" if "://" in place else "It is not there from here"
        known = f"; its manifest's sha256 is {recorded}" if recorded else ""
        return 0, [*parts, note(f"{why}, so only its name is known{known}.")]
    now = manifest.fingerprint(folder)
    held = manifest.parse((folder / manifest.NAME).read_bytes(), str(folder / manifest.NAME), found.get("kind", ""))
    rows: list[list[Cell]] = [
        [
            "samples",
            f"{held.samples:,} {held.kind} in {len(held.shards):,} shards, {size(sum(s.bytes for s in held.shards))}",
        ],
        ["sha256 of its manifest", now],
        ["resolution", f"{held.contract['resolution']} pixels" if "resolution" in held.contract else ""],
    ]
    parts.append(table(("", ""), [row for row in rows if row[1]], named=True))
    if recorded and recorded != now:
        parts.append(
            note(f"It has changed since: the run was trained on the set whose manifest has sha256 {recorded}.")
        )
    parts.append(details("Contract and lineage", _readable({"contract": held.contract, "lineage": held.lineage})))
    parts += _origin(folder, held)
    return held.samples, parts


def _origin(folder: Path, held: manifest.Manifest) -> list[Markup]:
    """The image set that a latent set was made of, when it lies beside it; of an image set its own way."""
    if held.kind == "images":
        return _way(folder, held)
    wanted = str(held.lineage.get("images", ""))
    for file in sorted(folder.parent.glob(f"*/{manifest.NAME}")) if wanted else []:
        if manifest.digest(file.read_bytes()) == wanted:
            images = manifest.read(file.parent, "images")
            side = images.contract.get("resolution", "")
            said = f"{images.samples:,} pictures" + (f", {side} pixels" if side else "")
            shown = details("Contract and lineage", _readable({"contract": images.contract, "lineage": images.lineage}))
            return [heading(f"encoded from {file.parent}"), note(said + "."), *_way(file.parent, images), shown]
    return (
        [note(f"Encoded from the image set whose manifest has sha256 {wanted}; it does not lie beside.")]
        if wanted
        else []
    )


def _way(folder: Path, images: manifest.Manifest) -> list[Markup]:
    """From rows of metadata to samples, and where the whole story is."""
    selection = images.lineage.get("selection")
    parts = []
    if isinstance(selection, dict) and {"rows", "kept"} <= selection.keys():
        begun = int(selection["rows"])
        steps = [
            ("rows of metadata", begun),
            ("selected by rules", int(selection["kept"])),
            ("samples", images.samples),
        ]
        rows: list[list[Cell]] = [[name, count, bar(count, begun)] for name, count in steps]
        parts.append(table(("", "left", ""), rows, named=True))
    if (folder / _PAGE).is_file():
        parts.append(note(f"What became of every row is told by {folder / _PAGE}."))
    return parts


def _readable(value: dict[str, Any]) -> str:
    return str(yaml.safe_dump(_short(value), sort_keys=False, width=100))


def _short(value: Any) -> Any:  # noqa: ANN401 (a tree of plain values)
    """The same with long lists of numbers counted."""
    if isinstance(value, dict):
        return {key: _short(one) for key, one in value.items()}
    if isinstance(value, list):
        return f"{len(value)} values" if len(value) > _LONG else [_short(one) for one in value]
    return value
