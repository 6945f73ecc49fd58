"""Reading a Pub/Sub subscription in this process: pulls no more than may be in flight, acknowledges what is written.

Beam's own reader on the local runner acknowledges ten messages before it processes them, so it loses what is in flight
when the process dies, and it pulls however much waits.
"""

from __future__ import annotations

import collections
import contextlib
import logging
import math
import os
import queue
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from torchmoji_core.errors import InputError, RunError, UnavailableError
from transforms.deliveries import Deliveries, keys_in

PULLED_AT_ONCE = 1000
"""The most that Pub/Sub gives at a time."""
PULLED_BYTES = 64 << 20
"""The most that several messages may have together: gRPC refuses more, and fewer are asked for. One alone may have any
size, and what is done with it is for who reads it to say."""
CALM_SECONDS = 600.0
"""The longest that a subscription waits to deliver again what was refused so; only then is more asked for again."""
TRIES_FOR_ONE = 10
"""After which a single message that the server cannot send ends the reading."""
PULL_SECONDS = 5.0
FIRST_PULL_SECONDS = 1.0
"""What is wrong with a subscription is said at once; that nothing is there, never."""
DEADLINE_SECONDS = 60
"""For how long a message is ours each time it is asked for; what dies with this process comes again after that."""
EXTEND_SECONDS = 4.0
"""Below ten seconds, the shortest deadline that a subscription may have."""
RECEIPTS_AT_ONCE = 1000
RECEIPT_BYTES_AT_ONCE = 400_000
"""Pub/Sub takes requests of 512 KiB."""
TAKEN_AT_ONCE = 4000
LONGEST_PAUSE = 30.0
STOP_SECONDS = 2.0
ACKNOWLEDGE_SECONDS = 10.0
_LOGGER = logging.getLogger(__name__)


