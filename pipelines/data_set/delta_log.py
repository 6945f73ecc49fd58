"""The Delta log: a list of what is live, for other readers, which need nothing of this package.

>>> import polars
>>> polars.scan_delta("scored")

The manifests are the truth, and the log is made from them. Each publication compares the files that are live with those
that the log lists, and commits the difference in one piece. So the next publication makes up for one that failed, or
never began because its process was killed. It also undoes what others have changed in the log.
"""

from __future__ import annotations

import itertools
import json
import logging
import mmap
import re
import resource
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.data_set import manifest
from pipelines.data_set.manifest import DataFile
from torchmoji_core.errors import panics_are_errors
from torchmoji_core.stores import address, is_object
from transforms.input.fields import DATE, HIVE_NULL, HOUR
from transforms.storage import files as storage

if TYPE_CHECKING:
    from deltalake import DeltaTable, Schema
    from deltalake.transaction import AddAction

DIRECTORY = "_delta_log"
APPLICATION = "torchmoji"
"""The application that transactions belong to; their numbers are those of the manifests that they take account of."""
_PAUSES = (0.0, 0.1, 1.0, 3.0)
"""Seconds before each look at the log: it is looked at again if another was faster, or a store does not answer."""
_READERS = 16
_CONFIGURATION = {"delta.logRetentionDuration": "interval 1 days"}
"""And not a month: a stream commits thousands of times a day. Files that are retired stay for a day as well."""
_PARTITION_TYPES = {DATE: pa.date32(), HOUR: pa.int32()}
"""Others are strings."""
_ADDRESS_SPACE = 1 << 30
"""Bytes that the library takes: its threads have stacks and heaps of their own, of which little is ever used."""

_LOGGER = logging.getLogger(__name__)


class _NoTableError(Exception):
    """The files cannot be one Delta table; the message says why."""


@dataclass
class DeltaLog:
    """The log of one output."""

    output: str
    _said: str = field(default="", compare=False)
    """What was last said of a publication that failed."""

    def publish(self, files: Mapping[str, DataFile], number: int) -> None:
        """Make the log list some files and no others. Where that fails, a warning says why; the same one only once.

        Args:
            files: what is live, by path.
            number: of the last manifest that they take account of.
        """
        said = ""
        try:
            _check_room()
            with panics_are_errors():
                self._publish(files, number)
        except _NoTableError as error:
            said = f"{self.output} has no Delta log: {error}; read the files of pipelines.data_set.snapshot.live_files"
        except Exception as error:  # the library raises OSError, kinds of its own, and Exception itself
            said = f"the Delta log of {self.output} is behind until the next commit: {_in_a_line(error)}"
        if said not in ("", self._said):
            _LOGGER.warning("%s", said)
        self._said = said

    def _publish(self, files: Mapping[str, DataFile], number: int) -> None:
        from deltalake.exceptions import CommitFailedError

        for pause in _PAUSES:
            time.sleep(pause)
            try:
                return self._commit_difference(files, number)
            except _NoTableError:
                # A log that is there lists what is live no longer, and will soon be deleted.
                self._delete()
                raise
            except (CommitFailedError, OSError) as error:
                if isinstance(error, OSError) and storage.can_rename(self.output):
                    raise
                failure: Exception = error
        raise failure

    def _commit_difference(self, files: Mapping[str, DataFile], number: int) -> None:
        """Look at the log, add the files that it lacks, and remove those that are not live.

        Raises:
            CommitFailedError: if that is to be done again, since another has committed meanwhile, for instance.
            _NoTableError: if the files cannot be one table.
        """
        from deltalake.exceptions import CommitFailedError
        from deltalake.transaction import CommitProperties, RemoveAction, Transaction, create_table_with_add_actions

        location, options = _location(self.output), storage.settings(self.output)
        table = self._open(location, options)
        listed = set() if table is None else _listed(table)
        new, gone = sorted(files.keys() - listed), sorted(listed - files.keys())
        if not (new or gone) or (table is not None and self._knows_more(table, number)):
            return
        schema, partition_by = self._columns(new)
        types = {column.name: column.type for column in schema.fields}
        known = {} if table is None else {column.name: column.type for column in table.schema().fields}
        differs = any(known.get(name, kind) != kind for name, kind in types.items())
        if table is not None:
            differs |= not {*partition_by} <= {*table.metadata().partition_columns}
        stays = len(gone) < len(listed)
        _check_names({*types, *(known if stays else ())})
        if stays and differs:
            self._delete()
            raise CommitFailedError("a column has another type, or files are in other directories: begun anew")

        properties = CommitProperties(max_commit_retries=0, app_transactions=[Transaction(APPLICATION, number)])
        if table is None or (new and not stays and (differs or known.keys() != types.keys())):
            create_table_with_add_actions(
                location,
                schema,
                [_added(files[path], partition_by) for path in new],
                mode="error" if table is None else "overwrite",
                partition_by=partition_by,
                configuration=_CONFIGURATION,
                storage_options=options,
                commit_properties=properties,
            )
        else:
            if missing := [column for column in schema.fields if column.name not in known]:
                table.alter.add_columns(missing, commit_properties=CommitProperties(max_commit_retries=0))
            partition_by = table.metadata().partition_columns
            now = int(time.time() * 1000)
            table.create_write_transaction(
                [
                    *(_added(files[path], partition_by) for path in new),
                    # Paths as they are: the library encodes those that it is given, and gives them encoded.
                    *(RemoveAction(path, True, now, partition_values=_partition(path)) for path in gone),
                ],
                mode="append",
                schema=table.schema(),
                partition_by=partition_by,
                commit_properties=properties,
            )
        version = 0 if table is None else table.version() + 1
        entry = f"{self.output}/{DIRECTORY}/{version:020}.json"
        storage.sync([entry, *storage.directories(entry, self.output)])

    def _open(self, location: str, options: dict[str, str]) -> DeltaTable | None:
        """The log as it is; None if there is none. One that cannot be read, as a power cut may leave it, is deleted."""
        from deltalake import DeltaTable
        from deltalake.exceptions import DeltaError, TableNotFoundError

        table = None
        try:
            table = DeltaTable(location, storage_options=options)
        except TableNotFoundError:
            return None
        except DeltaError as error:
            _LOGGER.warning("the Delta log of %s is damaged, and written anew: %s", self.output, _in_a_line(error))
        if table is None or table.protocol().min_reader_version > 1:  # with features that hide rows or rename columns
            self._delete()
            return None
        return table

    def _delete(self) -> None:
        storage.delete_directory(f"{self.output}/{DIRECTORY}")

    def _knows_more(self, table: DeltaTable, number: int) -> bool:
        """Whether the log takes account of a later manifest that exists: another command has published meanwhile."""
        if (table.transaction_version(APPLICATION) or 0) <= number:
            return False
        return max(map(manifest.number, manifest.names(self.output)), default=0) > number

    def _columns(self, paths: Sequence[str]) -> tuple[Schema, list[str]]:
        """All columns of some files, and which of them their directories tell.

        Raises:
            OSError: if a file cannot be read.
            _NoTableError: if no table has such columns.
        """
        from deltalake import Schema

        def read(path: str) -> pa.Schema:
            with storage.open_raw(f"{self.output}/{path}") as file:
                return pq.read_schema(file).remove_metadata()

        with ThreadPoolExecutor(_READERS) as threads:
            schemas = list(dict.fromkeys(threads.map(read, paths)))
        partition_by = list(dict.fromkeys(name for path in paths for name in _partition(path)))
        if "halffloat" in str(schemas):
            raise _NoTableError("Delta has no half floats (--embedding_type float16)")
        _check_names({*partition_by, *(name for schema in schemas for name in schema.names)})
        try:
            schema = pa.unify_schemas(schemas) if schemas else pa.schema([])
            for name in partition_by:
                schema = schema.append(pa.field(name, _PARTITION_TYPES.get(name, pa.string())))
            return Schema.from_arrow(schema), partition_by
        except Exception as error:  # as such the library raises it
            raise _NoTableError(f"its columns are none of a table: {_in_a_line(error)}") from None


