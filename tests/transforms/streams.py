"""Streams whose clocks and watermarks a test moves, annotated and written as a streaming run does it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest import mock

import apache_beam as beam
import pyarrow.parquet as pq
from apache_beam.runners.direct import direct_runner
from apache_beam.runners.direct.clock import TestClock
from apache_beam.testing import test_stream
from apache_beam.transforms.window import FixedWindows, TimestampedValue

from tests.transforms.conftest import Ran, Run
from transforms import AnnotateTweets, BufferOptions, Tweet, WriteDeadLetters, WriteScores
from transforms.output.commit import WrittenFile

WINDOW = 60
"""Seconds."""
Row = dict[str, Any]


class _RunnersClock(TestClock):
    """The clock of the stream that runs at the moment."""

    running: TestClock

    def __init__(self) -> None:
        super().__init__()
        _RunnersClock.running = self


def runners_time() -> float:
    """What timers of the running stream go by: it begins at 0, and the stream moves it."""
    return _RunnersClock.running.time()


@contextmanager
def runners_clock() -> Iterator[None]:
    """Streams that are run in it can have `runners_time` as their clock."""
    with mock.patch.object(direct_runner, "TestClock", _RunnersClock):
        yield


def tweet(second: float, text: str = "love and rain", name: str = "", **fields: Any) -> TimestampedValue:
    """A tweet of a moment, in seconds since 1970; its id begins with them."""
    return TimestampedValue(Tweet(f"{second:g}{name and '-'}{name}", text, round(second * 1e6), **fields), second)


def begin() -> test_stream.TestStream:
    """A stream to which events are added. Its watermark is at 0."""
    return test_stream.TestStream().advance_watermark_to(0)


def annotate_stream(
    run: Run,
    stream: test_stream.TestStream,
    output: Path,
    model: str,
    buffer: BufferOptions | None,
    window: float = WINDOW,
    on_file: Callable[[WrittenFile], Any] = lambda file: file,
    **arguments: Any,
) -> Ran:
    """Run a stream to its end. `files` of the result are those written, `batches` what came from the model."""

    def build(pipeline: beam.Pipeline) -> Mapping[str, beam.PCollection[Any]]:
        tweets = pipeline | stream | beam.WindowInto(FixedWindows(window))
        outcome = tweets | AnnotateTweets(model, timestamp=True, buffer=buffer, **arguments)
        files = outcome.results | WriteScores(str(output), "run")
        dead = outcome.dead_letters | WriteDeadLetters(str(output), "run")
        return {"batches": outcome.results, "files": files | beam.Map(on_file), "dead": dead}

    with runners_clock():
        return run(build, streaming=True)


def files_of(output: Path, window: float = WINDOW) -> list[list[Row]]:
    """Rows of each file, which all open and are all of one window, in whose directory they are."""
    found = []
    for path in sorted(output.rglob("*.parquet")):
        rows: list[Row] = pq.ParquetFile(path).read().to_pylist()
        assert "_tmp" not in path.parts, "all files are in place"
        windows = {row["timestamp"].timestamp() // window * window for row in rows}
        (start,) = windows
        moment = datetime.fromtimestamp(start, UTC)
        assert str(path.parent.relative_to(output)) == f"date={moment:%Y-%m-%d}/hour={moment:%H}"
        found.append(rows)
    return found


def ids_of(rows: Iterable[Row]) -> set[str]:
    return {row["id"] for row in rows}


def panes(output: Path) -> Counter[frozenset[str]]:
    """The ids of each file."""
    return Counter(frozenset(ids_of(rows)) for rows in files_of(output))
