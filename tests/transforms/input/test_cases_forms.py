"""Files as people have them, kept beside the repository: what each gives, or the line that says what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipelines.runs.inputs import list_inputs
from torchmoji_core.errors import InputError
from transforms.input.formats import absolute, read_records
from transforms.input.forms import FormOptions
from transforms.input.raw_records import Damage, Record
from transforms.input.recognition import recognize

CASES = Path(__file__).parents[4] / "shared" / "cases" / "input"
pytestmark = pytest.mark.skipif(not CASES.is_dir(), reason="the folder of cases is not here")


def read(path: str, **options: Any) -> list[Record | Damage]:
    found: list[Record | Damage] = []
    form = FormOptions(**options)
    for file in list_inputs([absolute(str(CASES / path))], form.format).files:
        if file.endswith("expect.txt"):
            continue
        with open(file, "rb") as opened:  # noqa: PTH123
            for each in recognize(opened, file, form):
                found += read_records(opened, each, path=file)
    return found


def values(path: str, **options: Any) -> list[Any]:
    found = read(path, **options)
    assert all(isinstance(record, Record) for record in found), found
    return [record.value for record in found if isinstance(record, Record)]


def reasons(path: str, **options: Any) -> list[str]:
    return [record.reason for record in read(path, **options) if isinstance(record, Damage)]


def texts(path: str, field: str = "text", **options: Any) -> list[str]:
    return [value[field] for value in values(path, **options)]


def refusal(path: str, **options: Any) -> str:
    with pytest.raises(InputError) as caught:
        read(path, **options)
    return str(caught.value)


def test_06_archive() -> None:
    tweets = [value["tweet"] for value in values("06-archive-tweets-js/tweets.js")]
    assert [tweet["id_str"][-1] for tweet in tweets] == ["1", "2"]
    assert all(tweet["full_text"] for tweet in tweets)


def test_08_sentiment140() -> None:
    said = refusal("08-sentiment140/s140.csv")
    assert "--no_header" in said and "--columns" in said and "--encoding" in said
    names = ("target", "id", "date", "flag", "user", "text")
    rows = values("08-sentiment140/s140.csv", columns=names, no_header=True, encoding="latin-1")
    assert len(rows) == 3 and "café" in rows[1]["text"]
    assert len(values("08-sentiment140/with-header.csv")) == 2


def test_10_utf_16() -> None:
    assert texts("10-utf16/excel.tsv")[0] == texts("10-utf16/powershell.jsonl")[0] == "so happy today"
    assert values("10-utf16/excel-unicode-text.txt")[0] == "so happy today"


def test_11_semicolons() -> None:
    assert texts("11-semicolon-csv/got.csv") == ["happy new year, everyone; see you", "back to work"]


def test_12_duplicate_columns() -> None:
    assert "column text is there twice" in refusal("12-duplicate-columns/joined.csv")


def test_13_array() -> None:
    assert texts("13-json-array/compact.json") == ["so happy today", "I hate this weather"]


def test_14_packed() -> None:
    for name in ("tweets.csv.zip", "tweets.jsonl.xz", "gz-without-suffix.jsonl"):
        assert texts(f"14-zip-xz-gz/{name}") == ["so happy today", "I hate this weather"], name


def test_15_repeated_header() -> None:
    first, again, second = read("15-repeated-header/appended.csv")
    assert isinstance(first, Record) and isinstance(again, Damage) and isinstance(second, Record)


def test_17_quotes_in_tsv() -> None:
    assert len(values("17-tsv-quotes/semeval.tsv")) == 4
    assert texts("17-tsv-quotes/semeval2.tsv") == ['"quoted" words first', "love this song"]


def test_30_decimal_ids() -> None:
    assert [value["id"] for value in values("30-parquet-decimal-ids/lower.parquet")] == [
        1400000000000000001, 1400000000000000002,
    ]  # fmt: skip


def test_32_double_ids() -> None:
    assert all(isinstance(value["id"], float) for value in values("32-parquet-double-ids/pandas.parquet"))


def test_33_spark_directory() -> None:
    assert len(values("33-spark-directory")) == 2


def test_34_hive_directory() -> None:
    assert [value["lang"] for value in values("34-hive-directory")] == ["en", "es"]


def test_36_arrow() -> None:
    for name in ("data-00000-of-00001.arrow", "tweets.feather"):
        assert texts(f"36-arrow-feather/{name}") == ["so happy today", "I hate this weather"], name


def test_40_long_window() -> None:
    (said,) = reasons("40-reddit-long-window-zst/RC_2020-01.jsonl.zst")
    assert "zstd -d --long=31" in said and "--long_window" in said
    assert "--long_window" in refusal("40-reddit-long-window-zst/RC_2020-01.zst")
    for name in ("RC_2020-01.jsonl.zst", "RC_2020-01.zst"):
        assert len(texts(f"40-reddit-long-window-zst/{name}", "body", long_window=True)) == 3


def test_43_glob_characters() -> None:
    for name in ("tweets [2020].jsonl", "tweets[1].jsonl", "what?.jsonl"):
        assert texts(f"43-glob-characters/{name}") == ["so happy today"], name
    assert texts("43-glob-characters/two/tweets[1].jsonl") == ["so happy today"]


def test_49_line_separators() -> None:
    assert len(values("49-line-separators/ls.txt")) == len(values("49-line-separators/ls.csv")) == 2
    assert len(values("49-line-separators/ls.jsonl")) == 1


def test_50_cp1252() -> None:
    (said,) = reasons("50-cp1252-csv/clean.csv")
    assert "--encoding cp1252" in said
    assert texts("50-cp1252-csv/clean.csv", "Tweet", encoding="cp1252") == ["I can’t wait", "so happy today"]


def test_51_rows_of_a_pipe() -> None:
    assert len(values("51-pipe/rows.csv")) == 3000
