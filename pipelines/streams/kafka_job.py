"""Kafka on clusters: a topic as a source of Beam's, and what a job does with its messages.

Each partition is read by a step of its own, and the step behind it does with the messages what the local stream does:
it scores those of a bundle together, puts files in place, and records them with the offsets that they cover. So the
invariant is that of `kafka`, and a job needs neither state nor timers, and no shuffle.

    checkpoint of the runner, or else what the data set covers  ->  read  ->  score  ->  files in place  ->  record

A reader goes on from its mark, as the runner has it in a checkpoint. What is before the mark is recorded, or on its way
in the runner, whose checkpoint has it too. A job without a checkpoint begins at the first offset that is not covered.
Either may read what is recorded already, or about to be: the record of a bundle is there and the runner repeats it, or
the job before goes on without being known. What takes records in (`pipelines.data_set.adoption`) takes each offset
once. Nothing is committed for a consumer group.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import apache_beam as beam
from apache_beam.coders import Coder, registry
from apache_beam.io.unbounded_source import (
    CheckpointMark,
    ReadFromUnboundedSource,
    UnboundedReader,
    UnboundedSource,
)
from apache_beam.utils.timestamp import Timestamp

from pipelines.cli.options import ScoreConfig
from pipelines.cli.streaming_options import client_settings
from pipelines.data_set import coverage, pending
from pipelines.data_set.coverage import Covers
from pipelines.runs.plan import Plan
from pipelines.runs.worker_checks import check_worker, our_versions
from pipelines.streams.kafka import KafkaSource, covers_of
from pipelines.streams.sources import Received
from pipelines.streams.stages import Prepared, Stages, open_publisher
from torchmoji_core.errors import InputError, UnavailableError
from transforms.addresses import KafkaTopic
from transforms.output.commit import journal_directory
from transforms.records import RecordCoder
from transforms.scoring.per_process import PerProcess

POLL_SECONDS = 1
"""How soon to look again where there is nothing. Flink takes whole seconds."""
BUNDLE_RECORDS = 1000
CHUNK_BYTES = 8 << 20
"""Payloads that are scored together, at most; a bundle may have more."""
FIRST_SECONDS = 2.0
"""For the first message of a reader. A runner may have a new one for each bundle, which ends where there is nothing:
without waiting, none would ever read anything."""
IDLE_SECONDS = 10.0
"""How far the watermark is behind the clock: a message may come later than its time by so much."""
_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class Position(CheckpointMark):
    """How far a partition is read."""

    offset: int
    """The next one."""


class _PositionCoder(Coder):
    def encode(self, value: Position) -> bytes:
        return str(value.offset).encode()

    def decode(self, encoded: bytes) -> Position:
        return Position(int(encoded))

    def is_deterministic(self) -> bool:
        return True


@dataclass(frozen=True)
class KafkaPartition(UnboundedSource):
    """A partition of a topic."""

    topic: KafkaTopic
    name: str
    """Of the topic in records."""
    partition: int
    covered: tuple[tuple[int, int], ...]
    """Offsets that need not be read: intervals, first and last."""
    options: tuple[tuple[str, str], ...] = ()
    """Settings of the consumer."""
    config: str | None = None
    """File with further ones, which each worker reads, since it may hold secrets."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        # Beam finds the reader of the bundle before by the bytes of its source; those of a string are always the same.
        return _unpickled, (json.dumps(dataclasses.asdict(self)),)

    def split(self, desired_num_splits: int, options: Any = None) -> Sequence[KafkaPartition]:
        return [self]

    def create_reader(self, options: Any, checkpoint_mark: CheckpointMark | None) -> PartitionReader:
        assert checkpoint_mark is None or isinstance(checkpoint_mark, Position)
        return PartitionReader(self, checkpoint_mark)

    def get_checkpoint_mark_coder(self) -> Coder:
        return _PositionCoder()

    def default_output_coder(self) -> Coder:
        return registry.get_coder(Received)


def _unpickled(content: str) -> KafkaPartition:
    values = json.loads(content)
    return KafkaPartition(
        KafkaTopic(**values["topic"]),
        values["name"],
        values["partition"],
        tuple((first, last) for first, last in values["covered"]),
        tuple((name, value) for name, value in values["options"]),
        values["config"],
    )