class PubSubReader:
    """Pulls in one thread, and acknowledges and keeps messages in two others. A context manager around a run."""

    def __init__(self, subscription: str, deliveries: Deliveries, linger: float = 0.25) -> None:
        """Args:
        subscription: projects/P/subscriptions/S.
        deliveries: what is in flight.
        linger: seconds that a message waits for company, since a bundle costs as much for one as for hundreds.
        """
        self._subscription, self._deliveries, self._linger = subscription, deliveries, linger
        self._pulled: collections.deque[tuple[float, Any]] = collections.deque()
        self._arrived = threading.Condition()
        self._stopping, self._closed = threading.Event(), threading.Event()
        self._given_up: list[str] = []
        """Receipts of messages that are to be delivered again."""
        self.error: Exception | None = None
        """What ended the reading."""
        self._threads = [
            threading.Thread(target=self._guarded, args=(target,), name=target.__name__, daemon=True)
            for target in (self._pull, self._acknowledge, self._extend)
        ]

    def __enter__(self) -> PubSubReader:
        """Make sure that the subscription is there, and begin.

        Raises:
            InputError: if it is not, or we may not read it.
        """
        from google.api_core import exceptions
        from google.auth.exceptions import GoogleAuthError
        from google.cloud import pubsub

        self._errors = exceptions
        uri = f"pubsub://{self._subscription}"
        try:
            # A pull that waits can only be ended by closing its client, so that is another one.
            self._client, self._puller = _subscriber(pubsub, PULLED_BYTES), _subscriber(pubsub, PULLED_BYTES)
            self._puller_of_one = _subscriber(pubsub, _UNBOUNDED)
            try:
                self._take_on(self._request_messages(1, FIRST_PULL_SECONDS))
            except (exceptions.DeadlineExceeded, exceptions.ResourceExhausted) as error:
                if not isinstance(error, exceptions.DeadlineExceeded) and not self._is_too_large(error):
                    raise
        except exceptions.NotFound:
            raise InputError(f"--input {uri}: there is no such subscription; create it first") from None
        except (exceptions.PermissionDenied, exceptions.Unauthenticated, GoogleAuthError) as error:
            raise InputError(f"--input {uri}: may not be read: {_first_line(error)}") from None
        except exceptions.GoogleAPIError as error:
            cause = UnavailableError(uri) if isinstance(error, self._transient) else None
            raise InputError(f"--input {uri}: cannot be reached: {_first_line(error)}") from cause
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        """Acknowledge what is in place, and give back what is not; on an interrupt neither, but leave at once."""
        self._closed.set()
        if kind is not None and not issubclass(kind, Exception):
            return
        self.stop()
        for thread in self._threads[1:]:
            # One that still asks for messages must not have the last word over giving them back.
            thread.join(timeout=ACKNOWLEDGE_SECONDS)
        try:
            self._change_deadline([*self._given_up, *self._deliveries.give_up()], 0)
        except self._errors.GoogleAPIError as failure:
            _LOGGER.debug("messages come again only when their time is over: %s", failure)
        self._client.close()

    # --- for the runner ---

    @property
    def is_exhausted(self) -> bool:
        """Whether nothing will come any more."""
        return self._stopping.is_set()

    @property
    def has_plenty(self) -> bool:
        """Whether enough waits for a large bundle."""
        return len(self._pulled) >= PULLED_AT_ONCE

    def take(self, seconds: float) -> list[Any]:
        """Messages that wait, as protocol buffers; after so many seconds none."""
        end = time.monotonic() + seconds
        with self._arrived:
            while not self._stopping.is_set():
                now = time.monotonic()
                if self._pulled and (now - self._pulled[0][0] >= self._linger or self.has_plenty):
                    break
                if now >= end:
                    return []
                self._arrived.wait(end - now)
            count = min(len(self._pulled), TAKEN_AT_ONCE)
            return [self._pulled.popleft()[1] for _ in range(count)]

    def stop(self) -> None:
        """Pull no more; what was pulled and not yet taken is given back in the end."""
        if self._stopping.is_set():
            return
        self._stopping.set()
        for puller in (self._puller, self._puller_of_one):
            puller.close()  # or a pull that still waits there would be given what we give back
        self._threads[0].join(timeout=STOP_SECONDS)
        with self._arrived:
            self._give_up(self._pulled)
            self._pulled.clear()
            self._arrived.notify_all()

    # --- threads ---

    def _guarded(self, target: Any) -> None:
        try:
            target()
        except Exception as error:
            if not self._closed.is_set():
                _LOGGER.debug("%s ended", target.__name__, exc_info=True)
                self.error = self.error or RunError(
                    f"reading pubsub://{self._subscription} failed: {_first_line(error)}"
                )

    def _pull(self) -> None:
        pause = 0.0
        size = PullSize()
        while not self._stopping.is_set():
            room = self._deliveries.room(1.0)
            if not room:
                continue
            count = min(room, size.get(time.monotonic()))
            try:
                received = self._request_messages(count, PULL_SECONDS)
                pause = 0.0
                size.fitted()
            except self._errors.DeadlineExceeded:
                continue  # nothing was there
            except Exception as error:
                if self._stopping.is_set():
                    return
                if not isinstance(error, self._transient):
                    raise
                if self._is_too_large(error):
                    self._log_too_large(count, error)
                    size.refused(count, time.monotonic())
                    if size.tries_for_one >= TRIES_FOR_ONE:
                        raise RunError(
                            f"pubsub://{self._subscription} has a message that cannot be received "
                            f"({_first_line(error)}); remove it there, for instance by seeking the subscription to a "
                            "time after it"
                        ) from None
                    if count > 1:
                        continue
                pause = min(2 * pause or 0.5, LONGEST_PAUSE)
                _LOGGER.warning("pulling failed, again in %.1f s: %s", pause, _first_line(error))
                self._stopping.wait(pause)
                continue
            self._take_on(received)
            if len(received) < PULLED_AT_ONCE // 2:
                # A pull is answered as soon as there is one message, and costs as much as one for hundreds.
                self._stopping.wait(self._linger / 2)

    def _is_too_large(self, error: Exception) -> bool:
        """Whether gRPC refused a response for its size; the same status is that of a quota."""
        return isinstance(error, self._errors.ResourceExhausted) and "larger than max" in str(error)

    def _log_too_large(self, count: int, error: Exception) -> None:
        _LOGGER.warning(
            "up to %d messages were too large to be received together; fewer are asked for, and these come again: %s",
            count,
            _first_line(error),
        )

    def _request_messages(self, count: int, timeout: float) -> Sequence[Any]:
        request = {"subscription": self._subscription, "max_messages": count}
        puller = self._puller if count > 1 else self._puller_of_one
        response = puller.pull(request=request, timeout=timeout, retry=None)
        return type(response).pb(response).received_messages  # wrapped, each attribute takes microseconds

    def _take_on(self, received: Iterable[Any]) -> None:
        now = time.monotonic()
        new = [
            (now, item.message)
            for item in received
            if self._deliveries.add(item.message.message_id, item.ack_id, len(item.message.data))
        ]
        with self._arrived:
            if not self._stopping.is_set():
                self._pulled.extend(new)
                self._arrived.notify_all()
            else:
                self._give_up(new)

    def _acknowledge(self) -> None:
        receipts: list[str] = []
        while not (self._closed.is_set() and self._deliveries.written.empty() and not receipts):
            for file in self._files_in_place():
                try:
                    receipts += self._deliveries.settle(keys_in(file))
                except OSError as error:
                    _LOGGER.warning("%s cannot be read back, so its messages will come again: %s", file.final, error)
            if not receipts:
                continue
            try:
                for some in _some(receipts):
                    self._client.acknowledge(
                        request={"subscription": self._subscription, "ack_ids": some}, timeout=30.0
                    )
                receipts = []
            except self._transient as error:
                _LOGGER.warning("acknowledging failed, and is tried again: %s", _first_line(error))
                if self._closed.wait(1.0):
                    return

    def _files_in_place(self) -> Iterator[Any]:
        with contextlib.suppress(queue.Empty):
            yield self._deliveries.written.get(timeout=0.1)
            while True:
                yield self._deliveries.written.get_nowait()

    def _extend(self) -> None:
        while not self._closed.wait(EXTEND_SECONDS):
            with contextlib.suppress(*self._transient):
                self._change_deadline(self._deliveries.receipts(), DEADLINE_SECONDS)

    def _give_up(self, pulled: Iterable[tuple[float, Any]]) -> None:
        self._given_up += self._deliveries.give_up([message.message_id for _, message in pulled])

    def _change_deadline(self, receipts: list[str], seconds: int) -> None:
        for some in _some(receipts):
            self._client.modify_ack_deadline(
                request={"subscription": self._subscription, "ack_ids": some, "ack_deadline_seconds": seconds},
                timeout=10.0,
            )

    @property
    def _transient(self) -> tuple[type[Exception], ...]:
        errors = self._errors
        return (
            errors.ServerError,  # of which DeadlineExceeded and ServiceUnavailable are
            errors.TooManyRequests,
            errors.Aborted,
            errors.RetryError,
        )


class PullSize:
    """How many messages to ask for: fewer after a response that was too large, down to one, and more again later."""

    def __init__(self) -> None:
        self._size = PULLED_AT_ONCE
        self._grow_at = math.inf
        self.tries_for_one = 0
        """How often in a row not even one could be received."""

    def get(self, now: float) -> int:
        """Messages to ask for, at a time of a clock that only goes forward."""
        if now >= self._grow_at:
            self._size = min(4 * self._size, PULLED_AT_ONCE)
            self._grow_at = now + CALM_SECONDS
        return self._size

    def fitted(self) -> None:
        """Note that a response was received."""
        self.tries_for_one = 0

    def refused(self, count: int, now: float) -> None:
        """Note that so many messages were too large."""
        self.tries_for_one = self.tries_for_one + 1 if count == 1 else 0
        self._size = max(1, count // 4)
        self._grow_at = now + CALM_SECONDS


_UNBOUNDED = -1


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


_RECEIPT_OVERHEAD = 8
"""Bytes of a request beside each receipt's own."""


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
