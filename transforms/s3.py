"""Amazon S3, and what speaks its protocol (MinIO, R2, Ceph), with boto3.

Not with Beam's own client (`apache_beam.io.aws`, as of 2.77), which does not hold what this package promises: a file
whose writing ends in an exception is published cut off; a failed upload leaves its parts behind; an empty file cannot
be written; an object replaced between the requests of a read is read half and half; a bucket that does not exist looks
empty; errors are tried again for up to ten minutes; there is no bound on a silent server; and every operation makes a
client of its own, which takes longer than a request. Its options (`--s3_endpoint_url`, ...) hold here.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from apache_beam.io.filesystems import FileSystems
from apache_beam.options.pipeline_options import PipelineOptions, S3Options

from torchmoji_core.errors import ChangedError
from torchmoji_core.patience import request_seconds
from transforms import metrics
from transforms.listing import FileFacts, translate
from transforms.object_store import ObjectStore, StoredObject, TransientError, retrying

_KEYS_PER_REQUEST = 1000
_TRANSIENT_CODES = {"RequestTimeout", "SlowDown", "Throttling", "InternalError", "ServiceUnavailable", "BadDigest"}
# An upload whose completion was lost on the way is gone when completion is asked for again: upload once more.
_TRANSIENT_CODES |= {"NoSuchUpload", "OperationAborted", "ConditionalRequestConflict"}
_OPTIONS = {
    "s3_endpoint_url": "endpoint_url",
    "s3_region_name": "region_name",
    "s3_api_version": "api_version",
    "s3_verify": "verify",
    "s3_access_key_id": "aws_access_key_id",
    "s3_secret_access_key": "aws_secret_access_key",
    "s3_session_token": "aws_session_token",
}
T = TypeVar("T")


class S3Store(ObjectStore):
    """Objects with URIs s3://bucket/key. Cheap to make: clients are shared by all threads of a process."""

    def __init__(self, options: PipelineOptions | None) -> None:
        """Args:
        options: may have Beam's `S3Options`; boto3's own environment variables and files hold where they say nothing.

        Raises:
            OSError: if boto3 is not there, or a client cannot be made from the settings.
        """
        given = options.view_as(S3Options) if options is not None else None
        settings = {name: getattr(given, option) for option, name in _OPTIONS.items() if getattr(given, option, None)}
        if getattr(given, "s3_disable_ssl", False):
            settings["use_ssl"] = False
        self._keys = {name: value for name, value in settings.items() if name.startswith("aws_")}
        environment = tuple(sorted(item for item in os.environ.items() if item[0].startswith("AWS_")))
        self._client = _client(tuple(sorted(settings.items())), environment, request_seconds())

    def settings(self) -> dict[str, str]:
        import boto3

        endpoint, region = self._client.meta.endpoint_url, self._client.meta.region_name
        found = boto3.session.Session(**self._keys).get_credentials()
        keys = found.get_frozen_credentials() if found else None
        settings = {
            "aws_access_key_id": keys and keys.access_key,
            "aws_secret_access_key": keys and keys.secret_key,
            "aws_session_token": keys and keys.token,
            "aws_region": region,
            "aws_endpoint": None if "amazonaws.com" in endpoint else endpoint,
            "aws_allow_http": "true" if endpoint.startswith("http:") else None,
            "timeout": f"{request_seconds():g}s",
        }
        return {name: value for name, value in settings.items() if value}

    def match(self, pattern: str) -> list[FileFacts]:
        if pattern.endswith("/"):
            pattern += "*"
        prefix = re.split(r"[\[*?]", pattern, maxsplit=1)[0]
        if prefix == pattern:
            found = self.metadata(pattern)
            return [found] if found else []
        matches = translate(pattern).fullmatch
        return [metadata for metadata in self._list(prefix) if matches(metadata.path)]

    def _list(self, prefix: str) -> Iterator[FileFacts]:
        bucket, key = _split(prefix)
        request = {"Bucket": bucket, "Prefix": key}
        while True:
            page = self._request(prefix, "list", lambda: self._client.list_objects_v2(**request))
            for item in page.get("Contents", ()):
                if not item["Key"].endswith("/"):  # the place holder of a directory is no file
                    path = f"s3://{bucket}/{item['Key']}"
                    yield FileFacts(path, item["Size"], item["LastModified"].timestamp(), item["ETag"])
            if not page.get("IsTruncated"):
                return
            request["ContinuationToken"] = page["NextContinuationToken"]

    def metadata(self, path: str) -> FileFacts | None:
        if not _split(path)[1]:
            return None
        try:
            head = self._head(path)
        except FileNotFoundError:
            return None
        return FileFacts(path, head["ContentLength"], head["LastModified"].timestamp(), head["ETag"])

    def _head(self, path: str) -> dict[str, Any]:
        bucket, key = _object(path)
        return self._request(path, "look-up", lambda: self._client.head_object(Bucket=bucket, Key=key))

    def open(self, path: str, version: str | None = None) -> StoredObject:
        head = self._head(path)
        if version not in (None, head["ETag"]):
            raise ChangedError.of(path)
        return _S3Object(self, path, head["ContentLength"], head["ETag"], version is not None)

    def read(self, path: str) -> bytes:
        bucket, key = _object(path)
        return self._request(path, "read", lambda: self._client.get_object(Bucket=bucket, Key=key)["Body"].read())

    def read_range(self, path: str, start: int, end: int, etag: str) -> bytes:
        """Bytes [start, end) of the version of an object that has the etag."""
        bucket, key = _object(path)

        def get() -> bytes:
            answer = self._client.get_object(Bucket=bucket, Key=key, Range=f"bytes={start}-{end - 1}", IfMatch=etag)
            content: bytes = answer["Body"].read()
            if len(content) != end - start:
                raise TransientError(f"{len(content)} bytes came where {end - start} were asked for")
            return content

        return self._request(path, "read", get)

    def upload(self, local: Path, path: str) -> None:
        bucket, key = _object(path)

        # In one request below 8 MiB; in parts above, which boto3 removes if the upload fails.
        def upload_once() -> None:
            self._client.upload_file(str(local), bucket, key, Callback=lambda _: metrics.get_on())

        self._request(path, "upload", upload_once)

    def put_if_absent(self, path: str, content: bytes) -> bool:
        bucket, key = _object(path)

        def put() -> bool:
            try:
                self._client.put_object(Bucket=bucket, Key=key, Body=content, IfNoneMatch="*")
            except self._client.exceptions.ClientError as error:
                if error.response.get("ResponseMetadata", {}).get("HTTPStatusCode") != 412:
                    raise
                return False
            return True

        return self._request(path, "upload", put)

    def copy(self, source: str, destination: str) -> None:
        (from_bucket, from_key), (bucket, key) = _object(source), _object(destination)
        origin = {"Bucket": from_bucket, "Key": from_key}
        self._request(source, "copy", lambda: self._client.copy(origin, bucket, key))

    def delete(self, paths: Sequence[str]) -> None:
        keys: dict[str, list[str]] = {}
        for bucket, key in map(_object, paths):
            keys.setdefault(bucket, []).append(key)
        for bucket, all_keys in keys.items():
            for first in range(0, len(all_keys), _KEYS_PER_REQUEST):
                self._delete(bucket, all_keys[first : first + _KEYS_PER_REQUEST])

    def _delete(self, bucket: str, keys: list[str]) -> None:
        wanted = {"Objects": [{"Key": key} for key in keys], "Quiet": True}

        def delete() -> None:
            for error in self._client.delete_objects(Bucket=bucket, Delete=wanted).get("Errors", ()):
                reason = f"s3://{bucket}/{error['Key']}: cannot be deleted ({error['Code']}: {error.get('Message')})"
                raise TransientError(reason) if error["Code"] in _TRANSIENT_CODES else OSError(reason)

        self._request(f"s3://{bucket}/{keys[0]}", "delete", delete)

    def _request(self, path: str, operation: str, call: Callable[[], T]) -> T:
        """Call, with every error as an OSError, again while it is transient."""
        from boto3.exceptions import Boto3Error
        from botocore.exceptions import BotoCoreError, ClientError
        from urllib3.exceptions import HTTPError

        def translated() -> T:
            try:
                return call()
            except (Boto3Error, BotoCoreError, ClientError, HTTPError, ConnectionError, TimeoutError) as error:
                raise _translate(path, error, self._client.meta.endpoint_url) from error

        return retrying(path, operation, translated)


