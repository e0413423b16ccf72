"""Addresses of files in sets on web servers and in a real S3 server."""

import hashlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from ports import free_ports

from bigdiff.config.errors import UsageError
from bigdiff.data.cache import Cache
from bigdiff.data.manifest import Shard
from bigdiff.data.origin import Bucket, checked, origin, remote
from bigdiff.data.storage import Absent, Corrupt, open_storage

SIZE = 400_000


def test_a_web_address_keeps_its_query_and_quotes_names() -> None:
    web = origin("https://host:81/a set/?token=secret")
    assert web.location == "https://host:81/a set"
    assert web.address("0#1.tar") == "https://host:81/a%20set/0%231.tar?token=secret"


@pytest.mark.parametrize("name", ["", "a/b", "..", "../a", ".hidden", "a\0b", "a\nb"])
def test_a_name_cannot_lead_out_of_the_set(name: str) -> None:
    with pytest.raises(UsageError):
        checked(name)


def test_schemes() -> None:
    assert not remote("/folder") and not remote("folder") and remote("s3://bucket/set") and remote("http://host")
    with pytest.raises(UsageError, match="gs://"):
        remote("gs://bucket/set")
    with pytest.raises(UsageError, match="names no bucket"):
        Bucket("s3://")


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A client of a real S3 server with an empty bucket "sets"; the environment names the server."""
    pytest.importorskip("s3fs", reason="the package s3fs is not installed")
    pytest.importorskip("moto", reason="the package moto[server] is not installed")
    port = free_ports(1)[0]
    command = [sys.executable, "-m", "moto.server", "-p", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            until = time.monotonic() + 30
            while not answers(port):
                assert time.monotonic() < until
                time.sleep(0.05)
            keys = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "eu-north-1"}
            for name, value in {**keys, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"}.items():
                monkeypatch.setenv(name, value)
            import boto3

            client = boto3.client("s3")
            client.create_bucket(Bucket="sets", CreateBucketConfiguration={"LocationConstraint": "eu-north-1"})
            yield client
        finally:
            process.kill()


def test_a_set_in_s3(bucket: Any, plain_set: Callable[..., list[Shard]], tmp_path: Path) -> None:
    shards = plain_set(*[SIZE] * 6)
    for path in (tmp_path / "set").iterdir():
        bucket.upload_file(str(path), "sets", f"some where/{path.name}")
    said: list[str] = []
    cache = Cache(folder=str(tmp_path / "cache"), bytes=100 * SIZE, patience_seconds=5)
    with closing(open_storage("s3://sets/some where", cache, said.append)) as storage:
        storage.want(shards)
        for shard in shards:
            descriptor = storage.open(shard)
            assert hashlib.sha256(os.pread(descriptor, SIZE + 1, 0)).hexdigest() == shard.sha256
            os.close(descriptor)
        for _ in range(2):
            assert storage.read("00000.parquet") == (tmp_path / "set/00000.parquet").read_bytes()
        with pytest.raises(Absent, match=r"s3://sets/some where/manifest\.json is absent"):
            storage.read("manifest.json")
        bucket.put_object(Bucket="sets", Key="some where/00099.tar", Body=b"?" * SIZE)
        with pytest.raises(Corrupt):
            storage.open(Shard(name="00099", samples=1, bytes=SIZE, sha256="0" * 64))
    assert len(said) == 2 and not any("Signature" in line for line in said)


def test_without_credentials_it_is_a_usage_error(bucket: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(UsageError, match="AWS_ACCESS_KEY_ID"):
        origin("s3://sets/other").address("manifest.json")
