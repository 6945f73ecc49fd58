"""Kafka's transforms by an expansion service of ours, which has Python's lists for topics: what they are asked for.

It cannot show that Kafka is read rightly, only that our side of it is: options, records, rows, and the journal.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import apache_beam as beam
import grpc
import pytest
from apache_beam.coders import RowCoder
from apache_beam.portability.api import beam_expansion_api_pb2_grpc, external_transforms_pb2
from apache_beam.runners.portability.expansion_service import ExpansionServiceServicer

from tests.pipelines.conftest import Finished
from tests.streams import rows_in_place

ASKED: dict[str, Any] = {}
"""Configuration by transform."""
WRITTEN: list[tuple[bytes, bytes]] = []
PUBLISHED = 1_790_000_000_000


class _External(beam.PTransform):
    """What takes the place of one of Kafka's transforms."""

    @classmethod
    def from_runner_api_parameter(cls, transform: Any, payload: Any, context: Any) -> _External:
        ASKED[cls.__name__] = RowCoder(payload.schema).decode(payload.payload)
        return cls()


class _Read(_External):
    def expand(self, pbegin: Any) -> beam.PCollection[Any]:
        contents = [b'{"id": "a", "text": "so late"}', b'{"text": "so happy"}', b"{"]
        return pbegin | beam.Create(list(enumerate(contents))) | beam.Map(_record)


def _record(element: tuple[int, bytes]) -> beam.Row:
    return beam.Row(
        topic="posts",
        partition=3,
        offset=element[0],
        timestamp=PUBLISHED,
        key=b"",
        value=element[1],
        headers=[beam.Row(key="key", value=b"from-a-header")],
    )


class _Write(_External):
    def expand(self, rows: beam.PCollection[Any]) -> beam.PCollection[None]:
        return rows | beam.Map(_write)


def _write(row: tuple[bytes, bytes]) -> None:
    WRITTEN.append(row)


for _urn, _transform in (("kafka_read_with_metadata", _Read), ("kafka_write", _Write)):
    beam.PTransform.register_urn(
        f"beam:transform:org.apache.beam:{_urn}:v1",
        external_transforms_pb2.ExternalConfigurationPayload,
        _transform.from_runner_api_parameter,
    )


@pytest.fixture
def service() -> Iterator[str]:
    """Address of the expansion service."""
    ASKED.clear()
    WRITTEN.clear()
    server = grpc.server(ThreadPoolExecutor(2))
    beam_expansion_api_pb2_grpc.add_ExpansionServiceServicer_to_server(ExpansionServiceServicer(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None)


def test_kafka_from_records_to_rows_and_messages(
    service: str, run_score: Callable[..., Finished], run_verify: Callable[..., Finished], tmp_path: Path
) -> None:
    finished = run_score(
        *("--streaming", "--input", "kafka://b1:9092,b2:9092/posts", "--output", "out", "--runner", "FnApiRunner"),
        *("--expansion_service", service, "--consumer_option", "group.id=scores", "--id_attribute", "key"),
        *("--publish", "kafka://b3:9092/rows", "--producer_option", "acks=all"),
    )
    assert finished.status == 0, finished.err
    assert "submitted to FnApiRunner" in finished.out
    read, write = ASKED["_Read"], ASKED["_Write"]
    assert dict(read.consumer_config) == {"bootstrap.servers": "b1:9092,b2:9092", "group.id": "scores"}
    assert list(read.topics) == ["posts"] and read.commit_offset_in_finalize
    assert dict(write.producer_config) == {"bootstrap.servers": "b3:9092", "acks": "all"} and write.topic == "rows"

    assert rows_in_place(tmp_path / "out", window=3600) == {"a": 1, "from-a-header": 1}
    letters = [
        json.loads(line)
        for path in (tmp_path / "out").glob("_dead_letters/**/*.jsonl")
        for line in path.read_text().splitlines()
    ]
    assert [letter["position"] for letter in letters] == ["3:2"]
    assert {key for key, _ in WRITTEN} == {b"a", b"from-a-header"}
    verified = run_verify("--clean")
    assert verified.status == 0, verified.err
