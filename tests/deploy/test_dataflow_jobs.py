"""What a launcher hands to Dataflow, and what it does with what the service says; with a fake of the service.

The fake runs nothing. That the graph it was given does its work is shown by Beam's in-process runner.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from apache_beam.io.filesystems import FileSystems
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.portability import python_urns
from apache_beam.portability.api import beam_runner_api_pb2
from apache_beam.runners.portability.fn_api_runner import FnApiRunner

from pipelines import annotate, score
from tests.fake_dataflow import FakeDataflow
from tests.pipelines.conftest import Finished, corpus, read_live

Command = Callable[..., Finished]
STREAM = ("--streaming", "--input", "pubsub://projects/project-one/subscriptions/tweets", "--window", "5m")


def graph_of(job: dict[str, Any]) -> beam_runner_api_pb2.Pipeline:
    """What workers get to read."""
    url = job["environment"]["sdkPipelineOptions"]["options"]["pipelineUrl"]
    with FileSystems.open(url) as file:
        return beam_runner_api_pb2.Pipeline.FromString(file.read())


def run_here(graph: beam_runner_api_pb2.Pipeline) -> None:
    """Do the work of a job in this process, in the place of its image's containers."""
    for environment in graph.components.environments.values():
        environment.urn, environment.payload = python_urns.EMBEDDED_PYTHON, b""
    FnApiRunner().run_via_runner_api(graph, PipelineOptions([])).wait_until_finish()


def test_a_batch_job_is_submitted_and_taken_in(
    launch: Command, dataflow: FakeDataflow, run_annotate: Command, run_verify: Command, tmp_path: Path
) -> None:
    corpus(tmp_path / "in", 2, 20)
    finished = launch(annotate.main, "--input", "in/*", "--no_wait", "--job_name", "tweets", "--labels", "team=a")
    assert finished.status == 0, finished.err
    ((name, job),) = dataflow.jobs.items()
    assert f"submitted to DataflowRunner as job {name}; when it is done, pipelines.annotate" in finished.out
    assert not [asked for asked in dataflow.asked if "metrics" in asked]
    assert (job["name"], job["labels"], job["type"]) == ("tweets", {"team": "a"}, 1)  # JOB_TYPE_BATCH
    assert job["environment"]["version"]["job_type"] == "FNAPI_BATCH"
    (pool,) = job["environment"]["workerPools"]
    assert [image["containerImage"] for image in pool["sdkHarnessContainerImages"]] == [
        "registry.example/torchmoji-beam:1"
    ]
    graph = graph_of(job)
    (environment,) = graph.components.environments.values()
    docker = beam_runner_api_pb2.DockerPayload.FromString(environment.payload)
    assert docker.container_image == "registry.example/torchmoji-beam:1"
    staged = [
        beam_runner_api_pb2.ArtifactStagingToRolePayload.FromString(each.role_payload).staged_name
        for each in environment.dependencies
    ]
    assert staged == ["submission_environment_dependencies.txt"]  # a list for people; all that runs is in the image
    assert not {"beam:requirement:pardo:stateful:v1", "beam:requirement:pardo:stable_input:v1"} & {*graph.requirements}
    assert run_annotate("--progress", "off").status == 4

    run_here(graph)
    finished = run_annotate()
    assert finished.status == 0, finished.err
    assert "40 rows, 0 dead letters" in finished.out and "nothing is new" in finished.out
    assert len(read_live(tmp_path / "out")) == 40
    assert run_verify().status == 0


@pytest.mark.dataflow
def test_a_job_that_is_done_and_has_counted_nothing_is_no_success(
    launch: Command, dataflow: FakeDataflow, tmp_path: Path
) -> None:
    corpus(tmp_path / "in", 2, 20)
    dataflow.state = "JOB_STATE_DONE"
    finished = launch(score.main, "--input", "in/*")
    assert finished.status == 1
    assert finished.err.splitlines()[-1] == (
        "failed: the runner says that it is done, and has counted 0 of 2 input(s); what was written was removed"
    )
    assert not list((tmp_path / "out").rglob("*.json"))


