"""A store that goes down at every third request of a command: one line, and the next run puts all right."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.object_store_server import ObjectStoreServer
from tests.pipelines.conftest import run_main
from tests.pipelines.test_object_store import BUCKET, Run, go_down

pytestmark = pytest.mark.faults

__all__ = ["run_main"]  # a fixture


@pytest.mark.parametrize("command", ["score", "annotate", "compact", "verify"])
def test_a_store_that_goes_down_anywhere_is_said_in_one_line(
    tiny_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_main: Run, command: str
) -> None:
    with ObjectStoreServer() as server:
        server.client().create_bucket(Bucket=BUCKET)
        server.use(monkeypatch)
        monkeypatch.setenv("TORCHMOJI_RETRY_SECONDS", "0.1")
        go_down(server, run_main, tiny_model, command, tmp_path, lambda total: range(2, total, 3))
