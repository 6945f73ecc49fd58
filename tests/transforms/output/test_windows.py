"""Files of windows: each row is in its own window's directory, however late it comes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import apache_beam as beam
import pyarrow as pa
import pytest
from apache_beam.testing import test_stream
from apache_beam.transforms.trigger import AccumulationMode, AfterCount, AfterWatermark
from apache_beam.transforms.window import (
    FixedWindows,
    GlobalWindow,
    IntervalWindow,
    SlidingWindows,
    TimestampedValue,
)
from apache_beam.utils.windowed_value import PaneInfoTiming

from tests.transforms.conftest import Run
from tests.transforms.output.batches import HOUR, ids_of, make_batch, numbered_batches, partitioned, parts, rows_of
from transforms import WriteScores, metrics
from transforms.output.write import window_directory


def test_partitions_and_windows_go_together(run: Run, tmp_path: Path) -> None:
    def build(pipeline: beam.Pipeline) -> Mapping[str, beam.PCollection[Any]]:
        batch = partitioned([("1", "lang=en"), ("2", "lang=de")])
        batches = pipeline | beam.Create([TimestampedValue(batch, 5), TimestampedValue(batch, HOUR)])
        return {"files": batches | beam.WindowInto(FixedWindows(HOUR)) | WriteScores(str(tmp_path), "run")}

    run(build)
    hours = ("date=1970-01-01/hour=00", "date=1970-01-01/hour=01")
    assert rows_of(tmp_path) == sorted(
        (row, f"{hour}/{lang}") for hour in hours for row, lang in (("1", "lang=en"), ("2", "lang=de"))
    )


@pytest.mark.parametrize(
    ("window", "directory"),
    [
        (GlobalWindow(), ""),
        (IntervalWindow(0, HOUR), "date=1970-01-01/hour=00"),
        (IntervalWindow(1711011512, 1711011572), "date=2024-03-21/hour=08"),
        (IntervalWindow(-1, 59), "date=1969-12-31/hour=23"),
        (IntervalWindow(-9223372036800, -9223372033200), ""),
    ],
    ids=str,
)
def test_window_directories(window: Any, directory: str) -> None:
    assert window_directory(window) == directory


def directory_of(tweet_id: str) -> str:
    """The ids of these tests begin with their time in seconds."""
    moment = datetime.fromtimestamp(int(tweet_id.split("-")[0]), UTC)
    return f"date={moment:%Y-%m-%d}/hour={moment:%H}"


def assert_in_windows(output: Path, ids: Iterable[str]) -> None:
    """Every file opens, every row lies in its window's directory, every id is there once."""
    found = []
    for path in parts(output):
        content = ids_of(path)
        assert content
        assert {directory_of(tweet_id) for tweet_id in content} == {str(path.parent.relative_to(output))}
        found += content
    assert sorted(found) == sorted(ids)


def test_windows_of_a_bounded_run(run: Run, tmp_path: Path) -> None:
    ids = [f"{index * 600}-{index}" for index in range(200)]

    def build(pipeline: beam.Pipeline) -> Mapping[str, beam.PCollection[Any]]:
        batches = pipeline | beam.Create([TimestampedValue(make_batch([x]), int(x.split("-")[0])) for x in ids])
        return {"files": batches | beam.WindowInto(FixedWindows(HOUR)) | WriteScores(str(tmp_path), "run", 4)}

    ran = run(build)
    assert_in_windows(tmp_path, ids)
    assert ran.count(metrics.ROWS_WRITTEN) == 200
    assert ran.count(metrics.FILES_WRITTEN) == len(parts(tmp_path)) == 67  # 33 full hours of 4 + 2, one of 2


def test_windowed_data_without_timestamps(run: Run, tmp_path: Path) -> None:
    """Beam puts it before all dates; that once ended the run."""

    def build(pipeline: beam.Pipeline) -> Mapping[str, beam.PCollection[Any]]:
        batches = pipeline | beam.Create(numbered_batches([3])).with_output_types(pa.RecordBatch)
        return {"files": batches | beam.WindowInto(FixedWindows(HOUR)) | WriteScores(str(tmp_path), "run")}

    run(build)
    (path,) = parts(tmp_path)
    assert path.parent == tmp_path


