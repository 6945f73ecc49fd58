"""What a local stream does with messages gives the rows of batch mode and of the graph of clusters, to the last bit."""

from __future__ import annotations

import itertools
import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import apache_beam as beam
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions
from apache_beam.runners.direct.direct_runner import BundleBasedDirectRunner
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.testing import test_stream
from apache_beam.transforms.window import FixedWindows
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipelines.cli.options import ScoreConfig, parse
from pipelines.cli.streaming_options import StreamOptions
from pipelines.streams.buffer import LoopOptions
from pipelines.streams.loop import Loop
from pipelines.streams.stages import Stages, message_fields
from tests.pipelines.conftest import WORDS
from tests.pipelines.streams.parts import Clock, ListSource, until
from tests.streams import result_files
from tests.tiny import tiny_bundle
from torchmoji_core.batching import BatchLimits
from torchmoji_core.bundle import Bundle
from torchmoji_core.errors import RunError
from transforms import AnnotateTweets, BufferOptions, ParseMessages, WriteDeadLetters, WriteScores, metrics
from transforms.columns import OUTPUTS
from transforms.input.messages import MessageParser
from transforms.records import DeadLetter, Message, TokenizedTweet

SOURCE = ListSource.uri
WINDOW = 60
NOW = 1_700_000_000_000_000
"""When messages are published, in microseconds."""
Row = dict[str, Any]


def message(number: int, text: object, seconds: float = 0.0) -> Message:
    """A message of an event so many seconds after `NOW`."""
    post = {"id": f"post-{number}", "text": text, "at": NOW / 1e6 + seconds, "lang": "en", "n": number}
    return Message(f"m{number}", json.dumps(post).encode(), NOW)


MESSAGES = [
    *(message(number, " ".join(WORDS[number % 7 : number % 23 + 3]), number * 37 % 400) for number in range(40)),
    message(40, ""),
    message(41, "love \ud800 rain", -5000 * 86_400.0),
    message(42, "love"),
    Message("m43", b"{", NOW),
    message(44, 5),
    message(45, "love", 3 * 86_400.0),
]
DEAD = {"m43", "m44", "m45"}


def configure(output: Path, model: str, *options: str) -> tuple[ScoreConfig, StreamOptions]:
    config, _ = parse(
        ["--streaming", "--input", SOURCE, "--output", str(output), "--model", model, "--window", f"{WINDOW}s",
         "--timestamp_field", "at", "--keep_fields", "lang:string,n:int64", "--outputs", ",".join(OUTPUTS), *options]
    )  # fmt: skip
    assert config.stream is not None
    return replace(config, score=replace(config.score, run_id="run")), config.stream


