"""What `pipelines.verify` checks: manifests against files, files against manifests, counts against counts."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.data_set import adoption, jobs, pending
from pipelines.data_set.lock import is_living, read_lock
from pipelines.data_set.manifest import DataFile, Manifest
from pipelines.data_set.pending import Pending
from pipelines.data_set.snapshot import DataSet, Generation, unlisted_files
from torchmoji_core.errors import InputError, RunError, first_line
from transforms import metrics
from transforms.storage import files as storage

MAX_NAMED = 10
_CHECKERS = 8
_CHUNK = 1 << 20
_BATCH_ROWS = 65_536


@dataclass
class Findings:
    """What was looked at, and what is wrong with it."""

    output: str
    files: int = 0
    rows: int = 0
    dead_letters: int = 0
    inputs: int = 0
    manifests: int = 0
    waiting: int = 0
    """Pending files of streams, which are checked like the others."""
    problems: list[str] = field(default_factory=list)
    """What is certainly wrong."""
    untold: list[str] = field(default_factory=list)
    """What could not be looked at, so that it may be right or wrong."""
    notes: list[str] = field(default_factory=list)

    def describe(self) -> list[str]:
        """For people: what was checked, then each problem."""
        return [
            f"checked     {self.output}: {self.rows:,} rows in {self.files:,} file(s), "
            f"{self.dead_letters:,} dead letters, {self.inputs:,} input(s), {self.manifests:,} manifest(s)",
            *(f"note        {note}" for note in self.notes),
            *_shown("problem", self.problems),
            *_shown("unknown", self.untold),
            self._end(),
        ]

    def _end(self) -> str:
        if self.problems:
            return f"not sound: {len(self.problems):,} problem(s)"
        if self.untold:
            return f"could not tell: {len(self.untold):,} thing(s) could not be looked at; try again"
        return "sound"


def _shown(what: str, texts: Sequence[str]) -> list[str]:
    shown = [f"{what:<12}{text}" for text in texts[: 5 * MAX_NAMED]]
    more = len(texts) - len(shown)
    return [*shown, *([f"            and {more:,} more"] if more else [])]


def verify(output: str, ids_must_be_unique: bool = True, memory_mb: int = 512) -> Findings:
    """Check a data set. What cannot be looked at, since a store or a disk fails, is not a problem, but `untold`.

    Args:
        output: its directory.
        ids_must_be_unique: whether an id that is there twice is a problem.
        memory_mb: memory for comparing ids, in megabytes; what does not fit goes to temporary files.

    Raises:
        InputError: if there is no data set.
    """
    findings = Findings(output)
    try:
        # In this order: a file that is committed in between is then seen twice, not missed.
        streams = pending.read(output)
        data_set = DataSet.read(output)
    except (InputError, RunError) as error:
        _untold_or_problem(error, findings)
        return findings
    if not (data_set.manifests or streams.records or jobs.read(output)):
        raise InputError(f"{output}: no manifest there, so no data set; check the path")
    live, known = data_set.live, data_set.known_files
    waiting = [entry for entry in streams.files if entry.file.path not in known]
    files = [*live.files.values(), *(entry.file for entry in waiting if not entry.is_dead_letters)]
    dead_letters = [*live.dead_letters.values(), *(entry.file for entry in waiting if entry.is_dead_letters)]
    findings.files, findings.inputs, findings.manifests = len(files), len(live.inputs), len(data_set.manifests)
    findings.rows = sum(file.rows for file in files)
    findings.dead_letters = sum(file.rows for file in dead_letters)
    findings.waiting = len(waiting)
    if waiting:
        findings.notes.append(
            f"{len(waiting):,} of these files are pending: the next command that writes there lists them in a manifest"
        )
    records = [record for record in streams.records if not record.is_done(known, data_set.covers)]
    repeated = {entry.file.path for record in adoption.repeating(records, data_set) for entry in record.files}
    if repeated:
        findings.notes.append(
            f"{len(repeated):,} of these are in part or wholly from messages that others have been made from already; "
            "what is there twice is left out then"
        )
    _check_sequence(data_set, findings)
    for change in data_set.manifests:
        _check_counts(change, findings)
    for number, generation in sorted(data_set.generations.items()):
        _check_inputs(generation, findings)
        if number != data_set.live_generation:
            findings.notes.append(f"a rescoring with another model has {len(generation.files)} file(s) so far")
        parquet = partial(_check_parquet, generation.fingerprint)
        _check_all(parquet, generation.files.values(), findings)
        _check_all(_check_jsonl, generation.dead_letters.values(), findings)
    _check_all(partial(_check_parquet, None), [entry.file for entry in waiting if not entry.is_dead_letters], findings)
    _check_all(_check_jsonl, [entry.file for entry in waiting if entry.is_dead_letters], findings)
    if ids_must_be_unique:
        try:
            _check_ids(output, [file for file in files if file.path not in repeated], memory_mb, findings)
        except OSError as error:  # what was found before is said nonetheless
            findings.untold.append(f"ids could not be compared ({first_line(error)}); give another TMPDIR")
    try:
        _check_unlisted(data_set, streams, known | {entry.file.path for entry in waiting}, findings)
    except OSError as error:
        findings.untold.append(f"{output}: cannot be listed ({first_line(error)})")
    except (InputError, RunError) as error:
        _untold_or_problem(error, findings)
    return findings


def _untold_or_problem(error: InputError | RunError, findings: Findings) -> None:
    is_untold = isinstance(error.__cause__, OSError)
    (findings.untold if is_untold else findings.problems).append(str(error))


def _check_all(check: Callable[[str, DataFile], list[str]], files: Iterable[DataFile], findings: Findings) -> None:
    """Check the content of files, several at a time, and what else their kind needs.

    Args:
        check: gives problems of a file, by its whole path and what its manifest says.
        files: what to check.
        findings: are added to.
    """

    def checked(file: DataFile) -> tuple[list[str], list[str]]:
        path = f"{findings.output}/{file.path}"
        try:
            return _check_content(path, file) or check(path, file), []
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return [f"{file.path}: listed, but not there"], []
        except OSError as error:
            return [], [f"{file.path}: cannot be read ({first_line(error)})"]

    with ThreadPoolExecutor(_CHECKERS) as threads:
        for problems, untold in threads.map(checked, files):
            findings.problems += problems
            findings.untold += untold


def _check_sequence(data_set: DataSet, findings: Findings) -> None:
    numbers = Counter(change.sequence for change in data_set.manifests)
    for number, times in numbers.items():
        if times > 1:
            findings.problems.append(f"manifest number {number} is there {times} times: two runs wrote at once")


def _check_counts(change: Manifest, findings: Findings) -> None:
    counts = change.counts
    if not counts:
        return
    read, scored, empty, dead, notices = (
        counts.get(name, 0) for name in (metrics.READ, metrics.SCORED, metrics.EMPTY, metrics.DEAD, metrics.NOTICES)
    )
    if read != scored + empty + dead + notices:
        findings.problems.append(
            f"manifest {change.name}: read {read} is not scored {scored} + empty {empty} + dead {dead} + notices "
            f"{notices}"
        )
    rows = [entry.rows for entry in change.inputs if entry.rows is not None]
    if rows and sum(rows) != scored + empty:
        findings.problems.append(f"manifest {change.name}: its inputs gave {sum(rows)} rows, not {scored + empty}")


def _check_inputs(generation: Generation, findings: Findings) -> None:
    """Every row of every input once, by the files' own counts of where rows are from."""
    for what, files in (("rows", generation.files), ("dead letters", generation.dead_letters)):
        counted: Counter[str] = Counter()
        for file in files.values():
            counted.update(file.sources)
        if not counted and what == "rows":
            continue  # rows do not tell their file
        expected: Counter[str] = Counter()
        for entry in generation.inputs.values():
            count = entry.rows if what == "rows" else entry.dead_letters
            expected[generation.source(entry.path)] += count or 0
        for path in sorted(counted.keys() | expected.keys()):
            if counted[path] != expected[path]:
                findings.problems.append(
                    f"input {path}: its manifest says {expected[path]} {what}, in files there are {counted[path]}"
                )


