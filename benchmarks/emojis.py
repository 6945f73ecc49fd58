"""What a model knows: scores on emoji_tweets and TweetEval's emoji task, and its choice for fifty sentences."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from benchmarks.common import TWEETS, report
from pipelines.cli.exits import run_command
from pipelines.cli.parsing import OneLineParser
from torchmoji_core.bundle import Bundle, load_bundle
from torchmoji_core.training.metrics import class_f1, expected_calibration_error, macro_f1, top_k_accuracy

DATA = TWEETS.parent
SENTENCES = Path(__file__).parent / "sentences.tsv"
FREQUENT = 1_000
# TweetEval's 20 labels in its order; a dash for those that are not among DeepMoji's 64.
TWEETEVAL = [
    "❤",
    "😍",
    "😂",
    "💕",
    "-",
    "😊",
    "😎",
    "✨",
    "💙",
    "😘",
    "-",
    "-",
    "-",
    "💜",
    "😉",
    "💯",
    "😁",
    "-",
    "-",
    "😜",
]


def main(arguments: list[str]) -> int:
    parser = OneLineParser(prog="python -m benchmarks.emojis", description=__doc__)
    parser.add_argument("--model", help="bundle (default: the bundled model)")
    parser.add_argument("--data", type=Path, default=DATA, help="directory with emoji_tweets.parquet and tweeteval/")
    options = parser.parse_args(arguments)
    bundle = load_bundle(options.model)
    rows = []
    if options.data.is_dir():
        rows = [_emoji_tweets(bundle, options.data), _tweeteval(bundle, options.data)]
    sentences = [line.split("\t") for line in SENTENCES.read_text().splitlines()]
    top = bundle.score([text for _, text in sentences]).top(5)
    print("| kind | sentence | top 5 |\n|---|---|---|")
    for (kind, text), emojis in zip(sentences, top, strict=True):
        print(f"| {kind} | {text} | {' '.join(emoji for emoji, _ in emojis)} |")
    if rows:
        report("emojis", rows, bundle=bundle.name, fingerprint=bundle.fingerprint[:12])
    return 0


def _emoji_tweets(bundle: Bundle, data: Path) -> dict[str, Any]:
    """The first emoji of each test tweet; frequent classes are those with 1,000 rows over all splits."""
    table = pq.read_table(data / "emoji_tweets.parquet", columns=["text", "emoji", "split"])
    index = {emoji: number for number, emoji in enumerate(bundle.classes)}
    labels = np.array([index[emoji] for emoji in table["emoji"].to_pylist()])
    test = np.array(table["split"].to_pylist()) == "test"
    texts = table["text"].filter(test).to_pylist()
    frequent = np.flatnonzero(np.bincount(labels, minlength=len(index)) >= FREQUENT)
    return _scores("emoji_tweets, test", bundle.score(texts).probabilities, labels[test], frequent)


def _tweeteval(bundle: Bundle, data: Path) -> dict[str, Any]:
    """Test tweets of the 14 shared classes, probabilities restricted to them. Not trained on for this task."""
    table = pq.read_table(data / "tweeteval" / "emoji.parquet")
    shared = [label for label, emoji in enumerate(TWEETEVAL) if emoji != "-"]
    columns = [bundle.classes.index(TWEETEVAL[label]) for label in shared]
    labels = table["label"].to_numpy()
    rows = (np.array(table["split"].to_pylist()) == "test") & np.isin(labels, shared)
    probabilities = bundle.score(table["text"].filter(rows).to_pylist()).probabilities[:, columns]
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    positions = np.searchsorted(shared, labels[rows])
    return _scores("TweetEval emoji, test, 14 classes", probabilities, positions, np.arange(len(shared)))


def _scores(name: str, probabilities: np.ndarray, labels: np.ndarray, frequent: np.ndarray) -> dict[str, Any]:
    scored = ~np.isnan(probabilities).any(axis=1)  # a text without tokens has no scores; it counts as wrong
    probabilities = np.where(scored[:, None], probabilities, 0)
    return {
        "texts of": name,
        "rows": len(labels),
        "top-1": f"{top_k_accuracy(probabilities, labels, 1):.4f}",
        "top-5": f"{top_k_accuracy(probabilities, labels, 5):.4f}",
        "macro F1": f"{macro_f1(probabilities, labels):.4f}",
        "macro F1, frequent classes": f"{class_f1(probabilities, labels)[frequent].mean():.4f}",
        "calibration error": f"{expected_calibration_error(probabilities, labels):.4f}",
    }


if __name__ == "__main__":
    sys.exit(run_command(main))
