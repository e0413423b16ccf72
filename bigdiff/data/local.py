"""A shard set in a folder: its small files, and descriptors of its tars."""

import os
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Final

from bigdiff.config.errors import RunError
from bigdiff.data.manifest import Shard
from bigdiff.data.origin import checked
from bigdiff.data.transfer import Absent, Corrupt

SUFFIX: Final = ".tar"


class Local:
    """A set in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.location = folder, str(folder)

    def read(self, name: str, digest: str = "") -> bytes:
        """A small whole file, of that sha256 if one is given; raises Absent, Corrupt."""
        try:
            content = (self.folder / checked(name)).read_bytes()
        except FileNotFoundError as error:
            raise Absent(f"{self.folder / name} is absent") from error
        except OSError as error:
            raise RunError(f"{self.folder / name} cannot be read: {error.strerror}") from error
        if digest and sha256(content).hexdigest() != digest:
            raise Corrupt(f"{self.folder / name} has another sha256 than the manifest's {digest}")
        return content

    def spoiled(self, shard: Shard, descriptor: int) -> bool:
        """No copy is given up: the folder's is the only one."""
        return False

    def open(self, shard: Shard) -> int:
        """A descriptor of the tar; raises Absent, Corrupt (another size; the content is checked sample by sample)."""
        path = self.folder / checked(shard.name + SUFFIX)
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise Absent(f"{path} is absent") from error
        except OSError as error:
            raise RunError(f"{path} cannot be opened: {error.strerror}") from error
        size = os.fstat(descriptor).st_size
        if size != shard.bytes:
            os.close(descriptor)
            raise Corrupt(f"{path} has {size} bytes, the manifest says {shard.bytes}")
        return descriptor

    def want(self, shards: Sequence[Shard]) -> None:
        """Nothing is fetched: the samples themselves are asked for (bigdiff.data.announce)."""

    def close(self) -> None:
        """Nothing is held; descriptors from `open` stay good."""
