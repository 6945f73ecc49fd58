"""Everything that can be found wrong before work starts: inputs, fields, model, output."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from pipelines.cli.options import ScoreConfig
from pipelines.cli.streaming_options import StreamOptions
from pipelines.data_set import pending
from pipelines.data_set.manifest import new_run_id
from pipelines.data_set.snapshot import DataSet
from pipelines.runs.identity import check_goes_on, differences, identity, listed, other_options
from pipelines.runs.inputs import check_readable, list_inputs, named, spool_pipes
from pipelines.runs.inspection import Group, check_fields, describe
from torchmoji_core.bundle import load_bundle, load_config, load_tokenizer
from torchmoji_core.errors import InputError
from transforms.input.forms import named_format
from transforms.input.inputs import InputFile
from transforms.output.commit import journal_directory


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
    """The inputs as they were listed, once: what is read, and what the manifest names."""
    model: ModelFacts
    run_id: str = ""
    replaced: int = 0
    """Files in the output that this run will replace."""
    passed_over: tuple[str, ...] = ()
    """What directories and globs have beside inputs."""
    unreadable: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Those of the files that could not be opened, with the reason; each will be a dead letter."""
    strict: bool = False
    """Whether an input that cannot be opened fails the run, instead of being a dead letter."""
    groups: tuple[Group, ...] = ()
    """What the inputs are, by the first of them."""

    def with_new_run(self, files: Sequence[InputFile]) -> Plan:
        """The plan for a run of its own over some of the files."""
        run_id = new_run_id()
        score = dataclasses.replace(self.config.score, run_id=run_id, fingerprint=self.model.fingerprint)
        config = dataclasses.replace(self.config, score=score)
        return dataclasses.replace(self, run_id=run_id, config=config, files=tuple(files))

    @property
    def input_bytes(self) -> int:
        return sum(file.bytes_ for file in self.files)

    def describe(self) -> list[str]:
        """The plan in a few lines, for people."""
        config = self.config
        paths = [file.path for file in self.files]
        kinds = sorted({named_format(path, config.form.format) for path in paths})
        of_kinds = f", format {', '.join(kinds)}" if kinds else ""
        shown = [f"    {path}" for path in paths[:10]]
        shown += [f"    and {len(paths) - 10} more"] if len(paths) > 10 else []
        workers = f"{config.local_workers} process(es), {config.score.threads} thread(s) each"
        return [
            f"inputs      {len(self.files)} file(s), {self.input_bytes:,} bytes{of_kinds}",
            *shown,
            *(line for group in self.groups for line in group.describe(config.dry_run)),
            *self._describe_other_files(),
            *self.describe_model(),
            *([f"replaces    {self.replaced} file(s) of earlier runs there"] if self.replaced else []),
            f"runner      {config.runner}" + (f", {workers}" if config.is_local else ""),
        ]

    def _describe_other_files(self) -> list[str]:
        lines = []
        if self.unreadable:
            first, reason = next(iter(self.unreadable.items()))
            more = f" and {len(self.unreadable) - 1} more" if len(self.unreadable) > 1 else ""
            lines.append(f"unreadable  {len(self.unreadable)} file(s), a dead letter each: {first} ({reason}){more}")
        if self.passed_over:
            count = f"{len(self.passed_over):,} whose names tell no format or begin with . or _"
            lines.append(f"passed over {count}, or links to directories: {named(self.passed_over)}")
        return lines

    def describe_model(self) -> list[str]:
        """The lines about model and output."""
        config, model = self.config, self.model
        kept = ", ".join(f"{field.option} ({field.kind})" for field in config.fields.keep)
        return [
            f"model       {model.name}, fingerprint {model.fingerprint[:12]}, {len(model.classes)} classes, "
            f"embedding of {model.channels} channels, reads {model.maxlen} tokens of a text, "
            f"precision {model.arithmetic}",
            f"output      {config.output}: {', '.join(config.score.outputs)}; "
            f"embeddings as {config.score.embedding_type}; up to {config.rows_per_file:,} rows a file",
            *([f"kept        {kept}"] if kept else []),
        ]


def make_plan(config: ScoreConfig, data_set: DataSet, scratch: str) -> Plan:
    """Check a configuration against the world.

    Args:
        config: the command line.
        data_set: what is in its output.
        scratch: a private local directory, for what pipes give.

    Raises:
        InputError: for the first thing that is wrong, with its remedy.
    """
    inputs = list_inputs(config.inputs, config.form.format, output=config.output)
    spool_pipes(inputs, scratch)
    files = tuple(inputs.files[path] for path in sorted(inputs.files))
    unreadable = check_readable(inputs)
    if config.if_exists == "append" and data_set.identity is not None:
        config = as_before(_joining(config, data_set.identity), data_set.identity)
    fields, seen = check_fields(config.form, config.fields, files, config.keep_without_type)
    config = config.with_fields(fields)
    model = check_model(config)
    replaced = check_output(config, data_set, files, model)
    passed_over, groups = tuple(inputs.passed_over), describe(config, files, seen)
    return Plan(config, files, model, "", replaced, passed_over, unreadable, groups=groups).with_new_run(files)


