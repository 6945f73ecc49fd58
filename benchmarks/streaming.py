"""python -m benchmarks.streaming: a local stream from Pub/Sub or Kafka, beside a batch run on the same tweets.

* batch: rows/s between a run over a tenth of the tweets and one over all, so without start-up;
* saturated: all tweets wait in the subscription; rows/s by the same subtraction, from the start of the process to the
  last file in place. From the first file to the last would favour a stream that holds many rows before its first file;
* rate: tweets are published at a share of the batch run's rows/s, from the moment when one that was sent before is in
  place; latency from publication to the file in place.

The server is a process of its own, and takes its part of the same cores: one of ours for Pub/Sub, librdkafka's broker
for tests for Kafka. So sources are compared by the CPU time of the stream itself.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from benchmarks.common import measure_command, report, texts
from benchmarks.reference_bundle import save_reference_bundle
from tests.fake_pubsub import FakePubSub
from tests.kafka import PARTITIONS, Broker

SUBSCRIPTION = "projects/benchmark/subscriptions/tweets"
_SCORE = [sys.executable, "-m", "pipelines.score", "--progress", "off", "--cache_mb", "0"]
_START_SECONDS = 120.0
_Serve = Callable[[list[str], float | None, float, Any, Any], None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", choices=("pubsub", "kafka"), default="pubsub", help="default: %(default)s")
    parser.add_argument("--data", help="Parquet with a column text (default: the tweets beside the checkout, if any)")
    parser.add_argument("--model", help="bundle, or full for random weights of the published size")
    parser.add_argument("--rows", type=int, default=20_000, help="of batch and saturated stream (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=60.0, help="of a steady rate (default: %(default)s)")
    parser.add_argument("--shares", default="0.25,0.5", help="of the batch run's speed (default: %(default)s)")
    parser.add_argument("--max_latency", type=float, default=1.0, help="of the stream, seconds (default: %(default)s)")
    options = parser.parse_args()
    corpus, source = texts(options.rows, options.data)
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        model = options.model
        if model == "full":
            model = str(directory / "full")
            save_reference_bundle(Path(model))
        score = [*_SCORE, *(["--model", model] if model else [])]
        speeds = [_batch(directory, corpus, score)]
        stream = [*score, "--streaming", "--max_latency", f"{options.max_latency}s"]
        source_of = _serve_pubsub if options.source == "pubsub" else _serve_kafka
        rows = [_saturated(directory, corpus, stream, source_of)]
        speeds.append(_batch(directory, corpus, score))
        speed = float(np.mean(speeds))
        for share in map(float, options.shares.split(",")):
            measured = _steady(directory, corpus, stream, share * speed, options.seconds, source_of)
            rows.append(measured | {"what": f"rate of {share:g}"})
    batches = [_row("batch", rate) for rate in speeds]
    rows = [batches[0], *rows, batches[1]]
    for row in rows:
        row["of batch"] = row["rows/s"] / speed
    report(
        f"streaming_{options.source}",
        rows,
        source=options.source,
        texts=source,
        model=options.model or "bundled",
        max_latency=f"{options.max_latency:g} s",
    )


class _Used(NamedTuple):
    """What a stream has used."""

    cpu_seconds: float
    peak_mb: float


def _row(
    what: str, rate: float, peak: float | None = None, latencies: NDArray[np.float64] | None = None
) -> dict[str, Any]:
    names = ("median s", "p99 s", "max s")
    quantiles = [""] * 3 if latencies is None else np.quantile(latencies, [0.5, 0.99, 1]).tolist()
    quantile = dict(zip(names, quantiles, strict=True))
    return {"what": what, "rows/s": rate, "CPU ms/row": "", **quantile, "peak MB": peak or ""}


def _payload(number: int, text: str) -> bytes:
    return json.dumps({"id": str(number), "text": text}).encode()


def _batch(directory: Path, corpus: list[str], score: list[str]) -> float:
    """Rows a second without start-up."""

    def seconds(some: list[str]) -> float:
        path = directory / "in.jsonl"
        path.write_bytes(b"".join(_payload(number, text) + b"\n" for number, text in enumerate(some)))
        command = [*score, "--input", str(path), "--output", str(directory / "batch"), "--if_exists", "replace"]
        return measure_command(command)["seconds"]

    return _without_start(corpus, seconds)


def _saturated(directory: Path, corpus: list[str], stream: list[str], serve: _Serve) -> dict[str, Any]:
    used: list[_Used] = []

    def seconds(some: list[str]) -> float:
        output = directory / f"saturated-{len(some)}"
        with _Server(serve, some, rate=None, seconds=0) as server:
            begun = time.time()
            used.append(_run_stream(stream, output, server, len(some)))
        return max(placed for placed, _ in _files(output)) - begun

    row = _row("saturated", _without_start(corpus, seconds), max(peak for _, peak in used))
    cpu = iter([use.cpu_seconds for use in used])
    return row | {"CPU ms/row": 1000 / _without_start(corpus, lambda some: next(cpu))}


def _without_start(corpus: list[str], seconds: Callable[[list[str]], float]) -> float:
    """Rows a second, from what a tenth of the texts takes and what all take."""
    tenth = corpus[: len(corpus) // 10]
    first = seconds(tenth)
    return (len(corpus) - len(tenth)) / (seconds(corpus) - first)


def _steady(
    directory: Path, corpus: list[str], stream: list[str], rate: float, seconds: float, serve: _Serve
) -> dict[str, Any]:
    output = directory / f"steady-{rate:.0f}"
    with _Server(serve, corpus, rate, seconds) as server:
        peak = _run_stream(stream, output, server, round(rate * seconds)).peak_mb
    latencies = np.concatenate([placed - stamps for placed, stamps in _files(output)])
    stamps = np.concatenate([stamps for _, stamps in _files(output)])
    # Without the message that was sent before, and the first seconds.
    counted = stamps > np.sort(stamps)[1] + seconds / 6
    return _row("", rate, peak, latencies[counted])


def _files(output: Path) -> list[tuple[float, NDArray[np.float64]]]:
    """Of each file the time of its renaming, and the times of its rows, in seconds since 1970."""
    found = []
    for path in output.glob("date=*/hour=*/part-*.parquet"):
        stamps = pq.ParquetFile(path).read(columns=["timestamp"])["timestamp"].cast("int64").to_numpy() / 1e6
        found.append((path.stat().st_ctime, stamps))
    return found


def _run_stream(stream: list[str], output: Path, server: _Server, rows: int) -> _Used:
    """Run until so many rows are in place, then have it end."""
    environment = os.environ | {"PUBSUB_EMULATOR_HOST": server.address}
    command = [*stream, "--input", server.uri, "--output", str(output)]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + _START_SECONDS
    seen: dict[Path, int] = {}
    while sum(seen.values()) < rows:
        if process.poll() is not None:
            raise SystemExit(process.communicate()[1])
        before = len(seen)
        for path in output.glob("date=*/hour=*/part-*.parquet"):
            if path not in seen:
                seen[path] = pq.ParquetFile(path).metadata.num_rows
        if len(seen) > before:
            server.go_on()
            deadline = time.monotonic() + _START_SECONDS
        if time.monotonic() > deadline:
            process.kill()
            raise SystemExit(f"only {sum(seen.values())} of {rows} rows came")
        time.sleep(0.5)
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    peak = next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith("VmHWM"))
    ticks = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    process.send_signal(signal.SIGTERM)
    if process.wait(120):
        raise SystemExit(process.communicate()[1])
    return _Used(sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK"), peak)


class _Server:
    """A server in a process of its own that publishes by itself; a context manager."""

    def __init__(self, serve: _Serve, corpus: list[str], rate: float | None, seconds: float) -> None:
        """Args:
        serve: what the process does.
        corpus: texts.
        rate: of publishing, in texts a second; None for all at once.
        seconds: how long to publish at that rate.
        """
        context = multiprocessing.get_context("spawn")
        self._address: Any = context.Queue()
        self._is_read = context.Event()
        self._is_kafka = serve is _serve_kafka
        arguments = (corpus, rate, seconds, self._address, self._is_read)
        self._process = context.Process(target=serve, args=arguments, daemon=True)

    def __enter__(self) -> _Server:
        self._process.start()
        self.address: str = self._address.get(timeout=60)
        self.uri = f"kafka://{self.address}/tweets" if self._is_kafka else f"pubsub://{SUBSCRIPTION}"
        return self

    def go_on(self) -> None:
        """Publish more than the first text: it is in place, so latencies will not be those of the stream's start."""
        self._is_read.set()

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        self._process.join()


