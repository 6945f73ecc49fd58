"""What `pipelines.aggregate` makes: features of each entity and period, from the live rows of a data set.

    rows           ->  groups (entity, period)  ->  sums  ->  features-2024-05-01.parquet, a file for each unit of time

A file of features is made of the rows of its unit and of nothing else, so what is made anew is the same, whatever was
there before. The record beside the files says which units each file of the data set has rows of. Only the units of
files that have come or gone since are made again: that takes care of late rows, of retired files and of new models.

Sums are exact, so they do not depend on the order of rows: probabilities and embeddings are read as multiples of 2^-24
(which changes them by at most 3e-8), and sums of fewer than 2^29 of these are whole in float64.
"""

from __future__ import annotations

import tempfile
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipelines.data_set import jobs
from pipelines.data_set.feature_record import (
    EVENT_TIMESTAMP,
    VECTORS,
    Grouping,
    Looked,
    file_name,
    read_record,
    write_record,
)
from pipelines.data_set.rewrite import put_in_place
from pipelines.data_set.snapshot import DataSet
from torchmoji_core.errors import InputError, RunError, first_line
from torchmoji_core.inference.scores import vectors
from transforms.columns import TIMESTAMP_COLUMN
from transforms.storage import files as storage

_ROUNDER = 1.5 * 2.0 ** (52 - 24)
MOST_BYTES = 320 << 20
"""Of sums that are held at a time; if there are more groups, the rows are read several times."""
_BATCH_ROWS = 1024
_GROUPS_AT_ONCE = 2048
"""Groups that are written together."""


@dataclass
class Aggregated:
    """What was done."""

    made: int = 0
    """Files of features."""
    deleted: int = 0
    kept: int = 0
    features: int = 0
    """Rows of the files that were made."""
    rows: int = 0
    """Live rows of the data set."""
    left_out: Counter[str] = field(default_factory=Counter)

    def describe(self) -> str:
        """For people."""
        left_out = ", ".join(f"{count:,} without {name}" for name, count in sorted(self.left_out.items()) if count)
        return (
            f"aggregated  {self.rows:,} rows: {self.rows - self.left_out.total():,} in features, "
            f"{left_out or '0'} left out; {self.made:,} file(s) made with {self.features:,} features, "
            f"{self.kept:,} kept, {self.deleted:,} deleted"
        )


def aggregate(source: str, by: Grouping, output: str) -> Aggregated:
    """Bring features up to date with a data set. To be called by the holder of the output's lock.

    Args:
        source: directory of a data set.
        by: entity and period.
        output: directory for the features.

    Raises:
        InputError: if there is no data set, a column is missing, or the output holds something else.
        RunError: if a file cannot be read or written. The next call makes what is missing then.
    """
    data_set = DataSet.read(source)
    if not data_set.manifests:
        for job in jobs.read(source).values():
            raise InputError(f"{source}: nothing there yet but {job.said}, {job.state}")
        raise InputError(f"{source}: no manifest there, so no data set; check the path")
    files = {path: file.rows for path, file in sorted(data_set.live.files.items())}
    before = read_record(output, data_set.output, by)
    with tempfile.TemporaryDirectory(prefix="torchmoji-aggregate-", ignore_cleanup_errors=True) as scratch:
        try:
            return _Aggregation(data_set.output, by, output, scratch).run(files, before)
        except (pa.ArrowException, duckdb.Error, OSError) as error:
            raise RunError(f"{source} cannot be aggregated: {first_line(error)}") from error


