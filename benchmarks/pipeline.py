"""The score command from end to end, through Beam, beside the bare engine on the same texts.

Four tables' worth of rows, told apart by the column `what`:

* engine: the engine alone on one thread, on length-sorted batches, before and after everything else;
* command: `python -m pipelines.score` with top, probabilities and embeddings, for growing inputs, and for one
  where three rows in ten repeat an earlier text, with and without the cache. Its rows/s leave out nothing: Python
  starts, modules are imported, the model is loaded;
* processes: the same input by one process with a thread a core, and by a process a core;
* stage: the seconds that each stage takes by itself on one thread, as a share of the engine's.
"""

from __future__ import annotations

import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from benchmarks.common import report, texts
from benchmarks.reference_bundle import save_reference_bundle
from pipelines.cli.exits import run_command
from pipelines.cli.parsing import OneLineParser
from torchmoji_core.batching import BatchLimits, LengthBuckets
from torchmoji_core.bundle import load_bundle
from torchmoji_core.inference import available_cores
from torchmoji_core.inference.scorer import Scorer
from torchmoji_core.memory import keep_freed_memory
from torchmoji_core.tokenizer import Tokenizer

REPEATED = 0.3
_OUTPUTS = "top,probabilities,embedding"
_FILES = 8
_SAMPLE = 8_000


def main(arguments: list[str]) -> int:
    parser = OneLineParser(prog="python -m benchmarks.pipeline", description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="Parquet with a column text (default: the tweets beside the checkout, if any)")
    parser.add_argument("--model", help="bundle (default: random weights of the published size)")
    parser.add_argument("--precision", default="auto", help="(default: %(default)s)")
    parser.add_argument(
        "--rows", default="10000,50000,200000", help="inputs, separated by commas (default: %(default)s)"
    )
    parser.add_argument(
        "--repeat_rows", type=int, default=20_000, help="of the inputs with repeats (default: %(default)s)"
    )
    parser.add_argument(
        "--repeat_within", type=int, default=0, help="a repeat is of a text at most so many rows before; 0 for any"
    )
    options = parser.parse_args(arguments)
    sizes = [int(size) for size in options.rows.split(",")]
    corpus, source = texts(max(*sizes, options.repeat_rows, _SAMPLE), options.data)
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        model = options.model
        if model is None:
            model = str(directory / "reference")
            save_reference_bundle(Path(model))
        repeats = _repeated(corpus[: options.repeat_rows], options.repeat_within)
        rows = _measure(directory, corpus, sizes, repeats, model, options.precision)
    cores = available_cores()
    bare = statistics.mean(row["rows/s"] for row in rows if row["what"] == "engine")
    for row in rows:
        row["of engine x cores"] = row["rows/s"] / bare / cores if row["rows/s"] else 0.0
    report("pipeline", rows, texts=source, model=options.model or "reference, full size", outputs=_OUTPUTS)
    return 0


def _measure(
    directory: Path, corpus: list[str], sizes: list[int], repeated: list[str], model: str, precision: str
) -> list[dict[str, Any]]:
    distinct = corpus[: len(repeated)]
    rows = [_bare(corpus[:_SAMPLE], model, precision)]

    def command(what: str, some: list[str], *arguments: str) -> None:
        rows.append(_command(directory, what, some, "--model", model, "--precision", precision, *arguments))

    for size in sizes:
        command("command", corpus[:size])
    command("command, no repeats", distinct)
    command("command, 30 % repeats", repeated)
    command("command, 30 % repeats, no cache", repeated, "--cache_mb", "0")
    cores = str(available_cores())
    command(f"processes: 1 of {cores} threads", distinct)
    command(f"processes: {cores} of 1 thread", distinct, "--direct_num_workers", cores)
    rows.append(_bare(corpus[:_SAMPLE], model, precision))
    return rows + _stages(directory, corpus[:_SAMPLE], model, precision)


def _repeated(corpus: list[str], within: int) -> list[str]:
    """The texts, of which three in ten have become one of those before."""
    generator = random.Random(1)
    repeated = list(corpus)
    for index in range(1, len(repeated)):
        if generator.random() < REPEATED:
            repeated[index] = repeated[generator.randrange(max(0, index - within) if within else 0, index)]
    return repeated