def _location(output: str) -> str:
    """An output's address, as the library wants it.

    Raises:
        OSError: if the library would take it for another place.
    """
    if re.search("%[0-9a-fA-F]{2}", output):
        raise OSError("its path has a percent sign that the library deltalake takes for an escape")
    if not is_object(output):
        return str(Path(output).absolute()) if storage.is_local(output) else output
    at = address(output)  # it knows only one form of each; the account is among the settings
    return f"{at.kind}://{at.bucket}/{at.key}"


def _check_names(names: Iterable[str]) -> None:
    for one, other in itertools.pairwise(sorted(names, key=str.lower)):
        if one.lower() == other.lower():
            raise _NoTableError(f"columns {min(one, other)} and {max(one, other)} differ only in case")


def _listed(table: DeltaTable) -> set[str]:
    """Paths of the files in a log, as they are; the library gives them percent-encoded."""
    return {unquote(path) for path in pa.chunked_array(table.get_add_actions()["path"]).to_pylist()}


def _added(file: DataFile, partition_by: Iterable[str]) -> AddAction:
    from deltalake.transaction import AddAction

    values = _partition(file.path)
    return AddAction(
        path=file.path,
        size=file.bytes,
        partition_values={name: values.get(name) for name in partition_by},
        modification_time=int(time.time() * 1000),
        data_change=True,
        stats=json.dumps({"numRecords": file.rows}),
    )


def _partition(path: str) -> dict[str, str | None]:
    """What the directories of a file tell of its rows.

    >>> _partition("date=2026-01-31/lang=pt%2FBR/part-1.parquet")
    {'date': '2026-01-31', 'lang': 'pt/BR'}
    """
    pairs = [directory.partition("=") for directory in path.split("/")[:-1]]
    return {unquote(name): None if value == HIVE_NULL else unquote(value) for name, _, value in pairs}


def _check_room() -> None:
    """Make sure that the library finds the address space that it takes, if that is limited (`ulimit -v`).

    Python raises an error where memory is short. The library, written in Rust, ends the process: a run that has
    committed its results would seem to have failed.

    Raises:
        OSError: if there is less.
    """
    if resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY:
        mmap.mmap(-1, _ADDRESS_SPACE).close()


def _in_a_line(error: Exception) -> str:
    """What the library says in several lines, with colours, arrows and perhaps a stack of its own below."""
    lines = (line.strip() for line in re.sub("\x1b\\[[0-9;]*m|↳", "", str(error)).splitlines())
    said = [line for line in itertools.takewhile(lambda line: not re.match(r"\d+: ", line), lines) if line]
    if "Unable to rename file" in said:
        said.append("a Delta log needs a filesystem with hard links")
    return ": ".join(said) or type(error).__name__
