"""python -m benchmarks.memory: peak memory of the score command as input grows; full-size model, embeddings on.

The peak is that of the one process, with the modules that it imports (torch and Beam are more than half of it).

Texts are short, since memory depends on rows and batches, not on what a text says; the run is shorter that way.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.common import report
from benchmarks.reference_bundle import save_reference_bundle

WORDS = ["so", "happy", "sad", "rain", "love", "late", "coffee", "today", "never", "again", "friends", "!", "..."]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[20_000, 80_000])
    parser.add_argument("--precisions", nargs="+", default=["fp32", "int8"])
    parser.add_argument("--threads", type=int, default=1, help="of the worker (default: %(default)s)")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as directory:
        model = Path(directory, "model")
        save_reference_bundle(model)
        for count in options.rows:
            path = Path(directory, f"{count}.jsonl")
            generator = random.Random(count)
            with path.open("w") as file:
                for index in range(count):
                    text = " ".join(generator.choices(WORDS, k=generator.randint(1, 8)))
                    file.write(json.dumps({"id": str(index), "text": text}) + "\n")
            for precision in options.precisions:
                arguments = ["--precision", precision, "--threads", str(options.threads)]
                measured = _measure(model, path, Path(directory, f"out-{count}-{precision}"), arguments)
                rows.append({"precision": precision, "rows": count} | measured)
    report("memory", rows, threads=options.threads)


def _measure(model: Path, inputs: Path, output: Path, arguments: list[str]) -> dict[str, float]:
    """Run the command in a child of a child, whose peak is then not mixed with an earlier one's."""
    command = [
        sys.executable, "-m", "pipelines.score", "--progress", "off", "--model", str(model), "--input", str(inputs),
        "--output", str(output), "--outputs", "top,probabilities,embedding", *arguments,
    ]  # fmt: skip
    program = (
        "import json, resource, subprocess, sys; "
        "status = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL).returncode; "
        "print(json.dumps([status, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss]))"
    )
    started = time.perf_counter()
    finished = subprocess.run([sys.executable, "-c", program, *command], capture_output=True, text=True, check=True)
    seconds = time.perf_counter() - started
    status, kilobytes = json.loads(finished.stdout)
    if status:
        raise SystemExit(finished.stderr)
    page = 1 if sys.platform == "darwin" else 1024  # the unit of ru_maxrss
    size = sum(file.stat().st_size for file in output.glob("*.parquet"))
    return {"peak MB": kilobytes * page / 1e6, "seconds": seconds, "written MB": size / 1e6}


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    main()