def files_of(output: Path) -> list[list[Row]]:
    """Rows of each file, which are all of one window, in whose directory they are."""
    found = []
    for path in sorted(output.glob("date=*/hour=*/*.parquet")):
        rows: list[Row] = pq.ParquetFile(path).read().to_pylist()
        (start,) = {row["timestamp"].timestamp() // WINDOW * WINDOW for row in rows}
        moment = datetime.fromtimestamp(start, UTC)
        assert path.parent.relative_to(output) == Path(f"date={moment:%Y-%m-%d}", f"hour={moment:%H}")
        found.append(rows)
    return found


def rows_by_id(output: Path) -> dict[str, Row]:
    rows = list(itertools.chain(*files_of(output)))
    found = {row["id"]: row for row in rows}
    assert len(found) == len(rows), "each is there once"
    return found


def letters_of(output: Path) -> set[str]:
    files = output.glob("_dead_letters/**/*.jsonl")
    return {json.loads(line)["position"] for file in files for line in file.read_text().splitlines()}


@pytest.fixture(scope="module")
def batch_rows(model: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Row]:
    """What batch mode makes of the same tweets."""
    output = tmp_path_factory.mktemp("batch")
    config, stream = configure(output, model)
    parser = MessageParser(SOURCE, message_fields(config, stream))
    parsed = [found for item in MESSAGES for found in parser.parse(item)]
    with beam.Pipeline(runner=FnApiRunner()) as pipeline:
        tweets = pipeline | beam.Create([item for item in parsed if not isinstance(item, DeadLetter)])
        scored = tweets | AnnotateTweets(**vars(config.score) | {"limits": BatchLimits(max_rows=7)})
        scored.results | WriteScores(str(output), "run")
    return {row["id"]: row for row in pq.read_table(output).to_pylist()}


def run_graph(config: ScoreConfig, stream: StreamOptions, bundles: Sequence[Sequence[Message]]) -> None:
    """The graph of clusters, but for its source, with a stream whose bundles are given."""
    events = test_stream.TestStream()
    for bundle in bundles:
        events = events.add_elements(bundle)
    options = PipelineOptions([])
    options.view_as(StandardOptions).streaming = True
    pipeline = beam.Pipeline(runner=BundleBasedDirectRunner(), options=options)
    messages = pipeline | events.advance_watermark_to_infinity()
    parsed = messages | ParseMessages(SOURCE, message_fields(config, stream))
    tweets = parsed.results | beam.WindowInto(FixedWindows(stream.window))
    scored = tweets | AnnotateTweets(
        **vars(config.score) | {"buffer": BufferOptions(stream.max_latency, stream.shards)}
    )
    scored.results | WriteScores(config.output, "run", journal=True)
    (*parsed.dead_letters, *scored.dead_letters) | WriteDeadLetters(config.output, "run", journal=True)
    pipeline.run().wait_until_finish()


def run_loop(config: ScoreConfig, stream: StreamOptions) -> Loop:
    source = ListSource()
    source.most_at_once = 11
    loop = Loop(source, Stages(config, stream), LoopOptions(1000, 1 << 20, 1.0, BatchLimits(max_rows=20)), Clock())
    loop.start()
    source.send_messages(MESSAGES)
    until(lambda: loop.tally.counts().get(metrics.READ, 0) == len(MESSAGES))
    loop.stop()
    assert loop.ended.wait(60) and loop.error is None
    assert len(source.acknowledged) == len(MESSAGES)
    return loop


def test_loop_graph_and_batch_give_equal_rows(model: str, batch_rows: dict[str, Row], tmp_path: Path) -> None:
    """Value for value, in files of their windows."""
    bundles = [MESSAGES[:1], MESSAGES[1:30], MESSAGES[30:]]
    run_graph(*configure(tmp_path / "graph", model), bundles)
    loop = run_loop(*configure(tmp_path / "loop", model))
    assert rows_by_id(tmp_path / "graph") == rows_by_id(tmp_path / "loop") == batch_rows
    assert letters_of(tmp_path / "graph") == letters_of(tmp_path / "loop") == DEAD
    assert len(batch_rows) == len(MESSAGES) - len(DEAD)
    counts = loop.tally.counts()
    assert counts[metrics.READ] == len(MESSAGES) and counts[metrics.DEAD] == len(DEAD)
    assert counts[metrics.SCORED] + counts[metrics.EMPTY] == counts[metrics.ROWS_WRITTEN] == len(batch_rows)
    figures = loop.tally.figures()
    assert figures["latency_ms_count"] == figures["event_lag_ms_count"] == len(batch_rows)
    assert figures["held_rows_count"] == figures["buffer_wait_ms_count"] and figures["held_rows_max"] <= len(MESSAGES)


@pytest.fixture(scope="module")
def stages_by_rows(model: str, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Stages]:
    """By the most rows of a batch."""
    output = tmp_path_factory.mktemp("unused")
    return {rows: Stages(*configure(output, model, "--max_batch_rows", str(rows))) for rows in (1, 3, 512)}


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    order=st.permutations(range(len(MESSAGES))),
    cuts=st.lists(st.integers(0, len(MESSAGES)), max_size=5),
    max_rows=st.sampled_from([1, 3, 512]),
)
def test_rows_depend_on_no_order_and_no_company(
    order: list[int], cuts: list[int], max_rows: int, stages_by_rows: dict[int, Stages], batch_rows: dict[str, Row]
) -> None:
    stages = stages_by_rows[max_rows]
    prepared = [item for index in order for item in stages.prepare(MESSAGES[index])]
    rows: list[Row] = []
    for first, last in itertools.pairwise([0, *sorted(cuts), len(prepared)]):
        scored = stages.score(prepared[first:last])
        assert all(len(part) <= max_rows for part in scored.parts)
        rows += itertools.chain(*(part.to_pylist() for part in scored.parts))
    assert len(rows) == len(batch_rows) and {row["id"]: row for row in rows} == batch_rows


def test_a_file_has_rows_of_one_window_and_all_of_a_chunk_one_record(model: str, tmp_path: Path) -> None:
    config, stream = configure(tmp_path, model)
    stages = Stages(config, stream)
    many = [message(number, "love and rain", number * 20) for number in range(9)]
    stages.write(stages.score([prepared for item in many for prepared in stages.prepare(item)]), {})
    assert sorted(len(rows) for rows in files_of(tmp_path)) in ([1, 2, 3, 3], [3, 3, 3])
    (record,) = tmp_path.glob("_journal/*/*.json")
    named = {file["final"] for file in json.loads(record.read_text())["files"]}
    assert named == set(map(str, tmp_path.glob("date=*/hour=*/*.parquet"))), "it says that they are results, or none is"


