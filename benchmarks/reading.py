"""python -m benchmarks.reading: records a second of each form, and memory as an array or standard input grows.

Rates are of processor time, best of several, over the same tweets. Memory is the peak of a process that does nothing
but read; for standard input, of one that spools it first, as the score command does.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import ipc

from benchmarks.common import report, texts
from transforms.input.formats import read_records
from transforms.input.recognition import recognize

_READ = """
import re, sys
from transforms.input.formats import read_records
from transforms.input.recognition import recognize
from pipelines.runs.inputs import Inputs, spool_pipes
from transforms.input.inputs import InputFile
found = Inputs({sys.argv[1]: InputFile(sys.argv[1], 0)}, {sys.argv[1]})
spool_pipes(found, sys.argv[2])
with open(found.files[sys.argv[1]].place, "rb") as file:
    count = sum(1 for form in recognize(file, "x.json") for _ in read_records(file, form))
with open("/proc/self/status") as status:  # getrusage would tell that of the process that started it, too
    print(count, int(re.search(r"VmHWM:\\s+(\\d+)", status.read())[1]) // 1024)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=60_000)
    parser.add_argument("--megabytes", type=int, nargs="+", default=[10, 1000])
    options = parser.parse_args()
    said, source = texts(options.records)
    posts: list[dict[str, Any]] = [
        {"id": str(10**18 + number), "text": text, "lang": "en", "created_at": "2020-01-01T10:00:00Z"}
        for number, text in enumerate(said)
    ]
    rates = [_rate(name, content) for name, content in _files(posts).items()]
    memory = [_memory(size, is_piped) for size in options.megabytes for is_piped in (False, True)]
    report("reading", rates, texts=source)
    report("reading_memory", memory)


def _files(posts: list[dict[str, Any]]) -> dict[str, bytes]:
    table, columns = io.StringIO(newline=""), pa.Table.from_pylist(posts)
    writer = csv.DictWriter(table, list(posts[0]))
    writer.writeheader()
    writer.writerows(posts)
    parquet, arrow = io.BytesIO(), io.BytesIO()
    pq.write_table(columns, parquet)
    with ipc.new_file(arrow, columns.schema) as file:
        file.write_table(columns, max_chunksize=1 << 16)
    lines = "".join(json.dumps(post, ensure_ascii=False) + "\n" for post in posts)
    return {
        "x.txt": "\n".join(post["text"].replace("\n", " ") for post in posts).encode(),
        "x.jsonl": lines.encode(),
        "utf-16.jsonl": lines.encode("utf-16"),
        "x.json": json.dumps(posts, ensure_ascii=False).encode(),
        "x.csv": table.getvalue().encode(),
        "x.parquet": parquet.getvalue(),
        "x.arrow": arrow.getvalue(),
    }


def _rate(name: str, content: bytes) -> dict[str, Any]:
    best = float("inf")
    for _ in range(5):
        file, started = io.BytesIO(content), time.process_time()
        count = sum(1 for form in recognize(file, name) for _ in read_records(file, form))
        best = min(best, time.process_time() - started)
    return {"what": name, "records": count, "records a second": round(count / best)}


def _memory(megabytes: int, is_piped: bool) -> dict[str, Any]:
    """The peak of reading an array of so many megabytes, from a file or from a pipe."""
    element = b'{"id": "1400000000000000001", "text": "%s"},\n' % (b"so happy today, what a day it was " * 30)
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch, "array.json")
        with path.open("wb") as file:
            file.write(b"[\n")
            for _ in range(megabytes):
                file.write(element * (1_000_000 // len(element)))
            file.write(element.rstrip(b",\n") + b"]")
        command = [sys.executable, "-c", _READ, "-" if is_piped else str(path), scratch]
        with subprocess.Popen(["cat", path], stdout=subprocess.PIPE) as given:
            source = given.stdout if is_piped else subprocess.DEVNULL
            finished = subprocess.run(command, stdin=source, capture_output=True, check=True, env=os.environ.copy())
            given.kill()
    count, peak = map(int, finished.stdout.split())
    what = f"array of {megabytes} MB{' on standard input' if is_piped else ''}"
    return {"what": what, "records": count, "peak MB": peak}


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    main()
