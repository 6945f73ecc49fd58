"""Files made to exhaust or crash what reads them: each is rows and dead letters, and costs its neighbours nothing."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import os
import re
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from tests.transforms.conftest import Run, make_texts
from tests.transforms.forged_parquet import (
    BINARY,
    I32,
    I64,
    LIST,
    MAX_I64,
    STRUCT,
    Encoded,
    Struct,
    claim_rows,
    columns_of,
    forge,
    forge_page,
    nest,
    whole,
    write,
)
from torchmoji_core.limits import MAX_EXPANDED_BYTES
from transforms import metrics
from transforms.input import compression, raw_records
from transforms.input.fields import FieldMapping, KeptField
from transforms.input.formats import read_records
from transforms.input.forms import Form
from transforms.input.inputs import InputFile
from transforms.input.parts import split_file, to_tweets
from transforms.input.posts import PostReader
from transforms.input.raw_records import Damage, Record
from transforms.input.read import ReadTweets
from transforms.input.recognition import recognize
from transforms.records import DeadLetter, Tweet

ROOT = Path(__file__).parents[3]
COMPRESS: dict[str, Callable[[bytes], bytes]] = {"gz": gzip.compress, "bz2": bz2.compress, "zst": zstandard.compress}


# --- bombs ---------------------------------------------------------------------------------------------------------


def gzip_stream(block: bytes, times: int) -> bytes:
    """One member that says the same block many times, as if all of it had been compressed."""
    compressor = zlib.compressobj(9, zlib.DEFLATED, -15)
    deflated = compressor.compress(block) + compressor.flush(zlib.Z_FULL_FLUSH)
    return b"\x1f\x8b\x08\0\0\0\0\0\0\xff" + deflated * times


BLOCK = (b" " * 65_535 + b"\n") * 64
BOMBS: dict[str, Callable[[], bytes]] = {
    "x.jsonl.gz": lambda: gzip_stream(BLOCK, 2500),  # 10 GB in 10 MB
    "x.csv.gz": lambda: gzip.compress(BLOCK) * 2500,  # members
    "x.jsonl.bz2": lambda: bz2.compress(BLOCK) * 25_000,  # 100 GB in 3 MB
    "x.tsv.zst": lambda: zstandard.compress(BLOCK) * 25_000,
    "x.txt.zst": lambda: zstandard.compress(b"\0" * (64 << 20)) * 1600,  # one line of 100 GB
}


class CountingFile(io.BytesIO):
    """Counts the bytes that are read."""

    count = 0

    def read(self, size: int | None = -1, /) -> bytes:
        content = super().read(size)
        self.count += len(content)
        return content


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_read_to_the_bound_and_no_further(name: str) -> None:
    file = CountingFile(BOMBS[name]())
    found = list(read_records(file, recognize(file, name)[0]))
    damage = found[-1]
    assert isinstance(damage, Damage)
    assert "the rest of the file is not read" in damage.reason and "decompress it yourself" in damage.reason
    assert damage.position <= MAX_EXPANDED_BYTES + (16 << 20)
    assert file.count < 1 << 20


@pytest.mark.parametrize("codec", COMPRESS)
@pytest.mark.parametrize("kind", ["text", "jsonl", "csv"])
def test_what_is_before_the_bound_is_given(kind: str, codec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compression, "MAX_EXPANDED_BYTES", 1 << 20)
    head = b"id,text\n1,good\n" if kind == "csv" else b'{"id": "1", "text": "good"}\n'
    found = list(read_records(io.BytesIO(COMPRESS[codec](head + b" " * (8 << 20))), Form(kind, (codec,))))
    assert isinstance(found[0], Record) and b"good" in found[0].raw
    assert isinstance(found[-1], Damage) and "is not read" in found[-1].reason
    assert len(found) == 2


@pytest.mark.parametrize("codec", COMPRESS)
def test_honest_rows_that_differ_in_their_ids_alone_are_no_bomb(codec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compression, "MAX_EXPANDED_BYTES", 0)
    rows = [
        json.dumps({"id": str(1_500_000_000_000 + 977 * n), "text": "the bus is late again"}) for n in range(20_000)
    ]
    content = COMPRESS[codec]("\n".join(rows).encode())
    found = list(read_records(io.BytesIO(content), Form("jsonl", (codec,))))
    assert len(found) == 20_000 and all(isinstance(record, Record) for record in found)


def test_gzip_padded_with_zeros_is_read() -> None:
    """As tapes and block devices leave it; Python's own reader allows it, too."""
    content = gzip.compress(b"one\n") + b"\0" * 5000 + gzip.compress(b"two\n") + b"\0" * 100_000
    found = list(read_records(io.BytesIO(content), Form("text", ("gz",))))
    assert [getattr(record, "value", None) for record in found] == ["one", "two"]


