"""AnnotateTweets: whatever somebody else's pipeline hands over comes out, as a row or as a dead letter."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from datetime import UTC, date, datetime
from typing import Any

import apache_beam as beam
import pyarrow as pa
import pytest
from apache_beam.testing import test_stream
from apache_beam.transforms.window import FixedWindows, TimestampedValue

import transforms
from tests.transforms.conftest import Ran, Run, assert_scores, make_texts
from torchmoji_core.batching import BatchLimits
from torchmoji_core.bundle import Bundle
from torchmoji_core.errors import InputError
from transforms import AnnotateTweets, KeptField, Tweet, metrics
from transforms.annotate import check_tweet
from transforms.columns import OUTPUTS
from transforms.options import DEFAULT_OUTPUTS, ScoreOptions
from transforms.records import DeadLetter, Outcome


def annotate(run: Run, elements: list[Any], model: str, **arguments: Any) -> Ran:
    def build(pipeline: beam.Pipeline) -> Mapping[str, beam.PCollection[Any]]:
        created = pipeline | beam.Create(elements).with_output_types(Any)
        scored, dead = created | AnnotateTweets(model, **arguments)
        return {"batches": scored, "dead": dead | beam.Flatten()}

    return run(build)


def rows_of(ran: Ran) -> list[dict[str, Any]]:
    return [row for batch in ran["batches"] for row in batch.to_pylist()]


def hash_of(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]


@pytest.mark.parametrize("embedding_type", ["float16", "float32"])
def test_tweets(embedding_type: str, run: Run, bundle: Bundle, model: str) -> None:
    texts = {f"id-{index}": text for index, text in enumerate([*make_texts(300), "", "\t"])}
    limits = BatchLimits(max_rows=32, max_tokens=256)
    tweets = [Tweet(key, text) for key, text in texts.items()]
    ran = annotate(run, tweets, model, outputs=OUTPUTS, embedding_type=embedding_type, limits=limits)
    assert_scores(rows_of(ran), texts, bundle, OUTPUTS, embedding_type)
    assert len(ran["batches"]) > 10
    assert all(batch.num_rows <= 32 for batch in ran["batches"])
    assert ran["dead"] == []
    assert (ran.count(metrics.SCORED), ran.count(metrics.EMPTY)) == (300, 2)


def test_plain_strings_get_the_hash_of_their_text_as_id(run: Run, bundle: Bundle, model: str) -> None:
    texts = ["i love rain", "", "café ☕"]
    ran = annotate(run, texts, model)
    assert_scores(rows_of(ran), {hash_of(text): text for text in texts}, bundle, DEFAULT_OUTPUTS)


def test_typed_collections_are_accepted(run: Run, bundle: Bundle, model: str) -> None:
    """Without hints of ours: Beam checks types where pipelines are put together."""

    def build(pipeline: beam.Pipeline) -> Mapping[str, beam.PCollection[Any]]:
        strings = pipeline | "Strings" >> beam.Create(["love"]) | "AnnotateStrings" >> AnnotateTweets(model)
        tweets = pipeline | "Tweets" >> beam.Create([Tweet("1", "rain")]) | "AnnotateTweets" >> AnnotateTweets(model)
        return {"strings": strings.results, "tweets": tweets.results}

    ran = run(build)
    assert [row["text"] for batch in (*ran["strings"], *ran["tweets"]) for row in batch.to_pylist()] == ["love", "rain"]


NO_TWEETS: list[tuple[Any, str, str]] = [
    (17, "", "not a Tweet with a string as id and text: int"),
    (None, "", "not a Tweet with a string as id and text: NoneType"),
    ({"id": "1", "text": "a dict"}, "", "not a Tweet with a string as id and text: dict"),
    (("1", "a tuple"), "", "not a Tweet with a string as id and text: tuple"),
    (b"bytes", "", "not a Tweet with a string as id and text: bytes"),
    (Tweet("no text", None), "no text", "not a Tweet with a string as id and text"),  # type: ignore[arg-type]
    (Tweet(5, "a number as id"), "5", "not a Tweet with a string as id and text"),  # type: ignore[arg-type]
    (Tweet("too many", "x", None, (1, 2)), "too many", "the tweet has not 1 extra values"),
    (Tweet("too few", "x"), "too few", "the tweet has not 1 extra values"),
    (Tweet("nothing", "x", None, None), "nothing", "the tweet has not 1 extra values"),  # type: ignore[arg-type]
    (Tweet("string", "x", None, "a"), "string", "the tweet has not 1 extra values"),  # type: ignore[arg-type]
    (Tweet("type", "x", None, ("many",)), "type", "cannot be scored"),
    (Tweet("time", "x", "now", (1,)), "time", "cannot be scored"),  # type: ignore[arg-type]
]


def test_what_is_no_tweet_costs_itself_alone(run: Run, bundle: Bundle, model: str) -> None:
    texts = {f"id-{index}": text for index, text in enumerate(make_texts(20))}
    elements: list[Any] = [Tweet(key, text, None, (index,)) for index, (key, text) in enumerate(texts.items())]
    for index, (element, _, _) in enumerate(NO_TWEETS):
        elements.insert(index * 2, element)
    ran = annotate(run, elements, model, keep=[KeptField("likes", "int64")], timestamp=True)
    assert_scores(rows_of(ran), texts, bundle, DEFAULT_OUTPUTS)
    letters = {letter.position: letter.reason for letter in ran["dead"] if letter.position}
    expected = {position: reason for _, position, reason in NO_TWEETS if position}
    assert letters.keys() == expected.keys()
    assert all(letters[position].startswith(reason) for position, reason in expected.items())
    nameless = sorted(letter.reason for letter in ran["dead"] if not letter.position)
    assert nameless == sorted(reason for _, position, reason in NO_TWEETS if not position)
    assert b"a dict" in b"".join(letter.raw for letter in ran["dead"])
    assert all(type(letter) is DeadLetter for letter in ran["dead"])
    assert ran.count(metrics.SCORED) + ran.count(metrics.EMPTY) + len(ran["dead"]) == len(elements)


def test_lone_surrogates_become_replacement_characters(run: Run, bundle: Bundle, model: str) -> None:
    """As JSON's escapes can make them, and no file format can hold them."""
    ran = annotate(run, [Tweet("\ud83d", "love \ud83d rain")], model, outputs=("text", "attention"))
    assert_scores(rows_of(ran), {"\ufffd": "love \ufffd rain"}, bundle, ("text", "attention"))
    assert ran["dead"] == []
    assert check_tweet("rain \udc00", 0) == Tweet(hash_of("rain \ufffd"), "rain \ufffd")


