"""Streams as a user runs them: the score command in a process of its own, reading from a Pub/Sub server of ours."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from pipelines.data_set.snapshot import DataSet, live_files
from tests.fake_pubsub import FakePubSub, FakeSubscription
from tests.processes import ScoreProcess

SUBSCRIPTION = "projects/my-project/subscriptions/posts"
URI = f"pubsub://{SUBSCRIPTION}"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakePubSub]:
    """A Pub/Sub server with a subscription, which streams of this process read from."""
    with FakePubSub() as fake:
        fake.subscribe(SUBSCRIPTION)
        monkeypatch.setenv("PUBSUB_EMULATOR_HOST", fake.address)
        yield fake


@pytest.fixture
def subscription(server: FakePubSub) -> FakeSubscription:
    """That subscription, as its server sees it."""
    return server.subscriptions[SUBSCRIPTION]


class Stream(ScoreProcess):
    """A running `pipelines.score --streaming` in `directory`, from our subscription to `out`."""

    def __init__(self, directory: Path, model: str, server: FakePubSub, *options: str) -> None:
        arguments = ["--streaming", "--input", URI, "--model", model, "--output", "out", "--commit_every", "1s"]
        super().__init__(directory, *arguments, *options, variables={"PUBSUB_EMULATOR_HOST": server.address})


@contextmanager
def running(directory: Path, model: str, server: FakePubSub, *options: str) -> Iterator[Stream]:
    """A stream for a block; a process that is left is killed."""
    stream = Stream(directory, model, server, *options)
    try:
        yield stream
    finally:
        stream.close()


class Sender:
    """Publishes posts that tell their number, and remembers them by id."""

    def __init__(self, server: FakePubSub) -> None:
        self._server = server
        self.sent: dict[str, str] = {}
        """Id of the post -> id of its message."""

    def send(self, count: int, **fields: Any) -> None:
        """Send posts at once."""
        for number in range(len(self.sent), len(self.sent) + count):
            words = ["so", "happy", "sad", "late", "rain", "."] * 6
            post = {"id": f"post-{number:05}", "text": " ".join(words[number % 5 : number % 31 + 6])} | fields
            self.sent[str(post["id"])] = self._server.send(SUBSCRIPTION, json.dumps(post).encode())

    def send_at(self, rate: float, seconds: float) -> None:
        """Send posts at a steady rate, in posts a second."""
        begin, first = time.monotonic(), len(self.sent)
        while (elapsed := time.monotonic() - begin) < seconds:
            self.send(round(elapsed * rate) - (len(self.sent) - first))
            time.sleep(0.01)


def result_files(output: Path) -> list[Path]:
    """All files under a final name, whether or not a manifest lists them."""
    return sorted(output.glob("date=*/hour=*/part-*.parquet"))


def rows_in_place(output: Path, window: int) -> Counter[str]:
    """How often each id is in the files that are in place; each file must open, and hold rows of one window.

    Args:
        output: of the stream.
        window: in seconds.
    """
    ids: Counter[str] = Counter()
    for path in result_files(output):
        table = pq.ParquetFile(path).read()
        ids.update(table["id"].to_pylist())
        starts = {int(time_.timestamp()) // window * window for time_ in table["timestamp"].to_pylist()}
        assert len(starts) == 1, f"{path} has rows of several windows"
        start = datetime.fromtimestamp(starts.pop(), UTC)
        assert path.parent.relative_to(output) == Path(f"date={start:%Y-%m-%d}", f"hour={start:%H}"), path
    return ids


def live_ids(output: Path) -> list[str]:
    """Ids of the rows that are results, sorted."""
    tables = [pq.read_table(path, columns=["id"], partitioning=None) for path in live_files(str(output))]
    return sorted(id_ for table in tables for id_ in table["id"].to_pylist())


def covered(output: Path) -> Mapping[str, list[list[int]]]:
    """By partition, the offsets that the manifests of a data set with one topic cover."""
    (partitions,) = DataSet.read(str(output)).covers.values()
    return partitions