def test_a_million_empty_members_take_linear_time() -> None:
    """What is behind a member was once copied for each."""
    content = gzip.compress(b"") * 300_000 + gzip.compress(b"last\n")
    started = time.process_time()
    assert [record.raw for record in read_records(io.BytesIO(content), Form("text", ("gz",)))] == [b"last"]
    assert time.process_time() - started < 30


# --- JSON ----------------------------------------------------------------------------------------------------------

DEEP = sys.getrecursionlimit()
HUGE = "9" * 10_000
JSON_LINES = {
    "nested too deep": '{"text": "a", "kept": ' + "[" * 100_000 + "]" * 100_000 + "}",
    "nested objects": '{"text": "a", "kept": ' + '{"a":' * 50_000 + "1" + "}" * 50_001,
    "nested to the limit": '{"text": "a", "kept": ' + "[" * (DEEP // 2) + "]" * (DEEP // 2) + "}",
    "huge id": f'{{"text": "a", "id": {HUGE}}}',
    "huge kept number": f'{{"text": "a", "kept": {HUGE}}}',
    "huge time": f'{{"text": "a", "at": {HUGE}}}',
    "huge time as a string": f'{{"text": "a", "at": "{HUGE}"}}',
    "the most digits": f'{{"text": "a", "id": {"9" * 4300}, "kept": {"9" * 4300}, "at": 5}}',
    "the most digits as a time": f'{{"text": "a", "at": -{"9" * 4300}}}',
    "huge exponent": '{"text": "a", "kept": 1e999999999, "at": 5}',
    "not a number": '{"text": "a", "kept": {"x": [NaN, Infinity, 1.5]}}',
    "no number as a time": '{"text": "a", "at": NaN}',
    "no number as an id": '{"text": "a", "id": -Infinity}',
    "twice": '{"text": 5, "id": "1", "text": "a", "id": "twice"}',
    "surrogates": '{"text": "\\ud800 a \\udfff", "id": "\\udc00", "kept": {"\\ud800": "\\udfff"}}',
    "nul": '{"text": "a\\u0000b", "id": "\\u0000", "kept": "\\u0000"}',
    "long id": json.dumps({"text": "a", "id": "x" * (1 << 20)}),
    "a million fields": json.dumps({f"{n:x}": 0 for n in range(1_000_000)} | {"text": "a"}),
    "a long number": json.dumps({"text": "a", "at": "1" * (8 << 20)}),
}
ROWS = {
    "nested to the limit", "the most digits", "huge exponent", "not a number", "twice", "surrogates", "nul", "long id",
    "a million fields", "huge time as a string", "the most digits as a time", "no number as a time",
    "a long number",
}  # fmt: skip


@pytest.mark.parametrize("kind", ["json", "string", "float64", "int64", "timestamp", "date", "bool"])
def test_hostile_json_is_a_row_or_a_dead_letter(kind: str) -> None:
    mapping = FieldMapping(timestamp="at", keep=(KeptField("kept", kind),))
    for name, line in JSON_LINES.items():
        if len(line) > 1 << 20 and kind != "json":  # which differ from the others in their size alone
            continue
        content = f'{{"text": "before"}}\n{line}\n{{"text": "behind"}}\n'.encode()
        records = read_records(io.BytesIO(content), Form("jsonl"))
        before, outcome, behind = to_tweets(records, "x.jsonl", PostReader(mapping))
        assert (before.text, behind.text) == ("before", "behind"), name  # type: ignore[union-attr]
        assert isinstance(outcome, Tweet | DeadLetter)
        if kind == "json":
            assert isinstance(outcome, Tweet) == (name in ROWS), (name, outcome[:3])
        if isinstance(outcome, DeadLetter):
            assert len(outcome.reason) < 300 and len(outcome.raw) <= raw_records.RAW_KEPT


def test_kept_json_is_json() -> None:
    """A reader would refuse the whole column for one NaN."""
    value = {"x": [float("nan"), float("-inf"), 1.5, {"y": float("inf")}]}
    (tweet,) = to_tweets(
        iter([Record(0, {"text": "a", "kept": value}, b"")]),
        "x",
        PostReader(FieldMapping(keep=(KeptField("kept", "json"),))),
    )
    assert isinstance(tweet, Tweet)
    assert tweet.extra == ('{"x": [null, null, 1.5, {"y": null}]}',)


# --- CSV -----------------------------------------------------------------------------------------------------------


def csv_of_a_million_columns() -> bytes:
    names = ",".join(f"c{n}" for n in range(1_000_000))
    return f"id,text,{names}\n1,a{',x' * 1_000_000}\n2,b\n".encode()


CSV_FILES: dict[str, tuple[Callable[[], bytes], int, int]] = {  # rows and damages that come of it
    "an unclosed quote": (lambda: b'id,text\n1,a\n2,"b\n' + b"3,c\n" * 1000, 1001, 1),
    "a million columns": (csv_of_a_million_columns, 1, 1),
    "NUL bytes": (lambda: b"id,text\n1,a\0b\n\0,\0\n", 2, 0),
    "a header of 100 MB": (lambda: b"a," * 50_000_000 + b"\n1,2\n", 0, 1),
    "a header of commas": (lambda: b"id,text" + b"," * 4_000_000 + b"\n1,a" + b"," * 4_000_000 + b"\n", 1, 0),
}


@pytest.mark.parametrize("name", CSV_FILES)
def test_hostile_csv(name: str) -> None:
    make, rows, damages = CSV_FILES[name]
    found = list(read_records(io.BytesIO(make()), Form("csv")))
    records = [record for record in found if isinstance(record, Record)]
    assert len(found) - len(records) == damages
    assert len(records) == rows


# --- Parquet -------------------------------------------------------------------------------------------------------


def column(field: int, value: int) -> Callable[[Struct], None]:
    def change(footer: Struct) -> None:
        columns_of(footer)[-1][field] = (I64, value)

    return change


def page(field: int, value: int) -> Callable[[Struct], None]:
    return lambda header: header.update({field: (I32, value)})


def repeated(rows: int, text: str = "so happy") -> bytes:
    """A file that has one text once, and says so for each row."""
    texts = pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, dtype=np.int32)), pa.array([text]))
    return write(
        pa.table({"text": texts}), store_schema=False, row_group_size=rows, data_page_size=1 << 30, compression="zstd"
    )