def test_kept_fields_have_their_types(run: Run, model: str) -> None:
    kinds: dict[str, tuple[Any, pa.DataType, Any]] = {
        "string": ("née", pa.string(), "née"),
        "int64": (2**63 - 1, pa.int64(), 2**63 - 1),
        "float64": (1.5, pa.float64(), 1.5),
        "bool": (False, pa.bool_(), False),
        "timestamp": (1_500_000, pa.timestamp("us", tz="UTC"), datetime(1970, 1, 1, 0, 0, 1, 500_000, UTC)),
        "date": (date(2024, 3, 21), pa.date32(), date(2024, 3, 21)),
        "json": ('{"a": 1}', pa.string(), '{"a": 1}'),
    }
    keep = [KeptField(f"field.{kind}", kind) for kind in kinds]
    tweets = [
        Tweet("values", "love", 2_000_000, tuple(value for value, _, _ in kinds.values())),
        Tweet("nulls", "love", None, (None,) * len(kinds)),
    ]
    ran = annotate(run, tweets, model, outputs=("top",), keep=keep, timestamp=True)
    (batch,) = ran["batches"]
    rows = {row["id"]: row for row in batch.to_pylist()}
    for kind, (_, column, value) in kinds.items():
        assert batch.schema.field(f"field.{kind}").type == column
        assert rows["values"][f"field.{kind}"] == value
        assert rows["nulls"][f"field.{kind}"] is None
    assert rows["values"]["timestamp"] == datetime(1970, 1, 1, 0, 0, 2, tzinfo=UTC)
    assert rows["nulls"]["timestamp"] is None


