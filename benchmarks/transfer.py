"""Fine-tuning on DeepMoji's benchmark sets and on TweetEval: every set by method, several seeds, mean and spread.

Each run is one line of benchmarks/results/transfer.jsonl, which is part of the repository; runs that are there already
are not repeated, so the benchmark can be stopped and continued, and several processes can share the work (--seeds,
--methods, --sets). The table covers all runs of the file.
"""

from __future__ import annotations

import hashlib
import json
import re
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.common import RESULTS, TWEETS, machine
from pipelines.cli.exits import run_command
from pipelines.cli.parsing import OneLineParser
from torchmoji_core.bundle import Bundle, load_bundle
from torchmoji_core.errors import InputError
from torchmoji_core.memory import keep_freed_memory
from torchmoji_core.training.classifier import ClassifierTraining, probabilities_of
from torchmoji_core.training.finetuning import OUTPUT_LAYER
from torchmoji_core.training.labelled_texts import LabelledTexts, one_hot
from torchmoji_core.training.metrics import confusion_matrix, f1_of, threshold_f1, top_k_accuracy
from torchmoji_core.training.options import METHODS, FineTuningOptions
from torchmoji_core.training.prediction import forward
from transforms.input.training_data import read_labelled_texts

DATA = TWEETS.parent
RUNS = RESULTS / "transfer.jsonl"
FULL_SIZE = (256, 512)
_OVERLAP_REPORTED = 0.01


@dataclass(frozen=True)
class Task:
    """A data set with the metric that others report on it."""

    name: str
    path: str
    metric: str
    balanced: bool = False
    """Whether classes are drawn equally often: where the metric gives them other weights than the data."""

    @property
    def leaderboard_task(self) -> str:
        """TweetEval's task of which this is a set."""
        return self.name.split("-")[0]


TASKS = (
    Task("SE0714", "benchmarks/SE0714.parquet", "f1"),
    Task("Olympic", "benchmarks/Olympic.parquet", "f1"),
    Task("PsychExp", "benchmarks/PsychExp.parquet", "f1"),
    Task("SS-Twitter", "benchmarks/SS-Twitter.parquet", "accuracy"),
    Task("SS-Youtube", "benchmarks/SS-Youtube.parquet", "accuracy"),
    Task("SCv1", "benchmarks/SCv1.parquet", "f1", balanced=True),
    Task("SCv2-GEN", "benchmarks/SCv2-GEN.parquet", "f1", balanced=True),
    Task("kaggle-insults", "benchmarks/kaggle-insults.parquet", "f1", balanced=True),
    Task("emotion", "tweeteval/emotion.parquet", "macro_f1", balanced=True),
    Task("irony", "tweeteval/irony.parquet", "f1", balanced=True),
    Task("offensive", "tweeteval/offensive.parquet", "macro_f1", balanced=True),
    Task("hate", "tweeteval/hate.parquet", "macro_f1", balanced=True),
    *(
        Task(f"stance-{topic}", f"tweeteval/stance-{topic}.parquet", "f1_second_and_third", balanced=True)
        for topic in ("abortion", "atheism", "climate", "feminist", "hillary")
    ),
)

PAPER = {
    "SE0714": {"new": 0.21, "full": 0.31, "last": 0.36, "chain-thaw": 0.37},
    "Olympic": {"new": 0.43, "full": 0.50, "last": 0.61, "chain-thaw": 0.61},
    "PsychExp": {"new": 0.32, "full": 0.42, "last": 0.56, "chain-thaw": 0.57},
    "SS-Twitter": {"new": 0.62, "full": 0.85, "last": 0.87, "chain-thaw": 0.88},
    "SS-Youtube": {"new": 0.75, "full": 0.88, "last": 0.92, "chain-thaw": 0.93},
    "SCv1": {"new": 0.67, "full": 0.65, "last": 0.68, "chain-thaw": 0.69},
    "SCv2-GEN": {"new": 0.71, "full": 0.71, "last": 0.74, "chain-thaw": 0.75},
}
"""Felbo et al., 2017, table 4: the published weights, trained on 1.2 billion tweets; `new` at full size."""

LEADERBOARD = {
    "emotion": (0.647, 0.660, 0.652),
    "irony": (0.617, 0.628, 0.631),
    "offensive": (0.523, 0.717, 0.734),
    "hate": (0.367, 0.526, 0.506),
    "stance": (0.673, 0.594, 0.654),
}
"""SVM, LSTM and fastText of TweetEval's public leaderboard (Barbieri et al., 2020, table 2)."""


