"""Records survive their coders, whatever is in them, and the coders are the ones that Beam uses."""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pytest
from apache_beam.coders import registry
from apache_beam.internal import pickler

from tests.transforms.conftest import Run
from transforms.records import DeadLetter, RecordBatchCoder, RecordCoder, TokenizedBatch, TokenizedTweet, Tweet

TWEETS = [
    Tweet("1", "plain"),
    Tweet("", ""),
    Tweet("ünï", "☕ 😍 \0 \u2028 \x85", -62135596800_000000),
    Tweet("9" * 100, "x" * 100_000, 2**62),
    Tweet("2", "odd", 0, (None, True, 1.5, 2**80, "s", b"\xff", date(2024, 3, 21), Decimal("1.50"))),
    Tweet("3", "odder", 0, (datetime(2024, 3, 21, tzinfo=UTC), {"a": [1, {"b": ()}]}, [], float("inf"))),
]
RECORDS: list[Any] = [
    *TWEETS,
    TokenizedTweet(TWEETS[0], [10, 11, 12], 3, False),
    TokenizedTweet(TWEETS[4], [], 0, True),
    TokenizedTweet(TWEETS[0], array("q", [10, 11, 2**40]), 3, False),
    TokenizedBatch([TokenizedTweet(TWEETS[0], array("q", [10]), 1, False), TokenizedTweet(TWEETS[1], [], 0, False)]),
    DeadLetter("x.jsonl", "17", "not JSON", b"\xff\xfe\0{"),
    DeadLetter("", "", "", b""),
    DeadLetter("name-\udcff.txt", "0", "lone \ud83d", bytes(range(256))),
]
BATCH = pa.record_batch(
    {
        "id": pa.array(["a", None, "c"]),
        "vector": pa.array([[1.5, 2.5], None, [3.5, 4.5]], pa.list_(pa.float32(), 2)),
        "half": pa.array([np.float16(0.1), None, np.float16(-1)], pa.float16()),
        "top": pa.array([[{"emoji": "😂", "probability": 0.5}], [], None]),
        "at": pa.array([0, None, -1], pa.timestamp("us", tz="UTC")),
    }
).replace_schema_metadata({"torchmoji.classes": '["😂"]', "key": b"\xff"})


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: type(record).__name__)
def test_records_survive_their_coder(record: Any) -> None:
    coder = registry.get_coder(type(record))
    assert isinstance(coder, RecordCoder)
    decoded = coder.decode(coder.encode(record))
    assert decoded == record
    assert type(decoded) is type(record)
    for before, after in zip(record, decoded, strict=True):
        assert type(before) is type(after)


def test_a_tokenized_tweet_holds_a_tweet_again() -> None:
    coder = registry.get_coder(TokenizedTweet)
    decoded = coder.decode(coder.encode(TokenizedTweet(TWEETS[4], [1], 1, False)))
    assert type(decoded.tweet) is Tweet


@pytest.mark.parametrize("kind", [Tweet, TokenizedTweet, DeadLetter, pa.RecordBatch])
def test_coders_travel_to_workers(kind: type) -> None:
    coder = registry.get_coder(kind)
    again = pickler.loads(pickler.dumps(coder))
    assert again == coder
    assert again.to_type_hint() is kind
    assert hash(again) == hash(coder)


def test_coders_of_different_records_differ() -> None:
    assert registry.get_coder(Tweet) != registry.get_coder(DeadLetter)


def test_record_batches_survive_with_their_schema() -> None:
    coder = registry.get_coder(pa.RecordBatch)
    assert isinstance(coder, RecordBatchCoder)
    decoded = coder.decode(coder.encode(BATCH))
    assert decoded.equals(BATCH)
    assert decoded.schema.equals(BATCH.schema, check_metadata=True)
    assert decoded.schema.metadata == {b"torchmoji.classes": '["😂"]'.encode(), b"key": b"\xff"}


@pytest.mark.parametrize("rows", [slice(0, 0), slice(1, 2), slice(2, 3)])
def test_slices_of_record_batches(rows: slice) -> None:
    coder = RecordBatchCoder()
    part = BATCH.slice(rows.start, rows.stop - rows.start)
    decoded = coder.decode(coder.encode(part))
    assert decoded.to_pylist() == part.to_pylist() == BATCH.to_pylist()[rows]
    assert decoded.schema.equals(BATCH.schema, check_metadata=True)


def test_a_slice_is_not_encoded_with_its_whole() -> None:
    whole = pa.record_batch({"x": list(range(100_000))})
    assert len(RecordBatchCoder().encode(whole.slice(5, 1))) < 1000


def test_sizes_are_estimated_without_encoding() -> None:
    big = pa.record_batch({"x": pa.array(np.zeros(1_000_000, np.float32))})
    assert RecordBatchCoder().estimate_size(big) == 4_000_000


def test_records_survive_a_shuffle(run: Run) -> None:
    """Where Beam encodes them itself, by the types it knows."""

    def build(pipeline: beam.Pipeline) -> Mapping[str, beam.PCollection[Any]]:
        tweets = pipeline | "Tweets" >> beam.Create(TWEETS)
        letters = pipeline | "Letters" >> beam.Create([record for record in RECORDS if type(record) is DeadLetter])
        batches = pipeline | "Batches" >> beam.Create([BATCH, BATCH.slice(1, 1)]).with_output_types(pa.RecordBatch)
        return {
            "tweets": tweets | "ShuffleTweets" >> beam.Reshuffle(),
            "letters": letters | "ShuffleLetters" >> beam.Reshuffle(),
            "batches": batches | "ShuffleBatches" >> beam.Reshuffle(),
        }

    ran = run(build)
    assert sorted(ran["tweets"], key=lambda tweet: tweet.id) == sorted(TWEETS, key=lambda tweet: tweet.id)
    assert all(type(tweet) is Tweet for tweet in ran["tweets"])
    assert sorted(ran["letters"]) == sorted(record for record in RECORDS if type(record) is DeadLetter)
    assert sorted(batch.num_rows for batch in ran["batches"]) == [1, 3]
    assert all(batch.schema.equals(BATCH.schema, check_metadata=True) for batch in ran["batches"])
