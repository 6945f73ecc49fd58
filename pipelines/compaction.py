"""Merges files: which ones go together, and the one commit that puts the new in the place of the old."""

from __future__ import annotations

import contextlib
import dataclasses
import uuid
from collections import defaultdict
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.data_set import DataSet, announce_run, discard_run, recover, remove_temporary, tidy
from pipelines.lease import Lease
from pipelines.manifest import DataFile, Manifest
from pipelines.rewrite import Rewriter, run_independent
from torchmoji_core import __version__
from torchmoji_core.errors import InputError, RunError
from transforms import storage


def compact(output: str, target_bytes: int, lease: Lease, dry_run: bool = False) -> str:
    """Merge small files, and all manifests into one checkpoint.

    Args:
        output: directory of a data set.
        target_bytes: size that merged files should have.
        lease: of the output.
        dry_run: whether to change nothing.

    Returns:
        What was done, for people.

    Raises:
        InputError: if there is no data set, or another model is about to replace it.
        RunError: if a file cannot be read or written; nothing has changed then.
    """
    data_set = DataSet.read(output)
    if not dry_run:
        recover(data_set)  # what streams have written until now is merged too
    if not data_set.manifests:
        raise InputError(f"{output}: no manifest there, so no data set; check the path")
    if len(data_set.generations) > 1:
        raise InputError(f"{output} is being scored again with a new model; let pipelines.annotate finish that first")
    live = data_set.live
    groups = list(_groups(output, live.files, target_bytes))
    merged = sum(map(len, groups))
    if dry_run:
        return f"dry run: {merged:,} of {len(live.files):,} file(s) would become {len(groups):,}"
    if not groups and len(data_set.manifests) == 1:
        tidy(data_set)
        return f"nothing to do: {len(live.files):,} file(s), none to be merged"
    run_id, started = uuid.uuid4().hex[:12], datetime.now(UTC)
    try:
        announce_run(output, run_id)
        rewriter = Rewriter(output, run_id)
        made = [file for group in groups if (file := rewriter.merge(group)) is not None]
        files = {path: file for path, file in live.files.items() if not any(file in group for group in groups)}
        last = data_set.manifests[-1]
        change = data_set.as_checkpoint(
            Manifest(
                sequence=data_set.next_sequence,
                run_id=run_id,
                kind="compact",
                status="done",
                started=started.isoformat(timespec="seconds"),
                finished=datetime.now(UTC).isoformat(timespec="seconds"),
                code_version=__version__,
                identity=last.identity,
                model=dataclasses.replace(last.model, fingerprint=live.fingerprint or last.model.fingerprint),
                inputs=tuple(live.inputs.values()),
                files=(*files.values(), *made),
                dead_letters=tuple(live.dead_letters.values()),
                generation=data_set.live_generation,
            )
        )
        lease.check()
        data_set.commit(change)
    except BaseException as error:
        with contextlib.suppress(OSError):  # what cannot be done now, the next command does
            if not data_set.is_committed(run_id):
                discard_run(output, run_id)
        if isinstance(error, OSError):
            raise RunError(f"{output} cannot be compacted: {error}") from error
        raise
    data_set.publish()
    remove_temporary(output, run_id)
    tidy(data_set)
    return (
        f"merged      {merged:,} file(s) into {len(made):,}, {len(data_set.manifests) - 1:,} manifest(s) into 1; "
        f"{len(files) + len(made):,} file(s) now. The old ones stay for readers until pipelines.verify --clean"
    )


def _groups(output: str, files: dict[str, DataFile], target_bytes: int) -> Iterator[Sequence[DataFile]]:
    """Small files of one directory and one schema, its model included, in the order of their names.

    Those of a group are about a target together.
    """
    alike: dict[tuple[str, bytes], list[DataFile]] = defaultdict(list)
    for path, file in sorted(files.items()):
        if file.bytes < target_bytes // 2:
            try:
                with storage.open_raw(f"{output}/{path}") as opened:
                    schema = run_independent(pq.ParquetFile(opened).schema_arrow)
            except (pa.ArrowException, OSError) as error:
                raise RunError(f"{path} cannot be read: {error}; run pipelines.verify") from error
            alike[path.rpartition("/")[0], schema.serialize().to_pybytes()].append(file)
    for candidates in alike.values():
        group: list[DataFile] = []
        for file in candidates:
            if group and sum(one.bytes for one in group) + file.bytes > target_bytes:
                yield from [group] if len(group) > 1 else []
                group = []
            group.append(file)
        yield from [group] if len(group) > 1 else []