class _ReplacedError(OSError):
    """Another object has taken the place of the one that is being read."""


class _S3Object(StoredObject):
    def __init__(self, store: S3Store, path: str, size: int, etag: str, as_listed: bool) -> None:
        self._store, self._path, self.size, self._etag = store, path, size, etag
        self._as_listed = as_listed

    def read_range(self, start: int, end: int) -> bytes:
        try:
            return self._store.read_range(self._path, start, end, self._etag)
        except _ReplacedError:
            if self._as_listed:
                raise ChangedError.of(self._path) from None
            raise


@lru_cache(maxsize=16)
def _client(settings: tuple[tuple[str, Any], ...], environment: tuple[tuple[str, str], ...], seconds: float) -> Any:
    """A client for the settings; the environment, which boto3 reads itself, only tells one client from another."""
    try:
        import boto3
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError
    except ImportError:
        raise OSError("s3:// needs this package's extra aws: pip install 'torchmoji-beam[aws]'") from None
    # As many connections as threads may ask for at a time: several uploads of ten threads each.
    config = Config(connect_timeout=min(seconds, 10), read_timeout=seconds, max_pool_connections=64)
    try:
        return boto3.session.Session().client("s3", config=config, **dict(settings))
    except (BotoCoreError, ValueError) as error:
        raise OSError(f"s3://: {error}; check the AWS_ variables, ~/.aws/config and the --s3_ options") from None