def main(arguments: list[str]) -> int:
    parser = OneLineParser(prog="python -m benchmarks.transfer", description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="bundle to fine-tune (default: the bundled model)")
    parser.add_argument("--data", type=Path, default=DATA, help="directory with benchmarks/ and tweeteval/")
    parser.add_argument(
        "--methods",
        default=",".join(METHODS),
        help="separated by commas (default: all); last:balanced=0:patience=9 is last with other options",
    )
    parser.add_argument("--sets", default=",".join(task.name for task in TASKS), help="likewise (default: all)")
    parser.add_argument("--seeds", default="1,2,3,4,5", help="likewise (default: %(default)s)")
    parser.add_argument("--table", action="store_true", help="only print the table of the runs so far")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    keep_freed_memory()
    ways = {method: _changes(method) for method in options.methods.split(",")}
    if not options.table:
        RESULTS.mkdir(exist_ok=True)
        base = load_bundle(options.model)
        for seed in map(int, options.seeds.split(",")):
            for method, changes in ways.items():
                for task in TASKS:
                    if task.name in options.sets.split(","):
                        _run(task, options.data, base, method, changes, seed)
    print("\n".join(table(_runs())))
    return 0


def _run(task: Task, data: Path, base: Bundle, method: str, changes: dict[str, Any], seed: int) -> None:
    is_new = changes["method"] == "new"
    key = {
        "set": task.name,
        "method": method,
        "seed": seed,
        # A new model shares only the vocabulary with the base.
        "model": "full size" if is_new else _body(base),
    }
    if any(key.items() <= run.items() for run in _runs()):
        return
    splits = read_labelled_texts(data / task.path, "text", "label").split(seed)
    apart = _without_overlap(splits["train"], splits["test"])
    if len(apart.texts) < (1 - _OVERLAP_REPORTED) * len(splits["test"].texts):
        splits["test without overlap"] = apart
    samples = min(max(1_000, len(splits["train"].texts)), 5_000)
    defaults = FineTuningOptions(seed=seed, epoch_samples=samples, balanced=int(task.balanced))
    settings = replace(defaults, **changes)
    size = FULL_SIZE if is_new else None
    started = time.perf_counter()
    training = ClassifierTraining(splits, base, settings, size=size)
    epochs: list[dict[str, Any]] = []
    bundle = training.run(epochs.append, task.name, task.path)
    seconds = round(time.perf_counter() - started, 1)
    model = bundle.model()
    scores, confusion = {}, {}
    for split in splits.keys() - {"train"}:
        corpus, labels = training.data[split].corpus, training.data[split].labels
        probabilities = probabilities_of(forward(model, corpus)[0], training.multi_label)
        thresholds = np.array(list(bundle.provenance["thresholds"].values()))
        scores[split] = round(_score(task.metric, probabilities, labels, thresholds), 4)
        if not training.multi_label:
            confusion[split] = confusion_matrix(probabilities, labels).tolist()
    line = key | {"metric": task.metric, "scores": scores, "confusion": confusion}
    line |= {"epochs": len(epochs), "seconds": seconds}
    with RUNS.open("a") as stream:
        stream.write(json.dumps(line) + "\n")
    print(json.dumps(line), file=sys.stderr, flush=True)


def _body(base: Bundle) -> str:
    """Digest of what fine-tuning keeps of a model: vocabulary and weights, without the output layer."""
    digest = hashlib.sha256(base.vocabulary.to_json().encode())
    for name, tensor in sorted(base.state.items()):
        if not name.startswith(OUTPUT_LAYER):
            digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()[:12]


def _score(
    metric: str, probabilities: NDArray[np.float32], labels: NDArray[Any], thresholds: NDArray[np.float64]
) -> float:
    """f1: class average with thresholds, of two classes the second; the others for the most probable class."""
    if metric == "f1":
        f1 = threshold_f1(probabilities, one_hot(labels, probabilities.shape[1]), thresholds)
        return float(f1[1] if len(f1) == 2 and labels.ndim == 1 else f1.mean())
    if metric == "accuracy":
        return top_k_accuracy(probabilities, labels, 1)
    return _f1(metric, confusion_matrix(probabilities, labels))


def _f1(metric: str, confusion: NDArray[np.integer]) -> float:
    counted = {"macro_f1": slice(None), "f1_second_and_third": slice(1, 3)}[metric]
    return float(f1_of(confusion)[counted].mean())


def _changes(method: str) -> dict[str, Any]:
    """`last` or `last:balanced=0`, with options of fine-tuning behind colons, as changes to the defaults.

    Raises:
        InputError: for an option that there is not, or that the benchmark sets itself.
    """
    defaults = FineTuningOptions()
    name, *pairs = method.split(":")
    changes: dict[str, Any] = {"method": name}
    for option, _, value in (pair.partition("=") for pair in pairs):
        if option not in vars(defaults).keys() - {"method", "seed"}:
            raise InputError(f"--methods {method}: there is no option {option!r} to choose here")
        kind = type(getattr(defaults, option))
        try:
            changes[option] = kind(value)
        except ValueError:
            raise InputError(f"--methods {method}: {option} needs a value of type {kind.__name__}") from None
    replace(defaults, **changes)  # which checks them
    return changes


