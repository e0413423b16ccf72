"""What the bytes of an image set depend on, as it is written down before the first of them and into the manifest."""

import importlib.metadata
import json
from typing import Any, Final

import bigdiff
from bigdiff.data.damage import Tombstones

# Settings that change how fast a set is made, or how patiently, but not what it is; and those that name a file, of
# which the content is what counts: it has a checksum of its own.
_FREE: Final = {
    "select": {"memory_gb"},
    "download": {
        "distributor",
        "spark_master",
        "processes",
        "threads",
        "per_host",
        "timeout_seconds",
        "deadline_seconds",
        "part_deadline_seconds",
        "retries",
        "max_retry_after_seconds",
    },
    "pack": {"processes", "takedown"},
    "score": {"clip"},
    "dedup": {"evaluation_pictures", "evaluation_captions"},
}
# Settings that came later, and with which values a set is what it was before: it is then written down as it was.
_LATER: Final[dict[str, dict[str, Any]]] = {
    "pack": {"crop": "center", "cluster_size_at_least": None, "cluster_size_below": None}
}
_PACKAGES: Final = ("duckdb", "img2dataset", "numpy", "pillow", "pyarrow", "simplejpeg", "torch")


def provenance(
    inputs: dict[str, str], settings: dict[str, Any], takedown: Tombstones, scorers: dict[str, str]
) -> dict[str, Any]:
    """`inputs`: checksums by name; `scorers`: their fingerprints by column."""
    kept = {
        section: {
            key: value
            for key, value in values.items()
            if key not in _FREE.get(section, ()) and (key, value) not in _LATER.get(section, {}).items()
        }
        for section, values in settings.items()
    }
    for scorer in kept["score"]["scorers"]:
        scorer.pop("weights")
    versions = {name: importlib.metadata.version(name) for name in _PACKAGES}
    made_from = {
        "inputs": inputs,
        "settings": kept,
        "takedown": {"entries": len(takedown.entries), "sha256": takedown.digest} if takedown.entries else {},
        "scorers": scorers,
        "versions": {"bigdiff": bigdiff.__version__, **versions},
    }
    plain: dict[str, Any] = json.loads(json.dumps(made_from))  # tuples become lists, as they will be when read back
    return plain
