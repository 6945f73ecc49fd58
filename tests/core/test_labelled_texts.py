"""Files of labelled texts are read alike whatever their format; every fault is named with its row."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from torchmoji_core.errors import InputError
from torchmoji_core.training.labelled_texts import LabelledTexts, one_hot, read_labelled_texts

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


def test_one_hot() -> None:
    assert one_hot(np.array([1, 0]), 3).tolist() == [[False, True, False], [True, False, False]]
    assert one_hot(np.array([[1.0, 0], [1, 1]]), 2).tolist() == [[True, False], [True, True]]


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
        ("data.txt", b"a text\n", r"must end in \.parquet, \.csv or \.jsonl"),
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


# --- splits -------------------------------------------------------------------------------------------------------


def labelled(count: int, splits: list[str] | None = None) -> LabelledTexts:
    labels = np.arange(count) % 2
    return LabelledTexts([f"text {row}" for row in range(count)], labels, ("no", "yes"), splits and np.array(splits))


def test_without_splits_a_tenth_each_to_validate_and_to_test() -> None:
    parts, again, other = labelled(200).split(1), labelled(200).split(1), labelled(200).split(2)
    assert {name: len(part.texts) for name, part in parts.items()} == {"train": 162, "val": 18, "test": 20}
    texts = [text for part in parts.values() for text in part.texts]
    assert sorted(texts) == sorted(labelled(200).texts)
    for name, part in parts.items():
        assert part.texts == again[name].texts != other[name].texts
        assert all(int(text.split()[1]) % 2 == label for text, label in zip(part.texts, part.labels, strict=True))


def test_without_validation_rows_a_tenth_of_the_training_rows() -> None:
    parts = labelled(40, ["train", "test"] * 10 + ["train"] * 20).split(1)
    assert {name: len(part.texts) for name, part in parts.items()} == {"train": 27, "val": 3, "test": 10}


@pytest.mark.parametrize(
    ("labels", "splits", "message"),
    [
        ([0, 1, 0], ["test"] * 3, "no rows to validate on|no rows to train on"),
        ([1, 1, 0], ["train", "train", "val"], "all training texts are of class 'yes'"),
        ([0, 1, 0], ["train", "train", "val"], "class 'maybe' has no training text"),
    ],
)
def test_nothing_to_learn_from(labels: list[int], splits: list[str], message: str) -> None:
    classes = ("no", "yes", "maybe")
    with pytest.raises(InputError, match=message):
        LabelledTexts(["a", "b", "c"], np.array(labels), classes, np.array(splits)).split(1)


def test_a_class_that_holds_always_is_left_out() -> None:
    labels = np.array([[True, True], [True, False], [True, True]])
    with pytest.raises(InputError, match="class 'x' holds for all training texts or for none"):
        LabelledTexts(["a", "b", "c"], labels, ("x", "y"), np.array(["train", "train", "val"])).split(1)
