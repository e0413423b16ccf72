"""Where things lie in `<output>/_work` while an image set is being made. A finished set has no `_work`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

WORK: Final = "_work"
PASSES: Final = ("first", "second")  # of downloading
ROWS: Final = "rows.parquet"  # of a pass: row, url
STATISTICS: Final = "_stats.json"  # ends the name of what img2dataset writes last for one file of a pass
PUBLISHED: Final = "_published"  # in a pass: one folder a file, from Spark's tasks; the driver empties them
DONE: Final = "done.json"  # of a part: written last


@dataclass(frozen=True, slots=True)
class Layout:
    """The paths of one job."""

    output: Path

    @property
    def work(self) -> Path:
        """Everything that is not part of the finished set."""
        return self.output / WORK

    @property
    def settings(self) -> Path:
        """What the set is made from and with: a resume must agree."""
        return self.work / "settings.json"

    @property
    def selected(self) -> Path:
        """The wanted rows in their final order: row, url, caption, scores."""
        return self.work / "selected.parquet"

    @property
    def selection(self) -> Path:
        """What the rules did; written after `selected`."""
        return self.work / "selection.json"

    @property
    def download(self) -> Path:
        """One folder a part."""
        return self.work / "download"

    def part(self, number: int) -> Path:
        """The folder of one part."""
        return self.download / f"{number:05d}"

    @property
    def samples(self) -> Path:
        """One parquet a unit: the pictures that were accepted; written last of the three."""
        return self.work / "samples"

    @property
    def pictures(self) -> Path:
        """One file a unit: their encoded bytes, end to end."""
        return self.work / "pictures"

    @property
    def rejected(self) -> Path:
        """One parquet a unit: the rows that did not become a sample, and why."""
        return self.work / "rejected"

    @property
    def scores(self) -> Path:
        """One parquet a unit: what the scorers of this job gave its samples, in the order of `samples`."""
        return self.work / "scores"

    @property
    def embeddings(self) -> Path:
        """One .npy a unit: CLIP's embeddings of its pictures, fp16, in the order of `samples`."""
        return self.work / "embeddings"

    @property
    def dropped(self) -> Path:
        """The samples that the plan leaves out, and why; written before `plan`."""
        return self.work / "dropped.parquet"

    @property
    def decided(self) -> Path:
        """What each rule of the plan did; written before `plan`."""
        return self.work / "decided.json"

    @property
    def plan(self) -> Path:
        """Which sample goes into which shard."""
        return self.work / "plan.parquet"

    @property
    def shards(self) -> Path:
        """One JSON a shard, written after its tar and parquet: their sizes and checksums."""
        return self.work / "shards"

    @property
    def report(self) -> Path:
        """The page that says what became of every row."""
        return self.output / "report" / "index.html"