def test_a_dry_run_builds_the_graph_and_sends_nothing(launch: Command, dataflow: FakeDataflow, tmp_path: Path) -> None:
    corpus(tmp_path / "in", 1, 20)
    for finished in (launch(score.main, *STREAM, "--dry_run"), launch(annotate.main, "--input", "in/*", "--dry_run")):
        assert finished.status == 0, finished.err
        assert "dry run: " in finished.out
    assert not dataflow.jobs and not dataflow.asked
    # Beam checks more where the address is Google's own, which is not called here.
    wrong = ("--dataflow_endpoint=https://dataflow.googleapis.com", "--job_name=No_Name")
    refused = launch(annotate.main, "--input", "in/*", "--dry_run", *wrong)
    assert refused.status == 2
    assert "the runner's options: Invalid job_name (No_Name)" in refused.err and refused.err.count("\n") == 1
    assert not dataflow.asked


@pytest.mark.dataflow
def test_a_template_is_written_and_nobody_asks_after_a_job(
    launch: Command, dataflow: FakeDataflow, run_annotate: Command, tmp_path: Path
) -> None:
    corpus(tmp_path / "in", 1, 20)
    template = tmp_path / "template.json"
    arguments = ("--input", "in/*", f"--template_location={template}")
    finished = launch(annotate.main, *arguments)
    assert finished.status == 2
    assert finished.err == (
        "error: --template_location: the job is run later, so nobody can wait for it here; add --no_wait\n"
    )
    finished = launch(annotate.main, *arguments, "--no_wait")
    assert finished.status == 0, finished.err
    assert f"template written to {template}, and nothing run yet; when it is done" in finished.out
    assert not dataflow.jobs
    run_here(graph_of(json.loads(template.read_text())))
    assert "20 rows" in run_annotate().out

    stream = launch(score.main, *STREAM, "--output", "stream", f"--template_location={template}")
    assert stream.status == 0, stream.err
    assert f"template written to {template}" in stream.out and not dataflow.jobs


@pytest.mark.dataflow
def test_a_stream_is_submitted_updated_and_drained(launch: Command, dataflow: FakeDataflow) -> None:
    from apache_beam.runners.dataflow.internal.apiclient import DataflowApplicationClient
    from google.cloud.dataflow import JobState

    named = (*STREAM, "--job_name", "tweets", "--labels", "team=a")
    refused = launch(score.main, *named, "--update")
    assert refused.status == 2
    assert refused.err == ("error: --update: no job tweets runs in us-central1 of project-one; give --job_name\n")
    finished = launch(score.main, *named)
    assert finished.status == 0, finished.err
    ((name, job),) = dataflow.jobs.items()
    assert f"submitted to DataflowRunner as job {name}; its files become results whenever" in finished.out
    assert (job["name"], job["labels"], job["type"]) == ("tweets", {"team": "a"}, 2)  # JOB_TYPE_STREAMING
    graph = graph_of(job)
    assert "beam:requirement:pardo:stateful:v1" in graph.requirements
    urns = {transform.spec.urn for transform in graph.components.transforms.values()}
    assert "beam:transform:pubsub_read:v1" in urns

    mapping = {"Old": "New"}
    finished = launch(score.main, *named, "--update", "--transform_name_mapping", json.dumps(mapping))
    assert finished.status == 0, finished.err
    updated = dataflow.jobs["2026-01-31_00_00_00-2"]
    assert updated["replaceJobId"] == name and updated["transformNameMapping"] == mapping
    names = {transform.unique_name for transform in graph.components.transforms.values()}
    assert {transform.unique_name for transform in graph_of(updated).components.transforms.values()} == names

    client = DataflowApplicationClient(PipelineOptions(dataflow.options))
    assert client.modify_job_state(name, "JOB_STATE_DRAINING")
    assert client.get_job(name).current_state == JobState.JOB_STATE_DRAINING


@pytest.mark.dataflow
def test_a_bundle_of_ones_own_is_checked_before_a_job_is_sent(launch: Command, dataflow: FakeDataflow) -> None:
    finished = launch(score.main, *STREAM, "--model", "no-such-bundle")
    assert finished.status == 2
    assert "no-such-bundle" in finished.err and not dataflow.jobs
