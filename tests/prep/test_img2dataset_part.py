import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from bigdiff.config.prep import Download
from bigdiff.prep.layout import DONE, ROWS


def test_it_ends_at_once_when_its_parent_has_gone(tmp_path: Path) -> None:
    (tmp_path / "first").mkdir()
    pq.write_table(pa.table({"row": [0], "url": ["http://127.0.0.1:9/"]}), tmp_path / "first" / ROWS)
    arguments = tmp_path / "arguments.json"
    arguments.write_text(json.dumps({"folder": str(tmp_path), "parent": 1, "limits": asdict(Download())}))
    command = [sys.executable, "-X", "importtime", "-m", "bigdiff.prep.img2dataset_part", str(arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "| img2dataset" not in done.stderr  # which takes seconds to import
    assert not (tmp_path / DONE).exists()


def test_a_second_pass_is_left_out_when_no_retries_are_wanted(tmp_path: Path) -> None:
    (tmp_path / "first").mkdir()
    pq.write_table(pa.table({"row": [0], "url": ["http://127.0.0.1:9/"]}), tmp_path / "first" / ROWS)
    arguments = tmp_path / "arguments.json"
    limits = asdict(Download(retries=0, allow_private_addresses=True))
    arguments.write_text(json.dumps({"folder": str(tmp_path), "parent": os.getpid(), "limits": limits}))
    assert subprocess.call([sys.executable, "-m", "bigdiff.prep.img2dataset_part", str(arguments)]) == 0
    assert (tmp_path / DONE).exists()
    assert not (tmp_path / "second").exists()
    (row,) = pq.read_table(tmp_path / "first" / "00000.parquet").to_pylist()
    assert (row["status"], row["error_message"]) == ("failed_to_download", "connection refused")
