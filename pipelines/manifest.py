"""The record that a run leaves beside its files: what was read, what was written, with what. One JSON file a run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from apache_beam.io.filesystem import BeamIOError, CompressionTypes
from apache_beam.io.filesystems import FileSystems

from pipelines.options import ScoreConfig
from torchmoji_core.errors import InputError
from transforms.write import TEMPORARY, make_directory

DIRECTORY = "_manifests"
VERSION = 1

Manifest = dict[str, Any]


def identity(config: ScoreConfig) -> dict[str, Any]:
    """What makes two runs the same command: all that decides the rows, but not where they come from or run."""
    score = config.score
    return {
        "inputs": sorted(config.inputs),
        "format": config.format,
        "text_field": list(config.fields.text),
        "id_field": list(config.fields.id),
        "timestamp_field": config.fields.timestamp,
        "keep_fields": [field.name for field in config.fields.keep],
        "model": score.model,
        "precision": score.precision,
        "outputs": sorted(score.outputs),
        "top_k": score.top_k,
        "embedding_type": score.embedding_type,
    }


def read_all(output: str) -> Iterator[Manifest]:
    """The manifests below an output directory.

    Raises:
        InputError: if one cannot be read, since then nobody can say which files are results.
    """
    for path, content in _read_directory(f"{output}/{DIRECTORY}/*.json"):
        try:
            manifest = json.loads(content)
            if manifest["version"] != VERSION or not isinstance(manifest["identity"], dict):
                raise ValueError("of another version")
            yield manifest
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise InputError(f"{path}: not a manifest ({error}); give another --output, or move it away") from None


def _read_directory(pattern: str) -> Iterator[tuple[str, bytes]]:
    try:
        for metadata in FileSystems.match([pattern])[0].metadata_list:
            with FileSystems.open(metadata.path, compression_type=CompressionTypes.UNCOMPRESSED) as file:
                yield metadata.path, file.read()
    except (BeamIOError, OSError, ValueError, ImportError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"output {pattern.rpartition('/')[0]}: cannot be read ({reason})") from None


def write(output: str, manifest: Manifest) -> str:
    """Write a manifest under a temporary name, then rename it: it is there whole or not at all."""
    name = f"{manifest['run_id']}.json"
    temporary, final = f"{output}/{TEMPORARY}/{name}", f"{output}/{DIRECTORY}/{name}"
    with FileSystems.create(temporary, compression_type=CompressionTypes.UNCOMPRESSED) as file:
        file.write((json.dumps(manifest, ensure_ascii=False, indent=1) + "\n").encode())
    make_directory(f"{output}/{DIRECTORY}")
    FileSystems.rename([temporary], [final])
    return final


def files_of_run(output: str, run_id: str) -> list[tuple[str, int]]:
    """Paths relative to the output and bytes of all files that a run has put in place, sorted."""
    patterns = [f"{output}/part-{run_id}-*", f"{output}/*/part-{run_id}-*", f"{output}/*/*/part-{run_id}-*"]
    results = FileSystems.match(patterns)
    found = {metadata.path: metadata.size_in_bytes for result in results for metadata in result.metadata_list}
    prefix = f"{output}/"
    return sorted((path[path.find(prefix) + len(prefix) :], size) for path, size in found.items())


def remove_run(output: str, run_id: str) -> None:
    """Delete all files of a run, its manifest last: until then they are accounted for."""
    paths = [f"{output}/{path}" for path, _ in files_of_run(output, run_id)]
    manifest = f"{output}/{DIRECTORY}/{run_id}.json"
    if paths:
        FileSystems.delete(paths)
    if FileSystems.exists(manifest):
        FileSystems.delete([manifest])


def remove_temporary(output: str, run_id: str) -> None:
    """Delete what a run has left under temporary names."""
    directory = f"{output}/{TEMPORARY}"
    if FileSystems.exists(f"{directory}/{run_id}"):
        FileSystems.delete([f"{directory}/{run_id}"])
    remove_empty(directory)


def remove_empty(directory: str) -> None:
    """Delete a directory, with its directories, if no file is in it."""
    if FileSystems.exists(directory) and not FileSystems.match([f"{directory}/**"])[0].metadata_list:
        FileSystems.delete([directory])
