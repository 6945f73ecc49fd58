"""What is on the disk before what: the order of fsync, rename and deletion, as the system is asked for them."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipelines.data_set.recovery import commit_pending
from pipelines.data_set.snapshot import DataSet
from pipelines.streams.stages import Stages
from tests.pipelines.conftest import Finished, corpus, posts, write_lines
from tests.pipelines.data_set.test_pending import make_plan, stream, tweets
from tests.tiny import tiny_bundle
from torchmoji_core import durable
from torchmoji_core.training.checkpointing import Checkpoint
from transforms.records import Message

Run = Callable[..., Finished]
Event = tuple[str, str]


class Disk:
    """What this process asks the system for, in order: ("sync", path), ("name", path) and ("delete", path)."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.events: list[Event] = []
        fsync, unlink = os.fsync, os.unlink

        def synced(descriptor: int) -> None:
            fsync(descriptor)
            # A file that is renamed later is the same file.
            self.events.append(("sync", str(Path(f"/proc/self/fd/{descriptor}").readlink())))

        def named(function: Callable[..., None]) -> Callable[..., None]:
            def call(source: Any, target: Any, **options: Any) -> None:
                function(source, target, **options)
                self.events.append(("name", f"{Path(source).absolute()} {Path(target).absolute()}"))

            return call

        def deleted(path: Any, **options: Any) -> None:
            unlink(path, **options)
            self.events.append(("delete", str(Path(path).absolute())))

        monkeypatch.setattr(os, "fsync", synced)
        for name in ("link", "rename", "replace"):
            monkeypatch.setattr(os, name, named(getattr(os, name)))
        monkeypatch.setattr(os, "unlink", deleted)

    def is_durable(self, path: Path, before: int) -> bool:
        """Whether, before an event, the content of a file and the names that lead to it were on the disk."""
        events = self.events[:before]
        names = [index for index, (kind, what) in enumerate(events) if kind == "name" and what.endswith(f" {path}")]
        if not names:
            return False
        was = events[names[-1]][1].partition(" ")[0]
        return ("sync", was) in events[: names[-1]] and ("sync", str(path.parent)) in events[names[-1] :]

    def index(self, kind: str, part: str) -> int:
        """Of the first event of a kind with a text in its path."""
        return next(index for index, event in enumerate(self.events) if event[0] == kind and part in event[1])


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


def manifest_of(output: Path) -> tuple[Path, list[Path]]:
    """The last manifest, and the files that it lists as written."""
    path = max((output / "_manifests").iterdir())
    content = json.loads(path.read_text())
    return path, [output / file["path"] for file in (*content["files"], *content["dead_letters"])]


def check_commit(disk: Disk, output: Path) -> int:
    """That the last manifest follows its files, and is on the disk at the end. Returns when it got its name."""
    path, files = manifest_of(output)
    named = disk.index("name", f" {path}")
    assert files
    for file in files:
        assert disk.is_durable(file, named), f"{file.name} before the manifest: {disk.events[:named]}"
        for directory in file.parents:
            if directory == output.parent:
                break
            assert ("sync", str(directory)) in disk.events[:named]
    assert disk.is_durable(path, len(disk.events))
    assert ("sync", str(output.parent)) in disk.events[:named], "the output was new"
    assert ("sync", str(output)) in disk.events[:named], "and so was _manifests"
    return named


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    """With a dead letter."""
    corpus(tmp_path / "in", 3, 10)
    write_lines(tmp_path / "in" / "bad.jsonl", [*posts(20), "x"])
    return tmp_path / "in"


def test_files_are_on_the_disk_before_the_manifest_and_that_at_the_end(
    tmp_path: Path, inputs: Path, disk: Disk, run_annotate: Run, run_compact: Run
) -> None:
    assert run_annotate("--commit_every", "0").status == 0
    check_commit(disk, tmp_path / "out")
    assert ("sync", str(tmp_path / "out" / "_delta_log" / f"{0:020}.json")) in disk.events
    disk.events.clear()
    (inputs / "0001.jsonl").write_text('{"id": "new", "text": "so late"}\n')
    assert run_annotate().status == 0
    path, files = manifest_of(tmp_path / "out")
    named = disk.index("name", f" {path}")
    assert all(disk.is_durable(file, named) for file in files)
    disk.events.clear()
    assert run_compact().status == 0
    path, files = manifest_of(tmp_path / "out")
    merged = [file for file in files if json.loads(path.read_text())["run_id"] in file.name]
    assert merged and all(disk.is_durable(file, disk.index("name", f" {path}")) for file in merged)


