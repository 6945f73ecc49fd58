"""A job whose launcher and worker are on two hosts, which see each other and an object store, and nothing else.

The hosts are network namespaces of this machine, so it takes root: `make test-two-hosts`.

    10.77.0.1  launcher, store     10.77.0.2  Prism, and a pool of workers that listens at its localhost alone
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import boto3
import pytest

from tests.pipelines.conftest import Finished, corpus, environment, read_scores, write_lines
from tests.pipelines.runs.test_portable import LIMIT, PRISM, ended, needs_prism, wait_for

pytestmark = [
    pytest.mark.two_hosts,
    needs_prism,
    pytest.mark.skipif(
        os.geteuid() != 0 or shutil.which("ip") is None, reason="makes network namespaces: root, and ip"
    ),
]
LAUNCHER, WORKER = "10.77.0.1", "10.77.0.2"
STORE_PORT, JOB_PORT = 5000, 8073
STORE = {
    "AWS_ENDPOINT_URL": f"http://{LAUNCHER}:{STORE_PORT}",
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}
_CLONE_NEWNET = 0x40000000
"""Of setns(2)."""


class Host:
    """A network namespace, which has one address besides localhost."""

    def __init__(self, name: str) -> None:
        self.name = name

    def start(self, *command: str, **how: Any) -> subprocess.Popen[Any]:
        """Start a program there."""
        variables = {name: value for name, value in environment().items() if not name.lower().endswith("_proxy")}
        return subprocess.Popen(["ip", "netns", "exec", self.name, *command], env=variables | STORE, **how)

    def visited(self) -> ThreadPoolExecutor:
        """A thread of this process whose sockets are there."""

        def enter() -> None:
            with Path("/run/netns", self.name).open("rb") as namespace:
                assert ctypes.CDLL(None).setns(namespace.fileno(), _CLONE_NEWNET) == 0

        return ThreadPoolExecutor(1, initializer=enter)


@pytest.fixture
def hosts() -> Iterator[tuple[Host, Host]]:
    """Those of the launcher and of the worker, joined by a cable."""
    names = [f"tm-{role}-{os.getpid()}" for role in ("launcher", "worker")]
    with contextlib.ExitStack() as stack:
        for name in names:
            _ip("netns", "add", name)
            stack.callback(_ip, "netns", "del", name)
        _ip("link", "add", "tm0", "netns", names[0], "type", "veth", "peer", "name", "tm0", "netns", names[1])
        for name, address in zip(names, (LAUNCHER, WORKER), strict=True):
            _ip("-n", name, "address", "add", f"{address}/30", "dev", "tm0")
            for device in ("lo", "tm0"):
                _ip("-n", name, "link", "set", device, "up")
        yield Host(names[0]), Host(names[1])


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


@contextlib.contextmanager
def store(host: Host) -> Iterator[Callable[..., Any]]:
    """A server of S3's protocol at a host's address; what is given calls a method of its client by name."""
    command = (sys.executable, "-m", "moto.server", "-H", LAUNCHER, "-p", str(STORE_PORT))
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with host.visited() as thread, ended(host.start(*command, **quiet)) as process:
        client = boto3.client("s3", endpoint_url=STORE["AWS_ENDPOINT_URL"], aws_access_key_id="testing",
                              aws_secret_access_key="testing", region_name="us-east-1")  # fmt: skip

        def call(name: str, **arguments: Any) -> Any:
            return thread.submit(getattr(client, name), **arguments).result()

        def answers() -> bool:
            with contextlib.suppress(Exception):
                call("list_buckets")
                return True
            return False

        wait_for(answers, process)
        yield call


def test_the_rows_are_those_of_one_host(
    hosts: tuple[Host, Host], run_score: Callable[..., Finished], model: str, tmp_path: Path
) -> None:
    launcher, worker = hosts
    corpus(tmp_path / "in", 3, 200)
    write_lines(tmp_path / "in" / "broken.jsonl", ["not json", '{"id": "no text"}'])
    assert run_score("--input", "in/*", "--output", "out").status == 0
    with contextlib.ExitStack() as stack:
        call = stack.enter_context(store(launcher))
        call("create_bucket", Bucket="data")
        for directory, prefix in ((tmp_path / "in", "in"), (Path(model), "tiny")):
            for file in directory.iterdir():
                call("put_object", Bucket="data", Key=f"{prefix}/{file.name}", Body=file.read_bytes())
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        stack.enter_context(ended(worker.start(str(PRISM), f"--job_port={JOB_PORT}", "--serve_http=false", **quiet)))
        pool = stack.enter_context(
            ended(worker.start(sys.executable, "-m", "pipelines.worker", "--port=0", stdout=subprocess.PIPE))
        )
        assert pool.stdout is not None
        address = pool.stdout.readline().decode().split()[4].rstrip(";")
        command = launcher.start(
            sys.executable, "-m", "pipelines.score", "--model", "s3://data/tiny", "--input", "s3://data/in/*",
            "--output", "s3://data/out", "--runner=PrismRunner", f"--job_endpoint={WORKER}:{JOB_PORT}",
            f"--artifact_endpoint={WORKER}:{JOB_PORT}", "--environment_type=EXTERNAL",
            f"--environment_config={address}", stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        with ended(command):
            said = command.communicate(timeout=LIMIT)[0].decode()
        assert command.returncode == 0, said
        for item in call("list_objects_v2", Bucket="data", Prefix="out/")["Contents"]:
            path = tmp_path / "fetched" / item["Key"]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(call("get_object", Bucket="data", Key=item["Key"])["Body"].read())
        pool.terminate()
        pool.wait(LIMIT)
    rows = read_scores(tmp_path / "fetched" / "out")
    assert rows.num_rows == 600
    assert rows.equals(read_scores(tmp_path / "out"))
