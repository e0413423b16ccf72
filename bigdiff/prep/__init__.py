"""From metadata to shard sets: selection, download, verification, packing, encoding, report."""
