"""Rows as compact JSON for readers of a topic, without the vectors."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from datetime import date
from typing import Any

import pyarrow as pa

from transforms import metrics
from transforms.columns import LONG_COLUMNS

PUBLISHED_BYTES = 9_000_000
"""Pub/Sub takes no message above ten megabytes, with its attributes."""


def to_messages(batch: pa.RecordBatch) -> Iterator[tuple[bytes, bytes]]:
    """Key and content of each row."""
    fingerprint = (batch.schema.metadata or {}).get(b"torchmoji.fingerprint", b"").decode()
    rows = batch.drop_columns([name for name in LONG_COLUMNS if name in batch.schema.names]).to_pylist()
    metrics.counter(metrics.ROWS_PUBLISHED).inc(len(rows))
    for row in rows:
        content = {name: _plain(value) for name, value in row.items()} | {"fingerprint": fingerprint}
        yield row["id"].encode(), _bounded(content)


def _bounded(content: Mapping[str, Any]) -> bytes:
    """JSON that can be published: without the largest fields where it would be too long, and with their names."""
    encoded = _json(content)
    if len(encoded) <= PUBLISHED_BYTES:
        return encoded
    left_out: list[str] = []
    for name in sorted(content, key=lambda name: len(_json(content[name])), reverse=True):
        left_out.append(name)
        rest = {other: value for other, value in content.items() if other not in left_out}
        encoded = _json(rest | {"left_out": left_out})
        if len(encoded) <= PUBLISHED_BYTES:
            break
    return encoded


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def _plain(value: Any) -> Any:
    """A value as JSON has it: times as ISO 8601, probabilities to six digits, null for NaN and infinity."""
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else None
    if isinstance(value, date):  # datetime too
        return value.isoformat()
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return {name: _plain(item) for name, item in value.items()} if isinstance(value, dict) else value
