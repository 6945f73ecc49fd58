"""Features are what a reader would compute from the live rows, whatever the data set has been through."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from pipelines import aggregate
from pipelines.data_set import aggregation
from tests.pipelines.conftest import Finished, read_live, write_lines
from transforms.storage import files as storage

Run = Callable[..., Finished]
WORDS = ["so", "happy", "late", "again", "i", "love", "it"]
KEPT = ("--keep_fields", "user:string,lang:string", "--timestamp_field", "created_at", "--settle", "0s")
DAYS = (1, 2, 3, 4)


def tweets(name: str, days: tuple[int, ...], count: int, seed: int) -> list[dict[str, Any]]:
    """Some without a user, some without a text."""
    generator = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        words = generator.choice(WORDS, generator.integers(0, 6)).tolist()
        row = {
            "id": f"{name}-{number}",
            "text": " ".join(words),
            "user": f"user {generator.integers(4)}",
            "lang": generator.choice(["en", "de"]).item(),
            "created_at": f"2024-05-{generator.choice(days):02d}T{generator.integers(24):02d}:30:00Z",
        }
        if number % 9 == 4:
            del row["user"]
        rows.append(row)
    return rows


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Write a file of tweets to the inputs."""

    def write(name: str, days: tuple[int, ...] = DAYS, count: int = 40, seed: int = 1) -> Path:
        path = tmp_path / "in" / f"{name}.jsonl"
        path.parent.mkdir(exist_ok=True)
        return write_lines(path, tweets(name, days, count, seed))

    return write


@pytest.fixture
def run(run_main: Run) -> Run:
    """The aggregate command of `out`."""
    return lambda *arguments, by="user,day": run_main(aggregate.main, "out", "--by", by, *arguments)


def features(directory: Path) -> pd.DataFrame:
    files = sorted(directory.glob("features-*.parquet"))
    return pd.concat([pq.read_table(path).to_pandas() for path in files], ignore_index=True)


def recomputed(output: Path, entity: list[str], period: str | None) -> pd.DataFrame:
    """Features as a reader of the data set would make them."""
    return features_of(read_live(output).to_pandas(), entity, period)


def features_of(rows: pd.DataFrame, entity: list[str], period: str | None) -> pd.DataFrame:
    """What pandas makes of rows."""
    rows = rows.dropna(subset=entity)
    starts = (
        rows["timestamp"]
        .dt.tz_localize(None)
        .dt.to_period({"hour": "h", "day": "D", "week": "W", "month": "M"}.get(period, "D"))
    )
    rows["start"] = starts.dt.start_time.dt.tz_localize("UTC")
    made = []
    for key, group in rows.groupby([*(["start"] if period else []), *entity], sort=True):
        scored = group[group["status"] == "scored"]
        vectors = np.array(scored["probabilities"].tolist(), np.float64)
        if len(scored):
            mean = vectors.mean(axis=0)
            first = np.bincount(vectors.argmax(axis=1), minlength=len(mean)) / len(scored)
            embedding = np.array(scored["embedding"].tolist(), np.float64).mean(axis=0)
        made.append({
            "key": key, "tweets": len(group), "scored": len(scored),
            "probabilities": mean if len(scored) else None, "first_share": first if len(scored) else None,
            "embedding": embedding if len(scored) else None,
            "entropy": -(mean * np.log(mean)).sum() if len(scored) else np.nan,
        })  # fmt: skip
    return pd.DataFrame(made)


def assert_equal(found: pd.DataFrame, expected: pd.DataFrame, entity: list[str], period: str | None) -> None:
    assert len(found) == len(expected)
    assert len(found) > 0
    keys = found[[*([period] if period else []), *entity]].itertuples(index=False, name=None)
    assert [key if isinstance(key, tuple) else (key,) for key in expected["key"]] == list(keys)
    for name in ("tweets", "scored"):
        assert found[name].tolist() == expected[name].tolist()
    for name in ("probabilities", "first_share", "embedding", "entropy"):
        for one, other in zip(found[name], expected[name], strict=True):
            if one is None or other is None:
                assert one is None and other is None
            else:
                np.testing.assert_allclose(one, other, rtol=1e-6, atol=2e-7)


