"""The transforms on an endless input: what is held goes on in time, and the files are right whatever the order is."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import apache_beam as beam
import pyarrow.parquet as pq
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.portability import common_urns
from apache_beam.portability.api import beam_runner_api_pb2
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.transforms.window import FixedWindows, SlidingWindows, TimestampedValue
from apache_beam.utils import proto_utils
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st

from tests.transforms.conftest import Run, assert_scores, make_texts
from tests.transforms.streams import WINDOW, Row, annotate_stream, begin, files_of, panes, runners_time, tweet
from torchmoji_core.batching import BatchLimits
from torchmoji_core.bundle import Bundle
from torchmoji_core.errors import InputError, RunError
from transforms import AnnotateTweets, BufferOptions, Tweet, WriteScores, metrics
from transforms.columns import OUTPUTS
from transforms.options import DEFAULT_OUTPUTS

BATCH = BufferOptions(max_latency=1, shards=1, clock=runners_time)
DAY = 86_400
PORTABLE = ["--runner=PortableRunner", "--job_endpoint=embed", "--environment_type=LOOPBACK"]


def expect(*files: str) -> Counter[frozenset[str]]:
    """Files, each told by the ids of its rows."""
    return Counter(frozenset(ids.split()) for ids in files)


# --- when tweets go on -----------------------------------------------------------------------------------------------


def test_a_trickle_is_scored_in_batches(run: Run, model: str, tmp_path: Path) -> None:
    """Tweets of bundles of one each, whichever batch they are in, are together in the model and in the file."""
    stream = begin()
    for second in range(10):
        stream = stream.add_elements([tweet(second)]).advance_processing_time(0.09)
    ran = annotate_stream(run, stream.advance_watermark_to_infinity(), tmp_path, model, BATCH)
    assert [len(batch) for batch in ran["batches"]] == [10]
    assert panes(tmp_path) == expect("0 1 2 3 4 5 6 7 8 9")


def test_without_a_hold_each_bundle_is_a_batch(run: Run, model: str, tmp_path: Path) -> None:
    stream = begin().add_elements([tweet(1)]).add_elements([tweet(2)]).advance_watermark_to_infinity()
    ran = annotate_stream(run, stream, tmp_path, model, None)
    assert [len(batch) for batch in ran["batches"]] == [1, 1]


def test_no_tweet_waits_longer_than_the_latency(run: Run, model: str, tmp_path: Path) -> None:
    """It is counted from the first of those that are held, and again from the next one when they have gone."""
    stream = (
        begin()
        .add_elements([tweet(1)])
        .advance_processing_time(0.6)
        .add_elements([tweet(2)])
        .advance_processing_time(0.5)  # 1 is due
        .add_elements([tweet(3)])
        .advance_processing_time(0.6)  # nothing is: 2 has gone with 1
        .add_elements([tweet(4)])
        .advance_processing_time(0.5)  # 3 is due
        .add_elements([tweet(5)])
        .advance_watermark_to_infinity()
    )
    annotate_stream(run, stream, tmp_path, model, BATCH)
    assert panes(tmp_path) == expect("1 2", "3 4", "5")


def test_an_idle_source_does_not_hold_its_last_tweets_back(run: Run, model: str, tmp_path: Path) -> None:
    """By the clock alone: neither more input nor the watermark lets them go."""
    stream = (
        begin()
        .add_elements([tweet(1), tweet(70)])
        .advance_processing_time(2)
        .advance_processing_time(3600)
        .add_elements([tweet(2), tweet(71)])
        .advance_watermark_to_infinity()
    )
    annotate_stream(run, stream, tmp_path, model, BATCH)
    assert panes(tmp_path) == expect("1", "70", "2", "71")


@pytest.mark.parametrize(
    ("limits", "sizes"),
    [
        (BatchLimits(max_rows=4), [4, 4, 2]),
        (BatchLimits(max_tokens=9), [3, 3, 3, 1]),
        (BatchLimits(max_waiting_size=40), [3, 3, 3, 1]),
    ],
    ids=["rows", "tokens", "characters"],
)
def test_a_full_batch_does_not_wait(
    limits: BatchLimits, sizes: list[int], run: Run, model: str, tmp_path: Path
) -> None:
    """ "love and rain" has three tokens, and with its id fourteen characters."""
    stream = begin()
    for second in range(10):
        stream = stream.add_elements([tweet(second)])
    annotate_stream(run, stream.advance_watermark_to_infinity(), tmp_path, model, BATCH, limits=limits)
    assert sorted((len(rows) for rows in files_of(tmp_path)), reverse=True) == sizes


def test_a_batch_that_was_full_does_not_shorten_the_wait_of_the_next(run: Run, model: str, tmp_path: Path) -> None:
    stream = (
        begin()
        .add_elements([tweet(1)])
        .advance_processing_time(0.9)
        .add_elements([tweet(2)])  # a full batch
        .add_elements([tweet(3)])
        .advance_processing_time(0.9)  # after 1 would have been due
        .add_elements([tweet(4)])
        .advance_watermark_to_infinity()
    )
    annotate_stream(run, stream, tmp_path, model, BATCH, limits=BatchLimits(max_rows=2))
    assert panes(tmp_path) == expect("1 2", "3 4")


def test_lengths_are_held_apart_as_far_as_asked(run: Run, model: str, tmp_path: Path) -> None:
    stream = begin()
    for second in range(8):
        stream = stream.add_elements([tweet(second, "rain " * (1 + 20 * (second % 2)))])
    buffer = BufferOptions(max_latency=1, shards=1, bucket_width=10, clock=runners_time)
    ran = annotate_stream(
        run, stream.advance_watermark_to_infinity(), tmp_path, model, buffer, limits=BatchLimits(max_rows=4)
    )
    assert [batch["n_tokens"].to_pylist() for batch in ran["batches"]] in ([[1] * 4, [21] * 4], [[21] * 4, [1] * 4])


def test_shards_share_the_tweets_equally(run: Run, model: str, tmp_path: Path) -> None:
    stream = begin().add_elements([tweet(second) for second in range(12)])
    buffer = BufferOptions(max_latency=1, shards=3, clock=runners_time)
    ran = annotate_stream(
        run, stream.advance_watermark_to_infinity(), tmp_path, model, buffer, limits=BatchLimits(max_rows=4)
    )
    assert [len(batch) for batch in ran["batches"]] == [4, 4, 4]


def test_bundles_of_one_tweet_go_to_all_shards(run: Run, model: str, tmp_path: Path) -> None:
    """None of ten shards gets half of them, which would be a full batch."""
    stream = begin()
    for second in range(25):
        stream = stream.add_elements([tweet(second)])
    buffer = BufferOptions(max_latency=1, shards=10, clock=runners_time)
    annotate_stream(
        run, stream.advance_watermark_to_infinity(), tmp_path, model, buffer, limits=BatchLimits(max_rows=13)
    )
    assert len(files_of(tmp_path)) == 1, "all went at the end"


# --- windows -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("buffer", [BATCH, None], ids=["buffer", "no buffer"])
def test_windows_that_close_together(buffer: BufferOptions | None, run: Run, model: str, tmp_path: Path) -> None:
    """In one bundle, of which Beam's Parquet sink makes files that do not open, that have each other's rows, or that
    have lost what was in the window's file before the last batch."""
    seconds = [second for index in range(8) for second in (index, 60 + index, 3600 + index, DAY + index)]
    stream = begin().add_elements([tweet(second) for second in seconds]).advance_watermark_to(2 * DAY)
    limits = BatchLimits(max_rows=3, max_waiting=1000)
    ran = annotate_stream(run, stream.advance_watermark_to_infinity(), tmp_path, model, buffer, limits=limits)
    assert len(ran["batches"]) >= 12
    files = files_of(tmp_path)
    assert sorted(row["id"] for rows in files for row in rows) == sorted(map(str, seconds))
    assert len(files) == 4