def one_list(values: int, text: str) -> bytes:
    """One row whose list has one text many times."""
    texts = pa.DictionaryArray.from_arrays(pa.array(np.zeros(values, dtype=np.int32)), pa.array([text]))
    table = pa.table({"text": ["hi"], "tags": pa.LargeListArray.from_arrays(pa.array([0, values]), texts)})
    return write(table, store_schema=False, data_page_size=1 << 30, compression="zstd")


def histogram_of_another_size() -> bytes:
    def change(footer: Struct) -> None:
        for metadata in columns_of(footer):
            metadata[16] = (12, {3: (9, (I64, [1] * 7))})

    return forge(whole(), change)


MILLION = Encoded(1_100_000, b"\x18\0\0" * 1_100_000)  # keys and values of metadata, all empty
PLAIN = {"use_dictionary": False, "compression": "none"}
PARQUET: dict[str, tuple[Callable[[], bytes], int, int]] = {  # rows that are read, and the damages
    "whole": (whole, 10, 0),
    "2^62 rows": (lambda: forge(whole(), claim_rows(1 << 62)), 0, 1),
    "2^62 rows in the footer alone": (lambda: forge(whole(), claim_rows(1 << 62, everywhere=False)), 0, 1),
    "-1 rows": (lambda: forge(whole(), claim_rows(-1)), 0, 1),
    "a billion rows that are not there": (lambda: forge(whole(), claim_rows(10**9)), 10, 1),
    "a column of 2^62 bytes": (lambda: forge(whole(), column(7, 1 << 62)), 0, 1),
    "a column of -1 bytes": (lambda: forge(whole(), column(7, -1)), 0, 1),
    "a column behind the end": (lambda: forge(whole(**PLAIN), column(9, MAX_I64)), 0, 1),
    "a column in front of the beginning": (lambda: forge(whole(), column(11, -5)), 0, 1),
    "a page of 2 GB": (lambda: forge_page(whole(**PLAIN), page(2, (1 << 31) - 1)), 0, 1),
    "a page of 2 GB, compressed": (lambda: forge_page(whole(**PLAIN), page(3, (1 << 31) - 1)), 0, 1),
    "a page of -1 bytes": (lambda: forge_page(whole(**PLAIN), page(2, -1)), 0, 1),
    "a zstandard page of 2 GB": (
        lambda: forge_page(whole(compression="zstd", use_dictionary=False), page(2, (1 << 31) - 1)), 0, 1,
    ),
    "a zstandard page that does expand": (
        lambda: forge_page(
            whole(compression="zstd", use_dictionary=False), page(2, 1 << 30), zstandard.compress(bytes(1 << 30))
        ), 0, 1,
    ),
    "a long text said 200 times": (lambda: repeated(200, "a" * (17 << 20)), 0, 200),
    "a list of 20 million texts": (lambda: one_list(2 * 10**7, "so happy"), 0, 1),
    "a list of a million long texts": (lambda: one_list(10**6, "a" * 100_000), 0, 1),
    "nested 90 deep": (lambda: write(pa.table({"text": ["a"], "kept": nested(90)})), 1, 0),
    "nested 1,000 deep": (lambda: forge(whole(), nest(1000)), 0, 1),
    "nested 100,000 deep": (lambda: forge(whole(), nest(100_000)), 0, 1),
    "columns of the same name": (
        lambda: write(pa.table([pa.array(["1"]), pa.array(["a"]), pa.array(["b"])], ["id", "text", "text"])), 0, 1,
    ),
    "10,000 columns": (
        lambda: write(pa.table([pa.array(["a"])] * 10_000, names=["text", *(f"c{n}" for n in range(9999))])), 1, 0,
    ),
    "a footer of 17 MiB": (lambda: forge(whole(), lambda footer: footer.update({6: (BINARY, bytes(17 << 20))})), 0, 1),
    "a million parts of a footer": (
        lambda: forge(whole(), lambda footer: footer.update({5: (LIST, (STRUCT, MILLION))})), 0, 1,
    ),
    "a histogram of another size": (histogram_of_another_size, 0, 1),
    "a name that is not UTF-8": (
        lambda: forge(whole(), lambda footer: footer[2][1][1][-1].update({4: (BINARY, b"\xff")})), 0, 1,
    ),
    "truncated": (lambda: whole()[:-100], 0, 1),
    "encrypted": (lambda: whole()[:-4] + b"PARE", 0, 1),
    "no Parquet": (lambda: b"PAR1" * 100, 0, 1),
    "empty": (lambda: b"", 0, 1),
}  # fmt: skip


