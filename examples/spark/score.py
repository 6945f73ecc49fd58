"""Score a table, or lines of JSON, with Spark: columns of scores in Parquet, one row for each row of the input.

spark-submit examples/spark/score.py --input 'tweets/*.jsonl' --output scored

Rows whose text is null, or of another type than string, are no error: they are under OUTPUT/status=dead, with what was
read in the column `record`. The model is the bundled one, or a path or URI that is the same on all machines.
"""

from __future__ import annotations

import argparse

from pyspark import SparkConf, SparkContext
from pyspark.errors import AnalysisException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.pandas.types import from_arrow_schema, to_arrow_schema

from torchmoji_core import ArrowScorer, InputError

SETTINGS = {
    "spark.python.udf.pipelined.enabled": True,  # of Spark 4.3: texts are sent while results are written
    "spark.sql.execution.arrow.maxRecordsPerBatch": 2000,  # so that there are some to write soon
    "spark.sql.maxConcurrentOutputFileWriters": 3,  # or rows are sorted by status, once all of a task have been scored
}
"""With which Python scores while Spark writes, where a core is free."""


def session(name: str) -> SparkSession:
    """With `SETTINGS`, but for those that spark-submit or its files of settings give."""
    SparkContext._ensure_initialized()  # or Python's SparkConf knows nothing of them
    given = SparkConf()
    settings = {setting: value for setting, value in SETTINGS.items() if not given.contains(setting)}
    return SparkSession.builder.appName(name).config(map=settings).getOrCreate()


def rows_of_lines(lines: DataFrame, text_field: str) -> DataFrame:
    """Columns `id`, `text` and `record` of lines of JSON in a column `value`; what is no string is no text."""
    post = F.try_parse_json(F.try_validate_utf8("value"))
    is_text = F.schema_of_variant(F.try_variant_get(post, f"$.{text_field}", "variant")) == "STRING"
    return lines.select(
        F.try_variant_get(post, "$.id", "string").alias("id"),
        F.when(is_text, F.try_variant_get(post, f"$.{text_field}", "string")).alias("text"),
        F.make_valid_utf8("value").alias("record"),
    )


def rows_of_table(table: DataFrame) -> DataFrame:
    """All columns, and `record`.

    Raises:
        InputError: if there is such a column.
    """
    if "record" in table.columns:
        raise InputError("the table has a column 'record' already, which is for dead letters; rename or drop it first")
    return table.withColumn("record", F.to_json(F.struct("*")))


def scored(rows: DataFrame, scorer: ArrowScorer) -> DataFrame:
    """Rows with columns of scores. `record` stays where there is no text, and `status` is dead there.

    Raises:
        InputError, TypeError: as `ArrowScorer.schema`.
    """
    schema = from_arrow_schema(scorer.schema(to_arrow_schema(rows.schema)))  # no weights are loaded here
    text = F.try_validate_utf8(scorer.text)
    rows = rows.withColumns({"record": F.when(text.isNull(), F.col("record")), scorer.text: text})
    status = F.when(F.col(scorer.text).isNull(), "dead").otherwise(F.col("status"))
    return rows.mapInArrow(scorer.batches, schema).withColumn("status", status)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", required=True, help="files or directory, a path or URI that all machines can read")
    parser.add_argument("--format", default="json", help="of the input: json, parquet, orc, ... (default: json)")
    parser.add_argument("--output", required=True, help="a new directory")
    parser.add_argument("--text_field", default="text", help="column, or path in JSON (default: text)")
    parser.add_argument("--model", help="a bundle (default: the bundled one)")
    options = parser.parse_args()
    spark = session("scores")
    if options.format == "json":
        column, rows = "text", rows_of_lines(spark.read.text(options.input), options.text_field)
    else:
        column, rows = options.text_field, rows_of_table(spark.read.format(options.format).load(options.input))
    scored(rows, ArrowScorer(column, options.model)).write.partitionBy("status").parquet(options.output)
    for status, count in spark.read.parquet(options.output).groupBy("status").count().sort("status").collect():
        print(f"{status}: {count:,} rows")


if __name__ == "__main__":
    try:
        main()
    except (InputError, TypeError, AnalysisException) as error:
        raise SystemExit(f"error: {error}") from None
