"""Everything that can be found wrong before work starts: inputs, fields, model, output."""

from __future__ import annotations

import dataclasses
import itertools
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from apache_beam.io.filesystem import BeamIOError
from apache_beam.io.filesystems import FileSystems

from pipelines import manifest
from pipelines.options import ScoreConfig
from torchmoji_core.bundle import load_bundle
from torchmoji_core.errors import InputError
from transforms.fields import FieldError, KeptField, find_text, infer_kind, look_up
from transforms.formats import Record, is_splittable, read_records, resolve_format
from transforms.read import match_files, open_raw
from transforms.write import TEMPORARY

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
    run_id: str
    files: tuple[tuple[str, int, str], ...]
    """Path, bytes and format of each input."""
    model: ModelFacts
    replaced: tuple[manifest.Manifest, ...]
    """Earlier results in the output that this run will replace."""

    @property
    def input_bytes(self) -> int:
        return sum(size for _, size, _ in self.files)

    def describe(self) -> str:
        """The plan in a few lines, for people."""
        config, model = self.config, self.model
        kinds = ", ".join(sorted({kind for _, _, kind in self.files}))
        paths = [path for path, _, _ in self.files]
        shown = [f"    {path}" for path in paths[:10]]
        shown += [f"    and {len(paths) - 10} more"] if len(paths) > 10 else []
        kept = ", ".join(f"{field.name} ({field.kind})" for field in config.fields.keep)
        workers = f"{config.local_workers} process(es), {config.score.threads} thread(s) each"
        lines = [
            f"inputs      {len(self.files)} file(s), {self.input_bytes:,} bytes, format {kinds}",
            *shown,
            f"model       {model.name}, fingerprint {model.fingerprint[:12]}, {len(model.classes)} classes, "
            f"embedding of {model.channels} channels, reads {model.maxlen} tokens of a text, "
            f"precision {model.arithmetic}",
            f"output      {config.output}: {', '.join(config.score.outputs)}; "
            f"embeddings as {config.score.embedding_type}; up to {config.rows_per_file:,} rows a file",
            *([f"kept        {kept}"] if kept else []),
            *([f"replaces    the results of {len(self.replaced)} earlier run(s) there"] if self.replaced else []),
            f"runner      {config.runner}" + (f", {workers}" if config.is_local else ""),
        ]
        return "\n".join(lines)


def make_plan(config: ScoreConfig) -> Plan:
    """Check a configuration against the world.

    Raises:
        InputError: for the first thing that is wrong, with its remedy.
    """
    files = tuple(
        (metadata.path, metadata.size_in_bytes, resolve_format(metadata.path, config.format))
        for metadata in match_files(list(config.inputs))
    )
    config = _check_fields(config, files)
    model = _check_model(config)
    replaced = _check_output(config)
    run_id = uuid.uuid4().hex[:12]
    config = dataclasses.replace(config, score=dataclasses.replace(config.score, run_id=run_id))
    return Plan(config, run_id, files, model, replaced)


def _check_model(config: ScoreConfig) -> ModelFacts:
    """Load a model whole, since only then is it known to be sound, and let go of its weights."""
    from torchmoji_core.inference.arithmetic import choose

    bundle = load_bundle(config.score.model)
    precision = config.score.precision
    arithmetic = str(choose(precision)) if config.is_local else precision
    return ModelFacts(
        bundle.name, bundle.fingerprint, bundle.classes, bundle.dimensions.channels, bundle.maxlen, arithmetic
    )


def _sample(files: tuple[tuple[str, int, str], ...]) -> Iterator[Iterator[Record]]:
    """The first whole records of the first files."""
    for path, size, kind in files[:SAMPLED_FILES]:
        try:
            with open_raw(path) as file:
                end = min(size, 1 << 20) if is_splittable(path, kind) else None
                records = read_records(file, path, kind, 0, end)
                yield (record for record in itertools.islice(records, SAMPLED_RECORDS) if isinstance(record, Record))
        except (BeamIOError, OSError) as error:
            raise InputError(f"input {path}: cannot be read ({error})") from None


def _check_fields(config: ScoreConfig, files: tuple[tuple[str, int, str], ...]) -> ScoreConfig:
    """Make sure that the fields are there, and fill in the types of kept ones."""
    mapping = config.fields
    seen: dict[str, None] = {}
    values: dict[str, list[Any]] = {field.name: [] for field in mapping.keep}
    reason = None
    found = False
    for records in _sample(files):
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


def _probe(output: str) -> None:
    """Write a file where results will be written, and leave no trace of it."""
    existed = FileSystems.exists(output)
    name = f"probe-{uuid.uuid4().hex}"
    with FileSystems.create(f"{output}/{TEMPORARY}/{name}") as file:
        file.write(b"")
    FileSystems.delete([f"{output}/{TEMPORARY}/{name}"])
    manifest.remove_empty(f"{output}/{TEMPORARY}")
    if not existed:
        manifest.remove_empty(output)


def _check_output(config: ScoreConfig) -> tuple[manifest.Manifest, ...]:
    """Make sure that the output can be written, and settle what happens to results that are there.

    Returns:
        The manifests of results to be replaced.
    """
    earlier = tuple(manifest.read_all(config.output))
    replaced: tuple[manifest.Manifest, ...] = ()
    if earlier and config.if_exists != "append":
        if config.if_exists == "fail":
            raise InputError(f"output {config.output} holds results already; give another --output")
        identity = manifest.identity(config)
        others = [run for run in earlier if run["identity"] != identity]
        if others and config.if_exists == "rerun":
            changed = sorted(name for name in identity if others[0]["identity"].get(name) != identity[name])
            raise InputError(
                f"output {config.output} holds results of another command (other {', '.join(changed)}); "
                "give another --output, or --if_exists replace or append"
            )
        replaced = earlier
    try:
        _probe(config.output)
    except (BeamIOError, OSError, ValueError, ImportError) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise InputError(f"output {config.output} cannot be written ({reason}); check path and permissions") from None
    return replaced
