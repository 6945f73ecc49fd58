"""Training speed on a CPU: our hard-sigmoid LSTM against torch.nn.LSTM (ordinary sigmoid), forward and backward.

Both run the two layers of the model on the same batches of tweet-like lengths in one process, alternating; torch's
once packed and once padded. The last rows are whole training steps of whole models: forward, loss, backward, clipping,
Adam.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_sequence, pad_sequence

from benchmarks.common import report
from pipelines.cli.exits import run_command
from pipelines.cli.parsing import OneLineParser
from torchmoji_core.lstm import HardSigmoidLSTM
from torchmoji_core.model import Dimensions, TorchMoji
from torchmoji_core.processor import has_bfloat16
from torchmoji_core.training.finetuning import loss_of
from torchmoji_core.training.optimization import products_in, take_step
from torchmoji_core.training.options import FineTuningOptions

FULL_SIZE, SMALL = (256, 512), (96, 256)
VOCABULARY = 50_000
CLASSES = 64
Contestants = dict[str, Callable[[], object]]


def main(arguments: list[str]) -> int:
    parser = OneLineParser(prog="python -m benchmarks.training", description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default: %(default)s)")
    parser.add_argument("--batch_size", type=int, default=250, help="texts of a batch (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=7, help="times each is measured (default: %(default)s)")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    torch.manual_seed(1)
    lengths = np.random.default_rng(1).gamma(2.5, 5.5, options.batch_size).clip(2, 50).astype(int)
    lengths = np.sort(lengths)[::-1]
    rows: list[dict[str, Any]] = []
    for name, (embedding, hidden) in (("full size", FULL_SIZE), ("bundled size", SMALL)):
        rows += _measure(name, _layers(embedding, hidden, lengths.tolist()), int(lengths.sum()), options.rounds)
    for name, (embedding, hidden) in (("full size", FULL_SIZE), ("bundled size", SMALL)):
        rows += _measure(name, _models(embedding, hidden, lengths.tolist()), int(lengths.sum()), options.rounds)
    report("training", rows, threads=options.threads, batch=options.batch_size, tokens=int(lengths.sum()))
    return 0


def _layers(embedding: int, hidden: int, lengths: list[int]) -> Contestants:
    """Both layers, forward and backward, without the rest of the model."""
    texts = [torch.rand(length, embedding) * 2 - 1 for length in lengths]
    packed, padded = pack_sequence(texts), pad_sequence(texts)
    ours = [HardSigmoidLSTM(embedding, hidden), HardSigmoidLSTM(2 * hidden, hidden)]
    for parameter in (parameter for layer in ours for parameter in layer.parameters()):
        torch.nn.init.uniform_(parameter, -(hidden**-0.5), hidden**-0.5)
    theirs = torch.nn.LSTM(embedding, hidden, num_layers=2, bidirectional=True)

    def run_ours(precision: str) -> None:
        with products_in(precision):
            result = ours[1](ours[0](packed._replace(data=packed.data.clone().requires_grad_())))
        result.data.float().sum().backward()

    def run_theirs(given: PackedSequence | Tensor) -> None:
        if isinstance(given, Tensor):
            result = theirs(given.clone().requires_grad_())[0]
        else:
            result = theirs(given._replace(data=given.data.clone().requires_grad_()))[0].data
        result.sum().backward()

    contestants: Contestants = {
        "torch.nn.LSTM, packed": lambda: run_theirs(packed),
        "torch.nn.LSTM, padded": lambda: run_theirs(padded),
        "ours, fp32": lambda: run_ours("fp32"),
    }
    if has_bfloat16():
        contestants["ours, bf16"] = lambda: run_ours("bf16")
    return contestants


def _models(embedding: int, hidden: int, lengths: list[int]) -> Contestants:
    model = TorchMoji(Dimensions(VOCABULARY, embedding, hidden, CLASSES)).train()
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    ids = pack_sequence([torch.randint(VOCABULARY, (length,)) for length in lengths])
    labels = torch.randint(CLASSES, (len(lengths),))

    def step(precision: str) -> None:
        with products_in(precision):
            logits = model(ids).logits.float()
        take_step(optimizer, loss_of(logits, labels), model.embed.weight, FineTuningOptions())

    precisions = ("fp32", "bf16") if has_bfloat16() else ("fp32",)
    return {f"training step, {name}": lambda name=name: step(name) for name in precisions}  # type: ignore[misc]


def _measure(size: str, contestants: Contestants, tokens: int, rounds: int) -> list[dict[str, Any]]:
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(rounds + 1):
        for name, run in contestants.items():
            started = time.perf_counter()
            run()
            if number:  # the first round warms up
                seconds[name].append(time.perf_counter() - started)
    reference = statistics.median(next(iter(seconds.values())))
    return [
        {
            "size": size,
            "what": name,
            "tokens/s": tokens / statistics.median(of_run),
            "slowest": tokens / max(of_run),
            "fastest": tokens / min(of_run),
            "ratio to the first": reference / statistics.median(of_run),
        }
        for name, of_run in seconds.items()
    ]


if __name__ == "__main__":
    sys.exit(run_command(main))