def nested(depth: int) -> pa.Array:
    array = pa.array(["deep"])
    for _ in range(depth):
        array = pa.StructArray.from_arrays([array], ["g"])
    return array


@pytest.fixture(scope="module")
def parquet_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("hostile")
    for number, (make, _, _) in enumerate(PARQUET.values()):
        (directory / f"{number:02}.parquet").write_bytes(make())
    return directory


PEAK = """
import re
def peak():
    with open("/proc/self/status") as status:
        return int(re.search(r"VmHWM:\\s+(\\d+)", status.read())[1]) // 1024
"""  # in MiB; getrusage would tell that of the process that started it, too
READ_ALL = f"""{PEAK}
import json, sys
from pathlib import Path
from transforms.input.formats import read_records
from transforms.input.forms import Form
from transforms.input.raw_records import Record
for path in sorted(Path(sys.argv[1]).iterdir()):
    rows, reasons = 0, []
    with path.open("rb") as file:
        for record in read_records(file, Form("parquet"), 0, 16384):
            rows += isinstance(record, Record)
            reasons += [] if isinstance(record, Record) else [record.reason]
    print(json.dumps(dict(rows=rows, reasons=reasons, peak=peak())), flush=True)
"""
SCORE = f"""{PEAK}
import atexit, runpy
atexit.register(lambda: print("peak", peak()))
runpy.run_module("pipelines.score", run_name="__main__")
"""


