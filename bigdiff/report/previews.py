"""What the run drew while it trained: the preview pictures in its TensorBoard files."""

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Final, TypeVar

from PIL import Image

from bigdiff.config.errors import UsageError
from bigdiff.prep.page import Markup, heading, note, picture, section
from bigdiff.report import lines
from bigdiff.report.folder import Folder

SHOWN: Final = 8  # of a tag
_SIDE: Final = 1024  # pixels of the longer side; larger ones are made smaller, to keep the page fit for an e-mail
_QUALITY: Final = 90
_PREFIX: Final = "preview/"
T = TypeVar("T")

STYLE: Final = """
.previews { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 13rem), 1fr)); gap: 1rem }
.previews img { width: 100%; display: block; margin-bottom: .3rem; border: 1px solid var(--line) }
"""


def written(run: Folder, tensorboard: Path) -> Markup:
    """The section of the page.

    Raises:
        UsageError: when a picture cannot be decoded.
    """
    drawn = images(tensorboard)
    parts = []
    for tag, pictures in drawn.items():
        chosen = evenly(pictures, SHOWN)
        shown = f"{len(chosen)} of {len(pictures)} are shown. " if len(chosen) < len(pictures) else ""
        figures = "".join(
            picture(jpeg(png, f"{tensorboard}: {_PREFIX}{tag} at {seen:,}"), f"after {lines.count(seen)} images")
            for seen, png in chosen
        )
        parts += [heading(f"drawn from {tag}"), note(shown), Markup(f'<div class="previews">{figures}</div>')]
    if not drawn:
        return section("Pictures", [note(_without(run))])
    prompts = run.stage.preview.prompts
    said = f"The same noise each time, for: {'; '.join(prompts)}." if prompts else "The same noise each time."
    if run.stage.preview.more_guidance:
        scales = (run.stage.preview.guidance, *run.stage.preview.more_guidance)
        said += f" Row by row at guidance {', '.join(f'{scale:g}' for scale in scales)}."
    return section("Pictures", [note(said), *parts])


def images(tensorboard: Path) -> dict[str, list[tuple[int, bytes]]]:
    """By tag, (images seen, PNG) of all preview pictures in a run's TensorBoard folder; {} without any."""
    if not any(tensorboard.glob("*tfevents*")):
        return {}
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # half a second

    # All pictures are held at once (0: no sampling): TensorBoard's own choice would leave out the first.
    sizes = {"images": 0, "scalars": 1, "tensors": 1, "histograms": 1, "compressedHistograms": 1, "audio": 1}
    events = EventAccumulator(str(tensorboard), size_guidance=sizes)
    events.Reload()
    tags = [tag for tag in events.Tags()["images"] if tag.startswith(_PREFIX)]
    return {
        tag.removeprefix(_PREFIX): sorted((int(one.step), one.encoded_image_string) for one in events.Images(tag))
        for tag in sorted(tags)
    }


def evenly(every: Sequence[T], most: int) -> list[T]:
    """At most `most`, two or more: the first, the last and evenly between."""
    if len(every) <= most:
        return list(every)
    return [every[round(place * (len(every) - 1) / (most - 1))] for place in range(most)]


def jpeg(content: bytes, where: str) -> bytes:
    """The picture as a JPEG whose longer side is bounded; without chroma subsampling, for pictures may be small.

    Raises:
        UsageError: when it cannot be decoded.
    """
    try:
        with Image.open(BytesIO(content)) as opened:
            shown = opened.convert("RGB")
    except OSError as error:
        raise UsageError(f"{where} is no picture ({error}): remove the damaged event file") from error
    shown.thumbnail((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    stream = BytesIO()
    shown.save(stream, "JPEG", quality=_QUALITY, subsampling=0)
    return stream.getvalue()


def _without(run: Folder) -> str:
    every = run.stage.preview.every
    if not every:
        return "None: the stage draws no previews (preview.every is 0)."
    return f"None yet: the stage draws previews every {every:,} steps."