@pytest.mark.parametrize(
    ("by", "entity", "period"),
    [
        ("user,day", ["user"], "day"),
        ("hour", [], "hour"),
        ("week,lang", ["lang"], "week"),
        ("user,lang,month", ["user", "lang"], "month"),
        ("user", ["user"], None),
    ],
)
def test_features_are_those_of_pandas(
    by: str,
    entity: list[str],
    period: str | None,
    write: Callable[..., Path],
    run_annotate: Run,
    run: Run,
    tmp_path: Path,
) -> None:
    write("a")
    write("b", seed=2)
    assert run_annotate(*KEPT).status == 0
    finished = run("--output", "features", by=by)
    assert finished.status == 0, finished.err
    found = features(tmp_path / "features")
    assert_equal(found, recomputed(tmp_path / "out", entity, period), entity, period)
    left_out = int(read_live(tmp_path / "out")["user"].null_count) if "user" in by else 0
    assert f"80 rows: {80 - left_out} in features" in finished.out
    assert found["tweets"].sum() == 80 - left_out
    if period:
        assert (found["event_timestamp"] > found[period]).all()
        assert found["event_timestamp"].dt.tz is not None


def test_any_history_gives_what_one_aggregation_gives(
    write: Callable[..., Path], run_annotate: Run, run_compact: Run, run: Run, tmp_path: Path
) -> None:
    def check(step: int) -> None:
        assert run("--output", "features").status == 0
        assert run("--output", f"fresh-{step}").status == 0
        names = sorted(path.name for path in (tmp_path / "features").glob("*.parquet"))
        assert names == sorted(path.name for path in (tmp_path / f"fresh-{step}").glob("*.parquet"))
        for name in names:
            one, other = (pq.read_table(tmp_path / directory / name) for directory in ("features", f"fresh-{step}"))
            assert one.equals(other), (step, name)
        assert_equal(features(tmp_path / "features"), recomputed(tmp_path / "out", ["user"], "day"), ["user"], "day")

    write("a", (1, 2))
    assert run_annotate(*KEPT).status == 0
    check(1)
    write("late", (1, 3), seed=3)  # late rows of a day that was done
    assert run_annotate(*KEPT).status == 0
    check(2)
    write("a", (2,), count=25, seed=4)  # changed, so that rows of the first day are gone
    assert run_annotate(*KEPT).status == 0
    check(3)
    assert run_compact().status == 0
    check(4)
    (tmp_path / "in" / "late.jsonl").unlink()  # no input has days 1 and 3 any more
    assert run_annotate(*KEPT, "--on_vanished", "retire").status == 0
    check(5)
    assert [path.name for path in (tmp_path / "features").glob("*.parquet")] == ["features-2024-05-02.parquet"]


def test_only_what_changes_concern_is_made_again(
    write: Callable[..., Path], run_annotate: Run, run: Run, tmp_path: Path
) -> None:
    write("a", (1, 2))
    assert run_annotate(*KEPT).status == 0
    assert run("--output", "features").status == 0
    before = {path.name: path.stat().st_ino for path in (tmp_path / "features").glob("*.parquet")}
    write("b", (2, 3), seed=2)
    assert run_annotate(*KEPT).status == 0
    assert "2 file(s) made" in run("--output", "features").out
    after = {path.name: path.stat().st_ino for path in (tmp_path / "features").glob("*.parquet")}
    assert after["features-2024-05-01.parquet"] == before["features-2024-05-01.parquet"]
    assert after["features-2024-05-02.parquet"] != before["features-2024-05-02.parquet"]
    assert "0 file(s) made" in run("--output", "features").out


