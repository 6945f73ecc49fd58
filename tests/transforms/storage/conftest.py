"""An object store for all tests here, and a new bucket for each."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest

from tests.object_store_server import Faults, ObjectStoreServer


@pytest.fixture(scope="session")
def running() -> Iterator[ObjectStoreServer]:
    with ObjectStoreServer() as server:
        yield server


@pytest.fixture
def server(running: ObjectStoreServer, monkeypatch: pytest.MonkeyPatch) -> ObjectStoreServer:
    running.use(monkeypatch)
    running.faults = Faults()
    return running


@pytest.fixture
def bucket(server: ObjectStoreServer) -> str:
    """URI of a new bucket."""
    name = f"bucket{uuid.uuid4().hex[:12]}"
    server.client().create_bucket(Bucket=name)
    return f"s3://{name}"