def test_windows_are_kept_apart(run: Run, bundle: Bundle, model: str) -> None:
    """In a streaming run, with two windows in one bundle: a batch holds rows of its own window only."""
    texts = make_texts(40)
    stream = (
        test_stream.TestStream()
        .add_elements([TimestampedValue(Tweet(str(index), text), index) for index, text in enumerate(texts)])
        .advance_watermark_to(15)
        .add_elements([TimestampedValue(Tweet("late", "love"), 3)])
        .advance_watermark_to_infinity()
    )

    def window_of(batch: pa.RecordBatch, window: Any = beam.DoFn.WindowParam) -> Any:
        return float(window.start), batch

    def build(pipeline: beam.Pipeline) -> Mapping[str, beam.PCollection[Any]]:
        outcome: Outcome = pipeline | stream | beam.WindowInto(FixedWindows(20)) | AnnotateTweets(model)
        return {"batches": outcome.results | beam.Map(window_of), "dead": outcome.dead_letters | beam.Flatten()}

    ran = run(build, streaming=True)
    assert ran["dead"] == []
    rows = [(start, row) for start, batch in ran["batches"] for row in batch.to_pylist()]
    for start, row in rows:
        assert start == (0 if row["id"] == "late" else int(row["id"]) // 20 * 20)
    assert_scores(
        [row for _, row in rows], dict(zip(map(str, range(40)), texts, strict=True)) | {"late": "love"}, bundle, ()
    )


def test_two_in_one_pipeline(run: Run, bundle: Bundle, model: str) -> None:
    """With options of their own, and one model between them."""
    texts = {f"id-{index}": text for index, text in enumerate(make_texts(10))}

    def build(pipeline: beam.Pipeline) -> Mapping[str, beam.PCollection[Any]]:
        tweets = pipeline | beam.Create([Tweet(key, text) for key, text in texts.items()])
        one = tweets | "One" >> AnnotateTweets(model, outputs=("top",))
        two = tweets | "Two" >> AnnotateTweets(model, outputs=("embedding",), embedding_type="float32")
        return {"one": one.results, "two": two.results}

    ran = run(build)
    assert_scores([row for batch in ran["one"] for row in batch.to_pylist()], texts, bundle, ("top",))
    assert_scores([row for batch in ran["two"] for row in batch.to_pylist()], texts, bundle, ("embedding",), "float32")
    assert all("embedding" not in batch.schema.names for batch in ran["one"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"outputs": ["emoji"]}, "outputs 'emoji' is unknown"),
        ({"top_k": 0}, "top_k"),
        ({"options": ScoreOptions()}, "takes options, or model"),
        ({"keep": [KeptField("status")]}, "'status' has the name of an output column"),
    ],
    ids=str,
)
def test_options_are_checked_when_the_pipeline_is_built(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        AnnotateTweets("unused", **arguments)


def test_types_of_the_outputs_are_known() -> None:
    outcome = beam.Pipeline() | beam.Create(["x"]) | AnnotateTweets("unused")
    assert outcome.results.element_type is pa.RecordBatch
    assert {letters.element_type for letters in outcome.dead_letters} == {DeadLetter}


def test_public_names() -> None:
    for name in transforms.__all__:
        assert getattr(transforms, name).__name__ == name
    with pytest.raises(AttributeError, match="AnnotateTweets"):
        transforms.NoSuchName  # noqa: B018
