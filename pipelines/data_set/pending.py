"""Pending files: those that an endless run has put in place, until a manifest lists them.

A stream has no end at which a manifest could list its files, and its workers may be anywhere. So a worker that puts a
file in place publishes a record of it in `_journal/<run>/`. A local stream publishes one record for all files of the
messages that it has scored together, with what they cover of its source (`coverage`). The run itself is described
there once, before it starts, by `run.json`. The next command that writes there lists the files in a manifest
(`recovery.commit_pending`), and deletes the records. Until then the files are not deleted.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from pipelines.data_set import coverage, lock, manifest
from pipelines.data_set.coverage import Covers
from pipelines.data_set.liveness import is_gone
from pipelines.data_set.manifest import DataFile, Model
from torchmoji_core.errors import InputError
from transforms.output.commit import DEAD_LETTERS, JOURNAL, TEMPORARY, WrittenFile, journal_directory
from transforms.storage import files as storage

RUN = "run.json"
QUIET_SECONDS = 86_400.0
"""A file that a stream has not touched for so long will not be put in place any more; see `Stream`."""
BEAT_SECONDS = 3600.0
"""How often a stream on one machine shows that it is alive, by writing its `run.json` again."""
_READERS = 16


@dataclass(frozen=True)
class Stream:
    """An endless run, as its launcher described it before it started."""

    run_id: str
    started: str
    """ISO 8601."""
    code_version: str
    identity: dict[str, Any]
    model: Model
    """What it scored with at its start."""
    process: dict[str, Any] | None
    """If the run lives and dies with its launcher: what tells that process from others. None on clusters, where
    only the cluster knows."""

    def has_ended(self, beat: float | None) -> bool:
        """Whether it is certain that the run will put no file in place any more.

        Args:
            beat: seconds since 1970 of the last change of its `run.json`, where known.
        """
        if self.process is None:
            return False
        return is_gone(self.process) or (beat is not None and time.time() - beat > QUIET_SECONDS)


@dataclass(frozen=True)
class PendingFile:
    """A file that was put in place, and that no manifest may list yet."""

    file: DataFile
    is_dead_letters: bool
    empty: int
    """Rows without tokens."""
    model: Model | None
    """What scored its rows; None of dead letters."""
    messages: tuple[str, ...] = ()
    """Position of the message that each row is from, `partition:offset`, where its record has `covers`."""


@dataclass(frozen=True)
class Record:
    """What says that files are in place: all of them together."""

    path: str
    run_id: str
    files: tuple[PendingFile, ...]
    covers: Covers
    """Which messages of a source they are made from, where that tells what to read next."""

    def is_done(self, known: Collection[str], covers: Covers) -> bool:
        """Whether it says nothing that manifests do not say.

        Args:
            known: paths of the files that they name.
            covers: what they cover.
        """
        return all(file.file.path in known for file in self.files) and coverage.is_within(self.covers, covers)

    def has_begun(self, known: Collection[str]) -> bool:
        """Whether manifests name some of its files: those of several models are listed one after the other."""
        return any(file.file.path in known for file in self.files)


@dataclass
class Pending:
    """What waits in an output, and the streams that have put it there."""

    streams: dict[str, Stream] = field(default_factory=dict)
    ended: set[str] = field(default_factory=set)
    """Runs that had ended for certain before the records were listed, so that no further ones can follow."""
    records: list[Record] = field(default_factory=list)

    @property
    def files(self) -> list[PendingFile]:
        return [file for record in self.records for file in record.files]

    @property
    def going_on(self) -> set[str]:
        """Runs that may still put files in place."""
        return self.streams.keys() - self.ended

    def protects(self, path: str, modified: float | None) -> bool:
        """Whether a file that no manifest lists may be one that a stream is about to put in place, or to record.

        Args:
            path: relative to the output.
            modified: seconds since 1970 of its last change, where known.
        """
        name, parts = path.rpartition("/")[2], path.split("/")
        of_stream = any(
            name.startswith(f"part-{run_id}-") or parts[:2] == [TEMPORARY, run_id] for run_id in self.going_on
        )
        return of_stream and (modified is None or time.time() - modified < QUIET_SECONDS)


def begin(output: str, stream: Stream) -> None:
    """Describe a stream, before it starts.

    Args:
        output: where it will write.
        stream: its description.

    Raises:
        InputError, RunError: if the output cannot be written.
    """
    content = json.dumps(dataclasses.asdict(stream), ensure_ascii=False, indent=1)
    path = f"{journal_directory(output, stream.run_id)}/{RUN}"
    try:
        storage.publish(path, content.encode("utf-8", "backslashreplace"), f"{path}.tmp")
    except OSError as error:
        raise lock.unwritable(output, error) from None


def beat(output: str, run_id: str) -> None:
    """Show that a stream is alive.

    Raises:
        OSError: if that cannot be written.
    """
    path = f"{journal_directory(output, run_id)}/{RUN}"
    storage.publish(path, storage.read_bytes(path), f"{path}.tmp")


def end(output: str, run_id: str) -> None:
    """Delete the description of a stream that has ended, unless files of it are still pending.

    Raises:
        OSError: if that cannot be done.
    """
    directory = journal_directory(output, run_id)
    if not any(_is_record(file.path) for file in storage.match([f"{directory}/*.json"])):
        storage.delete_directory(directory)
        storage.remove_empty(f"{output}/{JOURNAL}", deep=False)


def read(output: str) -> Pending:
    """Read the descriptions of streams, and the records of their files, of an output.

    Raises:
        InputError, RunError: if one cannot be read, since then it is unknown which files are results.
    """
    waiting = Pending()
    try:
        for found in storage.match([f"{output}/{JOURNAL}/*/{RUN}"]):
            stream = _read_stream(found.path)
            if stream is not None:
                waiting.streams[stream.run_id] = stream
                if stream.has_ended(found.last_updated_in_seconds or None):
                    waiting.ended.add(stream.run_id)
        # Only now: a run that had ended before this will have no further records.
        paths = list(pending_records(output))
        with ThreadPoolExecutor(_READERS) as threads:
            records = [record for record in threads.map(_read_record, paths) if record is not None]
        for record in records:
            if record.run_id not in waiting.streams:
                path = f"{journal_directory(output, record.run_id)}/{RUN}"
                stream = _read_stream(path)  # it may have begun just now
                if stream is not None:
                    waiting.streams[stream.run_id] = stream
                elif storage.exists(record.path):
                    raise _unreadable(path, "it is not there")
        waiting.records = [record for record in records if record.run_id in waiting.streams]
    except OSError as error:
        raise manifest.cannot_read(f"output {output}/{JOURNAL}", error) from error
    return waiting


def pending_records(output: str) -> Iterator[str]:
    """Paths of the records of pending files: one listing, and nothing is read.

    Raises:
        OSError: if they cannot be listed.
    """
    for found in storage.match([f"{output}/{JOURNAL}/*/*.json"]):
        if _is_record(found.path):
            yield found.path


def _is_record(path: str) -> bool:
    return path.rpartition("/")[2] != RUN


def _read_stream(path: str) -> Stream | None:
    """None if it is gone: another run has just committed its last files."""
    try:
        values = json.loads(storage.read_bytes(path))
        stream = Stream(**values | {"model": Model(**values["model"])})
        if stream.run_id != path.split("/")[-2] or not isinstance(stream.identity, dict):
            raise ValueError("of another run")
        return stream
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise _unreadable(path, error) from None


def _read_record(path: str) -> Record | None:
    """None if it is gone, like `_read_stream`."""
    try:
        values = json.loads(storage.read_bytes(path))
        files, covers = (values["files"], values["covers"]) if "files" in values else ([values], {})
        coverage.check(covers)
        return Record(path, path.split("/")[-2], tuple(map(_pending_file, files)), covers)
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _unreadable(path, error) from None


def _pending_file(values: dict[str, Any]) -> PendingFile:
    written = WrittenFile(**values)
    # The output may have another name here than where the stream ran.
    relative = written.final.removeprefix(written.record.rsplit("/", 3)[0] + "/")
    if {"", ".", ".."} & set(relative.split("/")):
        raise ValueError(f"path {relative!r} leaves the output")
    model = Model(**written.model) if written.model else None
    file = DataFile(
        relative, written.rows, written.bytes_, written.sha256, fingerprint=model.fingerprint if model else ""
    )
    is_dead_letters = relative.startswith(f"{DEAD_LETTERS}/")
    return PendingFile(file, is_dead_letters, written.empty, model, tuple(written.messages))


def _unreadable(path: str, error: object) -> InputError:
    return InputError(
        f"{path}: not what a stream writes ({error}); restore it from a copy, or move away what is there: the "
        "files that it is about are no results then"
    )