def test_sliding_windows_have_each_row_in_each(run: Run, tmp_path: Path) -> None:
    def build(pipeline: beam.Pipeline) -> Mapping[str, beam.PCollection[Any]]:
        batches = pipeline | beam.Create([TimestampedValue(make_batch(["a", "b"]), 5000)])
        return {"files": batches | beam.WindowInto(SlidingWindows(2 * HOUR, HOUR)) | WriteScores(str(tmp_path), "run")}

    run(build)
    assert [(str(path.parent.relative_to(tmp_path)), ids_of(path)) for path in parts(tmp_path)] == [
        ("date=1970-01-01/hour=00", ["a", "b"]),
        ("date=1970-01-01/hour=01", ["a", "b"]),
    ]


def test_a_stream_with_two_windows_in_one_bundle_and_a_late_element(run: Run, tmp_path: Path) -> None:
    """What corrupts or mixes the files of Beam's own sinks."""
    at_once = [f"{second}-{index}" for index, second in enumerate([10, HOUR + 10, 20, HOUR + 20, 30, 2 * HOUR + 5])]
    stream = (
        test_stream.TestStream()
        .advance_watermark_to(0)
        .add_elements([TimestampedValue(x, int(x.split("-")[0])) for x in at_once])
        .advance_watermark_to(2 * HOUR)
        .add_elements([TimestampedValue("40-late", 40), TimestampedValue(f"{HOUR + 40}-late", HOUR + 40)])
        .advance_watermark_to_infinity()
    )

    def build(pipeline: beam.Pipeline) -> Mapping[str, beam.PCollection[Any]]:
        batches = (
            pipeline
            | stream
            | beam.WindowInto(FixedWindows(HOUR), allowed_lateness=10 * HOUR)
            | beam.Map(lambda tweet_id: make_batch([tweet_id]))
        )
        return {"files": batches | WriteScores(str(tmp_path), "run")}

    ran = run(build, streaming=True)
    assert_in_windows(tmp_path, [*at_once, "40-late", f"{HOUR + 40}-late"])
    assert [path.parent.name for path in parts(tmp_path)] == ["hour=00"] * 2 + ["hour=01"] * 2 + ["hour=02"]
    # Not the counter: the counters of this runner miss all but the first bundle of a step.
    assert sum(file.rows for file in ran["files"]) == 8


def test_early_on_time_and_late_panes(run: Run, tmp_path: Path) -> None:
    """Each pane gets files of its own: the next one must not replace them."""
    stream = test_stream.TestStream().advance_watermark_to(0)
    ids = []
    for step, (watermark, seconds) in enumerate(
        [
            (100, [10, 20, 30, HOUR + 10, HOUR + 20]),  # early: at two elements of a key
            (200, [40, HOUR + 30]),
            (2 * HOUR + 1, []),  # both windows close
            (2 * HOUR + 2, [50]),  # late
            (2 * HOUR + 3, [60, HOUR + 40]),
        ]
    ):
        new = [f"{second}-{step}" for second in seconds]
        ids += new
        if new:
            stream = stream.add_elements([TimestampedValue(x, int(x.split("-")[0])) for x in new])
        stream = stream.advance_watermark_to(watermark)
    stream = stream.advance_watermark_to_infinity()
    trigger = AfterWatermark(early=AfterCount(2), late=AfterCount(1))

    def pane_of(batch: pa.RecordBatch, pane: Any = beam.DoFn.PaneInfoParam) -> str:
        return PaneInfoTiming.to_string(pane.timing)

    def build(pipeline: beam.Pipeline) -> Mapping[str, beam.PCollection[Any]]:
        batches = (
            pipeline
            | stream
            | beam.WindowInto(
                FixedWindows(HOUR),
                trigger=trigger,
                accumulation_mode=AccumulationMode.DISCARDING,
                allowed_lateness=10 * HOUR,
            )
            | beam.Map(lambda tweet_id: ("all", tweet_id))
            | beam.GroupByKey()
            | beam.FlatMap(lambda group: [make_batch(group[1])] if group[1] else [])
        )
        return {"files": batches | WriteScores(str(tmp_path), "run"), "panes": batches | beam.Map(pane_of)}

    ran = run(build, streaming=True)
    assert_in_windows(tmp_path, ids)
    assert set(ran["panes"]) == {"EARLY", "ON_TIME", "LATE"}
    assert len(parts(tmp_path)) == len(ran["files"]) >= 5
    assert sum(file.rows for file in ran["files"]) == len(ids)
