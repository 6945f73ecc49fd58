"""Speed of the engine on a CPU: its precisions beside ONNX Runtime, torch.nn.LSTM, a loop over steps, and the products.

All contestants have the same full-size weights and the same length-sorted batches of tweets, in one process, taking
turns; figures are medians over the rounds, with one thread of the processor's time, with more of the clock's. The
roofline is the time of the LSTMs' products alone, by the same kernels, in the shapes that the model has. torch.nn.LSTM
has the ordinary sigmoid, so its results are another model's. ONNX Runtime needs the packages of the extra `bench`.

A processor without AVX-512 can be stood in for by one that has it:

    ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2 FBGEMM_ENABLE_INSTRUCTIONS=AVX2 \\
        python -m benchmarks.engine

ONNX Runtime has no such variable: it is kept to AVX2 by `avx2_alone`.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear
from torch.nn.utils.rnn import PackedSequence

from benchmarks.avx2_alone import keep_onnx_runtime_to_avx2
from benchmarks.common import reference_bundle, report, texts
from pipelines.cli.exits import run_command
from pipelines.cli.parsing import OneLineParser
from torchmoji_core.batching import BatchLimits, plan_batches
from torchmoji_core.bundle import load_bundle
from torchmoji_core.errors import InputError
from torchmoji_core.inference import available_cores, engine
from torchmoji_core.inference.engine import Engine
from torchmoji_core.inference.kernels import choose
from torchmoji_core.lstm import DIRECTIONS
from torchmoji_core.memory import keep_freed_memory
from torchmoji_core.model import pack_ids

Batch = Sequence[Sequence[int]]
Run = Callable[[Batch], object]
PRECISIONS = ("fp32", "bf16", "int8")
OURS = ("engine", "roofline")
_TEXTS_ONE_BY_ONE = 32


def main(arguments: list[str]) -> int:
    parser = OneLineParser(prog="python -m benchmarks.engine", description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="Parquet with a column text (default: the tweets beside the checkout, if any)")
    parser.add_argument("--model", help="bundle (default: random weights of the published size)")
    parser.add_argument("--texts", type=int, default=512, help="of a round (default: %(default)s)")
    parser.add_argument("--batch_sizes", default="1,16,64,128,256", help="separated by commas (default: %(default)s)")
    parser.add_argument("--threads", default=f"1,{available_cores()}", help="likewise (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="times each is measured (default: %(default)s)")
    parser.add_argument("--only", default="", help="contestants whose names contain one of these, comma-separated")
    options = parser.parse_args(arguments)
    keep_freed_memory()  # as the pipeline's workers do
    engine.ROWS_WORTH_LOADING = 1  # the round that warms up loads the loops, where there are any
    bundle = load_bundle(options.model) if options.model else reference_bundle()
    corpus, source = texts(options.texts, options.data)
    ids = [bundle.tokenizer.ids(text, bundle.maxlen) for text in corpus]
    ids = [row for row in ids if row]
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as directory:
        for threads in map(int, options.threads.split(",")):
            contestants = {
                name: run
                for name, run in _contestants(bundle.state, Path(directory), threads).items()
                if any(part in name for part in options.only.split(","))
            }
            for size in map(int, options.batch_sizes.split(",")):
                some = ids[:_TEXTS_ONE_BY_ONE] if size == 1 else ids
                limits = BatchLimits(max_rows=size, max_tokens=1 << 20)
                batches = [[some[index] for index in batch] for batch in plan_batches(list(map(len, some)), limits)]
                rows += _measure(contestants, batches, threads, size, options.rounds)
    tokens = sum(map(len, ids)) / len(ids)
    facts = {"auto": str(choose("auto")), "tokens_a_text": round(tokens, 1), "dimensions": vars(bundle.dimensions)}
    report("engine", rows, texts=source, **facts)
    return 0


def _contestants(state: Mapping[str, Tensor], directory: Path, threads: int) -> dict[str, Run]:
    """By name. ONNX Runtime has its threads inside a batch; ours and its products run batches side by side."""
    result: dict[str, Run] = {}
    for precision in PRECISIONS:
        try:
            result[f"engine {precision}"] = Engine(state, precision).run
        except InputError as error:
            print(f"left out: {error}", file=sys.stderr)
        else:
            result[f"roofline {precision}"] = Roofline(state, precision)
    try:
        onnx_model = _onnx_model()
    except ImportError:
        print("ONNX Runtime left out: pip install '.[bench]'", file=sys.stderr)
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"ONNX Runtime left out, since it would use all of this processor: {error}", file=sys.stderr)
    else:
        result["ONNX Runtime fp32"] = onnx_model.runner(state, directory, False, threads)
        result["ONNX Runtime int8"] = onnx_model.runner(state, directory, True, threads)
    result["loop over steps"] = StepLoop(state)
    result["torch.nn.LSTM"] = OrdinaryLSTM(state)
    return result


@cache
def _onnx_model() -> Any:
    """The module that makes contestants of ONNX Runtime, which keeps to what torch is kept to."""
    highest = os.environ.get("ONEDNN_MAX_CPU_ISA", "").upper()
    if highest not in ("", "AVX2"):
        raise OSError("it can be kept to AVX2 only")
    with tempfile.TemporaryDirectory() as directory:
        if highest:
            keep_onnx_runtime_to_avx2(Path(directory))
        from benchmarks import onnx_model
    return onnx_model


class Roofline:
    """The products of the LSTMs alone."""

    def __init__(self, state: Mapping[str, Tensor], precision: str) -> None:
        self._arithmetic = choose(precision)
        self._weights = [
            (
                self._arithmetic.weight(state[f"lstm_{layer}.weight_ih_l0{suffix}"].float(), None),
                self._arithmetic.weight(state[f"lstm_{layer}.weight_hh_l0{suffix}"].float(), None),
            )
            for layer in range(2)
            for suffix in DIRECTIONS
        ]
        self._widths = [
            state[f"lstm_{layer}.weight_ih_l0{suffix}"].shape[1] for layer in range(2) for suffix in DIRECTIONS
        ]
        self._hidden = state["lstm_0.weight_hh_l0"].shape[1]

    @torch.inference_mode()
    def __call__(self, rows: Batch) -> None:
        sizes = [sum(len(row) > step for row in rows) for step in range(len(rows[0]))]
        kind = self._arithmetic.activation
        state = torch.ones(sizes[0], self._hidden, dtype=kind)
        for (inputs, recurrent), width in zip(self._weights, self._widths, strict=True):
            sums = inputs.project(torch.ones(sum(sizes), width, dtype=kind))
            for size in sizes[1:]:
                recurrent.add_to(sums[:size], state[:size])


class StepLoop:
    """The model as a loop over steps with two small products each, packed: how the PyTorch port runs it."""

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        self._state = {name: tensor.float() for name, tensor in state.items()}

    @torch.no_grad()
    def __call__(self, rows: Batch) -> Tensor:
        ids = pack_ids(rows)
        sizes = ids.batch_sizes.tolist()
        x = self._state["embed.weight"][ids.data].tanh()
        h0 = self._layer("lstm_0", x, sizes)
        h1 = self._layer("lstm_1", h0, sizes)
        features = torch.nn.utils.rnn.pad_packed_sequence(ids._replace(data=torch.cat((h1, h0, x), dim=1)))[0]
        logits = features @ self._state["attention_layer.attention_vector"]
        steps = torch.arange(len(sizes))[:, None]
        weights = logits.masked_fill(steps >= torch.tensor([len(row) for row in rows]), -torch.inf).softmax(dim=0)
        embedding = (features * weights[:, :, None]).sum(dim=0)
        return linear(embedding, self._state["output_layer.0.weight"], self._state["output_layer.0.bias"]).softmax(
            dim=1
        )

    def _layer(self, name: str, x: Tensor, sizes: list[int]) -> Tensor:
        outputs = []
        for suffix in DIRECTIONS:
            w_ih, w_hh, b_ih, b_hh = (
                self._state[f"{name}.{part}_l0{suffix}"] for part in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            )
            h = c = x.new_zeros(sizes[0], w_hh.shape[1])
            steps = list(x.split(sizes))
            order = range(len(steps))[:: -1 if suffix else 1]
            of_step: dict[int, Tensor] = {}
            for step in order:
                count = sizes[step]
                gates = linear(steps[step], w_ih, b_ih) + linear(h[:count], w_hh, b_hh)
                i, f, g, o = gates.chunk(4, dim=1)
                i, f, o = ((0.2 * gate + 0.5).clamp(0, 1) for gate in (i, f, o))
                new_c = f * c[:count] + i * g.tanh()
                new_h = o * new_c.tanh()
                of_step[step] = new_h
                # Rows that have not begun, or have ended, keep a state that nothing reads.
                h, c = torch.cat((new_h, h[count:])), torch.cat((new_c, c[count:]))
            outputs.append(torch.cat([of_step[step] for step in range(len(steps))]))
        return torch.cat(outputs, dim=1)


class OrdinaryLSTM:
    """torch.nn.LSTM's two layers on packed embeddings."""

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        self._table = state["embed.weight"].float().tanh()
        hidden = state["lstm_0.weight_hh_l0"].shape[1]
        self._lstm = torch.nn.LSTM(self._table.shape[1], hidden, num_layers=2, bidirectional=True).eval()

    @torch.inference_mode()
    def __call__(self, rows: Batch) -> PackedSequence:
        ids = pack_ids(rows)
        return self._lstm(ids._replace(data=self._table[ids.data]))[0]


