"""WriteDeadLetters: whatever was rejected is kept, byte by byte."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import apache_beam as beam
from apache_beam.transforms.window import (
    FixedWindows,
    TimestampedValue,
)

from tests.transforms.conftest import Run
from tests.transforms.output.batches import HOUR, parts
from transforms import WriteDeadLetters, metrics
from transforms.records import DeadLetter

LETTERS = [
    DeadLetter("x.jsonl", "17", "not JSON: Expecting value", b'{"text": '),
    DeadLetter("x.jsonl", "99", "not UTF-8", b"na\xefve \xff\xfe\0"),
    DeadLetter("s3://bucket/ünï.csv.gz", "0", "record has 1 fields", bytes(range(256)) * 10),
    DeadLetter("", "", "", b""),
    DeadLetter("x.txt", "5", 'quotes " and\nnewlines\u2028', "☕\r\n".encode()),
    DeadLetter("name-\udcff.txt", "half \ud83d", "lone \udc00 surrogates", b"x"),
]


def test_dead_letters_survive_as_json_lines(run: Run, tmp_path: Path) -> None:
    """With any bytes; and with lone surrogates, as names of files can have them: those once ended the run."""

    def build(pipeline: beam.Pipeline) -> Mapping[str, beam.PCollection[Any]]:
        return {"files": pipeline | beam.Create(LETTERS) | WriteDeadLetters(str(tmp_path), "run")}

    ran = run(build)
    found = []
    for path in parts(tmp_path):
        assert path.parent == tmp_path / "_dead_letters"
        for line in path.read_bytes().splitlines():
            fields = json.loads(line)
            assert list(fields) == ["source", "position", "reason", "raw", "text"]
            raw = base64.b64decode(fields["raw"], validate=True)
            assert fields["text"] == raw.decode("utf-8", "replace")
            found.append(DeadLetter(fields["source"], fields["position"], fields["reason"], raw))
    assert sorted(found) == sorted(LETTERS)
    assert ran.count(metrics.DEAD) == len(LETTERS)
    counted: dict[str, int] = {}
    for file in ran["files"]:
        content = Path(file.final).read_bytes()
        assert (file.bytes_, file.sha256) == (len(content), hashlib.sha256(content).hexdigest())
        assert file.rows == len(content.splitlines())
        for source, n in file.sources.items():
            counted[source] = counted.get(source, 0) + n
    assert counted == {"x.jsonl": 2, "s3://bucket/ünï.csv.gz": 1, "": 1, "x.txt": 1, "name-\ufffd.txt": 1}
    assert ran.count(metrics.FILES_WRITTEN) == len(ran["files"]) == len(parts(tmp_path))
    assert ran.count(metrics.ROWS_WRITTEN) == 0


def test_dead_letters_of_windows(run: Run, tmp_path: Path) -> None:
    def build(pipeline: beam.Pipeline) -> Mapping[str, beam.PCollection[Any]]:
        letters = pipeline | beam.Create(
            [TimestampedValue(DeadLetter("x", str(second), "bad", b""), second) for second in (5, 10, HOUR)]
        )
        return {"files": letters | beam.WindowInto(FixedWindows(HOUR)) | WriteDeadLetters(str(tmp_path), "run")}

    run(build)
    found = {str(path.parent.relative_to(tmp_path)): len(path.read_text().splitlines()) for path in parts(tmp_path)}
    assert found == {"_dead_letters/date=1970-01-01/hour=00": 2, "_dead_letters/date=1970-01-01/hour=01": 1}


def test_without_dead_letters_there_is_no_file(run: Run, tmp_path: Path) -> None:
    run(lambda pipeline: {"files": pipeline | beam.Create([]) | WriteDeadLetters(str(tmp_path), "run")})
    assert list(tmp_path.iterdir()) == []