def test_score_says_done_and_deletes_only_when_its_manifest_is_on_the_disk(
    tmp_path: Path, inputs: Path, disk: Disk, run_score: Run
) -> None:
    for _ in range(2):
        disk.events.clear()
        arguments = ("--input", "in/*", "--output", "out")
        assert run_score(*arguments).status == 0
    path, files = manifest_of(tmp_path / "out")
    named = disk.index("name", f" {path}")
    assert all(disk.is_durable(file, named) for file in files)
    assert disk.is_durable(path, len(disk.events))


def test_a_stream_records_what_is_on_the_disk_and_forgets_what_is_listed(
    tmp_path: Path, model: str, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out"
    stream(str(output), model, [*tweets(0, 10), 42])
    records = sorted(path for path in (output / "_journal").glob("*/*.json") if path.name != "run.json")
    assert len(records) == 3
    for record in records:
        (file,) = output.rglob(record.name.removesuffix(".json"))
        assert disk.is_durable(file, disk.index("name", f" {record}"))
        assert disk.is_durable(record, len(disk.events))
    commit_pending(DataSet.read(str(output)))
    path, _ = manifest_of(output)
    first_deletion = min(disk.index("delete", str(record)) for record in records)
    assert disk.is_durable(path, first_deletion)


def test_a_local_stream_records_what_is_on_the_disk(tmp_path: Path, model: str, disk: Disk) -> None:
    plan = make_plan(tmp_path / "out", model)
    assert plan.config.stream is not None
    stages = Stages(plan.config, plan.config.stream)
    messages = [Message("one", b'{"text": "so late"}', 0), Message("two", b"{", 0)]
    stages.write(stages.score([item for message in messages for item in stages.prepare(message)]), {})
    (record,) = (tmp_path / "out" / "_journal").glob("*/*.json")
    files = [path for path in (tmp_path / "out").rglob("part-*") if path.is_file()]
    assert len(files) == 2
    assert all(disk.is_durable(file, disk.index("name", f" {record}")) for file in files)
    assert disk.is_durable(record, len(disk.events))


def test_bundles_checkpoints_and_reports(tmp_path: Path, disk: Disk) -> None:
    tiny_bundle(["so"], seed=1).save(tmp_path / "new" / "bundle")
    bundle = tmp_path / "new" / "bundle"
    named = disk.index("name", f" {bundle}")
    was = disk.events[named][1].partition(" ")[0]
    for name in [*(path.name for path in bundle.iterdir()), ""]:
        assert ("sync", f"{was}/{name}".rstrip("/")) in disk.events[:named]
    assert ("sync", str(bundle.parent)) in disk.events[named:]
    assert ("sync", str(tmp_path)) in disk.events[:named], "the directory above it was new"
    tiny_bundle(["so"], seed=1).save(tmp_path / "bundle.zip")
    assert disk.is_durable(tmp_path / "bundle.zip", len(disk.events))
    Checkpoint(tmp_path / "checkpoint", 60, lambda: {"a": 1}).save({"b": 2})
    assert disk.is_durable(tmp_path / "checkpoint", len(disk.events))


def test_a_disk_that_fails_is_said(tmp_path: Path, inputs: Path, run_annotate: Run, run_verify: Run) -> None:
    """At each of the calls in turn: no status 0, no traceback, and the next run puts all right."""
    fsync, calls, failing = os.fsync, 0, 0

    def fails(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if calls == failing:
            raise OSError(5, "Input/output error")
        fsync(descriptor)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", fails)
        assert run_annotate("--commit_every", "0").status == 0
        total = calls
        for failing in range(1, total + 1, max(1, total // 5)):
            shutil.rmtree(tmp_path / "out", ignore_errors=True)
            calls = 0
            finished = run_annotate("--commit_every", "0")
            is_log = "the Delta log of out is behind until the next commit" in finished.err
            assert finished.status == (0 if is_log else 1), f"call {failing}: {finished.err}"
            assert "Input/output error" in finished.err
            assert "Traceback" not in finished.err
    assert run_annotate().status == 0
    assert run_verify().status == 0


@pytest.mark.parametrize("number", [22, 95])
def test_filesystems_that_cannot_do_it_for_directories(
    tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fails)
    durable.sync([tmp_path])
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        durable.sync([tmp_path / "file"])