@pytest.mark.parametrize("buffer", [BATCH, None], ids=["buffer", "no buffer"])
def test_nothing_is_too_late(buffer: BufferOptions | None, run: Run, model: str, tmp_path: Path) -> None:
    """Years behind the watermark, or met when the watermark has reached the end."""
    stream = begin().add_elements([tweet(5000 * DAY)]).advance_watermark_to(9000 * DAY)
    for second in (1, 2, 70, 4000 * DAY):
        stream = stream.add_elements([tweet(second)]).advance_processing_time(0.1)
    annotate_stream(run, stream.advance_watermark_to_infinity(), tmp_path, model, buffer)
    assert sorted(row["id"] for rows in files_of(tmp_path) for row in rows) == sorted(
        f"{second:g}" for second in (5000 * DAY, 1, 2, 70, 4000 * DAY)
    )


def test_a_poison_row_costs_itself_alone(run: Run, bundle: Bundle, model: str, tmp_path: Path) -> None:
    texts = {str(second): text for second, text in enumerate(make_texts(20))}
    good = [tweet(int(second), text) for second, text in texts.items()]
    poison = TimestampedValue(Tweet("poison", "love", "now"), 7)  # type: ignore[arg-type]
    stream = begin().add_elements([*good[:10], poison, *good[10:]]).advance_watermark_to_infinity()
    ran = annotate_stream(run, stream, tmp_path, model, BATCH)
    assert_scores([row for rows in files_of(tmp_path) for row in rows], texts, bundle, DEFAULT_OUTPUTS)
    (file,) = ran["dead"]
    content = Path(file.final).read_text()
    assert '"position": "poison"' in content
    assert "cannot be scored" in content