def _without_overlap(train: LabelledTexts, test: LabelledTexts) -> LabelledTexts:
    """The test texts that are no training texts, compared by their letters and digits, without mentions."""
    seen = {_normal(text) for text in train.texts}
    kept = [row for row, text in enumerate(test.texts) if _normal(text) not in seen]
    return replace(test, texts=[test.texts[row] for row in kept], labels=test.labels[kept])


def _normal(text: str) -> str:
    return "".join(filter(str.isalnum, re.sub(r"@\w+", "", text.lower())))


def _runs() -> list[dict[str, Any]]:
    return [json.loads(line) for line in RUNS.read_text().splitlines()] if RUNS.exists() else []


def table(runs: list[dict[str, Any]]) -> Iterator[str]:
    """Two Markdown tables, mean ± standard deviation over the seeds: each of DeepMoji's sets beside the paper's
    figures, and each way to train on TweetEval's tasks above its leaderboard."""
    facts = machine()
    yield "; ".join(f"{key} {value}" for key, value in facts.items())
    others = {task.name for task in TASKS if task.leaderboard_task not in LEADERBOARD}
    methods = list(dict.fromkeys([*METHODS, *(run["method"] for run in runs if run["set"] in others)]))
    yield "| set | metric | " + " | ".join(map(_title, methods)) + " |"
    yield "|---|---|" + "---|" * len(methods)
    for task in TASKS:
        of_task = [run for run in runs if run["set"] == task.name]
        if task.name not in others:
            continue
        for split in _splits(of_task):
            cells = []
            for method in methods:
                paper = PAPER.get(task.name, {}).get(method) if split == "test" else None
                scores = [run["scores"][split] for run in of_task if run["method"] == method]
                cells.append(_cell(scores) + (f" ({paper:.2f})" if paper else ""))
            yield f"| {_label(task.name, split)} | {task.metric} | " + " | ".join(cells) + " |"
    yield ""
    columns = []
    for name in LEADERBOARD:
        tasks = [task for task in TASKS if task.leaderboard_task == name]
        of_tasks = [run for run in runs if run["set"] in {task.name for task in tasks}]
        columns += [(name, split, tasks, of_tasks) for split in _splits(of_tasks)]
    yield "| TweetEval | " + " | ".join(_label(name, split) for name, split, _, _ in columns) + " |"
    yield "|---|" + "---|" * len(columns)
    for method in dict.fromkeys(run["method"] for _, _, _, of_tasks in columns for run in of_tasks):
        cells = [
            _cell(_pooled(tasks, split, [run for run in of_tasks if run["method"] == method]))
            for _, split, tasks, of_tasks in columns
        ]
        yield f"| {_title(method)} | " + " | ".join(cells) + " |"
    for place, other in enumerate(("SVM", "LSTM", "fastText")):
        cells = [f"{LEADERBOARD[name][place]:.3f}" if split == "test" else "" for name, split, _, _ in columns]
        yield f"| leaderboard: {other} | " + " | ".join(cells) + " |"


def _splits(runs: list[dict[str, Any]]) -> list[str]:
    return sorted({split for run in runs for split in run["scores"]} - {"val"})


def _title(method: str) -> str:
    return method.replace(":", ", ").replace("=", " ")


def _label(name: str, split: str) -> str:
    return name if split == "test" else f"{name}, {split}"


def _pooled(tasks: list[Task], split: str, runs: list[dict[str, Any]]) -> list[float]:
    """The score of each seed that has all sets of a task: as the leaderboard's own script has it, stance is one metric
    over the answers to all five topics."""
    if len(tasks) == 1:
        return [run["scores"][split] for run in runs]
    together: dict[tuple[str, int], list[NDArray[np.int64]]] = {}
    for run in runs:
        if split in run["confusion"]:
            together.setdefault((run["model"], run["seed"]), []).append(np.array(run["confusion"][split]))
    complete = [matrices for matrices in together.values() if len(matrices) == len(tasks)]
    return [_f1(tasks[0].metric, np.sum(matrices, axis=0)) for matrices in complete]


def _cell(scores: list[float]) -> str:
    """Mean, spread and, in brackets, number of seeds."""
    if not scores:
        return "–"
    spread = f" ± {statistics.stdev(scores):.3f}" if len(scores) > 1 else ""
    return f"{statistics.mean(scores):.3f}{spread} [{len(scores)}]"


if __name__ == "__main__":
    sys.exit(run_command(main))
