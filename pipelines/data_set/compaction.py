"""Merges files: chooses which ones go together, and replaces them in one commit."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.data_set.job_results import take_in
from pipelines.data_set.manifest import DataFile, Manifest, new_run_id, now
from pipelines.data_set.recovery import commit_run, delete_retired, delete_uncommitted, recover, register_run
from pipelines.data_set.rewrite import Rewriter, run_independent
from pipelines.data_set.snapshot import DataSet
from torchmoji_core.errors import InputError, RunError
from transforms.storage import files as storage


def compact(
    output: str, target_bytes: int, dry_run: bool = False, tell: Callable[[Manifest], object] = lambda _: None
) -> str:
    """Merge small files, and all manifests into one checkpoint.

    To be called by the holder of the lock. Streams may commit meanwhile; what they do is part of the checkpoint.

    Args:
        output: directory of a data set.
        target_bytes: size that merged files should have.
        dry_run: whether to change nothing.
        tell: is told of each result of a submitted run that was committed.

    Returns:
        What was done, for people.

    Raises:
        InputError: if there is no data set, or another model is about to replace it.
        RunError: if a file cannot be read or written; nothing has changed then.
    """
    data_set = DataSet.read(output)
    if not dry_run:
        recover(data_set)  # what streams have written until now is merged too
        take_in(data_set, tell)
    if not data_set.manifests:
        raise InputError(f"{output}: no manifest there, so no data set; check the path")
    _check(data_set)
    live = data_set.live
    groups = list(_groups(output, live.files, target_bytes))
    merged = sum(map(len, groups))
    if dry_run:
        return f"dry run: {merged:,} of {len(live.files):,} file(s) would become {len(groups):,}"
    if not groups and len(data_set.manifests) == 1:
        delete_retired(data_set)
        return f"nothing to do: {len(live.files):,} file(s), none to be merged"
    compaction = _Compaction(output)
    try:
        register_run(output, compaction.run_id)
        compaction.merge(groups)
        commit_run(data_set, compaction.run_id, compaction.decide)
    except BaseException as error:
        delete_uncommitted(data_set, compaction.run_id)
        if isinstance(error, OSError):
            raise RunError(f"{output} cannot be compacted: {error}") from error
        raise
    if compaction.made < len(groups):  # another command has retired rows that were merged in vain
        delete_uncommitted(data_set, compaction.run_id)
    delete_retired(data_set)
    return (
        f"merged      {compaction.merged:,} file(s) into {compaction.made:,}, {compaction.manifests:,} manifest(s) "
        f"into 1; {len(data_set.live.files):,} file(s) now. The old ones stay for readers until pipelines.verify "
        "--clean"
    )


def _check(data_set: DataSet) -> None:
    """Raises:
    InputError: if another model is about to replace it.
    """
    if len(data_set.generations) > 1:
        raise InputError(
            f"{data_set.output} is being scored again with a new model; let pipelines.annotate finish that first"
        )


class _Compaction:
    """Merges old files into new ones, and makes, for any state that has the old ones, the checkpoint with the new."""

    def __init__(self, output: str) -> None:
        self._output, self._started, self.run_id = output, now(), new_run_id()
        self._new: list[tuple[Sequence[DataFile], DataFile]] = []
        self.merged = self.made = self.manifests = 0
        """Of what `decide` has made last."""

    def merge(self, groups: Sequence[Sequence[DataFile]]) -> None:
        """Write a file for each group.

        Raises:
            RunError: if a file cannot be read or written.
        """
        rewriter = Rewriter(self._output, self.run_id)
        self._new = [(group, file) for group in groups if (file := rewriter.merge(group)) is not None]

    def decide(self, data_set: DataSet) -> Manifest:
        """The checkpoint that is to follow a state.

        Raises:
            InputError: if another model is about to replace it.
            OSError: if the output cannot be listed.
        """
        _check(data_set)
        live = data_set.live
        new = [(group, file) for group, file in self._new if all(live.files.get(old.path) == old for old in group)]
        merged = {old.path for group, _ in new for old in group}
        self.merged, self.made, self.manifests = len(merged), len(new), len(data_set.manifests)
        return data_set.as_checkpoint(
            data_set.next_manifest(
                "compact",
                run_id=self.run_id,
                started=self._started,
                inputs=tuple(live.inputs.values()),
                files=(*(file for path, file in live.files.items() if path not in merged), *(file for _, file in new)),
                dead_letters=tuple(live.dead_letters.values()),
                covers=data_set.covers,
            )
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
