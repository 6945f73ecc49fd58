"""What the benchmarks share: texts, a description of the machine, a table on the screen and JSON on disk."""

from __future__ import annotations

import itertools
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from benchmarks.reference_bundle import save_reference_bundle
from pipelines.cli.options import SAMPLE
from torchmoji_core.bundle import Bundle, load_bundle

TWEETS = Path(__file__).parents[2] / "shared" / "data" / "emoji_tweets.parquet"
RESULTS = Path(__file__).parent / "results"


def texts(count: int, path: str | None = None) -> tuple[list[str], str]:
    """Distinct texts and what they are: of a Parquet file's column text, or made up from the bundled sample's words."""
    source = Path(path) if path else TWEETS
    if source.exists():
        distinct = dict.fromkeys(
            itertools.islice(pq.read_table(source, columns=["text"])["text"].to_pylist(), 2 * count)
        )
        return list(distinct)[:count], f"{source.name}, {count:,} distinct texts"
    words = [word for line in SAMPLE.read_text().splitlines() for word in json.loads(line)["text"].split()]
    generator = random.Random(1)
    made_up = {" ".join(generator.choices(words, k=generator.randint(3, 25))): None for _ in range(count)}
    return list(made_up), f"words of the sample in random order, {len(made_up):,} distinct texts"


def reference_bundle() -> Bundle:
    """Random weights of the published size, as they are when loaded from files."""
    with tempfile.TemporaryDirectory() as directory:
        save_reference_bundle(Path(directory, "reference"))
        return load_bundle(Path(directory, "reference"))


def machine() -> dict[str, Any]:
    """What a figure is worth nothing without."""
    import torch

    model = next(
        (line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")), ""
    )
    return {
        "processor": model or platform.processor(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def measure_command(command: list[str]) -> dict[str, float]:
    """Seconds and peak resident memory, in megabytes, of a command that must succeed.

    It runs in a child of a child, whose peak is then not mixed with an earlier one's.
    """
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
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss
    return {"peak MB": kilobytes * unit / 1e6, "seconds": seconds}


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []


def report(name: str, rows: list[dict[str, Any]], **facts: Any) -> None:
    """Print rows as a Markdown table under the facts, and write both as JSON."""
    facts = machine() | facts
    print("; ".join(f"{key} {value}" for key, value in facts.items()))
    columns = list(rows[0])
    print("| " + " | ".join(columns) + " |\n|" + "---|" * len(columns))
    for row in rows:
        print("| " + " | ".join(_cell(row[column]) for column in columns) + " |")
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"facts": facts, "rows": rows}, indent=1) + "\n")


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.2f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