@pytest.fixture(scope="module")
def parquet_results(parquet_files: Path) -> list[dict[str, Any]]:
    """Every file read in a process of its own, which a fault in native code would end."""
    command = [sys.executable, "-c", READ_ALL, str(parquet_files)]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    results = [json.loads(line) for line in finished.stdout.splitlines()]
    assert finished.returncode == 0, (list(PARQUET)[len(results)], finished.returncode, finished.stderr[-1000:])
    return results


@pytest.mark.parametrize("name", PARQUET)
def test_hostile_parquet(name: str, parquet_results: list[dict[str, Any]]) -> None:
    result = parquet_results[list(PARQUET).index(name)]
    assert (result["rows"], len(result["reasons"])) == PARQUET[name][1:], result["reasons"][:3]
    assert all("\n" not in reason and len(reason) < 300 for reason in result["reasons"])


def test_hostile_parquet_takes_no_memory(parquet_results: list[dict[str, Any]]) -> None:
    """Before, 780 bytes took 7 GB."""
    assert parquet_results[-1]["peak"] < 1500


@pytest.mark.parametrize("options", [{}, {"use_dictionary": False}, {"data_page_version": "2.0"}])
@pytest.mark.parametrize("codec", ["none", "snappy", "gzip", "zstd", "brotli", "lz4"])
def test_honest_files_are_read(codec: str, options: dict[str, Any]) -> None:
    """Long and short texts, lists whose longest value is long, dictionaries."""
    rows = [{"id": str(n), "text": text, "tags": ["a", "b" * (n % 7)]} for n, text in enumerate(make_texts(3000))]
    rows[5] = {"id": "5", "text": "so happy " * 100_000, "tags": ["c" * 300_000]}
    content = write(pa.Table.from_pylist(rows), compression=codec, row_group_size=1000, **options)
    found = list(read_records(io.BytesIO(content), Form("parquet")))
    assert [record.value for record in found if isinstance(record, Record)] == rows


@pytest.mark.parametrize("claimed", [10**9, 1 << 32])
def test_parts_of_absurd_row_groups_are_few(claimed: int, tmp_path: Path) -> None:
    """Each of them decodes what is before it, so their number is what a row group costs."""
    path = tmp_path / "x.parquet"
    path.write_bytes(forge(whole(), claim_rows(claimed)))
    parts = list(split_file(InputFile(str(path), path.stat().st_size)))
    assert len(parts) <= 17
    assert (parts[0].start, parts[-1].end) == (0, claimed)


