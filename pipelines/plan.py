"""Everything that can be found wrong before work starts: inputs, fields, model, output."""

from __future__ import annotations

import dataclasses
import itertools
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from pipelines import journal
from pipelines.data_set import DataSet
from pipelines.journal import identity_of_stream
from pipelines.manifest import identity
from pipelines.options import ScoreConfig
from torchmoji_core.bundle import load_bundle
from torchmoji_core.errors import InputError
from transforms.commit import journal_directory
from transforms.fields import FieldError, KeptField, find_text, infer_kind, look_up
from transforms.formats import Record, is_splittable, read_records, resolve_format
from transforms.read import InputFile, match_files
from transforms.source_file import SourceError
from transforms.storage import open_raw

SAMPLED_RECORDS = 1000
SAMPLED_FILES = 20


class ModelFacts(NamedTuple):
    """What the launcher needs to know of a model; its weights are loaded again where they are used."""

    name: str
    fingerprint: str
    classes: tuple[str, ...]
    channels: int
    """Width of an embedding."""
    maxlen: int
    arithmetic: str
    """Precision and library of its products here; on clusters, what was asked for, since each worker chooses."""


@dataclass(frozen=True)
class Plan:
    """What a run will do."""

    config: ScoreConfig
    """With the types of all kept fields filled in."""
    files: tuple[InputFile, ...]
    model: ModelFacts
    run_id: str = ""
    replaced: int = 0
    """Files in the output that this run will replace."""

    def with_new_run(self) -> Plan:
        """The same plan for a run of its own."""
        run_id = uuid.uuid4().hex[:12]
        score = dataclasses.replace(self.config.score, run_id=run_id, fingerprint=self.model.fingerprint)
        return dataclasses.replace(self, run_id=run_id, config=dataclasses.replace(self.config, score=score))

    @property
    def input_bytes(self) -> int:
        return sum(file.bytes_ for file in self.files)

    def describe(self) -> list[str]:
        """The plan in a few lines, for people."""
        config = self.config
        paths = [file.path for file in self.files]
        kinds = sorted({resolve_format(path, config.format) for path in paths})
        of_kinds = f", format {', '.join(kinds)}" if kinds else ""
        shown = [f"    {path}" for path in paths[:10]]
        shown += [f"    and {len(paths) - 10} more"] if len(paths) > 10 else []
        workers = f"{config.local_workers} process(es), {config.score.threads} thread(s) each"
        return [
            f"inputs      {len(self.files)} file(s), {self.input_bytes:,} bytes{of_kinds}",
            *shown,
            *self.describe_model(),
            *([f"replaces    {self.replaced} file(s) of earlier runs there"] if self.replaced else []),
            f"runner      {config.runner}" + (f", {workers}" if config.is_local else ""),
        ]

    def describe_model(self) -> list[str]:
        """The lines about model and output."""
        config, model = self.config, self.model
        kept = ", ".join(f"{field.name} ({field.kind})" for field in config.fields.keep)
        return [
            f"model       {model.name}, fingerprint {model.fingerprint[:12]}, {len(model.classes)} classes, "
            f"embedding of {model.channels} channels, reads {model.maxlen} tokens of a text, "
            f"precision {model.arithmetic}",
            f"output      {config.output}: {', '.join(config.score.outputs)}; "
            f"embeddings as {config.score.embedding_type}; up to {config.rows_per_file:,} rows a file",
            *([f"kept        {kept}"] if kept else []),
        ]


def make_plan(config: ScoreConfig, data_set: DataSet) -> Plan:
    """Check a configuration against the world.

    Args:
        config: the command line.
        data_set: what is in its output.

    Raises:
        InputError: for the first thing that is wrong, with its remedy.
    """
    files = tuple(match_files(config.inputs))
    if config.if_exists == "append" and data_set.identity is not None:
        config = as_before(_joining(config, data_set.identity), data_set.identity)
    config = check_fields(config, files)
    model = check_model(config)
    if config.if_exists == "append":
        _check_appending(data_set, files, model)
    replaced = _check_output(config, data_set)
    return Plan(config, files, model, replaced=replaced).with_new_run()


