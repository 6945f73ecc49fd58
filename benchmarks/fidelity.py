"""How far each precision is from float64, on random weights of the published size and on the bundled model.

Of the probabilities, the maximum and the mean error; of the order of classes, the share of texts with the same first
choice and the mean overlap of the first five; of the embeddings, the smallest and the mean cosine.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.common import reference_bundle, report, texts
from pipelines.cli.exits import run_command
from pipelines.cli.parsing import OneLineParser
from torchmoji_core.bundle import Bundle, load_bundle
from torchmoji_core.errors import InputError
from torchmoji_core.inference.scorer import Scorer
from torchmoji_core.inference.scores import Scores

PRECISIONS = ("fp32", "bf16", "int8")


def main(arguments: list[str]) -> int:
    parser = OneLineParser(prog="python -m benchmarks.fidelity", description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="Parquet with a column text (default: the tweets beside the checkout, if any)")
    parser.add_argument("--model", help="another bundle to measure beside the two")
    parser.add_argument("--texts", type=int, default=2_000, help="(default: %(default)s)")
    options = parser.parse_args(arguments)
    corpus, source = texts(options.texts, options.data)
    bundles = [reference_bundle(), load_bundle()] + ([load_bundle(options.model)] if options.model else [])
    report("fidelity", [row for bundle in bundles for row in _measure(bundle, corpus)], texts=source)
    return 0


def _measure(bundle: Bundle, corpus: list[str]) -> list[dict[str, Any]]:
    exact = Scorer(bundle, "fp64").score(corpus)
    kept = exact.n_tokens > 0
    rows = []
    for precision in PRECISIONS:
        try:
            scorer = Scorer(bundle, precision)
        except InputError as reason:
            print(f"left out: {reason}", file=sys.stderr)
            continue
        scores = scorer.score(corpus)
        error = np.abs(scores.probabilities - exact.probabilities)[kept]
        cosine = _cosine(scores, exact)[kept]
        first = (_first(scores, 1) == _first(exact, 1))[kept]
        five = [len(set(a) & set(b)) / len(a) for a, b in zip(_first(scores, 5), _first(exact, 5), strict=True)]
        rows.append(
            {
                "model": bundle.name,
                "arithmetic": scorer.arithmetic,
                "probabilities: max error": f"{error.max():.2g}",
                "mean error": f"{error.mean():.2g}",
                "same top-1": f"{first.mean():.4f}",
                "top-5 overlap": f"{np.mean(np.array(five)[kept]):.4f}",
                "embedding: min cosine": f"{cosine.min():.6f}",
                "mean cosine": f"{cosine.mean():.6f}",
            }
        )
    return rows


def _first(scores: Scores, k: int) -> NDArray[np.intp]:
    return np.argsort(-scores.probabilities, axis=1, kind="stable")[:, :k]


def _cosine(scores: Scores, exact: Scores) -> NDArray[np.float64]:
    a, b = scores.embedding.astype(np.float64), exact.embedding.astype(np.float64)
    return (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


if __name__ == "__main__":
    sys.exit(run_command(main))
