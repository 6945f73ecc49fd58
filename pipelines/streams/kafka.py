"""Kafka as a source of messages, with librdkafka. The data set says where to begin, and no consumer group does.

    An offset is covered when a record of files is there that says so. It is written when all rows, dead letters and
    messages that are made from the offset are in place, and never before.

A start begins in each partition at the first offset that is not covered, and passes over what is. So wherever a process
ends, no offset is lost. In a process that has the lock of the stream, none is read by two; on clusters, what two have
read is told apart when it is taken in (`pipelines.data_set.adoption`).

A message's receipt is `partition:first:last`: `last` is its offset, and `first` the one behind the message before. What
is between them has no message for us: markers and aborted messages of transactions, and what the topic has compacted or
deleted. So intervals stay few.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from pipelines.data_set import coverage
from pipelines.data_set.coverage import Covers
from pipelines.streams.sources import Publisher, Received, SourceUnavailableError
from torchmoji_core.errors import InputError, RunError, UnavailableError, first_line
from transforms import metrics
from transforms.addresses import KafkaTopic
from transforms.input.messages import kafka_message
from transforms.kafka_settings import check_settings, place_of, wrong_setting
from transforms.output.kafka import KafkaSink
from transforms.records import Message

PULL_SECONDS = 5.0
_PASSED_OVER_AT_ONCE = 1000
"""Messages that are covered already, until it is looked again whether to go on."""
REQUEST_SECONDS = 10.0
"""For what is asked of brokers beside messages."""
PARTITIONS_SECONDS = 30.0
"""How often to look for new partitions."""
LOOK_SECONDS = 3.0
"""For such a look, which holds up messages."""
TAKEN_AT_ONCE = 100
"""Messages that librdkafka is asked for together, which costs less than one by one."""
PULLED_BYTES = 8 << 20
"""Payloads at which a pull ends. librdkafka holds as much again, and one answer of a broker."""
_TICK = 0.1
"""Seconds until a pull heeds `stop`."""
_DEFAULTS = {
    "client.id": "torchmoji",
    "group.id": "torchmoji",  # librdkafka wants one; nothing is committed for it unless it is given
    "isolation.level": "read_committed",
    "fetch.max.bytes": 8 << 20,
    # Or a broker answers as soon as there is one message, which costs as much as an answer with hundreds.
    "fetch.min.bytes": 64 << 10,
    "fetch.wait.max.ms": 100,
    "queued.max.messages.kbytes": 8 << 10,
    "log_level": 2,  # what matters comes as errors too
}
_OURS = {
    "enable.auto.commit": False,
    "enable.auto.offset.store": False,
    "enable.partition.eof": False,
    "allow.auto.create.topics": False,
    "auto.offset.reset": "error",  # where retention has deleted what comes next, that is to be said
}
_BEGINNINGS = {"earliest": True, "smallest": True, "beginning": True, "latest": False, "largest": False, "end": False}
_SAYINGS = 10
"""Callbacks that may wait with a reason."""
_LOGGER = logging.getLogger(__name__)


class KafkaSource:
    """A topic, or some of its partitions. It is looked at once when it is made, so that what is wrong with it is said
    at once."""

    def __init__(
        self,
        topic: KafkaTopic,
        settings: Mapping[str, str],
        covers: Covers,
        clock: Callable[[], float] = time.monotonic,
        partitions: Collection[int] | None = None,
    ) -> None:
        """Args:
            topic: what to read.
            settings: of librdkafka's consumer.
            covers: which messages files are made from already.
            clock: seconds; to be replaced in tests.
            partitions: to be read; None for all, also those that come later.

        Raises:
            InputError: if it is not there, we may not read it, or a setting is wrong.
        """
        import confluent_kafka

        self.uri, self._kafka, self._topic, self._clock = topic.uri, confluent_kafka, topic.topic, clock
        self._only = partitions
        self._stopped, self._busy = threading.Event(), threading.Lock()
        self._fault: RunError | None = None
        """What ends the stream at the next pull, if the one in which it came up has messages to give."""
        self._outage: SourceUnavailableError | None = None
        """Why the pull that goes on gives nothing."""
        self._said: Any = None
        """The last error that was not of a partition."""
        self._reports_to_group = "group.id" in settings
        at_beginning = _beginning(settings)
        self._consumer = self._connect(topic, settings)
        try:
            self._begin(covers, at_beginning)
        except confluent_kafka.KafkaException as error:
            explained = self._explained(error)
            self._consumer.close()
            raise explained from explained.__cause__
        except InputError:
            self._consumer.close()
            raise

    # --- see `Source` ---

    def pull(self, count: int) -> list[Received]:
        """See `Source.pull`."""
        with self._busy:
            if self._fault is not None:
                raise self._fault
            self._outage = None
            received = self._pull(count)
        if self._outage is not None and not received and not self._stopped.is_set():
            raise self._outage
        return received

    def covers(self, receipts: Sequence[str]) -> Covers:
        """See `Source.covers`."""
        return covers_of(self.name, receipts)

    def extend(self, receipts: Sequence[str], seconds: int) -> None:
        """See `Source.extend`: no message is ever delivered to anybody else."""

    def acknowledge(self, receipts: Sequence[str]) -> None:
        """Tell the consumer group, if one was given, how far we are: for those who watch its lag."""
        if not self._reports_to_group:
            return
        offsets = [
            self._kafka.TopicPartition(self._topic, int(partition), intervals[-1][1] + 1)
            for partition, intervals in self.covers(receipts)[self.name].items()
        ]
        try:
            self._consumer.commit(offsets=offsets, asynchronous=True)
        except (self._kafka.KafkaException, RuntimeError) as error:
            _LOGGER.debug("offsets were not committed: %s", error)

    def stop(self) -> None:
        """See `Source.stop`."""
        self._stopped.set()

    def close(self) -> None:
        """Leave the brokers. Nothing may be called any more; a pull that goes on is waited for."""
        self._stopped.set()
        if self._busy.acquire(timeout=2 * REQUEST_SECONDS):
            self._consumer.close()

    # --- where to begin ---

    def _connect(self, topic: KafkaTopic, settings: Mapping[str, str]) -> Any:
        check_settings("consumer", settings, _OURS.keys() - {"auto.offset.reset"})
        given = {name: value for name, value in settings.items() if name != "auto.offset.reset"}
        common = {"bootstrap.servers": topic.brokers, **_DEFAULTS, **given, **_OURS, "logger": _LOGGER}
        try:
            from confluent_kafka.admin import AdminClient

            self._admin = AdminClient(common)
            return self._kafka.Consumer({**common, "error_cb": self._heed, "on_commit": _committed})
        except (self._kafka.KafkaException, TypeError, ValueError, AttributeError) as error:
            raise wrong_setting("consumer", error) from None

    def _begin(self, covers: Covers, at_beginning: bool) -> None:
        """Begin in each partition behind what is covered. If nothing of the topic is, then where the options say."""
        found = self._consumer.list_topics(self._topic, timeout=REQUEST_SECONDS)
        described = found.topics[self._topic]
        if described.error is not None:
            raise self._kafka.KafkaException(described.error)
        # Another cluster may have a topic of that name, with other messages.
        self.place = place_of(found, self._topic)
        self._topic_id = self._find_topic_id(found, REQUEST_SECONDS)
        self.name, self._covered = self._continue(covers)
        self.passed_over: Covers = {}
        """What is never read, since the first start begins behind it. Where this is on record, what is deleted later
        without having been read is known to be lost."""
        if not self._covered:
            starts = {number: self._ends(number)[0 if at_beginning else 1] for number in sorted(described.partitions)}
            self._covered = {str(number): [[0, start - 1]] if start else [] for number, start in starts.items()}
            self.passed_over = {self.name: self._covered}
        self._next: dict[int, int] = {}
        """By partition, the offset behind the last message that was read."""
        self._unknown_since = 0
        self._astray: set[int] = set()
        """Partitions whose next offset is not there."""
        self._lost = 0
        self._look_at = self._clock() + PARTITIONS_SECONDS
        if self._only is not None:
            del self._admin  # it has threads, and is not asked again
        self.assign(described.partitions)

    def _find_topic_id(self, cluster: Any, seconds: float) -> str:
        """What tells a topic from another one of that name, of an earlier or a later time; empty where none is known.

        Args:
            cluster: its description.
            seconds: how long to wait.

        Raises:
            KafkaException: if there is no answer.
        """
        if cluster.controller_id not in cluster.brokers:
            return ""  # nobody could be asked
        codes = self._kafka.KafkaError
        try:
            topics = self._kafka.TopicCollection([self._topic])
            described = self._admin.describe_topics(topics, request_timeout=seconds)[self._topic].result()
        except self._kafka.KafkaException as error:
            if error.args[0].code() in (codes._UNSUPPORTED_FEATURE, codes.UNSUPPORTED_VERSION):
                return ""
            raise
        found = described.topic_id
        is_known = found is not None and (found.get_most_significant_bits() or found.get_least_significant_bits())
        return str(found) if is_known else ""

    def _continue(self, covers: Covers) -> tuple[str, dict[str, coverage.Intervals]]:
        """The name of the topic in records, and what is covered of it by partition.

        Raises:
            InputError: if that is of another topic of the same name.
        """
        ids = {name[len(self.place) + 1 :] for name in covers if coverage.is_same(name, self.place)} - {""}
        if self._topic_id and ids - {self._topic_id}:
            raise InputError(
                f"{self.uri}: the topic was made anew: its id is {self._topic_id}, and what is written is from "
                f"{', '.join(sorted(ids - {self._topic_id}))}; give another --output"
            )
        # A broker that is older than ids tells none.
        id_ = self._topic_id or next(iter(ids), "")
        name = f"{self.place}:{id_}" if id_ else self.place
        return name, coverage.of_source(covers, name)

    def assign(self, partitions: Mapping[int, Any]) -> None:
        """Take up partitions that are not read yet, if they are to be."""
        new = []
        wanted = partitions.keys() if self._only is None else partitions.keys() & set(self._only)
        for partition in sorted(wanted - self._next.keys()):
            offset = coverage.first_uncovered(self._covered.get(str(partition), []), 0)
            at = self._where(partition, offset)
            new.append(self._kafka.TopicPartition(self._topic, partition, at))
            self._next[partition] = offset
        if new:
            self._consumer.incremental_assign(new)

    def _where(self, partition: int, offset: int) -> int:
        """The offset to read on at: the first that is there.

        Raises:
            InputError: if the partition ends before it.
        """
        first, end = self._ends(partition)
        if offset > end:
            raise InputError(
                f"{self.uri}: partition {partition} ends at offset {end}, and what is written goes up to {offset}; the "
                "topic was made anew or has lost its end: give another --output"
            )
        if offset < first:
            self._lost += first - offset
            _LOGGER.warning(
                "%s, partition %d: offsets %d to %d were deleted before they were read (%d); going on at %d",
                self.uri, partition, offset, first - 1, first - offset, first,
            )  # fmt: skip
        return max(offset, first)

    def _ends(self, partition: int) -> tuple[int, int]:
        """The first offset of a partition, and the one behind its last."""
        at, codes = self._kafka.TopicPartition(self._topic, partition), self._kafka.KafkaError
        try:
            ends = self._consumer.get_watermark_offsets(at, timeout=REQUEST_SECONDS)
        except self._kafka.KafkaException as error:
            if error.args[0].code() != codes._UNKNOWN_PARTITION:
                raise
            # The topic has it, as we know, so that is all that it can mean.
            without = codes(codes.LEADER_NOT_AVAILABLE, f"partition {partition} has no leader at the moment")
            raise self._kafka.KafkaException(without) from None
        if ends is None:
            raise self._kafka.KafkaException(codes(codes._TIMED_OUT))
        return ends

    # --- reading ---

    def take(self, seconds: float = 0.0) -> Received | None:
        """The next message, if librdkafka has it.

        Args:
            seconds: how long to wait for it.

        Raises:
            RunError: if the topic cannot be read any more.
        """
        with self._busy:
            if self._fault is not None:
                raise self._fault
            self._outage = None
            self._put_right()
            self._count_lost()
            end = time.monotonic() + seconds
            for _ in range(_PASSED_OVER_AT_ONCE):
                left = max(0.0, end - time.monotonic())
                if self._has_to_end() or (record := self._consumer.poll(left)) is None:
                    return None
                if (message := self._take(record)) is not None:
                    return message
            return None

    @property
    def partitions(self) -> dict[int, coverage.Intervals]:
        """What is covered of each partition that is read."""
        return {partition: self._covered.get(str(partition), []) for partition in sorted(self._next)}

    def position(self, partition: int) -> int:
        """The offset behind the last message of a partition that was given."""
        return self._next[partition]

    def _pull(self, count: int) -> list[Received]:
        if self._stopped.is_set():
            return []
        self._look_for_partitions()
        self._put_right()
        self._count_lost()
        received: list[Received] = []
        size, end = 0, time.monotonic() + PULL_SECONDS
        while len(received) < count and size < PULLED_BYTES and time.monotonic() < end and not self._has_to_end():
            # Waits for one, and takes what librdkafka has behind it.
            wanted = min(count - len(received), TAKEN_AT_ONCE) if received else 1
            records = self._consumer.consume(wanted, 0 if received else _TICK)
            if received and not records:
                break
            for record in records:
                if (message := self._take(record)) is not None:
                    received.append(message)
                    size += len(message.message.data)
        return received

    def _count_lost(self) -> None:
        metrics.counter(metrics.LOST).inc(self._lost)
        self._lost = 0

    def _has_to_end(self) -> bool:
        is_troubled = self._outage is not None or self._fault is not None or bool(self._astray)
        return is_troubled or self._stopped.is_set()

    def _take(self, record: Any) -> Received | None:
        """A record as a message; None if it is covered already, or an error."""
        if record.error() is not None:
            self._heed(record.error(), record)
            return None
        self._said = None
        partition, offset = record.partition(), record.offset()
        first = self._next[partition]
        self._next[partition] = max(first, offset + 1)
        if offset < first:  # where a broker goes back
            return None
        if coverage.first_uncovered(self._covered.get(str(partition), []), offset) != offset:
            return None
        return Received(_message(record), f"{partition}:{first}:{offset}")

    def _look_for_partitions(self) -> None:
        if self._clock() < self._look_at:
            return
        self._look_at = self._clock() + PARTITIONS_SECONDS
        try:
            cluster = self._consumer.list_topics(self._topic, timeout=LOOK_SECONDS)
            found = cluster.topics[self._topic]
            if found.error is None:
                if (id_ := self._find_topic_id(cluster, LOOK_SECONDS)) != self._topic_id and id_ and self._topic_id:
                    raise InputError(f"{self.uri}: the topic was made anew under the stream; give another --output")
                self.assign(found.partitions)
            # Brokers that have just started may not know their topics yet.
            self._unknown_since = self._unknown_since + 1 if self._is_unknown(found.error) else 0
            if self._unknown_since > 1:
                self._fault = RunError(f"{self.uri}: there is no such topic any more")
        except self._kafka.KafkaException as error:
            _LOGGER.debug("partitions cannot be looked for: %s", error)
        except InputError as error:
            self._fault = RunError(str(error))

    def _put_right(self) -> None:
        """Go on in partitions whose next offset was deleted."""
        try:
            for partition in sorted(self._astray):
                at = self._where(partition, self._next[partition])
                moved = [self._kafka.TopicPartition(self._topic, partition, at)]
                with contextlib.suppress(self._kafka.KafkaException):  # it is not read any more, so it cannot be sought
                    self._consumer.incremental_unassign(moved)
                self._consumer.incremental_assign(moved)
                self._astray.discard(partition)
        except self._kafka.KafkaException as error:
            self._outage = SourceUnavailableError(first_line(error))
        except InputError as error:
            self._fault = RunError(str(error))

    # --- errors ---

    def _heed(self, error: Any, record: Any = None) -> None:
        """Note an error, of a partition or of the client; librdkafka tries again by itself what may succeed later."""
        codes = self._kafka.KafkaError
        if error.code() == codes._AUTO_OFFSET_RESET and record is not None:
            _LOGGER.warning("%s, partition %d: %s", self.uri, record.partition(), error.str())
            self._astray.add(record.partition())
        elif error.code() == codes.GROUP_AUTHORIZATION_FAILED:
            _LOGGER.debug("offsets cannot be committed: %s", error.str())
        elif error.fatal() or error.code() in self._lasting or self._is_unknown(error):
            self._fault = RunError(f"reading {self.uri} failed: {error.str()}")
            self._said = error
        else:
            self._said = error
            if error.code() == codes._ALL_BROKERS_DOWN or record is not None:
                self._outage = SourceUnavailableError(error.str())

    @property
    def _lasting(self) -> set[int]:
        codes = self._kafka.KafkaError
        return {
            codes._AUTHENTICATION,
            codes.SASL_AUTHENTICATION_FAILED,
            codes.TOPIC_AUTHORIZATION_FAILED,
            codes.CLUSTER_AUTHORIZATION_FAILED,
        }

    def _is_unknown(self, error: Any) -> bool:
        codes = self._kafka.KafkaError
        return error is not None and error.code() in (
            codes.UNKNOWN_TOPIC_OR_PART, codes._UNKNOWN_TOPIC, codes._UNKNOWN_PARTITION
        )  # fmt: skip

    def _explained(self, raised: Any) -> InputError:
        """Why the topic could not be looked at, as its user understands it."""
        for _ in range(_SAYINGS):
            self._consumer.poll(0)  # calls `_heed`
        error = raised.args[0]
        if self._is_unknown(error):
            return InputError(f"--input {self.uri}: there is no such topic; create it first")
        if error.code() in self._lasting or (self._said is not None and self._said.code() in self._lasting):
            return InputError(f"--input {self.uri}: may not be read: {(self._said or error).str()}")
        explained = InputError(f"--input {self.uri}: cannot be reached: {(self._said or error).str()}")
        codes = self._kafka.KafkaError
        if self._said is None or self._said.code() not in (codes._RESOLVE, codes._SSL):  # a name or key that is wrong
            explained.__cause__ = UnavailableError(self.uri)
        return explained


def covers_of(name: str, receipts: Iterable[str]) -> Covers:
    """What a record says that is made from messages.

    Args:
        name: of their topic in records.
        receipts: of the messages.
    """
    intervals: dict[str, coverage.Intervals] = defaultdict(list)
    for receipt in receipts:
        partition, first, last = receipt.split(":")
        intervals[partition].append([int(first), int(last)])
    return coverage.union({name: dict(intervals)})


def check_no_circle(source: KafkaSource, publisher: Publisher | None) -> None:
    """Raises:
    InputError: if rows would be published to the topic that is read, whichever brokers are named.
    """
    if isinstance(publisher, KafkaSink) and publisher.place == source.place:
        raise InputError(f"--publish {publisher.uri} is what --input reads: rows would come back as messages")


def _beginning(settings: Mapping[str, str]) -> bool:
    value = settings.get("auto.offset.reset", "earliest")
    if value not in _BEGINNINGS:
        raise InputError(f"--consumer_option auto.offset.reset must be earliest or latest, not {value!r}")
    return _BEGINNINGS[value]


def _committed(error: Any, offsets: Any) -> None:
    if error is not None:
        _LOGGER.debug("offsets were not committed: %s", error)


def _message(record: Any) -> Message:
    kind, timestamp = record.timestamp()
    if kind == 0:  # written by a client that knew of none
        timestamp = round(1000 * time.time())
    try:
        headers = record.headers() or ()
    except UnicodeDecodeError:  # a name that is no UTF-8
        headers = ()
    return kafka_message(
        record.topic(), record.partition(), record.offset(), timestamp, record.key(), record.value(), headers
    )
