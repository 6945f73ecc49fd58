"""Result files made from result files: some merged into one, or one without the rows of some inputs.

Values are copied bit by bit; nothing is scored. A new file is a result only once a manifest lists it.
"""

from __future__ import annotations

import json
import uuid
from collections import Counter
from collections.abc import Collection, Iterator, Sequence

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.data_set.manifest import DataFile
from pipelines.data_set.snapshot import Generation
from torchmoji_core.errors import RunError
from torchmoji_core.files import as_text, name_as_text
from torchmoji_core.inference.scores import valid_unicode
from transforms.options import RUN_ID
from transforms.output.commit import TEMPORARY
from transforms.output.file_writers import ROWS_PER_GROUP, HashingFile, ParquetFileWriter
from transforms.storage import files as storage

BATCH_ROWS = 1024
Rewritten = dict[tuple[str, frozenset[str]], DataFile | None]
"""Path of a file and sources that were left out of it -> the new one; None if no row was left."""


def without(
    output: str, generation: Generation, inputs: Collection[str], run_id: str, rewritten: Rewritten
) -> tuple[tuple[str, ...], tuple[DataFile, ...], tuple[DataFile, ...]]:
    """What takes the rows of some inputs out of a generation: files to retire, and files to put in their place.

    Args:
        output: directory of the data set.
        generation: what has the rows.
        inputs: their paths.
        run_id: of the run that writes.
        rewritten: what earlier calls, for other states, have made of files; is added to.

    Raises:
        RunError: as `Rewriter`.
    """
    if not inputs:
        return (), (), ()
    sources = frozenset(generation.source(path) for path in inputs) | {name_as_text(path) for path in inputs}
    retired: list[str] = []
    new: dict[bool, list[DataFile]] = {False: [], True: []}
    rewriter = Rewriter(output, run_id)
    for path, file in generation.all_files.items():
        if not sources & file.sources.keys():
            continue
        retired.append(path)
        is_dead = path in generation.dead_letters
        if file.sources.keys() <= sources:
            continue
        if (path, sources) not in rewritten:
            rewritten[path, sources] = (
                rewriter.dead_letters_without(file, sources) if is_dead else rewriter.merge([file], sources)
            )
        left = rewritten[path, sources]
        new[is_dead] += [left] if left else []
    return tuple(retired), tuple(new[False]), tuple(new[True])


