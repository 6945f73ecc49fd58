"""Dotted paths into records: what is there, and conditions on it. Pure, no Beam."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

_NOTHING = object()


def look_up(record: dict[str, Any], path: str) -> Any:
    """The value under a name, or else under a dotted path of names; None where there is none.

    >>> look_up({"data": {"text": "hi"}}, "data.text")
    'hi'
    """
    return getter(path)(record)


@functools.lru_cache(4096)
def getter(path: str) -> Callable[[dict[str, Any]], Any]:
    """`look_up` for one path, as fast as can be."""
    if "." not in path:
        return lambda record: record.get(path)
    first, *names = path.split(".")

    def get(record: dict[str, Any]) -> Any:
        if path in record:
            return record[path]
        value: Any = record.get(first)
        if value is None:
            return None
        for name in names:
            if not isinstance(value, dict):
                return None
            value = value.get(name)
        return value

    return get


def holds(condition: str, record: dict[str, Any]) -> bool:
    """Whether each of some paths is there, maybe with null, or has one of the values that are named.

    >>> holds("id type=note|post", {"id": None, "type": "post"})
    True
    """
    for path, names, values in _parsed(condition):
        if path in record:
            value = record[path]
        else:
            value = record
            for name in names:
                value = value.get(name, _NOTHING) if isinstance(value, dict) else _NOTHING
                if value is _NOTHING:
                    return False
        if values and not (isinstance(value, str) and value in values):
            return False
    return True


@functools.lru_cache(1024)
def _parsed(condition: str) -> tuple[tuple[str, list[str], frozenset[str]], ...]:
    parts = (part.partition("=") for part in condition.split())
    return tuple((path, path.split("."), frozenset(filter(None, values.split("|")))) for path, _, values in parts)


def top(path: str) -> str:
    """The first name of a path."""
    return path.partition(".")[0]
