"""Which code and which libraries made a result."""

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = (
    "bigdiff",
    "torch",
    "diffusers",
    "transformers",
    "deepspeed",
    "webdataset",
    "img2dataset",
    "open_clip_torch",
    "torch-fidelity",
    "submitit",
    "tensorboard",
    "numpy",
    "pillow",
    "safetensors",
)


def versions() -> dict[str, str]:
    """Name -> version of Python and of the libraries that shape a result; "absent" where one is not installed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "absent"
    return found


def commit() -> str:
    """The git commit of this source tree, with "+changes" when files differ from it; "unknown" outside a checkout."""
    root = Path(__file__).resolve().parents[2]
    try:
        head = _git(root, "rev-parse", "HEAD")
        changed = _git(root, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{head}+changes" if changed else head


def _git(root: Path, *words: str) -> str:
    done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, check=True, timeout=10)
    return done.stdout.strip()
