"""Pub/Sub as a source of messages, and as a topic to publish rows to, with Google's client."""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pyarrow as pa

from pipelines.data_set.coverage import Covers
from pipelines.streams.sources import Received, SourceUnavailableError
from torchmoji_core.errors import InputError, RunError, UnavailableError, first_line
from transforms.addresses import PUBSUB, KafkaTopic, PubSubName
from transforms.output.messages import to_messages
from transforms.output.publish import to_attributes
from transforms.records import Message

PULLED_AT_ONCE = 1000
"""The most that Pub/Sub gives at a time."""
PULLED_BYTES = 64 << 20
"""The most that several messages may have together: gRPC refuses more, and fewer are asked for. One alone may have any
size; its reader decides what to do with it."""
CALM_SECONDS = 600.0
"""The longest that a subscription waits to deliver refused messages again; only after that more are asked for."""
TRIES_FOR_ONE = 10
"""After so many, a single message that the server cannot send ends the reading."""
FEW, LINGER_SECONDS = 500, 0.1
"""After a pull that gave fewer, the next waits a moment: a pull is answered as soon as there is one message, and costs
as much for one as for hundreds."""
PULL_SECONDS = 5.0
FIRST_PULL_SECONDS = 1.0
"""Faults of a subscription are answered at once; a subscription without messages does not answer."""
REQUEST_SECONDS = 10.0
RECEIPTS_AT_ONCE = 1000
RECEIPT_BYTES_AT_ONCE = 400_000
"""Pub/Sub takes requests of 512 KiB."""
PUBLISH_SECONDS = 300.0
_RECEIPT_OVERHEAD = 8
"""Bytes of a request beside each receipt's own."""
_UNBOUNDED = -1
_LOGGER = logging.getLogger(__name__)