def test_a_file_that_cannot_be_put_in_place_ends_the_run(run: Run, model: str, tmp_path: Path) -> None:
    """Where Beam's generic sink writes a line to the log, and ends well without the rows."""
    (tmp_path / "date=1970-01-01").write_text("a file where a directory is needed")
    with pytest.raises(RunError, match="cannot be put in place"):
        annotate_stream(run, begin().add_elements([tweet(1)]).advance_watermark_to_infinity(), tmp_path, model, BATCH)


def test_no_rows_are_shuffled_behind_the_model(model: str, tmp_path: Path) -> None:
    """Beam's Parquet sink sends an unbounded input's rows through one key, twice. Here, texts are to a key of those
    that hold them, and names of files are."""
    pipeline = beam.Pipeline()
    tweets = pipeline | begin().add_elements([tweet(1)]) | beam.WindowInto(FixedWindows(WINDOW))
    outcome = tweets | AnnotateTweets(model, buffer=BATCH)
    outcome.results | WriteScores(str(tmp_path), "run")
    transforms = pipeline.to_runner_api().components.transforms.values()
    barriers = {t.unique_name for t in transforms if t.spec.urn == common_urns.primitives.GROUP_BY_KEY.urn}
    assert barriers == {"WriteScores/CommitFiles/GroupNames"}
    par_dos = [t for t in transforms if t.spec.urn == common_urns.primitives.PAR_DO.urn]
    payloads = {
        t.unique_name: proto_utils.parse_Bytes(t.spec.payload, beam_runner_api_pb2.ParDoPayload) for t in par_dos
    }
    assert [name for name, payload in payloads.items() if payload.state_specs] == ["AnnotateTweets/BufferTweets/Hold"]


# --- the same as in batch mode ---------------------------------------------------------------------------------------

CORPUS = [
    tweet(second, text, str(index))
    for index, (second, text) in enumerate(
        zip(
            [index * 37 % 400 + index / 8 for index in range(40)],
            [*make_texts(36), "", "love", "love", "rain"],
            strict=True,
        )
    )
]
Event = tuple[str, Any]
BUFFERS = st.one_of(
    st.none(),
    st.builds(
        BufferOptions,
        max_latency=st.floats(0.1, 5),
        shards=st.integers(1, 3),
        bucket_width=st.sampled_from([1, 16, 100]),
        clock=st.just(runners_time),
    ),
)
EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("tweets"), st.lists(st.integers(0, len(CORPUS) - 1), min_size=1, max_size=12)),
        st.tuples(st.just("watermark"), st.integers(1, 200)),
        # Eighths of a second: Beam cannot encode what is no whole number of milliseconds as a float.
        st.tuples(st.just("clock"), st.integers(1, 120).map(lambda eighths: eighths / 8)),
    ),
    min_size=1,
    max_size=14,
)


