"""python -m benchmarks.object_store: time and requests of operations on S3, beside those of Beam's own filesystem.

Against moto's server on this machine, so the time is mostly the client's and moto's; the requests are what counts where
each takes some 30 ms.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from typing import Any

from apache_beam.io.filesystem import CompressionTypes
from apache_beam.io.filesystems import FileSystems
from apache_beam.options.pipeline_options import PipelineOptions

from benchmarks.common import report
from tests.object_store_server import Faults, ObjectStoreServer
from transforms.storage import files as storage

DIRECTORY = "s3://bench/many"
SMALL = "s3://bench/small"
CONTENT = bytes(100)


def read_ours() -> None:
    with storage.open_raw(SMALL) as file:
        file.read()


def write_beams() -> None:
    with FileSystems.create(SMALL, compression_type=CompressionTypes.UNCOMPRESSED) as file:
        file.write(CONTENT)


def read_beams() -> None:
    with FileSystems.open(SMALL, compression_type=CompressionTypes.UNCOMPRESSED) as file:
        file.read()


OPERATIONS: dict[str, tuple[int, Callable[[], Any], Callable[[], Any]]] = {
    "list all objects": (1, lambda: storage.match([f"{DIRECTORY}/*"]), lambda: FileSystems.match([f"{DIRECTORY}/*"])),
    "write a small file": (20, lambda: storage.publish(SMALL, CONTENT, SMALL), write_beams),
    "read it with open_raw": (20, read_ours, read_beams),
    "read it with read_bytes": (20, lambda: storage.read_bytes(SMALL), read_beams),
    "exists": (20, lambda: storage.exists(SMALL), lambda: FileSystems.exists(SMALL)),
}
"""How often, ours, Beam's."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--objects", type=int, default=2_000)
    options = parser.parse_args()
    rows = []
    with ObjectStoreServer() as server:
        os.environ.update(server.environment)
        FileSystems.set_options(PipelineOptions([]))
        client = server.client()
        client.create_bucket(Bucket="bench")
        for number in range(options.objects):
            client.put_object(Bucket="bench", Key=f"many/{number:06}", Body=CONTENT)
        storage.exists(SMALL)
        for name, (times, ours, beams) in OPERATIONS.items():
            row: dict[str, Any] = {"operation": name}
            for whose, operation in (("", ours), ("beam's ", beams)):
                server.faults = Faults()  # counts from zero
                started = time.perf_counter()
                for _ in range(times):
                    operation()
                row[f"{whose}ms"] = (time.perf_counter() - started) / times * 1000
                row[f"{whose}requests"] = len(server.requests) / times
            rows.append(row)
    report("object_store", rows, objects=options.objects)


if __name__ == "__main__":
    main()