def _serve_kafka(corpus: list[str], rate: float | None, seconds: float, address: Any, is_read: Any) -> None:
    broker = Broker()

    def send(first: int, last: int) -> None:
        for partition in range(PARTITIONS):
            numbers = range(first + partition, last, PARTITIONS)
            broker.send("tweets", [_payload(number, corpus[number % len(corpus)]) for number in numbers], partition)

    _publish(send, len(corpus), rate, seconds, lambda: address.put(broker.address), is_read)


def _serve_pubsub(corpus: list[str], rate: float | None, seconds: float, address: Any, is_read: Any) -> None:
    with FakePubSub() as server:
        server.subscribe(SUBSCRIPTION)

        def send(first: int, last: int) -> None:
            for number in range(first, last):
                server.send(SUBSCRIPTION, _payload(number, corpus[number % len(corpus)]))

        _publish(send, len(corpus), rate, seconds, lambda: address.put(server.address), is_read)


def _publish(
    send: Callable[[int, int], None],
    count: int,
    rate: float | None,
    seconds: float,
    is_ready: Callable[[], None],
    is_read: Any,
) -> None:
    """Send so many texts, and then be there until killed. At a rate, one is sent, and the others when it is read."""
    send(0, count if rate is None else 1)
    is_ready()
    is_read.wait()
    sent, begun = 1, time.monotonic()
    while rate is not None and sent < round(rate * seconds):
        due = min(round(rate * seconds), round((time.monotonic() - begun) * rate))
        send(sent, due)
        sent = max(sent, due)
        time.sleep(0.01)
    threading.Event().wait()


if __name__ == "__main__":
    main()
