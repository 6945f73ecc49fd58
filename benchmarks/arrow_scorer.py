"""What `ArrowScorer` costs beside the scoring itself: processor time of a call, and of a row."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import pyarrow as pa

from benchmarks.common import report, texts
from torchmoji_core import ArrowScorer, load_bundle
from torchmoji_core.inference.scorer import Scorer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", help="Parquet with a column text (default: the tweets beside the checkout, if any)")
    parser.add_argument("--rows", type=int, default=8_000, help="(default: %(default)s)")
    options = parser.parse_args()
    corpus, source = texts(options.rows, options.data)
    adapter = ArrowScorer("text")
    scorer = Scorer(load_bundle(), threads=1, cache_mb=0, embedding_type="float32")
    one, many = pa.table({"text": corpus[:1]}), pa.table({"text": corpus})
    call = _least(lambda: adapter(one), 300) - _least(lambda: scorer.score(corpus[:1]), 300)
    rows = _least(lambda: adapter(many), 5) - _least(lambda: scorer.score(corpus), 5)
    figures = [
        {"what": "a call", "microseconds": call * 1e6},
        {"what": "a row", "microseconds": (rows - call) / len(corpus) * 1e6},
    ]
    report("arrow_scorer", figures, texts=source)


def _least(work: Callable[[], object], times: int) -> float:
    """The least processor time, in seconds, of several runs."""
    work()
    seconds = []
    for _ in range(times):
        begun = time.process_time()
        work()
        seconds.append(time.process_time() - begun)
    return min(seconds)


if __name__ == "__main__":
    main()
