"""Commands whose input, model and output are in an object store, with and without faults on the way."""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable

from pipelines import aggregate, annotate, compact, score, verify
from tests.object_store_server import Faults, ObjectStoreServer, mixed
from tests.pipelines import test_aggregate
from tests.pipelines.conftest import Finished, corpus, environment, posts, read_scores, write_lines
from tests.pipelines.data_set.test_pending import stream, tweets
from tests.pipelines.many_forms import TEXTS, in_many_forms

BUCKET = "data"
ROWS = 3_000
Run = Callable[..., Finished]


@pytest.fixture(scope="module")
def server(model: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStoreServer]:
    """Has the model, and posts in three files."""
    source = tmp_path_factory.mktemp("posts")
    for number in range(3):
        write_lines(source / f"{number}.jsonl", posts(ROWS)[number::3])
    with ObjectStoreServer() as running:
        running.client().create_bucket(Bucket=BUCKET)
        running.upload_directory(source, BUCKET, "posts")
        running.upload_directory(Path(model), BUCKET, "models/tiny")
        yield running


@pytest.fixture
def run(server: ObjectStoreServer, run_main: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """A command's main in this process, to which the server is the object store, and no model is known yet."""
    server.use(monkeypatch)
    monkeypatch.setenv("TORCHMOJI_CACHE", str(tmp_path / "cache"))
    return run_main


def download(server: ObjectStoreServer, prefix: str, directory: Path) -> Path:
    for key, content in server.contents(BUCKET).items():
        if key.startswith(f"{prefix}/"):
            path = directory / key
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    return directory / prefix


def go_down(
    server: ObjectStoreServer, run_main: Run, model: str, command: str, directory: Path,
    points: Callable[[int], Iterable[int]],
) -> None:  # fmt: skip
    """Run a command against a store that answers so many requests and no more, once for each of some numbers."""
    main = {"score": score.main, "annotate": annotate.main, "compact": compact.main, "verify": verify.main}[command]
    corpus(directory / "in", 3, 20)
    scoring = ("--model", model, "--progress", "off", "--input", "in/*", "--threads", "1", "--output")
    number = 0

    def prepare() -> tuple[str, ...]:
        """The arguments of the command, which then has something to do."""
        nonlocal number
        number += 1
        output = f"s3://{BUCKET}/down-{command}-{number}"
        if command == "annotate":
            return *scoring, output, "--commit_every", "0.001s"
        assert run_main(annotate.main, *scoring, output, "--commit_every", "0.001s").status == 0
        return (*scoring, output, "--if_exists", "replace") if command == "score" else (output,)

    arguments = prepare()
    server.faults = Faults()
    assert run_main(main, *arguments).status == 0
    total = len(server.requests)
    for point in points(total):
        if command != "verify":
            arguments = prepare()
        server.faults = Faults(after=point)
        finished = run_main(main, *arguments)
        server.faults = Faults()
        said = f"after {point} of {total} requests: {finished.err}"
        assert "Traceback" not in finished.err, said
        # The last requests only clean up.
        assert finished.status in ((5,) if command == "verify" else (0, 1) if point > 0.8 * total else (1,)), said
        if command == "verify":
            assert "could not tell" in finished.out + finished.err
        elif finished.status:
            assert len([line for line in finished.err.splitlines() if line.startswith("failed: ")]) == 1, said
        output = next(argument for argument in arguments if argument.startswith("s3://"))
        forget_locks(server, output)
        assert run_main(main, *arguments).status == 0, said
        verified = run_main(verify.main, output)
        assert verified.status == 0, said + verified.out


def forget_locks(server: ObjectStoreServer, output: str) -> None:
    """As if the process that could not give one back had ended, and not gone on with the test."""
    directory = f"{output.removeprefix(f's3://{BUCKET}/')}/_lock.json"
    for key in server.contents(BUCKET):
        if key.startswith(directory):
            server.client().delete_object(Bucket=BUCKET, Key=key)


@pytest.fixture(scope="module")
def local_rows(server: ObjectStoreServer, model: str, tmp_path_factory: pytest.TempPathFactory) -> pa.Table:
    """What a run without an object store gives."""
    directory = tmp_path_factory.mktemp("local")
    path = write_lines(directory / "all.jsonl", posts(ROWS))
    output = directory / "scored"
    assert score.main(["--input", str(path), "--model", model, "--output", str(output), "--progress", "off"]) == 0
    return read_scores(output)


def faults_only(value: Any) -> Any:
    """A case that is left to `make test-faults`, since a like one is in the suite."""
    return pytest.param(value, marks=pytest.mark.faults)


@pytest.mark.parametrize("faults", [faults_only(Faults()), mixed(0.2, seed=1)], ids=["healthy", "faulty"])
@pytest.mark.parametrize("processes", ["1", "2"])
def test_scores_are_those_of_a_local_run(
    server: ObjectStoreServer, run: Run, local_rows: pa.Table, tmp_path: Path, faults: Faults, processes: str
) -> None:
    output = f"scored-{processes}-{faults.errors}"
    server.faults = faults
    finished = run(
        score.main, "--input", f"s3://{BUCKET}/posts/*.jsonl", "--model", f"s3://{BUCKET}/models/tiny",
        "--output", f"s3://{BUCKET}/{output}", "--rows_per_file", "1000", "--direct_num_workers", processes,
    )  # fmt: skip
    injected = sum(server.injected.values())
    server.faults = Faults()
    assert finished.status == 0, finished.err
    assert (injected > 0) == (faults != Faults())
    stored = download(server, output, tmp_path)
    assert read_scores(stored).equals(local_rows)
    assert sum(pq.read_metadata(path).num_rows for path in stored.glob("part-*.parquet")) == ROWS
    names = {path.name.partition("-")[0] for path in stored.iterdir()}
    assert {"part", "_manifests"} <= names <= {"part", "_manifests", "_delta_log"}
    if faults == Faults():  # otherwise it may be behind
        options = {
            "aws_endpoint": server.environment["AWS_ENDPOINT_URL"],
            "aws_access_key_id": "testing",
            "aws_secret_access_key": "testing",
            "aws_region": "us-east-1",
            "aws_allow_http": "true",
        }
        table = DeltaTable(f"s3://{BUCKET}/{output}", storage_options=options)
        assert sorted(table.to_pyarrow_table(columns=["id"])["id"].to_pylist()) == local_rows["id"].to_pylist()
    assert server.unfinished_uploads(BUCKET) == []


def test_annotate_goes_on_where_it_stopped(server: ObjectStoreServer, run: Run, tmp_path: Path) -> None:
    arguments = (
        "--input", f"s3://{BUCKET}/growing/", "--model", f"s3://{BUCKET}/models/tiny",
        "--output", f"s3://{BUCKET}/annotated",
    )  # fmt: skip
    (tmp_path / "0").mkdir()
    write_lines(tmp_path / "0" / "posts.jsonl", posts(100))
    rows = 100 + in_many_forms(tmp_path / "1") * len(TEXTS)
    for number in range(2):
        server.upload_directory(tmp_path / str(number), BUCKET, "growing")
        server.faults = mixed(0.2, seed=2 + number)
        finished = run(annotate.main, *arguments)
        assert sum(server.injected.values()) > 0
        server.faults = Faults()
        assert finished.status == 0, finished.err
    stored = download(server, "annotated", tmp_path)
    assert sum(pq.read_metadata(path).num_rows for path in stored.rglob("part-*.parquet")) == rows
    assert not list(stored.glob("_lock.json*"))


def test_what_a_stream_has_written_is_committed(server: ObjectStoreServer, run: Run, model: str) -> None:
    output = f"s3://{BUCKET}/streamed"
    stream(output, model, [*tweets(0, 10), 42])
    pending = run(verify.main, output)
    assert pending.status == 0, pending.out + pending.err
    assert "3 of these files are pending" in pending.out
    server.faults = mixed(0.2, seed=4)
    finished = run(compact.main, output)
    server.faults = Faults()
    assert finished.status == 0, finished.err
    verified = run(verify.main, output)
    assert verified.status == 0, verified.out
    assert "10 rows in 2 file(s), 1 dead letters" in verified.out
    left = [key for key in server.contents(BUCKET) if key.startswith("streamed/_journal/")]
    assert [key.rpartition("/")[2] for key in left] == ["run.json"], "it may be going on"


def test_features_of_a_data_set_in_a_store_are_those_of_its_copy(
    server: ObjectStoreServer, run: Run, model: str, tmp_path: Path
) -> None:
    source, by = f"s3://{BUCKET}/of-users", ("--by", "user,day")
    (tmp_path / "in").mkdir()
    arguments = (source, *by, "--output", f"s3://{BUCKET}/features")
    for number in range(2):
        rows = test_aggregate.tweets(str(number), (1 + number, 2 + number), 20, seed=number)
        write_lines(tmp_path / "in" / f"{number}.jsonl", rows)
        scoring = ("--model", model, "--input", "in/*", "--output", source, *test_aggregate.KEPT)
        assert run(annotate.main, *scoring).status == 0
        finished = run(aggregate.main, *arguments)
        assert finished.status == 0, finished.err
        assert "2 file(s) made" in finished.out
    assert "0 file(s) made" in run(aggregate.main, *arguments).out
    copy = download(server, "of-users", tmp_path)
    assert run(aggregate.main, copy, *by, "--output", "features-of-copy").status == 0
    stored = download(server, "features", tmp_path)
    names = sorted(path.name for path in stored.iterdir())
    assert names == ["_features.json", *(f"features-2024-05-0{day}.parquet" for day in (1, 2, 3))]
    for name in names[1:]:
        assert pq.read_table(stored / name).equals(pq.read_table(tmp_path / "features-of-copy" / name))


def test_a_store_that_never_answers_well_is_said_in_one_line(
    server: ObjectStoreServer, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHMOJI_RETRY_SECONDS", "1")
    server.faults = Faults(errors=1.0)
    arguments = ("--input", f"s3://{BUCKET}/posts/*.jsonl", "--output", f"s3://{BUCKET}/never")
    finished = run(score.main, *arguments)
    server.faults = Faults()
    assert finished.status == 1
    assert re.search(rf"failed: .*s3://{BUCKET}/never: look-up failed \d+ times in 1 seconds", finished.err)
    assert "Traceback" not in finished.err
    assert not [key for key in server.contents(BUCKET) if key.startswith("never/")]


def test_the_next_run_removes_what_a_killed_one_has_left(
    server: ObjectStoreServer, run: Run, model: str, tmp_path: Path
) -> None:
    output = f"s3://{BUCKET}/killed"
    arguments = ("--input", f"s3://{BUCKET}/posts/*.jsonl", "--output", output, "--model", model)
    server.held = "/killed/_manifests/"
    process = subprocess.Popen(
        [sys.executable, "-m", "pipelines.annotate", *arguments],
        cwd=tmp_path,
        env=environment() | server.environment | {"TORCHMOJI_REQUEST_SECONDS": "300"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        assert server.is_holding.wait(120)
    finally:
        process.kill()
        process.wait()
        server.held = ""
    left = {key for key in server.contents(BUCKET) if re.match(r"killed/date=.*/part-", key)}
    assert left, "it died when its files were in place and its manifest was not"
    finished = run(annotate.main, *arguments)
    assert finished.status == 0, finished.err
    assert not left & server.contents(BUCKET).keys()
    assert not [key for key in server.contents(BUCKET) if key.startswith(("killed/_tmp/", "killed/_lock.json"))]
    verified = run(verify.main, output)
    assert verified.status == 0, verified.out


@pytest.mark.parametrize("command", ["score", faults_only("annotate"), faults_only("compact"), "verify"])
def test_a_store_that_goes_down_midway_is_said_in_one_line(
    server: ObjectStoreServer, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_main: Run, command: str
) -> None:
    """At one request, after which the next run puts all right; `make test-faults` does every third."""
    server.use(monkeypatch)
    monkeypatch.setenv("TORCHMOJI_RETRY_SECONDS", "0.1")
    go_down(server, run_main, model, command, tmp_path, lambda total: (total // 2,))


@pytest.mark.faults
def test_a_store_that_is_down_before_the_work_begins_is_no_wrong_input(
    server: ObjectStoreServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_main: Run
) -> None:
    server.use(monkeypatch)
    monkeypatch.setenv("TORCHMOJI_RETRY_SECONDS", "0.1")
    monkeypatch.setenv("TORCHMOJI_CACHE", str(tmp_path / "cache"))
    source, model = f"s3://{BUCKET}/posts/*.jsonl", f"s3://{BUCKET}/models/tiny"
    arguments = ("--input", source, "--model", model, "--output", "out", "--progress", "off", "--dry_run")
    reasons = set()
    for point in itertools.count():
        server.faults = Faults(after=point)
        finished = run_main(score.main, *arguments)
        server.faults = Faults()
        if finished.status == 0:  # the rest is in the cache
            break
        assert finished.status == 1, f"{point}: {finished.err}"
        (failed,) = [line for line in finished.err.splitlines() if line.startswith("failed: ")]
        assert "Traceback" not in finished.err and "error: " not in finished.err.splitlines()
        reasons.add(failed.partition(": cannot be ")[0])
    assert len(reasons) == 5, "listing, an input, and the three files of a model"
    assert run_main(score.main, *arguments, "--model", f"{model}-not-there").status == 2


def test_a_bucket_that_does_not_exist_is_said_in_one_line(run: Run) -> None:
    finished = run(score.main, "--output", "s3://no-such-bucket/scored")
    assert finished.status == 2
    assert "bucket no-such-bucket does not exist" in finished.err
    assert "Traceback" not in finished.err
