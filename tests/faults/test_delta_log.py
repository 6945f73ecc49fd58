"""Publishers of the Delta log that are killed, and filesystems that cannot hold one."""

from __future__ import annotations

import json
import platform
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from deltalake import DeltaTable

from tests.faults.conftest import Annotator
from tests.pipelines.conftest import environment
from tests.pipelines.data_set.test_delta_log import ids, ids_of, publish, put

pytestmark = pytest.mark.faults

PUBLISHER = """
import itertools, json, sys
from pipelines.data_set.delta_log import DeltaLog
from pipelines.data_set.manifest import DataFile
files = [DataFile(*entry) for entry in json.loads(sys.argv[2])]
print("begun", flush=True)
for number in itertools.count(1):  # one file more, one less, all others, none
    chosen = [files[:2], files[:3], files[1:3], files[3:], []][number % 5]
    DeltaLog(sys.argv[1]).publish({file.path: file for file in chosen}, number)
"""
WITHOUT_HARD_LINKS = """
import ctypes, runpy, struct, sys
# A filter of system calls: link and linkat of x86-64 are not permitted, all others are.
program = [(0x20, 0, 0, 0), (0x15, 2, 0, 86), (0x15, 1, 0, 265), (0x06, 0, 0, 0x7FFF0000), (0x06, 0, 0, 0x00050001)]
code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in program))
filter = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(program), ctypes.addressof(code)))
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0 and libc.prctl(22, 2, filter, 0, 0) == 0, ctypes.get_errno()
sys.argv[0] = "annotate"
runpy.run_module("pipelines.annotate", run_name="__main__")
"""


def test_a_publisher_that_is_killed_leaves_one_whole_state(tmp_path: Path) -> None:
    files = [put(tmp_path, f"date=2026-01-31/part-{number}.parquet") for number in range(5)]
    states = [ids_of(*files[:2]), ids_of(*files[:3]), ids_of(*files[1:3]), ids_of(*files[3:]), []]
    entries = json.dumps([[file.path, file.rows, file.bytes, ""] for file in files])
    publish(tmp_path, *files[:2])
    chance, seen = random.Random(1), set()
    for _ in range(20):
        process = subprocess.Popen(
            [sys.executable, "-c", PUBLISHER, str(tmp_path), entries],
            env=environment(),
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None and process.stdout.readline() == "begun\n"
        time.sleep(chance.uniform(0, 0.5))
        process.kill()
        process.communicate()
        found = ids(tmp_path)
        assert found in states
        seen.add(states.index(found))
    assert len(seen) > 2
    publish(tmp_path, *files, number=10**6)
    assert ids(tmp_path) == ids_of(*files)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the numbers of system calls are others")
def test_a_filesystem_without_hard_links_is_named(annotator: Annotator) -> None:
    said = annotator.run("--commit_every", "0.1s", command=("-c", WITHOUT_HARD_LINKS))
    assert said.count("is behind until the next commit") == 1
    assert "a Delta log needs a filesystem with hard links" in said
    annotator.verify()
    annotator.run()
    assert DeltaTable(annotator.output).count() == 8 * 250
