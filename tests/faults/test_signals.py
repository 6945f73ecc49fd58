"""SIGTERM and SIGINT at random moments: every command ends within seconds, and the next run finds nothing amiss."""

from __future__ import annotations

import contextlib
import itertools
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.fake_pubsub import FakePubSub
from tests.faults.conftest import Annotator
from tests.pipelines.conftest import corpus, environment
from tests.streams import SUBSCRIPTION, URI, Sender
from torchmoji_core.labels import DEEPMOJI_EMOJIS

pytestmark = pytest.mark.faults

MOMENTS = 30
END_SECONDS = 10.0
AT_ONCE = {-signal.SIGTERM, -signal.SIGINT}
"""What a process ends with that has not come so far as to hear of signals."""

OUTPUTS = ("--input", "in/*", "--output", "out", "--progress", "off", "--cache_mb", "0")
COMMANDS = {
    "score": ("pipelines.score", *OUTPUTS),
    "score with processes": ("pipelines.score", *OUTPUTS, "--direct_num_workers", "2"),
    "annotate": ("pipelines.annotate", *OUTPUTS, "--commit_every", "0.1s"),
    "annotate with processes": ("pipelines.annotate", *OUTPUTS, "--commit_every", "0.1s", "--direct_num_workers", "2"),
    "annotate again": ("pipelines.annotate", *OUTPUTS, "--commit_every", "0.1s", "--every", "1s", "--settle", "0s"),
    "stream": ("pipelines.score", "--streaming", "--input", URI, "--output", "out", "--drain", "5s"),
    "verify": ("pipelines.verify", "annotated"),
    "compact": ("pipelines.compact", "annotated", "--target_mb", "1"),
    "finetune": ("pipelines.finetune", "--data", "data.parquet", "--output", "tuned", "--method", "full"),
    "pretrain": ("pipelines.pretrain", "--data", "data.parquet", "--output", "trained", "--embedding", "8"),
}  # fmt: skip


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory, tiny_model: str) -> Path:
    """A corpus, an annotation of it in small files, and texts to train on."""
    path = tmp_path_factory.mktemp("signals")
    corpus(path / "in", 8, 400)
    annotator = Annotator(path, tiny_model)
    annotator.run("--commit_every", "0.1s")
    (path / "out").rename(path / "annotated")
    splits = ("train", "train", "val", "test")
    rows = [
        {"text": f"so happy {n}", "label": n % 2, "emoji": emoji, "emojis": [emoji], "split": splits[n % 4]}
        for n, emoji in zip(range(3000), itertools.cycle(DEEPMOJI_EMOJIS), strict=False)
    ]
    pq.write_table(pa.Table.from_pylist(rows), path / "data.parquet")
    return path


@pytest.fixture(scope="module")
def server() -> Iterator[FakePubSub]:
    with FakePubSub() as fake:
        fake.subscribe(SUBSCRIPTION)
        yield fake


@pytest.fixture(autouse=True)
def _sigint_is_heard() -> Iterator[None]:
    """A shell has it ignored in what it starts in the background, and whoever inherits that loses it while starting."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def start(directory: Path, tiny_model: str, server: FakePubSub) -> Callable[..., subprocess.Popen[str]]:
    """Starts a command."""

    def start_it(module: str, *options: str) -> subprocess.Popen[str]:
        scores = module in ("pipelines.score", "pipelines.annotate", "pipelines.finetune")
        model = ("--model", tiny_model) if scores else ()
        return subprocess.Popen(
            [sys.executable, "-m", module, *options, *model], cwd=directory, stdout=subprocess.PIPE, text=True,
            stderr=subprocess.STDOUT, env=environment() | {"PUBSUB_EMULATOR_HOST": server.address},
        )  # fmt: skip

    return start_it


@pytest.mark.parametrize("name", COMMANDS)
def test_it_ends(
    name: str, start: Callable[..., subprocess.Popen[str]], directory: Path, server: FakePubSub, tiny_model: str
) -> None:
    chance = random.Random(name)
    sender = Sender(server)
    statuses = set()
    longest = 8.0  # how long the command takes, once it has come to its end before the signal
    for _ in range(MOMENTS):
        if name == "stream":
            sender.send(50)
        process = start(*COMMANDS[name])
        begun = time.monotonic()
        number = chance.choice([signal.SIGTERM, signal.SIGINT])
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(chance.uniform(0, longest))
        if process.poll() is not None:
            longest = min(longest, time.monotonic() - begun)
        process.send_signal(number)
        told = time.monotonic()
        try:
            said, _ = process.communicate(timeout=60)
        finally:
            process.kill()
        assert time.monotonic() - told < END_SECONDS, said
        assert process.returncode in {0, 130, *AT_ONCE}, said
        assert process.returncode != 130 or "interrupted" in said or "ended at once" in said, said
        statuses.add(process.returncode)
        for path in ("tuned", "trained", "out") if name.startswith(("fine", "pre", "score")) else ():
            shutil.rmtree(directory / path, ignore_errors=True)
    assert statuses & {0, 130}
    if name.startswith("annotate"):
        annotator = Annotator(directory, tiny_model)
        annotator.run()
        annotator.verify()
        assert annotator.rows().num_rows == 8 * 400
    shutil.rmtree(directory / "out", ignore_errors=True)