def check_model(config: ScoreConfig) -> ModelFacts:
    """Load a model whole, since only then is it known to be sound, and let go of its weights."""
    from torchmoji_core.inference.arithmetic import choose

    bundle = load_bundle(config.score.model)
    precision = config.score.precision
    arithmetic = str(choose(precision)) if config.is_local else precision
    return ModelFacts(
        bundle.name, bundle.fingerprint, bundle.classes, bundle.dimensions.channels, bundle.maxlen, arithmetic
    )


def _sample(files: Sequence[InputFile], format: str | None) -> Iterator[Iterator[Record]]:
    """The first whole records of the first files."""
    for path, size, _ in files[:SAMPLED_FILES]:
        kind = resolve_format(path, format)
        try:
            with open_raw(path) as file:
                end = min(size, 1 << 20) if is_splittable(path, kind) else None
                records = read_records(file, path, kind, 0, end)
                yield (record for record in itertools.islice(records, SAMPLED_RECORDS) if isinstance(record, Record))
        except (OSError, SourceError) as error:
            raise InputError(f"input {path}: cannot be read ({error})") from None


def check_fields(config: ScoreConfig, files: Sequence[InputFile]) -> ScoreConfig:
    """Make sure that the fields are there, and fill in the types of kept ones.

    Raises:
        InputError: if a file's format is unknown, no record has a text, or a kept field is in none.
    """
    mapping = config.fields
    seen: dict[str, None] = {}
    values: dict[str, list[Any]] = {field.name: [] for field in mapping.keep}
    reason = None
    found = False
    for file in files:
        resolve_format(file.path, config.format)
    for records in _sample(files, config.format):
        for record in records:
            if isinstance(record.value, str):
                if mapping.keep or mapping.timestamp:
                    raise InputError("text lines have no fields: leave out --keep_fields and --timestamp_field")
                return config
            seen.update(dict.fromkeys(record.value))
            for name in values:
                values[name].append(look_up(record.value, name))
            try:
                find_text(record.value, mapping)
                found = True
            except FieldError as error:
                reason = error
        if found:
            break
    if not found and reason is not None:
        raise InputError(f"no record has a text ({reason}); give --text_field one of: {', '.join(list(seen)[:20])}")
    if not found:
        return config  # nothing readable in the sample: the run will say what and where
    kept = []
    for field in mapping.keep:
        if all(value is None for value in values[field.name]):
            raise InputError(f"kept field {field.name!r} is in no record; fields are: {', '.join(list(seen)[:20])}")
        kind = infer_kind(values[field.name]) if field.name in config.keep_without_type else field.kind
        kept.append(KeptField(field.name, kind))
    return dataclasses.replace(
        config,
        fields=dataclasses.replace(mapping, keep=tuple(kept)),
        score=dataclasses.replace(config.score, keep=tuple(kept)),
    )


def as_before(config: ScoreConfig, earlier: Mapping[str, Any]) -> ScoreConfig:
    """With the types of kept fields that were told from the data once, from the first files.

    Args:
        config: the command line.
        earlier: identity of the data set that it goes on with.
    """
    kinds: dict[str, str] = dict(kept.rsplit(":", 1) for kept in earlier.get("keep_fields", []))
    keep = tuple(
        KeptField(field.name, kinds.get(field.name, field.kind)) if field.name in config.keep_without_type else field
        for field in config.fields.keep
    )
    return dataclasses.replace(
        config,
        fields=dataclasses.replace(config.fields, keep=keep),
        score=dataclasses.replace(config.score, keep=keep),
    )


def _joining(config: ScoreConfig, earlier: Mapping[str, Any]) -> ScoreConfig:
    """With what rows need to be found again among those that are there: their directories, and their source."""
    partition_by = tuple(earlier.get("partition_by", ()))
    source = ("source",) if "source" in earlier.get("outputs", ()) else ()
    outputs = tuple(dict.fromkeys((*config.score.outputs, *source)))
    return dataclasses.replace(
        config,
        fields=dataclasses.replace(config.fields, partition_by=partition_by),
        score=dataclasses.replace(config.score, outputs=outputs, partitioned=bool(partition_by)),
    )