class PartitionReader(UnboundedReader):
    """Reads a partition. While no broker answers, there is nothing to read."""

    def __init__(self, source: KafkaPartition, mark: Position | None) -> None:
        """Args:
        source: what to read.
        mark: where to begin; None for the first offset that is not covered.
        """
        self._source, self._mark = source, mark
        self._reader: KafkaSource | None = None
        self._current: Received | None = None

    def start(self) -> bool:
        return self.advance()

    def advance(self) -> bool:
        """Raises:
        InputError, RunError: if the topic is not the one that the job was submitted for, or cannot be read.
        """
        seconds = 0.0
        if self._reader is None:
            seconds = FIRST_SECONDS
            try:
                self._reader = self._open()
            except InputError as error:
                if not isinstance(error.__cause__, UnavailableError):
                    raise
                _LOGGER.warning("%s; it is tried again", error)
                return False
        self._current = self._reader.take(seconds)
        return self._current is not None

    def _open(self) -> KafkaSource:
        source = self._source
        known = [list(interval) for interval in source.covered]
        if self._mark is not None and self._mark.offset:
            known.append([0, self._mark.offset - 1])
        covers: Covers = {source.name: {str(source.partition): coverage.joined(known)}}
        settings = client_settings("consumer_config", source.config, source.options)
        opened = KafkaSource(source.topic, settings, covers, partitions=(source.partition,))
        if not coverage.is_same(opened.name, source.name):
            opened.close()
            raise InputError(f"{source.topic.uri}: workers find another topic there: {opened.name}, not {source.name}")
        by = "records of files" if self._mark is None else "a checkpoint"
        at = opened.position(source.partition)
        _LOGGER.info("%s, partition %d: reading from offset %d on, by %s", source.topic.uri, source.partition, at, by)
        return opened

    def get_current(self) -> Received:
        assert self._current is not None
        return self._current

    def get_current_timestamp(self) -> Timestamp:
        # Windows go by the times of rows. Producers may give times that no runner takes.
        now = time.time_ns() // 1000
        return Timestamp(micros=min(max(self.get_current().message.published, 0), now))

    def get_watermark(self) -> Timestamp:
        return Timestamp.of(time.time() - IDLE_SECONDS)

    def get_checkpoint_mark(self) -> Position:
        if self._reader is not None:
            return Position(self._reader.position(self._source.partition))
        return self._mark or Position(0)

    def close(self) -> None:
        if self._reader is not None:
            self._reader.close()


class ScoreMessages(beam.DoFn):
    """Messages of a bundle -> files in place, recorded together with what they cover. Gives nothing."""

    def __init__(self, config: ScoreConfig, name: str, place: PerProcess[Any]) -> None:
        """Args:
        config: the command line, with the id of the run.
        name: of the topic in records.
        place: the same for all partitions, so that a process loads one model for them.
        """
        self._config, self._name, self._place = config, name, place
        self._versions = our_versions()  # the launcher's, which workers must have too

    def setup(self) -> None:
        """Raises:
        InputError, RunError: if this worker sees another output, has another version, or cannot load the model.
        """
        config, stream = self._config, self._config.stream
        assert stream is not None
        run_id = config.score.run_id
        check_worker(config.output, run_id, self._versions, f"{journal_directory(config.output, run_id)}/{pending.RUN}")
        with self._place.lock:
            self._stages = Stages(config, stream, open_publisher(stream))

    def start_bundle(self) -> None:
        self._prepared: list[Prepared] = []
        self._receipts: list[str] = []
        self._bytes = 0

    def process(self, received: Received) -> None:
        self._prepared += self._stages.prepare(received.message)
        self._receipts.append(received.receipt)
        self._bytes += len(received.message.data)
        if self._bytes >= CHUNK_BYTES or len(self._receipts) >= BUNDLE_RECORDS:
            self._write()

    def finish_bundle(self) -> None:
        self._write()

    def _write(self) -> None:
        if self._receipts:
            covers = covers_of(self._name, self._receipts)
            self._stages.write(self._stages.score(self._prepared), covers)
        self.start_bundle()


def build_pipeline(pipeline: beam.Pipeline, plan: Plan, source: KafkaSource) -> None:
    """Add the whole job to a pipeline: for each partition, a step that reads and one that does the rest.

    Args:
        pipeline: an empty one.
        plan: what to do.
        source: the topic, as it is now: partitions that come later are read by the next job.
    """
    config, stream = plan.config, plan.config.stream
    assert stream is not None and isinstance(stream.source, KafkaTopic)
    place: PerProcess[Any] = PerProcess()
    for partition, intervals in source.partitions.items():
        covered = tuple((first, last) for first, last in intervals)
        read = ReadFromUnboundedSource(
            KafkaPartition(
                stream.source, source.name, partition, covered, stream.consumer_options, stream.consumer_config
            ),
            poll_interval=POLL_SECONDS,
            max_records_per_bundle=BUNDLE_RECORDS,
            max_read_time_seconds=stream.max_latency,
        )
        messages = pipeline | f"ReadPartition{partition}" >> read
        messages | f"ScoreMessages{partition}" >> beam.ParDo(ScoreMessages(config, source.name, place))


registry.register_coder(Received, RecordCoder)
