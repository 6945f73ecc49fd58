"""A Pub/Sub server in memory: topics, subscriptions, pulls that wait, acknowledgements with deadlines, redelivery.

It speaks gRPC, so Google's own clients talk to it once PUBSUB_EMULATOR_HOST has its address.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.protobuf import empty_pb2, timestamp_pb2
from google.pubsub_v1 import types

PULL_SECONDS = 30.0
"""How long a pull waits for the first message."""
RECEIPTS_BYTES = 512 << 10
PUBLISHED_BYTES, PUBLISHED_MESSAGES = 10_000_000, 1000
"""What Pub/Sub takes in one request."""


@dataclass
class _Leased:
    message: Any
    until: float


@dataclass
class FakeSubscription:
    """Messages of one subscription, and what clients have done with them."""

    topic: str
    """Whose messages it has, projects/P/topics/T."""
    deadline: float = 10.0
    """Seconds until a message that was not acknowledged is delivered again."""
    waiting: list[Any] = field(default_factory=list)
    leased: dict[str, _Leased] = field(default_factory=dict)
    acknowledged: list[str] = field(default_factory=list)
    """Ids of messages, in order."""
    delivered: int = 0
    """Deliveries, repeated ones included."""
    most_leased: int = 0
    """The most messages that were delivered and not yet acknowledged at one time."""

    def expire(self, now: float) -> None:
        for receipt, leased in list(self.leased.items()):
            if leased.until <= now:
                self.waiting.append(leased.message)
                del self.leased[receipt]


class FakePubSub:
    """The server; a context manager."""

    def __init__(self, sent_bytes: int = -1) -> None:
        """Args:
        sent_bytes: the most that a response may have; -1 for any number.
        """
        self.subscriptions: dict[str, FakeSubscription] = {}
        self.published: dict[str, list[Any]] = {}
        """Messages by topic that clients have published."""
        self.refuse: dict[str, grpc.StatusCode] = {}
        """Status by method, Pull for instance, that its calls end with."""
        self.receipt_padding = ""
        """Behind each receipt: those of the service are longer than ours."""
        self._changed = threading.Condition()
        self._ids = itertools.count(1)
        self._stopped = False
        limits = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", sent_bytes)]
        self._server = grpc.server(ThreadPoolExecutor(16), options=limits)
        for service, methods in self._methods().items():
            handlers = {
                name: grpc.unary_unary_rpc_method_handler(
                    self._checked(name, behaviour),
                    request_deserializer=request.deserialize,
                    response_serializer=lambda response: (
                        response.SerializeToString()
                        if isinstance(response, empty_pb2.Empty)
                        else type(response).serialize(response)
                    ),
                )
                for name, (request, behaviour) in methods.items()
            }
            self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"

    def __enter__(self) -> FakePubSub:
        self._server.start()
        return self

    def __exit__(self, *error: object) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        self._server.stop(None)

    def subscribe(self, name: str, deadline: float = 10.0) -> FakeSubscription:
        """Make a subscription, projects/P/subscriptions/S, to the topic projects/P/topics/S."""
        self.subscriptions[name] = FakeSubscription(name.replace("/subscriptions/", "/topics/"), deadline)
        return self.subscriptions[name]

    def send(
        self,
        subscription: str,
        content: bytes,
        attributes: Mapping[str, str] | None = None,
        published: float | None = None,
        message_id: str | None = None,
    ) -> str:
        """Put a message into a subscription. Returns its id."""
        time_ = timestamp_pb2.Timestamp()
        time_.FromMicroseconds(round(1e6 * (time.time() if published is None else published)))
        message_id = message_id or f"m{next(self._ids)}"
        message = types.PubsubMessage(
            data=content, attributes=dict(attributes or {}), message_id=message_id, publish_time=time_
        )
        with self._changed:
            self.subscriptions[subscription].waiting.append(message)
            self._changed.notify_all()
        return message_id

    # --- methods of google.pubsub.v1 ---

    def _methods(self) -> dict[str, dict[str, tuple[Any, Any]]]:
        return {
            "google.pubsub.v1.Subscriber": {
                "GetSubscription": (types.GetSubscriptionRequest, self._get_subscription),
                "Pull": (types.PullRequest, self._pull),
                "Acknowledge": (types.AcknowledgeRequest, self._acknowledge),
                "ModifyAckDeadline": (types.ModifyAckDeadlineRequest, self._modify_deadline),
            },
            "google.pubsub.v1.Publisher": {"Publish": (types.PublishRequest, self._publish)},
        }

    def _checked(self, name: str, behaviour: Any) -> Any:
        def call(request: Any, context: grpc.ServicerContext) -> Any:
            if name in self.refuse:
                context.abort(self.refuse[name], f"{name} is refused")
            subscription = getattr(request, "subscription", None)
            if subscription is not None and subscription not in self.subscriptions:
                context.abort(grpc.StatusCode.NOT_FOUND, "Resource not found")
            self._check_size(request, context)
            return behaviour(request, context)

        return call

    def _check_size(self, request: Any, context: grpc.ServicerContext) -> None:
        size = type(request).pb(request).ByteSize()
        if getattr(request, "ack_ids", None) and size > RECEIPTS_BYTES:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "Request payload size exceeds the limit: 524288 bytes")
        messages = getattr(request, "messages", ())
        if messages and (size > PUBLISHED_BYTES or len(messages) > PUBLISHED_MESSAGES):
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "Request payload size exceeds the limit: 10485760 bytes")

    def _get_subscription(self, request: Any, context: grpc.ServicerContext) -> Any:
        return types.Subscription(name=request.subscription, topic=self.subscriptions[request.subscription].topic)

    def _pull(self, request: Any, context: grpc.ServicerContext) -> Any:
        subscription = self.subscriptions[request.subscription]
        end = time.monotonic() + PULL_SECONDS
        with self._changed:
            while not self._stopped and context.is_active():
                if request.subscription not in self.subscriptions:
                    context.abort(grpc.StatusCode.NOT_FOUND, "Resource not found")
                now = time.monotonic()
                subscription.expire(now)
                if subscription.waiting or now >= end:
                    break
                self._changed.wait(min(0.1, end - now))
            if not context.is_active():
                return types.PullResponse()
            count = min(request.max_messages, len(subscription.waiting))
            messages, subscription.waiting = subscription.waiting[:count], subscription.waiting[count:]
            received = list(self._lease(subscription, messages))
        return types.PullResponse(received_messages=received)

    def _lease(self, subscription: FakeSubscription, messages: list[Any]) -> Iterator[Any]:
        until = time.monotonic() + subscription.deadline
        for message in messages:
            receipt = f"{message.message_id}/{next(self._ids)}{self.receipt_padding}"
            subscription.leased[receipt] = _Leased(message, until)
            yield types.ReceivedMessage(ack_id=receipt, message=message)
        subscription.delivered += len(messages)
        subscription.most_leased = max(subscription.most_leased, len(subscription.leased))

    def _acknowledge(self, request: Any, context: grpc.ServicerContext) -> Any:
        subscription = self.subscriptions[request.subscription]
        with self._changed:
            for receipt in request.ack_ids:
                leased = subscription.leased.pop(receipt, None)
                if leased is not None:  # too late, it will be delivered again
                    subscription.acknowledged.append(leased.message.message_id)
        return empty_pb2.Empty()

    def _modify_deadline(self, request: Any, context: grpc.ServicerContext) -> Any:
        subscription = self.subscriptions[request.subscription]
        with self._changed:
            for receipt in request.ack_ids:
                if receipt in subscription.leased:
                    subscription.leased[receipt].until = time.monotonic() + request.ack_deadline_seconds
            self._changed.notify_all()
        return empty_pb2.Empty()

    def _publish(self, request: Any, context: grpc.ServicerContext) -> Any:
        ids = [f"p{next(self._ids)}" for _ in request.messages]
        with self._changed:
            self.published.setdefault(request.topic, []).extend(request.messages)
        return types.PublishResponse(message_ids=ids)
