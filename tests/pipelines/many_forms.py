"""The same few tweets in a directory of files in many forms."""

from __future__ import annotations

import gzip
import io
import json
from pathlib import Path

import pyarrow as pa
from pyarrow import feather

from tests.archives import zip_of

TEXTS = [f"so happy number {number}" for number in range(6)]
LINES = "".join(json.dumps({"id": str(number), "text": text}) + "\n" for number, text in enumerate(TEXTS)).encode()


def in_many_forms(directory: Path) -> int:
    """The same tweets in so many files and members; others that are passed over."""
    rows = [json.loads(line) for line in LINES.splitlines()]
    table = "id;text\n" + "".join(f"{row['id']};{row['text']}\n" for row in rows)
    buffer = io.BytesIO()
    feather.write_feather(pa.Table.from_pylist(rows), buffer)
    files = {
        "utf16.csv": table.encode("utf-16"),
        "array.json": json.dumps(rows, indent=1).encode(),
        "tweets.js": f"window.YTD.tweets.part0 = {json.dumps(rows)}".encode(),
        "x.feather": buffer.getvalue(),
        "lies.jsonl": gzip.compress(LINES),
        "members.zip": zip_of({"a.jsonl": LINES, "b.csv": table.encode(), "COPYING": b"x"}),
        "lang=en/deep/x.jsonl": LINES,
        "_temporary/x.jsonl": b"not read",
        "lang=en/.hidden/x.jsonl": b"not read",
        "_SUCCESS": b"",
    }
    for name, content in files.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(content)
    return 8
