"""Objects that are written and found in a bucket."""

from __future__ import annotations

from tests.object_store_server import ObjectStoreServer
from transforms.storage import files as storage
from transforms.storage.listing import FileFacts

FAULTY = 0.2


def contents(server: ObjectStoreServer, bucket: str) -> dict[str, bytes]:
    return server.contents(bucket.partition("://")[2])


def fill(server: ObjectStoreServer, bucket: str, keys: list[str]) -> None:
    client = server.client()
    for key in keys:
        client.put_object(Bucket=bucket.removeprefix("s3://"), Key=key, Body=key.encode())


def write(path: str, content: bytes) -> None:
    with storage.create(path) as file:
        file.write(content)


def paths(found: list[FileFacts]) -> list[str]:
    return [metadata.path for metadata in found]