def options_of_beam() -> PipelineOptions | None:
    """The options that the running pipeline, or a worker's, has given to Beam's filesystems."""
    options = FileSystems.get_filesystem("s3://")._options
    return options if isinstance(options, PipelineOptions) else None


def _split(path: str) -> tuple[str, str]:
    bucket, _, key = path.removeprefix("s3://").partition("/")
    if not bucket:
        raise OSError(f"{path}: has no bucket; the form is s3://bucket/key")
    return bucket, key


def _object(path: str) -> tuple[str, str]:
    bucket, key = _split(path)
    if not key:
        raise OSError(f"{path}: is a bucket, and no file in it; the form is s3://bucket/key")
    return bucket, key


def _translate(path: str, error: Exception, endpoint: str) -> OSError:
    from boto3.exceptions import S3UploadFailedError
    from botocore import exceptions as botocore
    from urllib3.exceptions import HTTPError

    if isinstance(error, S3UploadFailedError) and isinstance(error.__context__, Exception):
        error = error.__context__
    reason = " ".join(str(error).split())
    if isinstance(error, botocore.ClientError):
        code = str(error.response.get("Error", {}).get("Code", ""))
        status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        if code in _TRANSIENT_CODES or status in (408, 429) or (status >= 500 and status != 501):
            return TransientError(reason)
        if code == "NoSuchBucket":
            return FileNotFoundError(
                f"{path}: bucket {_split(path)[0]} does not exist at {endpoint}; "
                "check its name and the endpoint (AWS_ENDPOINT_URL), or make it"
            )
        if status == 404:
            return FileNotFoundError(f"{path}: not found at {endpoint}")
        if status in (401, 403):
            return PermissionError(
                f"{path}: access is denied ({reason}); check the credentials (AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or the machine's role) and what they may do in this bucket"
            )
        if status == 412:
            return _ReplacedError(f"{path}: was replaced by another file while it was read; read it again")
        return OSError(f"{path}: {reason}")
    if isinstance(error, botocore.NoCredentialsError | botocore.PartialCredentialsError):
        return PermissionError(
            f"{path}: no credentials ({reason}); set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, "
            "or run where the machine has a role"
        )
    passing = (
        botocore.HTTPClientError,
        botocore.ConnectionError,
        botocore.IncompleteReadError,
        botocore.FlexibleChecksumError,
        HTTPError,
        ConnectionError,
        TimeoutError,
    )
    if isinstance(error, passing) and "CERTIFICATE_VERIFY_FAILED" not in reason:
        return TransientError(reason)
    return OSError(f"{path}: {reason or type(error).__name__}")
