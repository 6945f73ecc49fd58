"""What one text costs, as a notebook or a service asks: `bundle.score([text])`, from text to scores.

Milliseconds of the processor's time, all threads together: medians over texts of 15 tokens, each scored for the first
time. Of the engine alone, token ids in, see benchmarks.engine.
"""

from __future__ import annotations

import statistics
import sys
import time

from benchmarks.common import report, texts
from pipelines.cli.exits import run_command
from pipelines.cli.parsing import OneLineParser
from torchmoji_core.bundle import load_bundle
from torchmoji_core.errors import InputError

TOKENS = 15
PRECISIONS = ("int8", "fp32")


def main(arguments: list[str]) -> int:
    parser = OneLineParser(prog="python -m benchmarks.one_text", description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="Parquet with a column text (default: the tweets beside the checkout, if any)")
    parser.add_argument("--model", help="another bundle than the bundled one")
    parser.add_argument("--texts", type=int, default=200, help="scored (default: %(default)s)")
    options = parser.parse_args(arguments)
    bundle = load_bundle(options.model)
    corpus, source = texts(50 * options.texts, options.data)
    corpus = [text for text in corpus if len(bundle.tokenizer.ids(text)) == TOKENS]
    chosen, warming_up = corpus[: options.texts], corpus[options.texts :][:20]
    rows = []
    for precision in PRECISIONS:
        try:
            scorer = bundle.scorer(precision)
        except InputError as reason:
            print(f"left out: {reason}", file=sys.stderr)
            continue
        for text in warming_up:
            scorer.score([text])
        milliseconds = []
        for text in chosen:
            started = time.process_time()
            scorer.score([text])
            milliseconds.append(1e3 * (time.process_time() - started))
        rows.append(
            {"arithmetic": scorer.arithmetic, "ms": statistics.median(milliseconds), "fastest": min(milliseconds)}
        )
    report("one_text", rows, texts=source, model=bundle.name, tokens=TOKENS)
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