def test_nothing_of_a_data_set_is_read_in_which_nothing_is_new(
    write: Callable[..., Path], run_annotate: Run, run: Run, tmp_path: Path
) -> None:
    write("a", (1, 2))
    assert run_annotate(*KEPT).status == 0
    assert run("--output", "features").status == 0
    for path in (tmp_path / "out").rglob("*.parquet"):
        path.write_bytes(b"not read")
    finished = run("--output", "features")
    assert finished.status == 0, finished.err
    assert "40 rows: 36 in features, 4 without user left out; 0 file(s) made" in finished.out
    (tmp_path / "features" / "features-2024-05-01.parquet").unlink()
    assert run("--output", "features").status == 1


def test_groups_that_do_not_fit_are_made_in_parts(
    write: Callable[..., Path], run_annotate: Run, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("a")
    assert run_annotate(*KEPT).status == 0
    assert run("--output", "whole").status == 0
    monkeypatch.setattr(aggregation, "MOST_BYTES", 5_000)
    assert run("--output", "parts").status == 0
    for path in (tmp_path / "whole").glob("*.parquet"):
        assert pq.read_table(path).equals(pq.read_table(tmp_path / "parts" / path.name))


def test_a_run_that_failed_is_made_good_by_the_next(
    write: Callable[..., Path], run_annotate: Run, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("a")
    assert run_annotate(*KEPT).status == 0
    renamed = []

    def rename(source: str, destination: str) -> None:
        renamed.append(destination)
        if len(renamed) == 2:
            raise OSError(28, "No space left on device")
        Path(source).rename(destination)

    with monkeypatch.context() as patched:
        patched.setattr(storage, "rename", rename)
        finished = run("--output", "features")
    assert finished.status == 1
    assert "No space left on device" in finished.err
    assert "Traceback" not in finished.err
    assert run("--output", "features").status == 0
    assert_equal(features(tmp_path / "features"), recomputed(tmp_path / "out", ["user"], "day"), ["user"], "day")
    assert {path.name[:9] for path in (tmp_path / "features").iterdir()} == {"features-", "_features"}
    assert not list((tmp_path / "features").glob("*.tmp"))


def test_a_killed_run_leaves_nothing_of_rows_that_are_retired_before_the_next(
    write: Callable[..., Path], run_annotate: Run, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("a", (1,))
    assert run_annotate(*KEPT).status == 0
    assert run("--output", "features").status == 0
    write("b", (1, 2), seed=2)
    assert run_annotate(*KEPT).status == 0
    publish = storage.publish

    def fail_at_the_last_record(path: str, *arguments: Any) -> None:
        if path.endswith("_features.json") and (tmp_path / "features" / "features-2024-05-02.parquet").exists():
            raise OSError(28, "No space left on device")
        publish(path, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(storage, "publish", fail_at_the_last_record)
        assert run("--output", "features").status == 1
    (tmp_path / "in" / "b.jsonl").unlink()
    assert run_annotate(*KEPT, "--on_vanished", "retire").status == 0
    assert run("--output", "features").status == 0
    assert_equal(features(tmp_path / "features"), recomputed(tmp_path / "out", ["user"], "day"), ["user"], "day")


def test_a_file_of_features_that_was_deleted_is_made_again(
    write: Callable[..., Path], run_annotate: Run, run: Run, tmp_path: Path
) -> None:
    write("a", (1, 2))
    assert run_annotate(*KEPT).status == 0
    assert run("--output", "features").status == 0
    path = tmp_path / "features" / "features-2024-05-02.parquet"
    expected = path.read_bytes()
    path.unlink()
    assert "1 file(s) made" in run("--output", "features").out
    assert path.read_bytes() == expected


NAMES = ("row", "time", "unit", "number", "period", "latest", "User", "user", "key_1", 'quo"te', "per%cent")


def test_columns_of_any_name_are_entities(run_score: Run, run: Run, tmp_path: Path) -> None:
    rows = [
        {"id": str(i), "text": "so happy", "created_at": "2024-05-01T10:00:00Z"}
        | {name: f"{name} {i % (2 + at % 3)}" for at, name in enumerate(NAMES)}
        for i in range(12)
    ]
    write_lines(tmp_path / "in.jsonl", rows)
    keep = ",".join(f"{name}:string" for name in NAMES)
    arguments = ("--timestamp_field", "created_at", "--keep_fields", keep)
    assert run_score("--input", "in.jsonl", "--output", "out", *arguments).status == 0
    for number, by in enumerate([*NAMES, ",".join(NAMES)]):
        entity = by.split(",")
        expected = pd.DataFrame(rows).groupby(entity).size()
        assert run("--output", f"features-{number}", by=f"day,{by}").status == 0
        found = features(tmp_path / f"features-{number}").set_index(entity)["tweets"]
        assert found.sort_index().to_dict() == expected.to_dict()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--by", "name,day"], "no column 'name' to group by, but"),
        (["--by", "user,,day"], "--by user,,day: expected columns and at most one of hour, day, week, month"),
        (["--by", "day,hour"], "at most one of hour, day, week, month"),
        (["--by", "user,timestamp"], "'timestamp' is no entity; by time, give one of hour"),
        (["--by", "embedding"], "'embedding' is no entity"),
        (["--by", "user", "--output", "in"], "holds something else than features"),
        (["--by", "user", "--output", "out/features"], "is in the data set itself"),
        (["--by", "user", "--output", "features[1]"], "holds one of the glob characters"),
    ],
)
def test_wrong_options_are_one_line(
    arguments: list[str], message: str, write: Callable[..., Path], run_annotate: Run, run_main: Run
) -> None:
    write("a", count=5)
    assert run_annotate(*KEPT).status == 0
    finished = run_main(aggregate.main, "out", "--output", "features", *arguments)
    assert finished.status == 2
    assert message in finished.err
    assert len(finished.err.strip().splitlines()) == 1


def test_what_is_no_data_set_or_lacks_columns(run_main: Run, run_score: Run, tmp_path: Path) -> None:
    finished = run_main(aggregate.main, "nowhere", "--by", "user", "--output", "features")
    assert finished.status == 2
    assert "no manifest there" in finished.err
    write_lines(tmp_path / "in.jsonl", [{"id": "1", "text": "so happy"}])
    assert run_score("--input", "in.jsonl", "--output", "out", "--outputs", "top").status == 0
    assert "neither probabilities nor embeddings" in run_main(aggregate.main, "out", "--by", "id", "--output", "f").err
    assert "score them with --timestamp_field" in run_main(aggregate.main, "out", "--by", "day", "--output", "f").err


def test_features_of_another_grouping_are_refused(write: Callable[..., Path], run_annotate: Run, run: Run) -> None:
    write("a", count=5)
    assert run_annotate(*KEPT).status == 0
    assert run("--output", "features").status == 0
    finished = run("--output", "features", by="lang,day")
    assert finished.status == 2
    assert "by user,day, not of" in finished.err


def test_the_record_says_what_was_left_out(
    write: Callable[..., Path], run_annotate: Run, run: Run, tmp_path: Path
) -> None:
    write("a", count=20)
    assert run_annotate(*KEPT).status == 0
    assert run("--output", "features").status == 0
    record = json.loads((tmp_path / "features" / "_features.json").read_text())
    (looked,) = record["files"].values() if len(record["files"]) == 1 else (None,)
    total = sum(each["rows"] for each in record["files"].values())
    left = sum(sum(each["left_out"].values()) for each in record["files"].values())
    assert (total, left) == (20, 2) and (looked is None or looked["left_out"] == {"user": 2, "timestamp": 0})


def test_a_day_without_any_token_has_the_columns_of_the_others(
    write: Callable[..., Path], run_annotate: Run, run: Run, tmp_path: Path
) -> None:
    write("a", (1,))
    assert run_annotate(*KEPT).status == 0
    assert run("--output", "features").status == 0
    write_lines(tmp_path / "in" / "b.jsonl", [{"text": "", "user": "x", "created_at": "2024-05-02T00:00:00Z"}])
    assert run_annotate(*KEPT).status == 0
    assert run("--output", "features").status == 0
    one, other = (pq.read_table(tmp_path / "features" / f"features-2024-05-0{day}.parquet") for day in (1, 2))
    assert one.schema == other.schema
    assert other.to_pylist()[0]["probabilities"] is other.to_pylist()[0]["entropy"] is None
