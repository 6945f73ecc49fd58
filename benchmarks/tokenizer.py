"""python -m benchmarks.tokenizer: texts a second on one core, with an empty cache, a full one, and none.

The contestant is the same set of rules written for clarity (tests/reference/tokenizer_oracle.py), in the same run.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

from benchmarks.common import report, texts
from tests.reference import tokenizer_oracle
from torchmoji_core.bundle import load_bundle
from torchmoji_core.tokenizer import Tokenizer

ROUNDS = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", help="Parquet with a column text (default: the tweets beside the checkout, if any)")
    parser.add_argument("--texts", type=int, default=100_000)
    options = parser.parse_args()
    corpus, source = texts(options.texts, options.data)
    vocabulary = load_bundle().vocabulary
    warm = Tokenizer(vocabulary)
    few = corpus[: len(corpus) // 20]  # the slow ones get fewer texts
    contestants: dict[str, tuple[Callable[[], Callable[[str], object]], list[str]]] = {
        "empty cache": (lambda: Tokenizer(vocabulary).ids, corpus),
        "full cache": (lambda: warm.ids, corpus),
        "no cache": (lambda: Tokenizer(vocabulary, cache_chunks=0).ids, few),
        "plain rules": (lambda: tokenizer_oracle.oracle_tokens, few),
    }
    speeds: dict[str, list[float]] = {name: [] for name in contestants}
    for text in corpus:
        warm.ids(text)
    for _ in range(ROUNDS):  # in turn, so that a machine whose speed drifts drifts for all
        for name, (make, part) in contestants.items():
            tokenize = make()
            started = time.perf_counter()
            for text in part:
                tokenize(text)
            speeds[name].append(len(part) / (time.perf_counter() - started))
    plain = statistics.median(speeds["plain rules"])
    rows = [
        {
            "tokenizer": name,
            "texts/s (median)": statistics.median(values),
            "lowest": min(values),
            "highest": max(values),
            "times plain rules": statistics.median(values) / plain,
        }
        for name, values in speeds.items()
    ]
    report("tokenizer", rows, texts=source, rounds=ROUNDS)


if __name__ == "__main__":
    main()