@pytest.fixture(scope="module")
def batch_output(model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where batch mode has written the corpus."""
    output = tmp_path_factory.mktemp("batch")
    with beam.Pipeline(runner=FnApiRunner()) as pipeline:
        tweets = pipeline | beam.Create([value.value for value in CORPUS])
        outcome = tweets | AnnotateTweets(model, timestamp=True, outputs=OUTPUTS)
        outcome.results | WriteScores(str(output), "run")
    return output


def rows_by_id(output: Path) -> dict[str, Row]:
    return {row["id"]: row for row in pq.read_table(output).to_pylist()}


@settings(
    max_examples=4,
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],  # an example takes a second, shrinking one minutes
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(events=EVENTS, buffer=BUFFERS, max_rows=st.sampled_from([1, 3, 512]))
@example(
    events=[("tweets", list(range(40))), ("watermark", 500), ("tweets", list(range(40)))], buffer=BATCH, max_rows=3
)
@example(events=[("tweets", [0]), ("clock", 1), ("tweets", [0]), ("watermark", 1)], buffer=BATCH, max_rows=512)
def test_any_order_of_events_gives_the_rows_of_batch_mode(
    events: list[Event],
    buffer: BufferOptions | None,
    max_rows: int,
    batch_output: Path,
    run: Run,
    model: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Value for value, once for each time that a tweet came, and each in its own window's files."""
    stream, watermark, expected = begin(), 0, Counter[str]()
    for kind, value in events:
        if kind == "tweets":
            stream = stream.add_elements([CORPUS[index] for index in value])
            expected.update(CORPUS[index].value.id for index in value)
        elif kind == "watermark":
            watermark += value
            stream = stream.advance_watermark_to(watermark)
        else:
            stream = stream.advance_processing_time(value)
    output = tmp_path_factory.mktemp("stream")
    limits = BatchLimits(max_rows=max_rows)
    annotate_stream(run, stream.advance_watermark_to_infinity(), output, model, buffer, limits=limits, outputs=OUTPUTS)
    rows, batch_rows = [row for file in files_of(output) for row in file], rows_by_id(batch_output)
    assert Counter(row["id"] for row in rows) == expected
    for row in rows:
        assert row == batch_rows[row["id"]]


# --- other runners ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [["--runner=FnApiRunner"], PORTABLE], ids=["FnApiRunner", "PortableRunner"])
def test_a_hold_on_portable_runners(options: list[str], model: str, batch_output: Path, tmp_path: Path) -> None:
    """Their timers fire at once or late, state and keys travel as bytes; the rows are the same."""
    pipeline = beam.Pipeline(options=PipelineOptions(options))
    tweets = pipeline | beam.Create(CORPUS) | beam.WindowInto(FixedWindows(WINDOW))
    outcome = tweets | AnnotateTweets(model, timestamp=True, outputs=OUTPUTS, buffer=BufferOptions())
    outcome.results | WriteScores(str(tmp_path), "run")
    result = pipeline.run()
    result.wait_until_finish()
    rows, batch_rows = [row for file in files_of(tmp_path) for row in file], rows_by_id(batch_output)
    assert sorted(row["id"] for row in rows) == sorted(batch_rows)
    assert all(row == batch_rows[row["id"]] for row in rows)
    found = result.metrics().query()["distributions"]
    distributions = {metric.key.metric.name: metric.result for metric in found}
    assert distributions[metrics.HELD_ROWS].sum == len(rows)
    assert distributions[metrics.BUFFER_WAIT].count == distributions[metrics.HELD_ROWS].count
    assert distributions[metrics.EVENT_LAG].count == len(rows)
    assert distributions[metrics.EVENT_LAG].min > 50 * 365 * DAY * 1000, "of the seventies"


TICKS = itertools.count()


def ticking() -> float:
    """A clock that goes on by a second when it is asked."""
    return next(TICKS)


def test_how_long_tweets_are_held_and_how_many(run: Run, model: str) -> None:
    """The clock is asked when they come, together, and when they go."""

    def build(pipeline: beam.Pipeline) -> Mapping[str, beam.PCollection[Any]]:
        tweets = pipeline | beam.Create([tweet(second) for second in range(5)], reshuffle=False)
        outcome = tweets | AnnotateTweets(model, buffer=BufferOptions(shards=1, clock=ticking))
        return {"batches": outcome.results}

    ran = run(build)
    assert [len(batch) for batch in ran["batches"]] == [5]
    wait = ran.distributions[metrics.BUFFER_WAIT]
    assert wait.count == 1
    assert wait.min == 1000
    rows = ran.distributions[metrics.HELD_ROWS]
    assert (rows.count, rows.min) == (1, 5)


# --- options ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_latency": 0}, "max_latency, in seconds, must be above 0, not 0"),
        ({"max_latency": float("nan")}, "max_latency, in seconds, must be above 0 and finite, not nan"),
        ({"shards": 0}, "shards must be at least 1, not 0"),
        ({"bucket_width": 0}, "bucket_width must be at least 1, not 0"),
    ],
    ids=str,
)
def test_options_are_checked_when_the_pipeline_is_built(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        BufferOptions(**arguments)


def test_windows_that_a_timestamp_does_not_tell_are_refused() -> None:
    tweets = beam.Pipeline() | beam.Create(CORPUS) | beam.WindowInto(SlidingWindows(60, 30))
    with pytest.raises(InputError, match="held in FixedWindows or GlobalWindows, not in SlidingWindows"):
        tweets | AnnotateTweets("unused", buffer=BufferOptions())
