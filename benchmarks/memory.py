"""python -m benchmarks.memory: peak memory of the score command as input grows; full-size model, embeddings on.

The peak is that of the one process, with the modules that it imports (torch and Beam are more than half of it).

Texts are short, since memory depends on rows and batches, not on what a text says; the run is shorter that way.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import sys
import tempfile
from pathlib import Path

from benchmarks.common import measure_command, report
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
    command = [
        sys.executable, "-m", "pipelines.score", "--progress", "off", "--model", str(model), "--input", str(inputs),
        "--output", str(output), "--outputs", "top,probabilities,embedding", *arguments,
    ]  # fmt: skip
    measured = measure_command(command)
    size = sum(file.stat().st_size for file in output.glob("*.parquet"))
    return measured | {"written MB": size / 1e6}


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    main()
