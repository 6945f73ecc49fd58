"""python -m tests.fuzz: look for inputs that break a promise, for a given time; exit status 1 if there are any.

Each target runs in processes of its own, so that a crash of native code, a hang or an exhausted memory costs one
process and is a finding like any other. Findings are kept as files; one that is fixed becomes a test.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS, machine
from tests.fuzz.targets import TARGETS

MAX_INPUT_BYTES = 8192
MAX_SECONDS = 30
"""For one input."""
MAX_MEGABYTES = 3000
"""For one process: Arrow, instrumented code, the corpus, and what an input takes."""
MAX_FINDINGS = 10
"""After these, a target is given up."""


def fuzz(name: str, seconds: float, findings: Path) -> dict[str, Any]:
    """Run one target for a time.

    Args:
        name: of `TARGETS`.
        seconds: how long.
        findings: directory where inputs that break a promise are put.

    Returns:
        The inputs run, what was found, and the slowest input.
    """
    found: list[dict[str, str]] = []
    inputs = 0
    slowest: dict[str, Any] = {"seconds": 0.0, "bytes": 0}
    findings.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="fuzz-") as scratch:
        corpus, clock = Path(scratch, "corpus"), Path(scratch, "slowest")
        corpus.mkdir()
        for number, seed in enumerate(TARGETS[name].seeds):
            (corpus / f"seed-{number}").write_bytes(seed)
        end = time.monotonic() + seconds
        while (left := int(end - time.monotonic())) > 0 and len(found) < MAX_FINDINGS:
            before = set(findings.iterdir())
            limits = [
                f"-max_total_time={left}",
                f"-max_len={MAX_INPUT_BYTES}",
                f"-timeout={MAX_SECONDS}",
                f"-rss_limit_mb={MAX_MEGABYTES}",
            ]
            report = [f"-artifact_prefix={findings}/{name}-", "-print_final_stats=1", "-verbosity=0"]
            command = [sys.executable, "-m", "tests.fuzz.worker", name, str(clock), *limits, *report, str(corpus)]
            finished = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
            inputs += _statistic(finished.stderr, "number_of_executed_units")
            if clock.exists():
                slowest = max(slowest, json.loads(clock.read_text()), key=lambda input_: input_["seconds"])
            if finished.returncode:
                files = sorted(path.name for path in set(findings.iterdir()) - before)
                found.append({"what": _what(finished), "input": ", ".join(files)})
                print(f"{name}: {found[-1]['what']}: {found[-1]['input']}", flush=True)
    return {"inputs": inputs, "findings": found, "slowest": slowest}


def _statistic(report: str, name: str) -> int:
    found = re.search(rf"stat::{name}:\s+(\d+)", report)
    return int(found[1]) if found else 0


def _what(finished: subprocess.CompletedProcess[str]) -> str:
    """One line for a process that did not end well."""
    output = finished.stderr + finished.stdout
    error = re.search(r"=== Uncaught Python exception: ===\n(.*)", output) or re.search(r"(?m)^==\d+== ?(.*)", output)
    return (error[1] if error else output.strip()[-200:])[:200] + f" (status {finished.returncode})"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=3600, help="in all, shared by the targets (default: an hour)")
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--findings", type=Path, default=RESULTS / "fuzz", help="where inputs that break a promise go")
    parser.add_argument("--output", type=Path, default=RESULTS / "fuzz.json", help="the summary")
    arguments = parser.parse_args()
    started = datetime.now(UTC)
    targets = {
        name: fuzz(name, arguments.seconds / len(arguments.targets), arguments.findings) for name in arguments.targets
    }
    result = {
        "started": started.isoformat(timespec="seconds"),
        "seconds": arguments.seconds,
        "targets": targets,
        "machine": machine(),
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(result, indent=1) + "\n")
    inputs = sum(target["inputs"] for target in targets.values())
    findings = sum(len(target["findings"]) for target in targets.values())
    slowest = max(target["slowest"]["seconds"] for target in targets.values())
    print(f"{inputs:,} inputs run, {findings} crashes, slowest input {slowest:.2f} s; {arguments.output}")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