def _row(what: str, count: int, seconds: float, tokens: int = 0, bytes_: int = 0) -> dict[str, Any]:
    return {
        "what": what,
        "rows": count,
        "seconds": seconds,
        "rows/s": count / seconds,
        "tokens/s": tokens / seconds,
        "MB/s in": bytes_ / seconds / 1e6,
        "microseconds/row": seconds / count * 1e6,
    }


def _bare(corpus: list[str], model: str, precision: str) -> dict[str, Any]:
    torch.set_num_threads(1)
    keep_freed_memory()  # as workers do
    bundle = load_bundle(model)
    scorer = Scorer(bundle, precision, threads=1, cache_mb=0)
    ids = sorted((bundle.tokenizer.ids(text, bundle.maxlen) for text in corpus), key=len)
    scorer.score_ids(ids[::50])
    started = time.perf_counter()
    for start in range(0, len(ids), 512):
        scorer.score_ids(ids[start : start + 512])
    return _row("engine", len(ids), time.perf_counter() - started, sum(map(len, ids)))


def _command(directory: Path, what: str, corpus: list[str], *arguments: str) -> dict[str, Any]:
    inputs, output = directory / "in", directory / "out"
    inputs.mkdir(exist_ok=True)
    for old in inputs.iterdir():
        old.unlink()
    share = -(-len(corpus) // _FILES)
    for number in range(_FILES):
        some = range(number * share, min((number + 1) * share, len(corpus)))
        table = pa.table({"id": [str(index) for index in some], "text": [corpus[index] for index in some]})
        pq.write_table(table, inputs / f"{number}.parquet")
    command = [sys.executable, "-m", "pipelines.score", "--input", str(inputs), "--output", str(output)]
    started = time.perf_counter()
    subprocess.run(
        [*command, "--outputs", _OUTPUTS, "--if_exists", "replace", "--progress", "off", *arguments],
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    seconds = time.perf_counter() - started
    tokens = sum(pq.read_table(output, columns=["n_tokens"])["n_tokens"].to_pylist())
    row = _row(what, len(corpus), seconds, tokens, sum(len(text.encode()) for text in corpus))
    print(f"{what}, {len(corpus):,} rows: {row['rows/s']:,.0f} rows/s", file=sys.stderr)
    return row


def _stages(directory: Path, corpus: list[str], model: str, precision: str) -> list[dict[str, Any]]:
    """What the stages around the engine take by themselves, on one thread."""
    bundle = load_bundle(model)
    tokenizer = Tokenizer(bundle.vocabulary)  # with an empty cache
    ids, tokenizing = _timed(lambda: [tokenizer.ids(text, bundle.maxlen + 1) for text in corpus])
    buckets: LengthBuckets[int] = LengthBuckets(BatchLimits())

    def cut() -> list[list[int]]:
        batches = [buckets.add(index, len(row)) for index, row in enumerate(ids) if row]
        return [batch for batch in batches if batch] + list(buckets.drain())

    batches, batching = _timed(cut)
    scorer = Scorer(bundle, precision, threads=1, cache_mb=0, embedding_type="float32")
    scores, scoring = _timed(lambda: [scorer.score_ids([ids[index] for index in batch]) for batch in batches])
    outputs = tuple(_OUTPUTS.split(","))
    tables, converting = _timed(lambda: [some.to_arrow(outputs) for some in scores])

    def write() -> None:
        with pq.ParquetWriter(
            directory / "stage.parquet", tables[0].schema, compression="zstd", use_dictionary=False
        ) as file:
            for table in tables:
                file.write_batch(table)

    _, writing = _timed(write)
    stages = {
        "tokenizing": tokenizing,
        "batching": batching,
        "engine and its scorer": scoring,
        "Arrow conversion": converting,
        "Parquet writing": writing,
    }
    around = sum(stages.values()) - scoring
    rows = [_row(f"stage: {name}", len(corpus), seconds) for name, seconds in stages.items()]
    return [*rows, _row(f"stage: all but the engine, {around / scoring:.1%} of it", len(corpus), around)]


def _timed(work: Callable[[], Any]) -> tuple[Any, float]:
    started = time.perf_counter()
    return work(), time.perf_counter() - started


if __name__ == "__main__":
    sys.exit(run_command(main))
