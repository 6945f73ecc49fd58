"""The records that travel between transforms: NamedTuples with a registered coder."""

from __future__ import annotations

import pickle
from array import array
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import apache_beam as beam
import pyarrow as pa
from apache_beam.coders import Coder, registry


class Tweet(NamedTuple):
    """A text on its way to the model."""

    id: str
    """From the input, or a stable hash of source and position."""
    text: str
    timestamp: int | None = None
    """Microseconds since 1970 in UTC."""
    extra: tuple[Any, ...] = ()
    """Values of the kept fields, in their order."""
    source: str = ""
    """The file it is from."""
    partition: str = ""
    """Directory of its row below the output, `date=2026-01-31` for instance; see `fields.partition_directory`."""
    is_cut: bool = False
    """Whether its platform has cut the text, and the whole one is not in the record."""
    message: str = ""
    """Position of the message that it is from, in streams."""


class Message(NamedTuple):
    """A message of a subscription or a topic, whichever system it is from."""

    position: str
    """What tells it from all others of its source: id of the message, or partition and offset."""
    data: bytes
    published: int
    """Microseconds since 1970 in UTC."""
    attributes: Mapping[str, str] = {}
    is_tombstone: bool = False
    """Whether it has no content and says that its key is deleted, as in Kafka; then `data` is empty."""


class TokenizedTweet(NamedTuple):
    """A tweet with its token ids."""

    tweet: Tweet
    ids: Sequence[int]
    """At most maxlen; an array of "q"."""
    length: int
    """len(ids); 0 for a text without tokens."""
    truncated: bool
    """Whether the text had more tokens than ids."""


class TokenizedBatch(NamedTuple):
    """Tweets that are scored together. Not a mere list: of that Beam asks each row for its size."""

    rows: list[TokenizedTweet]


class DeadLetter(NamedTuple):
    """Something that could not be read or scored."""

    source: str
    """File, topic, or the step that gave up."""
    position: str
    """Byte offset, row, or id within the source."""
    reason: str
    raw: bytes
    """The original bytes where there are any; a long record's first megabyte."""


class PartCount(NamedTuple):
    """What was done with a file, or with a part of it; the sum of a file's is of the whole file."""

    path: str
    """As text (`name_as_text`)."""
    parts: int
    """Parts that it was cut into, less those that were read: 0 once all were."""
    read: int
    """Records met, damaged ones included."""
    notices: int
    """Those of them that are no posts."""


class Outcome(NamedTuple):
    """The two outputs of a transform that can reject input."""

    results: beam.PCollection[Any]
    dead_letters: tuple[beam.PCollection[DeadLetter], ...]
    """One collection for each step that rejects; `WriteDeadLetters` takes them as they are. `beam.Flatten()` makes one
    of them, but Beam's local runner then keeps all letters in memory."""


_SIZED = frozenset((str, bytes, list, tuple, array))


class RecordCoder(Coder):
    """Encodes a record as the pickle of a plain tuple; it decodes only what our own workers wrote.

    Pickle because kept fields may hold any type that Arrow knows, which Beam's row coder does not.
    """

    def __init__(self, kind: type[Any]) -> None:
        self._kind = kind

    @classmethod
    def from_type_hint(cls, typehint: type[Any], registry: Any) -> RecordCoder:
        return cls(typehint)

    def encode(self, value: Any) -> bytes:
        return pickle.dumps(tuple(value), protocol=5)

    def decode(self, encoded: bytes) -> Any:
        return self._kind(*pickle.loads(encoded))

    def estimate_size(self, value: Any) -> int:
        """Roughly: Beam samples sizes at every edge, of whole batches too, and encoding takes as long as tokenizing."""
        return 64 + sum([len(part) for part in value if part.__class__ in _SIZED])

    def to_type_hint(self) -> type[Any]:
        return self._kind

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RecordCoder) and other._kind is self._kind

    def __hash__(self) -> int:
        return hash((type(self), self._kind))


class RecordBatchCoder(Coder):
    """Arrow's IPC stream format: no copy per row, and the schema with its metadata comes along."""

    def encode(self, value: pa.RecordBatch) -> bytes:
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, value.schema) as writer:
            writer.write_batch(value)
        return bytes(sink.getvalue())

    def decode(self, encoded: bytes) -> pa.RecordBatch:
        return pa.ipc.open_stream(encoded).read_next_batch()

    def estimate_size(self, value: pa.RecordBatch) -> int:
        return int(value.nbytes)  # Beam samples sizes at every edge; encoding megabytes for that would be waste

    def to_type_hint(self) -> type[pa.RecordBatch]:
        return pa.RecordBatch


for _kind in (Message, Tweet, TokenizedTweet, TokenizedBatch, DeadLetter, PartCount):
    registry.register_coder(_kind, RecordCoder)
registry.register_coder(pa.RecordBatch, RecordBatchCoder)
