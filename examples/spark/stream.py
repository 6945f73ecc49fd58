"""Score lines of JSON as their files appear, with Spark's Structured Streaming, each row once.

spark-submit examples/spark/stream.py --input tweets --output scored-stream --checkpoint checkpoint

It goes on until it is stopped, and may be killed: the same command goes on where it was. What a batch gives is in a
directory of its own, OUTPUT/batch=NUMBER, which is written again if it was not complete. Rows without a text are under
status=dead there, as `score.py` writes them.
"""

from __future__ import annotations

import argparse
from functools import partial

from pyspark.errors import AnalysisException
from pyspark.sql import DataFrame
from score import rows_of_lines, scored, session  # type: ignore[import-not-found]  # beside this file

from torchmoji_core import ArrowScorer, InputError


def write(scorer: ArrowScorer, text_field: str, output: str, batch: DataFrame, number: int) -> None:
    rows = scored(rows_of_lines(batch, text_field), scorer)
    rows.write.mode("overwrite").partitionBy("status").parquet(f"{output}/batch={number}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", required=True, help="a directory where files are put, each by a rename")
    parser.add_argument("--output", required=True, help="a directory")
    parser.add_argument("--checkpoint", required=True, help="a directory that belongs to this input and output")
    parser.add_argument("--text_field", default="text", help="path (default: text)")
    parser.add_argument("--model", help="a bundle (default: the bundled one)")
    parser.add_argument("--files_per_batch", type=int, default=100, help="(default: 100)")
    parser.add_argument("--until_done", action="store_true", help="stop when all files that are there have been scored")
    options = parser.parse_args()
    scorer = ArrowScorer("text", options.model)
    spark = session("stream of scores")
    lines = spark.readStream.option("maxFilesPerTrigger", options.files_per_batch).text(options.input)
    stream = lines.writeStream.foreachBatch(partial(write, scorer, options.text_field, options.output))
    if options.until_done:
        stream = stream.trigger(availableNow=True)
    stream.option("checkpointLocation", options.checkpoint).start().awaitTermination()


if __name__ == "__main__":
    try:
        main()
    except (InputError, AnalysisException) as error:
        raise SystemExit(f"error: {error}") from None