class PubSubSource:
    """A subscription. It is looked at once when it is made, so that what is wrong with it is said at once."""

    def __init__(self, subscription: str, clock: Callable[[], float] = time.monotonic) -> None:
        """Args:
            subscription: projects/P/subscriptions/S.
            clock: seconds; to be replaced in tests.

        Raises:
            InputError: if it is not there, or we may not read it.
        """
        from google.api_core import exceptions
        from google.auth.exceptions import GoogleAuthError
        from google.cloud import pubsub

        self.uri = PUBSUB + subscription
        self.passed_over: Covers = {}
        self._subscription, self._errors, self._clock = subscription, exceptions, clock
        self._stopped = threading.Event()
        self._at_once, self._more_at = PULLED_AT_ONCE, math.inf
        """How many messages are asked for, fewer after a response that was too large; and until when."""
        self._tries_for_one = 0
        """How often in a row not even one could be received."""
        self._has_few = False
        self._first: list[Received] = []
        """What the look at the subscription gave."""
        try:
            # A pull that waits can only be ended by closing its client, so it has a client of its own.
            self._client, self._puller = _subscriber(pubsub, PULLED_BYTES), _subscriber(pubsub, PULLED_BYTES)
            self._puller_of_one = _subscriber(pubsub, _UNBOUNDED)
            try:
                self._first = self._request_messages(1, FIRST_PULL_SECONDS)
            except (exceptions.DeadlineExceeded, exceptions.ResourceExhausted) as error:
                if not isinstance(error, exceptions.DeadlineExceeded) and not self._is_too_large(error):
                    raise
        except exceptions.NotFound:
            raise InputError(f"--input {self.uri}: there is no such subscription; create it first") from None
        except (exceptions.PermissionDenied, exceptions.Unauthenticated, GoogleAuthError) as error:
            raise InputError(f"--input {self.uri}: may not be read: {first_line(error)}") from None
        except exceptions.GoogleAPIError as error:
            cause = UnavailableError(self.uri) if isinstance(error, self._transient) else None
            raise InputError(f"--input {self.uri}: cannot be reached: {first_line(error)}") from cause

    def pull(self, count: int) -> list[Received]:
        """See `Source.pull`."""
        if self._first:
            first, self._first = self._first, []
            return first
        if self._has_few and self._stopped.wait(LINGER_SECONDS):
            return []
        self._has_few = False
        if self._clock() >= self._more_at:
            self._at_once, self._more_at = PULLED_AT_ONCE, math.inf
        count = min(count, self._at_once)
        try:
            received = self._request_messages(count, PULL_SECONDS)
        except self._errors.DeadlineExceeded:
            return []  # nothing was there
        except Exception as error:
            if self._stopped.is_set():
                return []
            if self._is_too_large(error):
                self._ask_for_fewer(count, error)
                if count > 1:
                    return []
            raise self._explained(error) from error
        self._tries_for_one = 0
        self._has_few = len(received) < FEW
        return received

    def covers(self, receipts: Sequence[str]) -> Covers:
        """See `Source.covers`."""
        return {}

    def extend(self, receipts: Sequence[str], seconds: int) -> None:
        """See `Source.extend`."""
        for some in _some(receipts):
            request = {"subscription": self._subscription, "ack_ids": some, "ack_deadline_seconds": seconds}
            self._request(self._client.modify_ack_deadline, request)

    def acknowledge(self, receipts: Sequence[str]) -> None:
        """See `Source.acknowledge`."""
        for some in _some(receipts):
            self._request(self._client.acknowledge, {"subscription": self._subscription, "ack_ids": some})

    def stop(self) -> None:
        """See `Source.stop`."""
        self._stopped.set()
        # Or a pull that still waits there would get the messages that we give back.
        for puller in (self._puller, self._puller_of_one):
            puller.close()

    def _request(self, method: Any, request: dict[str, Any]) -> None:
        try:
            method(request=request, timeout=REQUEST_SECONDS, retry=None)  # the caller tries again
        except Exception as error:
            raise self._explained(error) from error

    def _request_messages(self, count: int, timeout: float) -> list[Received]:
        request = {"subscription": self._subscription, "max_messages": count}
        puller = self._puller if count > 1 else self._puller_of_one
        response = puller.pull(request=request, timeout=timeout, retry=None)
        # Wrapped, each attribute takes microseconds.
        return [_received(item) for item in type(response).pb(response).received_messages]

    def _is_too_large(self, error: Exception) -> bool:
        """Whether gRPC refused a response for its size; the same status is that of a quota."""
        return isinstance(error, self._errors.ResourceExhausted) and "larger than max" in str(error)

    def _ask_for_fewer(self, count: int, error: Exception) -> None:
        """Raises:
        RunError: if not even one message can be received.
        """
        _LOGGER.warning(
            "up to %d messages were too large to be received together; fewer are asked for, and these come again: %s",
            count,
            first_line(error),
        )
        self._at_once, self._more_at = max(1, count // 4), self._clock() + CALM_SECONDS
        self._tries_for_one = self._tries_for_one + 1 if count == 1 else 0
        if self._tries_for_one >= TRIES_FOR_ONE:
            raise RunError(
                f"{self.uri} has a message that cannot be received ({first_line(error)}); remove it there, for "
                "instance by seeking the subscription to a time after it"
            )

    def _explained(self, error: Exception) -> Exception:
        """An error of a request as the caller understands it."""
        if isinstance(error, self._transient):
            return SourceUnavailableError(first_line(error))
        return RunError(f"reading {self.uri} failed: {first_line(error)}")

    @property
    def _transient(self) -> tuple[type[Exception], ...]:
        errors = self._errors
        return (
            errors.ServerError,  # of which DeadlineExceeded and ServiceUnavailable are
            errors.TooManyRequests,
            errors.Aborted,
            errors.RetryError,
        )


def _received(item: Any) -> Received:
    message = item.message
    published = message.publish_time
    micros = published.seconds * 1_000_000 + published.nanos // 1000
    return Received(Message(message.message_id, message.data, micros, dict(message.attributes)), item.ack_id)


def check_topic(source: PubSubName, publish: PubSubName | KafkaTopic | None) -> None:
    """Raises:
    InputError: if rows would be published to the topic of the subscription that is read, and its reader may know.
    """
    if not isinstance(publish, PubSubName):
        return
    from google.api_core.exceptions import GoogleAPIError
    from google.auth.exceptions import GoogleAuthError
    from google.cloud import pubsub

    try:
        with _subscriber(pubsub, _UNBOUNDED) as client:
            request = {"subscription": source.path}
            topic = client.get_subscription(request=request, timeout=REQUEST_SECONDS, retry=None).topic
    except (GoogleAPIError, GoogleAuthError):  # to read a subscription is not to be allowed to look at it
        return
    if topic == publish.path:
        raise InputError(f"--publish {publish.uri} is what --input reads: rows would come back as messages")


class PubSubTopic:
    """A topic that rows are published to, with the id as an attribute."""

    def __init__(self, topic: str) -> None:
        """Args:
            topic: projects/P/topics/T.

        Raises:
            InputError: if there are no credentials for it.
        """
        from google.auth.exceptions import GoogleAuthError
        from google.cloud import pubsub

        self._topic = topic
        try:
            self._client = pubsub.PublisherClient()
        except GoogleAuthError as error:
            raise InputError(f"--publish {PUBSUB}{topic}: may not be written: {first_line(error)}") from None

    def publish(self, batches: Sequence[pa.RecordBatch]) -> None:
        """See `Publisher.publish`."""
        futures = [
            self._client.publish(self._topic, content, **to_attributes(key))
            for batch in batches
            for key, content in to_messages(batch)
        ]
        try:
            for future in futures:
                future.result(PUBLISH_SECONDS)
        except Exception as error:
            raise RunError(f"--publish {PUBSUB}{self._topic}: rows cannot be published: {first_line(error)}") from error


def _subscriber(pubsub: Any, received_bytes: int) -> Any:
    """A client that takes responses of that size; of an emulator, Google's own would take 4 MiB."""
    import grpc

    emulator = os.environ.get("PUBSUB_EMULATOR_HOST")
    if not emulator:
        return pubsub.SubscriberClient()  # the service itself answers with ten megabytes at most
    channel = grpc.insecure_channel(emulator, options=[("grpc.max_receive_message_length", received_bytes)])
    transport = pubsub.SubscriberClient.get_transport_class("grpc")(host=emulator, channel=channel)
    return pubsub.SubscriberClient(transport=transport)


def _some(receipts: Sequence[str]) -> Iterator[Sequence[str]]:
    """Parts that Pub/Sub takes in one request."""
    some: list[str] = []
    size = 0
    for receipt in receipts:
        if some and (len(some) == RECEIPTS_AT_ONCE or size + len(receipt) > RECEIPT_BYTES_AT_ONCE):
            yield some
            some, size = [], 0
        some.append(receipt)
        size += len(receipt) + _RECEIPT_OVERHEAD
    if some:
        yield some