def _digest(path: str) -> tuple[int, str]:
    digest, size = hashlib.sha256(), 0
    with storage.open_raw(path) as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            size += len(chunk)
    return size, digest.hexdigest()


def _check_content(path: str, file: DataFile) -> list[str]:
    """Size and digest."""
    size, digest = _digest(path)
    if size != file.bytes:
        return [f"{file.path}: has {size} bytes, its manifest says {file.bytes}"]
    return [] if digest == file.sha256 else [f"{file.path}: its content is not what was written (SHA-256 differs)"]


def _check_parquet(fingerprint: str | None, path: str, file: DataFile) -> list[str]:
    try:
        with storage.open_raw(path) as opened:
            parquet = pq.ParquetFile(opened)
            rows = parquet.metadata.num_rows
            scored_by = (parquet.schema_arrow.metadata or {}).get(b"torchmoji.fingerprint", b"").decode()
            sources: Counter[str] = Counter()
            if file.sources:
                for batch in parquet.iter_batches(_BATCH_ROWS, columns=["source"]):
                    for item in batch.column(0).value_counts().to_pylist():
                        sources[item["values"]] += item["counts"]
    except pa.ArrowException as error:
        return [f"{file.path}: not readable as Parquet ({first_line(error)})"]
    except OSError as error:
        _digest(path)  # raises if it is the store or the disk that fails, and not Arrow
        return [f"{file.path}: not readable as Parquet ({first_line(error)})"]
    problems = []
    if rows != file.rows:
        problems.append(f"{file.path}: has {rows} rows, its manifest says {file.rows}")
    if sources != file.sources:
        problems.append(f"{file.path}: the rows are from other inputs than its manifest says")
    expected = file.fingerprint or fingerprint
    if expected and scored_by != expected:
        problems.append(f"{file.path}: scored by model {scored_by[:12]}, the data set by {expected[:12]}")
    return problems


