"""The whole job as a graph of Beam's, from the options of the command line: files in, files out.

Those of streams are in `pipelines.streams`.
"""

from __future__ import annotations

import dataclasses
import functools

import apache_beam as beam
from apache_beam.options.pipeline_options import SetupOptions

from pipelines.data_set.jobs import completion
from pipelines.runs.plan import Plan
from pipelines.runs.worker_checks import check_worker, our_versions
from transforms.annotate_files import AnnotateFiles
from transforms.input.read import PartReader, SplitInputs
from transforms.output.completion import AwaitFiles, WriteCompletion
from transforms.output.write import WriteDeadLetters, WriteScores


def build_pipeline(pipeline: beam.Pipeline, plan: Plan, progress: str | None = None) -> None:
    """Add the whole job to a pipeline: read, annotate, write scores and dead letters.

    Args:
        pipeline: an empty one.
        plan: what to do.
        progress: directory of `metrics.Progress`.
    """
    config, output, run_id = plan.config, plan.config.output, plan.run_id
    score = dataclasses.replace(config.score, progress=progress)
    plugins = tuple(pipeline.options.view_as(SetupOptions).beam_plugins or ())
    check = functools.partial(check_worker, output, run_id, our_versions(), plugins=plugins)
    inputs = SplitInputs(plan.files, config.form, config.fields, plan.strict, None if config.is_local else check)
    reader = PartReader(config.fields, plan.strict, progress)
    results, dead, counts = pipeline | "AnnotateFiles" >> AnnotateFiles(inputs, reader, score, config.limits)
    scores = results | "WriteScores" >> WriteScores(output, run_id, config.rows_per_file)
    letters = dead | "WriteDeadLetters" >> WriteDeadLetters(output, run_id)
    if config.no_wait:
        counts | "WriteCompletion" >> WriteCompletion(completion(output, run_id), (scores, letters))
    elif not config.is_local:
        (scores, letters) | "AwaitFiles" >> AwaitFiles()
