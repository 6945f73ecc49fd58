"""Commands and streams on a machine that runs short, or with a model that gives no numbers: nothing good is dead."""

from __future__ import annotations

import dataclasses
import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pipelines.cli.exits import FAILED, WRONG_INPUT, exit_status
from pipelines.runs.explain import explain
from tests.fake_pubsub import FakePubSub
from tests.pipelines.conftest import Finished, corpus, posts, read_dead_letters, write_lines
from tests.streams import SUBSCRIPTION, URI, Sender, result_files
from tests.tiny import forge_weights, with_huge_weights
from torchmoji_core.bundle import Bundle
from torchmoji_core.errors import InputError
from torchmoji_core.inference.engine import Engine
from transforms.storage import files as storage

ALLOCATION = (
    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate "
    "4096 bytes. Error code 12 (Cannot allocate memory)"
)


def short_of(error: Exception, after: int, times: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the engine fail so many times, after so many batches."""
    run, calls = Engine.run, iter(range(10**9))

    def fail(engine: Engine, rows: Any) -> Any:
        if after <= next(calls) < after + times:
            raise error
        return run(engine, rows)

    monkeypatch.setattr(Engine, "run", fail)


@pytest.mark.parametrize("times", [1, 10**9])
@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RuntimeError(ALLOCATION), "failed: out of memory; lower --max_batch_tokens"),
        (MemoryError(), "failed: out of memory; lower --max_batch_tokens"),
        (RuntimeError("can't start new thread"), "ulimit -u"),
        (OSError(errno.EMFILE, os.strerror(errno.EMFILE)), "too many open files; raise the limit (ulimit -n)"),
    ],
    ids=lambda value: str(value)[:24],
)
def test_a_run_that_is_short_fails_and_leaves_nothing(
    error: Exception,
    said: str,
    times: int,
    run_score: Callable[..., Finished],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    write_lines(tmp_path / "in.jsonl", [*posts(300), "not json"])
    short_of(error, 3, times, monkeypatch)
    finished = run_score("--input", "in.jsonl", "--output", "out", "--max_batch_rows", "20", "--cache_mb", "0")
    assert finished.status == 1
    (line,) = [line for line in finished.err.splitlines() if line.startswith("failed: ")]
    assert said in line
    assert "Traceback" not in finished.err
    assert not [path for path in (tmp_path / "out").rglob("part-*") if path.is_file()]


def test_an_annotation_that_is_short_goes_on_with_the_next_run(
    run_annotate: Callable[..., Finished],
    run_verify: Callable[..., Finished],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    corpus(tmp_path / "in", 3, 60)
    with monkeypatch.context() as short:
        short_of(RuntimeError(ALLOCATION), 2, 10**9, short)
        assert "out of memory" in run_annotate("--cache_mb", "0").err
    assert run_annotate().status == 0
    assert run_verify().status == 0
    assert read_dead_letters(tmp_path / "out") == []


def test_an_annotation_without_file_handles_fails_and_puts_it_down_to_no_file(
    run_annotate: Callable[..., Finished], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    corpus(tmp_path / "in", 3, 60)
    run_annotate()
    corpus(tmp_path / "in", 1, 60, first=7)

    open_raw = storage.open_raw

    def fail(path: str) -> Any:
        if path.endswith("0007.jsonl"):
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), path)
        return open_raw(path)

    monkeypatch.setattr(storage, "open_raw", fail)
    finished = run_annotate()
    assert finished.status == 1
    assert "failed: too many open files" in finished.err and "cannot be opened" not in finished.err


def test_a_model_whose_scores_are_no_numbers_fails_the_run(
    bundle: Bundle, run_score: Callable[..., Finished], tmp_path: Path
) -> None:
    dataclasses.replace(bundle, name="huge", state=with_huge_weights(bundle)).save(tmp_path / "huge")
    write_lines(tmp_path / "in.jsonl", posts(50))
    finished = run_score("--input", "in.jsonl", "--output", "out", "--model", "huge")
    assert finished.status == 1
    assert "failed: the model huge gives scores that are no finite numbers" in finished.err
    assert "Traceback" not in finished.err
    assert not list((tmp_path / "out").rglob("part-*"))


@pytest.mark.parametrize("spoil", [lambda tensor: tensor * torch.nan, torch.Tensor.long], ids=["NaN", "int64"])
def test_a_model_of_no_numbers_is_refused_before_the_run(
    spoil: Callable[[torch.Tensor], torch.Tensor], bundle: Bundle, run_score: Callable[..., Finished], tmp_path: Path
) -> None:
    bundle.save(tmp_path / "bad")
    forge_weights(tmp_path / "bad", {"embed.weight": spoil(bundle.state["embed.weight"])})
    write_lines(tmp_path / "in.jsonl", posts(5))
    finished = run_score("--input", "in.jsonl", "--output", "out", "--model", "bad")
    assert finished.status == 2
    assert "weights 'embed.weight'" in finished.err and "train or convert it again" in finished.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "said"),
    [("good", "failed: out of memory"), ("huge", "failed: the model huge gives scores that are no finite numbers")],
)
def test_a_stream_whose_scoring_fails_ends_and_gives_its_messages_back(
    name: str, said: str, bundle: Bundle, tmp_path: Path, run_score: Callable[..., Finished],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Of memory in one, of numbers in the other."""
    if name == "good":
        short_of(RuntimeError(ALLOCATION), 0, 10**9, monkeypatch)
    else:
        bundle = dataclasses.replace(bundle, state=with_huge_weights(bundle))
    dataclasses.replace(bundle, name=name).save(tmp_path / name)
    with FakePubSub() as server:
        monkeypatch.setenv("PUBSUB_EMULATOR_HOST", server.address)
        server.subscribe(SUBSCRIPTION)
        subscription = server.subscriptions[SUBSCRIPTION]
        sender = Sender(server)
        sender.send(200)
        finished = run_score("--streaming", "--input", URI, "--output", "out", "--model", name)
        assert finished.status == 1, finished.err
        assert said in finished.err and "Traceback" not in finished.err.rpartition("failed: ")[2]
        assert not subscription.acknowledged
        left = len(subscription.waiting) + len(subscription.leased)
        assert left == len(sender.sent)
    assert result_files(tmp_path / "out") == []
    assert not list(tmp_path.glob("out/_dead_letters/**/*.jsonl"))


def test_a_file_that_cannot_be_read_for_now_is_no_wrong_input() -> None:
    try:
        try:
            raise OSError(errno.EMFILE, "Too many open files")
        except OSError as error:
            raise InputError(f"model x: cannot be read ({error})") from None
    except InputError as error:
        assert exit_status(error) == FAILED
    assert exit_status(InputError("model x: cannot be read (No such file)")) == WRONG_INPUT


def test_what_a_worker_process_says_of_a_shortage_is_one_line() -> None:
    text = f"Traceback (most recent call last):\n  File x\nRuntimeError: {ALLOCATION} [while running 'Score']\n"
    assert explain(RuntimeError(text), "out").startswith("out of memory; lower --max_batch_tokens")
    assert "ulimit -u" in explain(RuntimeError("Traceback\nRuntimeError: can't start new thread\n"), "out")
    assert "ulimit -n" in explain(RuntimeError("Traceback\nOSError: [Errno 24] Too many open files: 'x'\n"), "out")