class Rewriter:
    """Writes files of one run below an output."""

    def __init__(self, output: str, run_id: str) -> None:
        self._output, self._run_id = output, run_id

    def merge(self, files: Sequence[DataFile], without: Collection[str] = ()) -> DataFile | None:
        """Write the rows of Parquet files of one schema into one new file beside the first of them.

        Args:
            files: what to read, in this order.
            without: values of the column `source` whose rows are left out.

        Returns:
            The new file; None if no row is left.

        Raises:
            RunError: if a file cannot be read or written, or does not have the rows that it should have.
        """
        directory = files[0].path.rpartition("/")[0]
        temporary, final = self._names(directory, ".parquet")
        writer: ParquetFileWriter | None = None
        try:
            for file in files:
                for batch in self._batches(file):
                    kept = _without(batch, without)
                    if len(kept):
                        if writer is None:
                            schema = run_independent(kept.schema)
                            metadata = schema.metadata | {RUN_ID: self._run_id.encode()}
                            writer = ParquetFileWriter(temporary, final, schema.with_metadata(metadata), ROWS_PER_GROUP)
                        writer.write(kept)
            if writer is None:
                return None
            writer.close()
            put_in_place(temporary, final)
        except (pa.ArrowException, OSError) as error:
            raise RunError(f"{', '.join(file.path for file in files[:3])} cannot be rewritten: {error}") from error
        path = final.removeprefix(f"{self._output}/")
        # A stream's rows are from no file that could change. Its files' lists of sources are empty, and stay so.
        sources = dict(writer.sources) if any(file.sources for file in files) else {}
        return DataFile(path, writer.rows, writer.file.bytes_, writer.file.sha256, sources, files[0].fingerprint)

    def dead_letters_without(self, file: DataFile, without: Collection[str]) -> DataFile | None:
        """Write a file of dead letters again, without those of some inputs.

        Returns:
            The new file; None if no letter is left.

        Raises:
            RunError: if it cannot be read or written.
        """
        directory = file.path.rpartition("/")[0]
        temporary, final = self._names(directory, ".jsonl")
        sources: Counter[str] = Counter()
        try:
            with storage.open_raw(f"{self._output}/{file.path}") as lines, storage.create(temporary) as opened:
                new = HashingFile(opened)
                for line in lines:
                    name = json.loads(line)["source"]
                    # Of names that are no UTF-8, earlier versions had another form in rows and manifests.
                    former = valid_unicode(name)
                    source = former if former in file.sources else as_text(name)
                    if source not in without:
                        new.write(line)
                        sources[source] += 1
            put_in_place(temporary, final)
        except (OSError, ValueError, KeyError) as error:
            raise RunError(f"{file.path} cannot be rewritten: {error}") from error
        rows = sum(sources.values())
        return DataFile(final.removeprefix(f"{self._output}/"), rows, new.bytes_, new.sha256, dict(sources))

    def some_rows(self, file: DataFile, wanted: Sequence[bool]) -> tuple[DataFile | None, int]:
        """Write some rows of a file into a new one beside it.

        Args:
            file: of rows, or of dead letters.
            wanted: for each of them, in their order.

        Returns:
            The new file, or None if no row is left; and how many of its rows have no tokens.

        Raises:
            RunError: if it cannot be read or written, or has another number of rows.
        """
        directory, _, name = file.path.rpartition("/")
        temporary, final = self._names(directory, name[name.rfind(".") :])
        if len(wanted) != file.rows:
            raise RunError(f"{file.path} has {file.rows} rows, and its record tells the messages of {len(wanted)}")
        if not any(wanted):
            return None, 0
        try:
            write = self._some_letters if name.endswith(".jsonl") else self._some_scores
            rows, new, empty = write(file, wanted, temporary, final)
            put_in_place(temporary, final)
        except (pa.ArrowException, OSError) as error:
            raise RunError(f"{file.path} cannot be rewritten: {error}") from error
        path = final.removeprefix(f"{self._output}/")
        return DataFile(path, rows, new.bytes_, new.sha256, fingerprint=file.fingerprint), empty

    def _some_scores(
        self, file: DataFile, wanted: Sequence[bool], temporary: str, final: str
    ) -> tuple[int, HashingFile, int]:
        writer: ParquetFileWriter | None = None
        begin = 0
        for batch in self._batches(file):
            kept = batch.filter(pa.array(wanted[begin : begin + len(batch)]))
            begin += len(batch)
            writer = writer or ParquetFileWriter(temporary, final, kept.schema, ROWS_PER_GROUP)
            writer.write(kept)
        assert writer is not None
        writer.close()
        return writer.rows, writer.file, writer.empty

    def _some_letters(
        self, file: DataFile, wanted: Sequence[bool], temporary: str, final: str
    ) -> tuple[int, HashingFile, int]:
        with storage.open_raw(f"{self._output}/{file.path}") as lines, storage.create(temporary) as opened:
            new = HashingFile(opened)
            for line, is_wanted in zip(lines, wanted, strict=True):
                if is_wanted:
                    new.write(line)
        return sum(wanted), new, 0

    def _names(self, directory: str, suffix: str) -> tuple[str, str]:
        name = f"part-{self._run_id}-{uuid.uuid4().hex[:12]}{suffix}"
        final = "/".join(part for part in (self._output, directory, name) if part)
        return (f"{self._output}/{TEMPORARY}/{self._run_id}/{name}" if storage.can_rename(final) else final), final

    def _batches(self, file: DataFile) -> Iterator[pa.RecordBatch]:
        path = f"{self._output}/{file.path}"
        rows = 0
        with storage.open_raw(path) as opened:
            for batch in pq.ParquetFile(opened).iter_batches(BATCH_ROWS):
                rows += len(batch)
                yield batch
        if rows != file.rows:
            raise RunError(f"{path} has {rows} rows, its manifest says {file.rows}; run pipelines.verify")


def put_in_place(temporary: str, final: str) -> None:
    """Give a complete file its name; in an object store it has that already."""
    storage.sync([temporary])
    if temporary != final:
        storage.rename(temporary, final)


def run_independent(schema: pa.Schema) -> pa.Schema:
    """A file's schema without the name of its run."""
    return schema.with_metadata({key: value for key, value in (schema.metadata or {}).items() if key != RUN_ID})


def _without(batch: pa.RecordBatch, sources: Collection[str]) -> pa.RecordBatch:
    if not sources:
        return batch
    return batch.filter(pc.invert(pc.is_in(batch.column("source"), pa.array(sorted(sources), pa.string()))))