def _check_jsonl(path: str, file: DataFile) -> list[str]:
    rows = 0
    with storage.open_raw(path) as opened:
        for rows, line in enumerate(opened, 1):
            try:
                json.loads(line)
            except ValueError:
                return [f"{file.path}: line {rows} is not JSON"]
    return [] if rows == file.rows else [f"{file.path}: has {rows} lines, its manifest says {file.rows}"]


def _check_ids(output: str, files: Sequence[DataFile], memory_mb: int, findings: Findings) -> None:
    """Look for ids that are there twice, in bounded memory: a database keeps on disk what does not fit. Python's set of
    ten million ids would not."""
    schema = pa.schema([("id", pa.string())])

    def ids() -> Iterator[pa.RecordBatch]:
        for file in files:
            try:
                with storage.open_raw(f"{output}/{file.path}") as opened:
                    for batch in pq.ParquetFile(opened).iter_batches(_BATCH_ROWS, columns=["id"]):
                        yield pa.record_batch([batch.column(0)], schema=schema)
            except pa.ArrowException:
                continue  # reported before, with what is wrong
            except OSError as error:
                findings.untold.append(f"{file.path}: its ids cannot be read ({first_line(error)})")

    with tempfile.TemporaryDirectory(prefix="torchmoji-verify-", ignore_cleanup_errors=True) as scratch:
        bounds: dict[str, Any] = {"memory_limit": f"{memory_mb}MB", "temp_directory": scratch, "threads": 2}
        connection = duckdb.connect(config=bounds | {"preserve_insertion_order": False})
        connection.register("rows", pa.RecordBatchReader.from_batches(schema, ids()))
        query = f"SELECT id, count(*) AS times FROM rows GROUP BY id HAVING times > 1 ORDER BY id LIMIT {MAX_NAMED + 1}"
        try:
            repeated = connection.execute(query).fetchall()
        except duckdb.Error as error:
            findings.untold.append(
                f"ids could not be compared ({first_line(error)}); give another --memory_mb or TMPDIR"
            )
            return
        finally:
            connection.close()
    for name, times in repeated[:MAX_NAMED]:
        findings.problems.append(f"id {name!r} is there {times} times; --duplicate_ids allow, if the inputs hold it so")
    if len(repeated) > MAX_NAMED:
        findings.problems.append("more ids are there several times")


def _check_unlisted(data_set: DataSet, streams: Pending, known: Collection[str], findings: Findings) -> None:
    files = {path: changed for path, changed in unlisted_files(data_set).items() if path not in known}
    # Streams may have begun since, and ended.
    later = pending.read(data_set.output)
    for run_id, job in jobs.read(data_set.output).items():
        files = {path: changed for path, changed in files.items() if not jobs.is_of(path, (run_id,))}
        findings.notes.append(f"{job.said}, {job.state}")
    going_on = {path for path in files if streams.protects(path, files[path]) or later.protects(path, files[path])}
    if going_on:
        findings.notes.append(f"{len(going_on):,} more file(s) are being written by a stream that may be going on")
    holder = read_lock(data_set.output)
    unlisted = sorted(files.keys() - going_on)
    if unlisted and holder is not None and is_living(holder):
        findings.notes.append(f"{len(unlisted)} file(s) that no manifest lists yet belong to a run that goes on")
        unlisted = []
    for path in unlisted[:MAX_NAMED]:
        findings.problems.append(f"{path}: no manifest lists it; --clean deletes it once it is old enough")
    if len(unlisted) > MAX_NAMED:
        findings.problems.append(f"{len(unlisted) - MAX_NAMED} more files that no manifest lists")