def joined_identity(config: ScoreConfig, earlier: Mapping[str, Any] | None) -> dict[str, Any]:
    """The identity of a data set to which rows were added: its own, so that what began it goes on with it.

    Only its inputs are more, and it tells in what the rows that were added may look otherwise. So a command that
    replaces its own results does not take these for them.
    """
    ours = identity(config)
    if earlier is None:
        return ours
    differing = {*earlier.get("appended", ()), *differences(ours, {**earlier})} - {"inputs", "appended"}
    inputs = sorted({*earlier.get("inputs", ()), *ours["inputs"]})
    return {**earlier, "inputs": inputs} | ({"appended": sorted(differing)} if differing else {})


def _check_appending(data_set: DataSet, files: Sequence[InputFile], model: ModelFacts) -> None:
    """Make sure that rows can be added to what is there.

    Raises:
        InputError: if they are another model's, or would be counted twice.
    """
    live = data_set.live
    if live.fingerprint not in (None, model.fingerprint):
        raise InputError(
            f"output {data_set.output} was scored by model {str(live.fingerprint)[:12]}, and this one is "
            f"{model.fingerprint[:12]}; rows of two models do not mix: give another --output"
        )
    for file in files:
        known = live.inputs.get(file.path)
        if known is not None and (known.rows or known.dead_letters):
            raise InputError(
                f"input {file.path} is in output {data_set.output} already; leave it out, or score what has changed "
                "with pipelines.annotate, or give another --output"
            )


def check_no_stream(data_set: DataSet) -> None:
    """Make sure that no stream is writing there, whose rows are of another kind.

    Raises:
        InputError: if one may be.
    """
    for run_id in sorted(journal.read(data_set.output).going_on):
        raise InputError(
            f"output {data_set.output}: a stream may be writing there; stop it first, give another --output, or if it "
            f"has ended for certain, delete {journal_directory(data_set.output, run_id)}"
        )


def _check_output(config: ScoreConfig, data_set: DataSet) -> int:
    """Settle what happens to results that are there.

    Returns:
        How many files are to be replaced.
    """
    if config.if_exists == "append":
        return 0
    check_no_stream(data_set)
    if not data_set.manifests:
        return 0
    if config.if_exists == "fail":
        raise InputError(f"output {config.output} holds results already; give another --output")
    if config.if_exists == "rerun" and (changed := differences(identity(config), data_set.identity or {})):
        raise InputError(
            f"output {config.output} holds results of another command (other {', '.join(changed)}); "
            "give another --output, or --if_exists replace or append"
        )
    return len(data_set.live.all_files)


def check_stream(
    config: ScoreConfig, data_set: DataSet, model: ModelFacts, options: Mapping[str, Any], models_may_differ: bool
) -> None:
    """Make sure, before a stream starts, that it continues what is in its output, or that nothing is there.

    Args:
        config: what all scoring commands have.
        data_set: what is in its output.
        model: what it begins to score with.
        options: as of `journal.begin`.
        models_may_differ: whether models are to be exchanged as it runs, so that the output may hold rows of several.

    Raises:
        InputError: if the output holds, or another stream is writing there, what other options make.
    """
    ours = identity_of_stream(config, options)
    # Which subscription a row is from does not make it another kind of row; of the model, its fingerprint counts.
    free = ("inputs", "model", "appended")
    if changed := [name for name in differences(ours, data_set.identity or ours) if name not in free]:
        raise InputError(
            f"output {config.output} holds results of another command (other {', '.join(changed)}); "
            "give the same options as before, or another --output"
        )
    found = journal.read(data_set.output)
    for run_id in sorted(found.going_on | {entry.run_id for entry in found.entries}):
        stream = found.streams[run_id]
        if changed := [name for name in differences(ours, stream.identity) if name not in free]:
            raise InputError(
                f"output {config.output}: a stream with other {', '.join(changed)}, started {stream.started}, may be "
                f"writing there; give the same options or another --output, or if it has ended for certain and all its "
                f"files are committed, delete {journal_directory(data_set.output, run_id)}"
            )
    scored_by = data_set.live.fingerprint
    if not models_may_differ and scored_by not in (None, model.fingerprint):
        raise InputError(
            f"output {config.output} was scored by model {str(scored_by)[:12]}, and this one is "
            f"{model.fingerprint[:12]}; give another --output, or --model_watch to have rows of several models in one"
        )


def differences(ours: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
    """Names of the options in which two identities differ."""
    return sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))