def test_ten_million_rows_in_a_tiny_file_are_rows(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    path.write_bytes(repeated(10**7))
    assert path.stat().st_size < 50_000
    parts = list(split_file(InputFile(str(path), path.stat().st_size)))
    assert sum(part.end - part.start for part in parts if part.end) == 10**7
    with path.open("rb") as file:
        *_, last = read_records(file, Form("parquet"), 10**7 - 10, 10**7)
    assert last == Record(10**7 - 1, {"text": "so happy"}, b"")


# --- in a run ------------------------------------------------------------------------------------------------------


def test_rows_that_a_parquet_file_only_claims_are_told_once_a_part(run: Run, tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_bytes(forge(whole(), claim_rows(40_000)))

    def read(pipeline: beam.Pipeline) -> dict[str, beam.PCollection]:
        outcome = pipeline | ReadTweets([f"{tmp_path}/*"])
        return {"tweets": outcome.results, "dead": outcome.dead_letters | beam.Flatten()}

    ran = run(read)
    assert len(ran["tweets"]) == 10
    told = sorted(tuple(map(int, re.findall(r"rows (\d+) to (\d+) ", letter.reason)[0])) for letter in ran["dead"])
    assert told == [(10, 16_383), (16_384, 32_767), (32_768, 39_999)]
    assert ran.count(metrics.READ) == len(ran["tweets"]) + len(ran["dead"])


def hostile_files(parquet_files: Path) -> Iterator[tuple[str, bytes]]:
    for name in ("x.jsonl.gz", "x.jsonl.bz2", "x.txt.zst"):
        yield f"bomb-{name}", BOMBS[name]()
    yield "bad.jsonl", "\n".join(JSON_LINES.values()).encode()
    for number, name in enumerate(("an unclosed quote", "NUL bytes", "a million columns")):
        yield f"bad{number}.csv", CSV_FILES[name][0]()
    for number, name in enumerate(PARQUET):
        if name not in ("whole", "10,000 columns", "a million parts of a footer", "nested 100,000 deep"):
            yield f"bad{number}.parquet", (parquet_files / f"{number:02}.parquet").read_bytes()


def test_a_run_scores_the_good_files_among_hostile_ones(parquet_files: Path, model: str, tmp_path: Path) -> None:
    """The whole command, in a process whose peak memory is that of any small run and a bounded amount."""
    inputs = tmp_path / "in"
    inputs.mkdir()
    good = {f"good-{n}": text for n, text in enumerate(make_texts(200))}
    rows = [json.dumps({"id": name, "text": text}) for name, text in good.items()]
    (inputs / "a.jsonl").write_text("\n".join(rows[:100]) + "\n")
    (inputs / "z.jsonl.gz").write_bytes(gzip.compress("\n".join(rows[100:]).encode()))
    hostile = dict(hostile_files(parquet_files))
    for name, content in hostile.items():
        (inputs / name).write_bytes(content)
    command = [
        sys.executable, "-c", SCORE, "--input", f"{inputs}/*", "--output", "out", "--model", model,
        "--max_dead_fraction", "1", "--progress", "off", "--threads", "1",
    ]  # fmt: skip
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    finished = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert finished.returncode == 0, finished.stderr[-2000:]
    assert int(finished.stdout.split()[-1]) < 2500

    table = pq.read_table(tmp_path / "out", columns=["id", "text", "status"]).to_pylist()
    scored = {row["id"]: row["text"] for row in table if row["id"].startswith("good-")}
    assert scored == good
    letters = [
        json.loads(line) for path in (tmp_path / "out/_dead_letters").iterdir() for line in path.open(encoding="utf-8")
    ]
    assert {Path(letter["source"]).name for letter in letters} >= {name for name in hostile if name.startswith("bomb")}
    (manifest,) = (tmp_path / "out/_manifests").iterdir()
    counts = json.loads(manifest.read_text())["counts"]
    assert counts["read"] == counts["scored"] + counts.get("empty", 0) + counts["dead"]
    assert counts["dead"] == len(letters)
    assert len(table) == counts["scored"] + counts.get("empty", 0)
