"""Files of labelled texts are read alike whatever their format; every fault is named with its row."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from tests.transforms import forged_parquet as forged
from tests.transforms.input.test_hostile_files import PEAK, ROOT
from torchmoji_core.errors import InputError
from torchmoji_core.training.labelled_texts import LabelledTexts
from transforms.input import training_data
from transforms.input.training_data import EmojiFile, read_labelled_texts

TEXTS = ["so happy", 'a "quoted", text', "two\nlines", "null", "grüße", "again"]
FORMATS = (".parquet", ".csv", ".csv.gz", ".jsonl", ".jsonl.gz", ".ndjson")


def write(path: Path, **columns: list[Any]) -> Path:
    """In the format that the name says."""
    table = pa.table(columns)
    if ".parquet" in path.name:
        pq.write_table(table, path)
        return path
    if ".csv" in path.name:
        sink = pa.BufferOutputStream()
        pa.csv.write_csv(table, sink)
        content = sink.getvalue().to_pybytes()
    else:
        content = "".join(json.dumps(row) + "\n" for row in table.to_pylist()).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def read(path: Path, classes: tuple[str, ...] = ()) -> LabelledTexts:
    return read_labelled_texts(path, "text", "label", "split", classes)


@pytest.mark.parametrize("suffix", FORMATS)
def test_all_formats_say_the_same(tmp_path: Path, suffix: str) -> None:
    splits = ["train", "train", "dev", "validation", "test", "TRAIN"]
    data = read(write(tmp_path / f"data{suffix}", text=TEXTS, label=[2, 0, 1, 1, 0, 2], split=splits))
    assert data.texts == TEXTS
    assert data.labels.tolist() == [2, 0, 1, 1, 0, 2] and data.classes == ("0", "1", "2")
    assert data.splits is not None and data.splits.tolist() == ["train", "train", "val", "val", "test", "train"]


@pytest.mark.parametrize(
    ("labels", "classes", "expected", "names"),
    [
        ([0, 2, 1, 0, 1, 2], (), [0, 2, 1, 0, 1, 2], ("0", "1", "2")),
        ([0.0, 2.0, 1.0, 0.0, 1.0, 2.0], (), [0, 2, 1, 0, 1, 2], ("0", "1", "2")),
        ([True, False, True, True, False, True], ("no", "yes"), [1, 0, 1, 1, 0, 1], ("no", "yes")),
        (["b", "a", "c", "a", "a", "b"], (), [1, 0, 2, 0, 0, 1], ("a", "b", "c")),
        (["b", "a", "c", "a", "a", "b"], ("c", "b", "a"), [1, 2, 0, 2, 2, 1], ("c", "b", "a")),
        ([0, 1, 1, 0, 1, 0], ("sad", "glad"), [0, 1, 1, 0, 1, 0], ("sad", "glad")),
    ],
)
def test_one_label_of_each_text(
    tmp_path: Path, labels: list[Any], classes: tuple[str, ...], expected: list[int], names: tuple[str, ...]
) -> None:
    data = read(write(tmp_path / "data.parquet", text=TEXTS, label=labels), classes)
    assert (data.labels.tolist(), data.classes, data.multi_label) == (expected, names, False)


@pytest.mark.parametrize(
    ("labels", "classes", "names"),
    [
        ([[True, False], [False, False], [True, True]] * 2, (), ("0", "1")),
        ([[1, 0], [0, 0], [1, 1]] * 2, ("fear", "joy"), ("fear", "joy")),
        ([["fear"], [], ["joy", "fear"]] * 2, (), ("fear", "joy")),
    ],
)
def test_several_labels_of_a_text(
    tmp_path: Path, labels: list[Any], classes: tuple[str, ...], names: tuple[str, ...]
) -> None:
    for suffix in (".parquet", ".jsonl"):
        data = read(write(tmp_path / f"data{suffix}", text=TEXTS, label=labels), classes)
        assert data.labels.tolist() == [[True, False], [False, False], [True, True]] * 2
        assert (data.classes, data.multi_label) == (names, True)


@pytest.mark.parametrize(
    ("columns", "classes", "message"),
    [
        ({"label": [0, 1, None]}, (), "row 3: no 'label'"),
        ({"label": [0.0, float("nan"), 1.0]}, (), "row 2: no 'label'"),
        ({"label": [0.0, 0.5, 1.0]}, (), "row 2: 'label' is 0.5; expected a whole number"),
        ({"label": [0, 1, -1]}, (), r"row 3: 'label' is -1, outside the classes \(0 to 999\)"),
        ({"label": [0, 1, 5]}, ("no", "yes"), r"row 3: 'label' is 5, outside the classes \(no, yes\)"),
        ({"label": ["a", "b", "d"]}, ("a", "b"), "row 3: 'label' is 'd', outside"),
        ({"label": ["a", "b", "a"]}, ("a", "b", "a"), "a class is named twice"),
        ({"label": [[1, 0], [1, 0, 1], [0, 0]]}, (), r"row 1: 'label' is \[1, 0\]; expected 3 of 0 or 1"),
        ({"label": [[1, 0], [1, 2], [0, 0]]}, (), r"row 2: 'label' is \[1, 2\]; expected 2 of 0 or 1"),
        ({"label": [["x"], ["y"], ["z"]]}, ("x", "y"), "row 3: 'label' is 'z', outside"),
        ({"label": [0, 1, 0], "text": ["a", " \t", "c"]}, (), "row 2: the text is empty"),
        ({"label": [0, 1, 0], "text": ["a", None, "c"]}, (), "row 2: 'text' is None, not a text"),
        ({"label": [0, 1, 0], "text": [1, 2, 3]}, (), "row 1: 'text' is 1, not a text"),
        ({"label": [0, 1, 0], "split": ["train", "val", "later"]}, (), "row 3: split 'later' is unknown"),
        ({"label": [], "text": []}, (), "no rows"),
    ],
)
def test_a_row_at_fault_is_named(
    tmp_path: Path, columns: dict[str, list[Any]], classes: tuple[str, ...], message: str
) -> None:
    path = write(tmp_path / "data.parquet", **({"text": ["a", "b", "c"]} | columns))
    with pytest.raises(InputError, match=message) as error:
        read(path, classes)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("data.parquet", b"PAR1 and no more", "cannot be read"),
        ("data.csv", b"text,label\nfine,1\nno label\n", "cannot be read"),
        ("data.jsonl", b'{"text": "a", "label": 1}\n{"text": ', "cannot be read"),
        ("data.jsonl.gz", b"not compressed", "cannot be read"),
        ("data.csv", b"", "cannot be read"),
        ("data.csv", b"label\n1\n", "no column 'text'; it has 'label'"),
        ("data.txt", b"a text\n", r"must end in \.parquet, \.csv, \.tsv or \.jsonl"),
        ("data", b"a text\n", "must end in"),
    ],
)
def test_a_file_that_cannot_be_read(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message) as error:
        read(tmp_path / name)
    assert "\n" not in str(error.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read(tmp_path / "nowhere.parquet")


# --- what hostile files can ask for --------------------------------------------------------------------------------

EMOJI_ROW = {"text": "so happy", "emoji": "😂", "emojis": ["😂"], "split": "train"}


def nested_parquet(depth: int) -> bytes:
    """The label is a list in a list in a list ..."""
    values: Any = pa.array(["deep"])
    for _ in range(depth):
        values = pa.ListArray.from_arrays(pa.array([0, 1], pa.int32()), values)
    return forged.write(pa.table({"text": ["so happy"], "label": values}))


def one_row_again(rows: int) -> bytes:
    """A small file that has one row, and says so for each of many."""
    same = np.zeros(rows, np.int32)
    columns = {
        name: pa.DictionaryArray.from_arrays(pa.array(same), pa.array([value]))
        for name, value in (("text", "so happy"), ("label", "glad"), ("emoji", "😂"), ("split", "train"))
    }
    columns["emojis"] = pa.array([["😂"]] * 2).take(pa.array(same))
    return forged.write(pa.table(columns), store_schema=False, row_group_size=rows, data_page_size=1 << 30)


LONG = b"so happy" * 12_500 + b",1\n"
LINE = b'{"text": "so happy", "label": "glad"}\n'
HOSTILE: dict[str, tuple[str, Callable[[], bytes], str]] = {
    "nested 100,000 deep": (
        "x.jsonl", lambda: b'{"text": "a", "label": ' + b"[" * 100_000 + b"\n", "row 1: .*not JSON",
    ),
    "closed, and nested 100,000 deep": (
        "x.jsonl",
        lambda: LINE + b'{"text": "a", "label": ' + b"[" * 100_000 + b"]" * 100_000 + b"}\n",
        "row 2: .*not JSON",
    ),
    "nested 900 deep": (
        "x.jsonl",
        lambda: b'{"text": "a", "label": ' + b"[" * 900 + b"]" * 900 + b"}\n",
        "expected a whole number, a name, or a list",
    ),
    "a column that is not asked for, nested": (
        "x.json",
        lambda: b'{"text": "a", "label": 1, "x": ' + b'{"a":' * 50_000 + b"\n",
        "row 1: .*not JSON",
    ),
    "a line of 17 MiB": ("x.jsonl", lambda: LINE + b'{"text": "' + b"a" * (17 << 20) + b'"}\n', "row 2: .*16 MiB"),
    "a line that never ends, compressed": (
        "x.jsonl.gz", lambda: gzip.compress(b"a" * (100 << 20)), "row 1: .*longer than 16 MiB",
    ),
    "a bomb": ("x.csv.gz", lambda: gzip.compress(b"text,label\n" + LONG * 1000), "200 times"),
    "a number of 10,000 digits": ("x.jsonl", lambda: b'{"text": "a", "label": ' + b"9" * 10_000 + b"}", "not JSON"),
    "a number of 4,000 digits": ("x.jsonl", lambda: b'{"text": "a", "label": ' + b"9" * 4_000 + b"}", "outside the"),
    "1e308": ("x.jsonl", lambda: b'{"text": "a", "label": 1e308}', "outside the classes"),
    "a label of a megabyte": (
        "x.jsonl", lambda: b'{"text": "a", "label": "' + b"x" * 1_000_000 + b'"}', "row 1: .*at most 256 characters",
    ),
    "a list of a million": (
        "x.jsonl", lambda: b'{"text": "a", "label": [' + b"0," * 1_000_000 + b"0]}", "has lists of 1,000,001",
    ),
    "a label that ends the line": (
        "x.jsonl", lambda: LINE + b'{"text": "a", "label": "glad\\nfailed: x"}\n', "row 2: a class .* must be one line",
    ),
    "a label that commands a terminal": (
        "x.csv", lambda: b"text,label\na,b\na,\x1b[31mred\n", r"row 2: .*not '\\x1b\[31mred'",
    ),
    "a label that is half a character": (
        "x.jsonl", lambda: LINE + b'{"text": "a", "label": "\\ud800"}\n', r"row 2: .*not '\\ud800'",
    ),
    "labels of two kinds": (
        "x.jsonl", lambda: LINE + b'{"text": "a", "label": 1}\n', "rows 1 and 2: 'label' is a number in one",
    ),
    "not UTF-8": ("x.jsonl", lambda: LINE + b'{"text": "\xff"}\n', "row 2: .*not UTF-8"),
    "CSV that is not UTF-8": ("x.csv", lambda: b"text,label\na,b\n\xff,b\n", "row 2: .*not UTF-8"),
    "a quote without an end": ("x.csv", lambda: b'text,label\na,"b\n' + LONG * 200, "row 1: .*16 MiB"),
    "Parquet nested 1,000 deep": ("x.parquet", lambda: forged.forge(forged.whole(), forged.nest(1000)), "nested"),
    "Parquet's lists nested 40 deep": ("x.parquet", lambda: nested_parquet(40), "expected a whole number, a name"),
    "Parquet's 2^62 rows": ("x.parquet", lambda: forged.forge(forged.whole(), forged.claim_rows(1 << 62)), "claims"),
    "rows that are not there": (
        "x.parquet", lambda: forged.forge(forged.whole(), forged.claim_rows(10**9)), "cannot be read",
    ),
    "one row a million times": ("x.parquet", lambda: one_row_again(10**6), "times the size of the file"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_ends_in_one_line(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_data, "MAX_KEPT_BYTES", 32 << 20)
    path, make, message = HOSTILE[name]
    (tmp_path / path).write_bytes(make())
    with pytest.raises(InputError, match=message) as error:
        read(tmp_path / path)
    assert "\n" not in str(error.value) and len(str(error.value)) < 1000


@pytest.mark.parametrize("name", ["x.jsonl", "x.csv", "x.parquet"])
def test_a_pipe_is_no_data(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(InputError, match="named pipe"):
        read(tmp_path / name)


TRAIN = f"""{PEAK}
import sys
from pathlib import Path
from tests.transforms.input.test_training_data import EmojiFile, InputError, read, training_data
training_data.MAX_KEPT_BYTES = 32 << 20
for path in sorted(Path(sys.argv[1]).iterdir()):
    for load in (lambda: read(path), lambda: list(EmojiFile(path).batches(["text", "emojis"]))):
        try:
            load()
        except InputError:
            pass
        else:
            sys.exit(f"{{path}} was read")