class _Aggregation:
    def __init__(self, source: str, by: Grouping, output: str, scratch: str) -> None:
        self._source, self._by, self._output = source, by, output
        bounds: dict[str, Any] = {"memory_limit": "256MB", "temp_directory": scratch, "threads": 2}
        self._database = duckdb.connect(config=bounds)
        self._metadata: dict[bytes, bytes] = {}
        """Of the files, without what differs between them."""
        self._types: dict[str, pa.DataType] = {}
        """Of the columns of the entity."""
        self._keyed = {name: f"key_{number}" for number, name in enumerate(by.entity)}
        """Their names in the database, where `row`, `time` and `unit` are ours, and `User` would be `user`."""
        self._has: list[str] = []
        """Of `VECTORS`, those that the files have."""

    def run(self, files: Mapping[str, int], before: Mapping[str, Looked]) -> Aggregated:
        # What a killed run has left; nobody else writes here.
        storage.delete([facts.path for facts in storage.match([f"{self._output}/_features-*.tmp"])])
        present = {facts.path.rpartition("/")[2] for facts in storage.match([f"{self._output}/features-*.parquet"])}
        made = {file_name(unit) for each in before.values() for unit in each.units}
        if files.keys() != before.keys() or made != present:  # files of the record were checked when they were new
            self._check(files)
        looked = {path: before[path] if path in before else self._look(path, rows) for path, rows in files.items()}
        changed = [before[path] for path in before.keys() - files.keys()]
        changed += [looked[path] for path in files.keys() - before.keys()]
        there = {unit for each in looked.values() for unit in each.units}
        to_make = {unit for each in changed for unit in each.units} & there
        to_make |= {unit for unit in there if file_name(unit) not in present}
        gone = sorted(present - set(map(file_name, there)))
        done = Aggregated(kept=len(there - to_make), rows=sum(files.values()))
        for each in looked.values():
            done.left_out.update(each.left_out)
        relevant = [path for path, each in looked.items() if to_make & set(each.units)]
        if to_make:
            # If this run is killed, what it has begun with is not taken for made, whatever becomes of its rows.
            write_record(
                self._output,
                self._source,
                self._by,
                {path: before[path] for path in looked if path in before and path not in relevant},
            )
        self._make(relevant, self._group(relevant, to_make), done)
        storage.delete([f"{self._output}/{name}" for name in gone])
        done.deleted = len(gone)
        write_record(self._output, self._source, self._by, looked)
        return done

    def _check(self, files: Mapping[str, int]) -> None:
        """Make sure that the files are of one model and have what is asked for.

        Raises:
            InputError: if not.
        """
        schemas = {}
        for path in files:
            with storage.open_raw(f"{self._source}/{path}") as opened:
                schemas[path] = pq.read_schema(opened)
        if not schemas:
            return
        models = {(schema.metadata or {}).get(b"torchmoji.fingerprint") for schema in schemas.values()}
        if len(models) > 1:
            raise InputError(
                f"{self._source}: its rows were scored by {len(models)} models, whose scores are not to be mixed; "
                "score all with one, as by pipelines.annotate --rescore_with_new_model"
            )
        names = {name for schema in schemas.values() for name in schema.names}
        simple = {
            field.name: field.type
            for schema in schemas.values()
            for field in schema
            if not pa.types.is_nested(field.type)
        }
        missing = [name for name in self._by.entity if name not in simple]
        if missing:
            choice = ", ".join(sorted(simple.keys() - {TIMESTAMP_COLUMN, "text", "status"})) or "none"
            raise InputError(
                f"{self._source}: the rows have no column {missing[0]!r} to group by, but {choice}; other fields of "
                "the input are carried along by --keep_fields of score and annotate"
            )
        if self._by.period and TIMESTAMP_COLUMN not in names:
            raise InputError(
                f"{self._source}: the rows have no time to group by {self._by.period}; score them with "
                "--timestamp_field"
            )
        if not names & set(VECTORS):
            raise InputError(
                f"{self._source}: the rows have neither probabilities nor embeddings; score with --outputs "
                "probabilities or embedding"
            )
        first = next(iter(schemas.values()))
        self._types = {name: simple[name] for name in self._by.entity}
        kept = (b"torchmoji.bundle", b"torchmoji.fingerprint", b"torchmoji.classes", b"torchmoji.version")
        self._metadata = {key: value for key, value in (first.metadata or {}).items() if key in kept}
        self._metadata[b"torchmoji.features_by"] = str(self._by).encode()
        self._has = [name for name in VECTORS if name in names]

    def _look(self, path: str, rows: int) -> Looked:
        """Read the columns of a file that tell its groups.

        Raises:
            RunError: if the file does not have the rows that it should have.
        """
        keys = self._keys(path)
        if keys.num_rows != rows:
            raise RunError(f"{path} has {keys.num_rows} rows, its manifest says {rows}; run pipelines.verify")
        columns = {**self._keyed, **({TIMESTAMP_COLUMN: "time"} if self._by.period else {})}
        left = {}
        is_there = pa.array(np.ones(rows, bool))
        for name, key in columns.items():  # a row that lacks several is counted for the first
            has = pc.is_valid(keys[key]).combine_chunks()
            left[name] = pc.sum(pc.and_not(is_there, has).cast(pa.int64())).as_py() or 0
            is_there = pc.and_(is_there, has)
        units = self._database.execute(f"SELECT DISTINCT {self._by.unit} AS unit FROM ({self._of_groups()}) ORDER BY 1")
        return Looked(tuple(unit for (unit,) in units.fetchall()), rows, left)

    def _keys(self, path: str) -> pa.Table:
        """Entity and time of a file's rows, in their order; also as the database's table `keys`."""
        with storage.open_raw(f"{self._source}/{path}") as opened:
            parquet = pq.ParquetFile(opened)
            names = [
                name for name in (*self._by.entity, TIMESTAMP_COLUMN, "status") if name in parquet.schema_arrow.names
            ]
            table = parquet.read(columns=names)
        columns = {
            self._keyed[name]: table[name].cast(kind) if name in names else pa.nulls(len(table), kind)
            for name, kind in self._types.items()
        }
        times = (
            table[TIMESTAMP_COLUMN] if TIMESTAMP_COLUMN in names else pa.nulls(len(table), pa.timestamp("us", "UTC"))
        )
        columns["time"] = times.cast(pa.timestamp("us", "UTC")).cast(pa.int64()).cast(pa.timestamp("us"))
        columns["scored"] = pc.equal(table["status"], "scored")
        columns["row"] = pa.array(np.arange(len(table)))
        keys = pa.table(columns)
        self._database.register("keys", keys)
        return keys

    def _of_groups(self) -> str:
        """SQL of the rows of `keys` that are in a group, with the start of their period."""
        needed = [*self._keyed.values(), *(["time"] if self._by.period else [])]
        there = " AND ".join(f"{name} IS NOT NULL" for name in needed) or "TRUE"
        return f"SELECT *, {self._by.start} AS period FROM keys WHERE {there}"

    def _group(self, paths: Sequence[str], units: set[str]) -> int:
        """Make the database's table `groups`, numbered by unit, period and entity. Returns how many there are."""
        entity = "".join(f"{key}, " for key in self._keyed.values())
        self._database.register("units", pa.table({"unit": pa.array(sorted(units), pa.string())}))
        created = False
        for path in paths:
            self._keys(path)
            part = (
                f"SELECT {self._by.unit} AS unit, period, {entity}count(*) AS tweets, count_if(scored) AS scored, "
                f"max(time) AS latest FROM ({self._of_groups()}) WHERE {self._by.unit} IN (SELECT unit FROM units) "
                "GROUP BY ALL"
            )
            self._database.execute(f"INSERT INTO parts {part}" if created else f"CREATE TABLE parts AS {part}")
            created = True
        if not created:
            return 0
        order = f"unit, period, {entity}".rstrip(", ")
        self._database.execute(
            f"CREATE TABLE groups AS SELECT row_number() OVER (ORDER BY {order}) - 1 AS number, * FROM "
            f"(SELECT unit, period, {entity}sum(tweets)::BIGINT AS tweets, sum(scored)::BIGINT AS scored, "
            "max(latest) AS latest FROM parts GROUP BY ALL)"
        )
        self._database.execute("DROP TABLE parts")
        (count,) = self._database.execute("SELECT count(*) FROM groups").fetchall()[0]
        return int(count)

    def _make(self, paths: Sequence[str], groups: int, done: Aggregated) -> None:
        """Write the file of each unit, as many groups at a time as there is room for."""
        widths = self._widths(paths)
        per_group = 8 * (sum(widths.values()) + widths.get(VECTORS[0], 0))
        most = max(1, MOST_BYTES // max(per_group, 1))
        writer: _UnitWriter | None = None
        for first in range(0, groups, most):
            for units, features in self._features_of(paths, widths, first, min(first + most, groups)):
                starts = np.flatnonzero(np.r_[True, units[1:] != units[:-1]]).tolist()
                for start, end in zip(starts, [*starts[1:], len(units)], strict=True):
                    if writer is None or writer.unit != units[start]:
                        if writer is not None:
                            writer.close()
                        writer = _UnitWriter(units[start], f"{self._output}/{file_name(units[start])}", self._output)
                        done.made += 1
                    writer.write(features.slice(start, end - start))
                done.features += len(features)
        if writer is not None:
            writer.close()

    def _widths(self, paths: Sequence[str]) -> dict[str, int]:
        """Lengths of the vectors, from the first row that has them; none of vectors that no row has."""
        found: dict[str, int] = {}
        for path in paths:
            for batch in self._vectors(path, self._has):
                for name in self._has:
                    lengths = pc.drop_null(pc.list_value_length(batch[name]))
                    if name not in found and len(lengths):
                        found[name] = lengths[0].as_py()
                if len(found) == len(self._has):
                    return found
        return found

    def _vectors(self, path: str, names: Sequence[str]) -> Iterator[pa.RecordBatch]:
        with storage.open_raw(f"{self._source}/{path}") as opened:
            yield from pq.ParquetFile(opened).iter_batches(_BATCH_ROWS, columns=list(names))

    def _features_of(
        self, paths: Sequence[str], widths: Mapping[str, int], first: int, last: int
    ) -> Iterator[tuple[NDArray[Any], pa.Table]]:
        """Units and features of the groups numbered from `first` to before `last`."""
        sums = {name: np.zeros((last - first, width)) for name, width in widths.items()}
        firsts = np.zeros((last - first, widths.get("probabilities", 0)))
        for path in paths:
            numbers = self._numbers(path, first, last)
            if (numbers < 0).all():
                continue
            begun = 0
            for batch in self._vectors(path, list(widths)):
                of_batch = numbers[begun : begun + len(batch)]
                begun += len(batch)
                for name, width in widths.items():
                    values, rows = _there(batch[name], of_batch, width)
                    if name == "probabilities":
                        np.add.at(firsts, (rows, values.argmax(axis=1)), 1.0)
                    _add(sums[name], rows, values)
        for start in range(first, last, _GROUPS_AT_ONCE):
            end = min(start + _GROUPS_AT_ONCE, last)
            some = slice(start - first, end - first)
            yield self._table(start, end, {name: values[some] for name, values in sums.items()}, firsts[some])

    def _numbers(self, path: str, first: int, last: int) -> NDArray[np.int64]:
        """[rows] of a file: the number of each row's group from `first` on, -1 for groups of another part."""
        keys = self._keys(path)
        same = [f"r.{key} = g.{key}" for key in self._keyed.values()]
        same += ["r.period = g.period"] if self._by.period else []
        found = self._database.execute(
            f"SELECT r.row, g.number - {first} AS number FROM ({self._of_groups()}) r JOIN groups g "
            f"ON {' AND '.join(same) or 'TRUE'} WHERE g.number >= {first} AND g.number < {last}"
        ).fetchnumpy()
        numbers = np.full(keys.num_rows, -1, np.int64)
        numbers[found["row"]] = found["number"]
        return numbers

    def _table(
        self, first: int, last: int, sums: Mapping[str, NDArray[Any]], firsts: NDArray[Any]
    ) -> tuple[NDArray[Any], pa.Table]:
        entity = "".join(f"{key}, " for key in self._keyed.values())
        period = self._by.period
        end = f"period + INTERVAL 1 {period}" if period else "latest"
        start = "period, " if period else ""
        groups: Any = self._database.sql(
            f"SELECT unit, {entity}{start}{end} AS {EVENT_TIMESTAMP}, tweets, scored FROM groups "
            f"WHERE number >= {first} AND number < {last} ORDER BY number"
        ).to_arrow_table()
        scored = groups["scored"].to_numpy()
        columns = {name: groups[self._keyed[name]].cast(kind) for name, kind in self._types.items()}
        for name, found in ((period, "period"), (EVENT_TIMESTAMP, EVENT_TIMESTAMP)):
            if name:
                columns[name] = groups[found].cast(pa.timestamp("us")).cast(pa.timestamp("us", "UTC"))
        columns.update(tweets=groups["tweets"], scored=groups["scored"])
        is_empty = scored == 0
        counts = np.maximum(scored, 1)[:, None]
        # A file has the columns of all others, also if no row of its unit has tokens.
        nothing = np.zeros((len(scored), 0))
        if "probabilities" in self._has:
            means = sums.get("probabilities", nothing) / counts
            columns["probabilities"] = _lists(means, is_empty)
            columns["first_share"] = _lists(firsts / counts, is_empty)
            entropy = -(means * np.log(np.where(means > 0, means, 1))).sum(axis=1)
            columns["entropy"] = pa.array(entropy.astype(np.float32), mask=is_empty)
        if "embedding" in self._has:
            columns["embedding"] = _lists(sums.get("embedding", nothing) / counts, is_empty)
        units = groups["unit"].to_numpy(zero_copy_only=False)
        return units, pa.table(columns).replace_schema_metadata(self._metadata)


class _UnitWriter:
    """A file of features, which takes the place of the former one when it is complete."""

    def __init__(self, unit: str, path: str, output: str) -> None:
        self.unit, self._path = unit, path
        can_rename = storage.can_rename(path)
        self._temporary = f"{output}/_features-{uuid.uuid4().hex}.tmp" if can_rename else path
        self._file = storage.create(self._temporary)
        self._writer: pq.ParquetWriter | None = None

    def write(self, features: pa.Table) -> None:
        if self._writer is None:
            self._writer = pq.ParquetWriter(self._file, features.schema, compression="zstd", use_dictionary=False)
        self._writer.write_table(features)

    def close(self) -> None:
        """Put the file in place."""
        assert self._writer is not None
        self._writer.close()
        self._file.close()
        put_in_place(self._temporary, self._path)


def _there(lists: pa.ListArray, numbers: NDArray[np.int64], width: int) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """[rows, width] and the groups' numbers of the rows that have a vector and a group.

    Raises:
        RunError: if vectors differ in length.
    """
    is_there = lists.is_valid().to_numpy(zero_copy_only=False)
    flat = lists.flatten().to_numpy(zero_copy_only=False)
    if len(flat) != width * is_there.sum():
        raise RunError(f"vectors of another length than {width}; run pipelines.verify")
    numbers = numbers[is_there]
    values = flat.reshape(-1, width)
    return (values, numbers) if (numbers >= 0).all() else (values[numbers >= 0], numbers[numbers >= 0])


def _add(sums: NDArray[np.float64], rows: NDArray[np.int64], values: NDArray[np.floating]) -> None:
    """Add values to the sums of their rows, rounded to multiples of the step, half to even."""
    order = np.argsort(rows, kind="stable")
    sorted_values = values[order].astype(np.float64)
    # Of numbers of this size float64 has no finer steps, so what is added and taken away again takes the rest along.
    sorted_values += _ROUNDER
    sorted_values -= _ROUNDER
    distinct, starts = np.unique(rows[order], return_index=True)
    sums[distinct] += sorted_values if len(distinct) == len(rows) else np.add.reduceat(sorted_values, starts)


def _lists(rows: NDArray[np.float64], is_empty: NDArray[np.bool_]) -> pa.Array:
    """Lists of float32, null where they are empty."""
    return vectors(rows.astype(np.float32), is_empty, pa.list_(pa.float32()))
