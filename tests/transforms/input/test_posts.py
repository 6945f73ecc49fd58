"""Records of any shape: each post of each is a tweet, a dead letter or a notice, and counted as such."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from torchmoji_core.errors import InputError
from transforms.input.fields import FieldMapping
from transforms.input.layouts import LAYOUTS, recognize
from transforms.input.posts import PostReader
from transforms.input.raw_records import Record
from transforms.records import DeadLetter, Tweet

NAMES = sorted({part for layout in LAYOUTS for name in layout.top_names for part in name.split(".")} - {""})
LEAVES = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["", "a", "7", "create", "t1", "<p>x"])
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=5),
    max_leaves=25,
)
RECORDS = st.lists(st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=6), min_size=1, max_size=4)


@pytest.mark.parametrize(
    "layout", ["auto", "each", *(layout.name for layout in LAYOUTS if layout.posts or layout.only)]
)
@settings(max_examples=20, deadline=None)
@given(RECORDS)
@example([{"items": {}, "snippet": {"textDisplay": None}}])  # a post that holds another
def test_nothing_is_in_no_count(layout: str, records: list[dict[str, Any]]) -> None:
    mapping = FieldMapping(layout="auto" if layout == "each" else layout, timestamp="auto")
    try:
        told = recognize(records) if layout == "auto" else None
    except InputError:
        told = None
    reader = PostReader(mapping, told)
    for number, record in enumerate(records):
        before = reader.counts["read"]
        found = [*reader.read(Record(number, record, b"raw"), "f", "f")]
        assert found, "a record gives something"
        assert reader.counts["read"] - before == len(found)
        for item in found:
            assert item is None or isinstance(item, Tweet | DeadLetter)
            if isinstance(item, Tweet):
                assert isinstance(item.text, str) and item.id
        positions = [item.position for item in found if isinstance(item, DeadLetter)]
        assert len(positions) == len(set(positions))