print(peak())
"""


def test_hostile_files_take_bounded_memory_and_end_no_process(tmp_path: Path) -> None:
    """In a process of their own, both as labelled texts and as emojis: a JSON line of 200 kB ended it by SIGSEGV."""
    for number, (name, make, _) in enumerate(HOSTILE.values()):
        (tmp_path / f"{number:02}-{name}").write_bytes(make())
    command = [sys.executable, "-c", TRAIN, str(tmp_path)]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert finished.returncode == 0, (finished.returncode, finished.stderr[-1000:])
    assert int(finished.stdout) < 1500


# --- labels in CSV -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "expected", "classes"),
    [
        (["1", " 0", "+2"], [1, 0, 2], ("0", "1", "2")),
        (["1.0", "0", "2e0"], [1, 0, 2], ("0", "1", "2")),
        (["true", "False", "TRUE"], [1, 0, 1], ("0", "1")),
        (["1", "b", "1.5"], [0, 2, 1], ("1", "1.5", "b")),
        (["2020-01-01", "1_000", "12:30"], [2, 1, 0], ("12:30", "1_000", "2020-01-01")),
    ],
)
def test_labels_of_csv_are_what_they_all_look_like(
    tmp_path: Path, labels: list[str], expected: list[int], classes: tuple[str, ...]
) -> None:
    path = tmp_path / "data.csv"
    path.write_text("text,label\n" + "".join(f"some text,{label}\n" for label in labels))
    data = read(path)
    assert (data.labels.tolist(), data.classes) == (expected, classes)


def test_a_missing_number_in_csv_is_named(tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_text("text,label\na,1\nb,nan\n")
    with pytest.raises(InputError, match="row 2: no 'label'"):
        read(tmp_path / "data.csv")


# --- emojis --------------------------------------------------------------------------------------------------------


def test_a_file_of_emojis_is_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [EMOJI_ROW | {"text": f"text {number}"} for number in range(10)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "x")  # whatever its name
    monkeypatch.setattr(training_data, "BATCH_ROWS", 4)
    batches = list(EmojiFile(tmp_path / "x").batches(["text", "emojis"]))
    assert [len(batch["text"]) for batch in batches] == [4, 4, 2]
    assert [text for batch in batches for text in batch["text"]] == [row["text"] for row in rows]
    assert batches[0].keys() == {"text", "emojis"} and batches[0]["emojis"][0] == ["😂"]


def test_the_identity_of_a_file_of_emojis_changes_with_it(tmp_path: Path) -> None:
    file = EmojiFile(tmp_path / "x")
    with pytest.raises(InputError, match="no such file"):
        _ = file.identity
    (tmp_path / "x").write_bytes(b"a")
    before = file.identity
    assert file.identity == before
    (tmp_path / "x").write_bytes(b"bb")
    assert file.identity != before


@pytest.mark.parametrize("missing", EMOJI_ROW)
def test_a_missing_column_of_emojis(tmp_path: Path, missing: str) -> None:
    pq.write_table(pa.Table.from_pylist([EMOJI_ROW]).drop_columns([missing]), tmp_path / "x.parquet")
    with pytest.raises(InputError, match=f"no column '{missing}'; expected Parquet with columns text, emoji, emojis"):
        list(EmojiFile(tmp_path / "x.parquet").batches(list(EMOJI_ROW)))


@pytest.mark.parametrize("content", [None, b"", b"text,emoji\n", b"PAR1 and no more"])
def test_what_is_no_parquet_file(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "data.parquet"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"data\.parquet"):
        list(EmojiFile(path).batches(["text"]))