def _measure(
    contestants: Mapping[str, Run], batches: Sequence[Batch], threads: int, size: int, rounds: int
) -> list[dict[str, Any]]:
    count = sum(map(len, batches))
    clock = time.process_time if threads == 1 else time.perf_counter
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(rounds + 1):
        for name, run in contestants.items():
            started = clock()
            _run_all(run, batches, 1 if name.startswith(OURS) else threads, threads)
            if number:  # the first round warms up
                seconds[name].append(clock() - started)
    rows = []
    for name, of_run in seconds.items():
        row = {
            "threads": threads,
            "batch": size,
            "contestant": name,
            "texts/s": count / statistics.median(of_run),
            "slowest": count / max(of_run),
            "fastest": count / min(of_run),
        }
        print(
            ", ".join(f"{value:.0f}" if isinstance(value, float) else str(value) for value in row.values()),
            file=sys.stderr,
        )
        rows.append(row)
    return rows


def _run_all(run: Run, batches: Sequence[Batch], threads_inside: int, threads: int) -> None:
    """With one thread inside a batch and several in all, whole batches side by side."""
    torch.set_num_threads(threads_inside)
    if threads_inside == threads:
        for batch in batches:
            run(batch)
    else:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            list(pool.map(run, batches))


if __name__ == "__main__":
    sys.exit(run_command(main))