class Topic:
    """Notes what is published."""

    def __init__(self) -> None:
        self.ids: list[str] = []

    def publish(self, batches: Sequence[pa.RecordBatch]) -> None:
        self.ids += [id_ for batch in batches for id_ in batch["id"].to_pylist()]


def test_rows_are_published_and_dead_letters_are_not(model: str, tmp_path: Path) -> None:
    config, stream = configure(tmp_path, model)
    topic = Topic()
    stages = Stages(config, stream, topic)
    stages.write(stages.score([prepared for item in MESSAGES for prepared in stages.prepare(item)]), {})
    assert sorted(topic.ids) == sorted(rows_by_id(tmp_path))


class FullTopic:
    """Takes nothing."""

    def publish(self, batches: Sequence[pa.RecordBatch]) -> None:
        raise RunError("rows cannot be published")


def test_rows_that_cannot_be_published_leave_no_files(model: str, tmp_path: Path) -> None:
    """A supervisor starts such a stream again and again."""
    config, stream = configure(tmp_path, model)
    stages = Stages(config, stream, FullTopic())
    with pytest.raises(RunError):
        stages.write(stages.score([prepared for item in MESSAGES for prepared in stages.prepare(item)]), {})
    assert not result_files(tmp_path)


def test_a_poison_row_costs_itself_alone(model: str, tmp_path: Path) -> None:
    config, stream = configure(tmp_path, model)
    stages = Stages(config, stream)
    good = [prepared for item in MESSAGES[:10] for prepared in stages.prepare(item)]
    poison = good[3]
    assert isinstance(poison, TokenizedTweet)
    poison = poison._replace(tweet=poison.tweet._replace(timestamp="now"))  # type: ignore[arg-type]
    scored = stages.score([*good[:3], poison, *good[4:]])
    assert sum(map(len, scored.parts)) == 9
    assert [letter.position for letter in scored.dead_letters] == ["m3"]


def test_a_stream_takes_each_model_that_appears(bundle: Bundle, model: str, tmp_path: Path) -> None:
    """Each file is of one model, which its metadata name, and each row is what that model gives, whatever it reads."""
    models, output = tmp_path / "models", tmp_path / "out"
    bundles = [bundle, tiny_bundle(WORDS, seed=21), tiny_bundle([*reversed(WORDS), "zyxwv"], seed=22)]
    config, stream = configure(output, model, "--model_watch", f"{models}/*", "--model_poll", "1ms")
    stages = Stages(config, stream)
    prepared = [prepared for item in MESSAGES[:10] for prepared in stages.prepare(item)]

    def fingerprint() -> str:
        return str(stages.score(prepared[:1]).parts[0]["fingerprint"][0].as_py())

    for number, each in enumerate(bundles):
        if number:
            each.save(models / f"v{number}")
        until(lambda expected=each.fingerprint: fingerprint() == expected)
        stages.write(stages.score(prepared), {})
    found: Counter[str] = Counter()
    for path in output.rglob("*.parquet"):
        file = pq.ParquetFile(path)
        rows = file.read().to_pylist()
        (one,) = {row["fingerprint"] for row in rows}
        assert file.schema_arrow.metadata[b"torchmoji.fingerprint"].decode() == one
        found[one] += len(rows)
    assert found == {each.fingerprint: 10 for each in bundles}
    for number, each in enumerate(bundles):
        alone = tmp_path / f"alone{number}"
        each.save(tmp_path / f"model{number}")
        of_one = Stages(*configure(alone, str(tmp_path / f"model{number}"), "--outputs", f"{','.join(OUTPUTS)}"))
        scored = of_one.score([prepared for item in MESSAGES[:10] for prepared in of_one.prepare(item)])
        expected = {row["id"]: row for part in scored.parts for row in part.to_pylist()}
        for row in itertools.chain(*(pq.ParquetFile(path).read().to_pylist() for path in output.rglob("*.parquet"))):
            if row["fingerprint"] == each.fingerprint:
                assert row == expected[row["id"]]


def test_how_late_messages_are_is_counted(model: str, tmp_path: Path) -> None:
    config, stream = configure(tmp_path, model)
    tally = metrics.Tally()
    with tally.counting():
        Stages(config, stream).prepare(message(1, "love", -3.0))
    lag = tally.figures()["event_lag_ms_mean"]
    assert lag == pytest.approx(1000 * (time.time() - NOW / 1e6 + 3), abs=60_000)