def check_model(config: ScoreConfig) -> ModelFacts:
    """Look at a model. In a local run load it, since only then it is known to be sound, and let go of its weights.

    On a cluster the launcher may be a small machine, and each worker loads the model anyway.
    """
    source, precision = config.score.model, config.score.precision
    if not config.is_local:
        load_tokenizer(source)
        found, fingerprint = load_config(source)
        channels = found["dimensions"].channels
        return ModelFacts(found["name"], fingerprint, tuple(found["classes"]), channels, found["maxlen"], precision)

    from torchmoji_core.inference.kernels import choose

    bundle = load_bundle(source)
    return ModelFacts(
        bundle.name,
        bundle.fingerprint,
        bundle.classes,
        bundle.dimensions.channels,
        bundle.maxlen,
        str(choose(precision)),
    )


def as_before(config: ScoreConfig, earlier: Mapping[str, Any]) -> ScoreConfig:
    """With the types of kept fields that were found in the first files once, when the data set was begun.

    Args:
        config: the command line.
        earlier: identity of the data set that it goes on with.
    """
    kinds = _kept_before(earlier)
    keep = tuple(
        dataclasses.replace(field, kind=kinds.get(field.option, field.kind))
        if field.name in config.keep_without_type
        else field
        for field in config.fields.keep
    )
    return config.with_fields(dataclasses.replace(config.fields, keep=keep))


def _kept_before(earlier: Mapping[str, Any]) -> dict[str, str]:
    """The kept fields of a data set, as options, with their types."""
    return dict(kept.rsplit(":", 1) for kept in earlier.get("keep_fields", []))


def _joining(config: ScoreConfig, earlier: Mapping[str, Any]) -> ScoreConfig:
    """With the options that let rows be found again in the data set: their directories, and their source."""
    partition_by = tuple(earlier.get("partition_by", ()))
    source = ("source",) if "source" in earlier.get("outputs", ()) else ()
    outputs = (*config.score.outputs, *source)
    return dataclasses.replace(
        config,
        fields=dataclasses.replace(config.fields, partition_by=partition_by),
        score=dataclasses.replace(config.score, outputs=outputs, partitioned=bool(partition_by)),
    )


def _check_appending(config: ScoreConfig, data_set: DataSet, files: Sequence[InputFile], model: ModelFacts) -> None:
    """Make sure that rows can be added to what is there.

    Raises:
        InputError: if they are another model's, would be counted twice, or have a column of another type.
    """
    earlier = data_set.identity or {}
    kinds = _kept_before(earlier)
    types = {f"--keep_fields {field.option}": (field.kind, kinds.get(field.option)) for field in config.fields.keep}
    types["--embedding_type"] = (str(config.score.embedding_type), earlier.get("embedding_type"))
    for option, (ours, theirs) in types.items():
        if theirs not in (None, ours):
            raise InputError(
                f"output {data_set.output} has {option} as {theirs}, and this command as {ours}; a column has one "
                f"type: give {theirs}, or another --output"
            )
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
    for run_id in sorted(pending.read(data_set.output).going_on):
        raise InputError(
            f"output {data_set.output}: a stream may be writing there; stop it first, give another --output, or if it "
            f"has ended for certain, delete {journal_directory(data_set.output, run_id)}"
        )


def check_output(config: ScoreConfig, data_set: DataSet, files: Sequence[InputFile], model: ModelFacts) -> int:
    """Settle what happens to results that are there.

    Args:
        config: the command line.
        data_set: what is in its output.
        files: the inputs.
        model: what scores them.

    Returns:
        How many files are to be replaced.

    Raises:
        InputError: if the command does not go with what is there.
    """
    if config.if_exists == "append":
        _check_appending(config, data_set, files, model)
        return 0
    check_no_stream(data_set)
    if not data_set.manifests:
        return 0
    if config.if_exists == "fail":
        raise InputError(f"output {config.output} holds results already; give another --output")
    if config.if_exists == "rerun" and (changed := differences(identity(config), data_set.identity or {})):
        raise InputError(
            f"output {config.output} holds results of another command (other {listed(changed, data_set.identity)}); "
            "give another --output, or --if_exists replace or append"
        )
    return len(data_set.live.all_files)


def check_stream(config: ScoreConfig, stream: StreamOptions, data_set: DataSet, model: ModelFacts) -> None:
    """Make sure, before a stream starts, that it continues what is in its output, or that nothing is there.

    Args:
        config: the command line.
        stream: its options for endless input. Where they let models change, the output may hold rows of several.
        data_set: what is in its output.
        model: what it begins to score with.

    Raises:
        InputError: if the rows that are there, or that another stream is writing there, are of other options.
    """
    check_goes_on(config, data_set.identity)
    found = pending.read(data_set.output)
    for run_id in sorted(found.going_on | {record.run_id for record in found.records}):
        other = found.streams[run_id]
        if changed := other_options(config, other.identity):
            raise InputError(
                f"output {config.output}: a stream with other {listed(changed, other.identity)}, started "
                f"{other.started}, may be writing there; give the same options or another --output, or if it has "
                "ended for certain and all its files are committed, delete "
                f"{journal_directory(data_set.output, run_id)}"
            )
    scored_by = data_set.live.fingerprint
    if stream.model_watch is None and scored_by not in (None, model.fingerprint):
        raise InputError(
            f"output {config.output} was scored by model {str(scored_by)[:12]}, and this one is "
            f"{model.fingerprint[:12]}; give another --output, or --model_watch to have rows of several models in one"
        )
