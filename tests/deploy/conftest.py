"""A fake of Google's Dataflow, and commands that launch there."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.fake_dataflow import FakeDataflow, bucket, running
from tests.pipelines.conftest import (  # noqa: F401 - fixtures
    Finished,
    bundle,
    model,
    run_annotate,
    run_main,
    run_verify,
)


@pytest.fixture(scope="module")
def storage_and_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeDataflow]:
    pytest.importorskip("google.cloud.dataflow", reason="needs the extra gcp")
    pytest.importorskip("gcp_storage_emulator", reason="needs gcp-storage-emulator")
    with running() as service, bucket(tmp_path_factory.mktemp("account"), service):
        yield service


@pytest.fixture
def dataflow(storage_and_service: FakeDataflow) -> FakeDataflow:
    """The service, with no jobs."""
    service = storage_and_service
    service.jobs.clear()
    service.asked.clear()
    service.state = "JOB_STATE_RUNNING"
    return service


@pytest.fixture
def launch(dataflow: FakeDataflow, run_main: Callable[..., Finished], model: str) -> Callable[..., Finished]:  # noqa: F811
    """A command with Dataflow as its runner."""

    def run(main: Callable[[list[str]], int], *arguments: object) -> Finished:
        return run_main(main, "--model", model, "--output", "out", *dataflow.options, *arguments)

    return run
