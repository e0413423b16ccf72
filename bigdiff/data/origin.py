"""Where the files of a remote set are: a location as addresses that a plain HTTP client can read.

S3 is read through presigned addresses: s3fs finds endpoint, region and credentials as it always does (environment,
profile, instance role, fsspec's configuration) and signs, which takes 0.4 ms and no request; the bytes then come by the
same path as from any web server (bigdiff.data.transfer), with its progress, resume and Retry-After.
"""

import re
from typing import Any, Protocol
from urllib.parse import quote, urlsplit

import fsspec

from bigdiff.config.errors import UsageError

SIGNED_SECONDS = 3600  # a signed address is made anew for every attempt, so this bounds one unbroken stream
_NAME = re.compile(r"[^./\x00-\x1f][^/\x00-\x1f]*")  # of a file in a set: no folders


class Origin(Protocol):
    """A remote set."""

    location: str  # as given, without secrets, for messages

    def address(self, name: str) -> str:
        """An http(s) address of the file; may hold a signature, so it is not for messages."""


class Web:
    """A set under an http(s) address; a query, such as a storage token, goes with every request."""

    def __init__(self, location: str) -> None:
        parts = urlsplit(location)
        if not parts.hostname or parts.username or parts.password:
            raise UsageError(
                f"{parts.scheme}://...{parts.path} is not the address of a shard set: "
                f"it needs a host and may not hold a user name or password"
            )
        self._query = f"?{parts.query}" if parts.query else ""
        self.location = f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"
        self._base = f"{parts.scheme}://{parts.netloc}{quote(parts.path.rstrip('/'), safe='/%:@+,;=~')}"

    def address(self, name: str) -> str:
        """An http(s) address of the file."""
        return f"{self._base}/{quote(checked(name), safe='')}{self._query}"


class Bucket:
    """A set under s3://bucket/prefix.

    Raises:
        UsageError: for a location without a bucket, or when s3fs cannot be had.
    """

    def __init__(self, location: str) -> None:
        self.location = location.rstrip("/")
        if not urlsplit(location).netloc:
            raise UsageError(f"{location} names no bucket: write s3://bucket/prefix")
        # botocore would sign for most endpoints with version 2, which newer regions refuse
        signed = {"signature_version": "s3v4"}
        try:  # an instance of its own: a kept one would not see a changed environment
            self._files: Any = fsspec.filesystem("s3", skip_instance_cache=True, config_kwargs=signed)
        except ImportError as error:
            raise UsageError(f"{location} needs the package s3fs ({error}): install s3fs") from error

    def address(self, name: str) -> str:
        """An http(s) address of the file, signed for this moment.

        Raises:
            UsageError: when there are no credentials, or the configuration of the S3 client is not usable.
        """
        from botocore.exceptions import BotoCoreError, HTTPClientError

        try:
            return str(self._files.sign(f"{self.location}/{checked(name)}", expiration=SIGNED_SECONDS))
        except HTTPClientError as error:  # the instance's role is asked for over the network
            raise ConnectionError(str(error)) from error
        except BotoCoreError as error:
            raise UsageError(
                f"{self.location} cannot be read ({error}): set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a "
                f"profile, or FSSPEC_S3_ANON=true for a public bucket"
            ) from error


def checked(name: str) -> str:
    """`name`, which is a plain file name.

    Raises:
        UsageError: when it could lead out of the set.
    """
    if not _NAME.fullmatch(name):
        raise UsageError(f"{name!r} is no name of a file in a shard set: build the set again")
    return name


def remote(location: str) -> bool:
    """Whether it is the address of a remote set and not a folder.

    Raises:
        UsageError: for a scheme that is not read.
    """
    scheme, mark, _ = location.partition("://")
    if not mark:
        return False
    if scheme not in ("http", "https", "s3"):
        raise UsageError(f"{scheme}:// in {location} is not read: give a folder, http://, https:// or s3://")
    return True


def origin(location: str) -> Origin:
    """The remote set under an http://, https:// or s3:// location."""
    return Bucket(location) if location.startswith("s3://") else Web(location)
