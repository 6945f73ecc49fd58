"""Which messages of a source the files of a data set are made from, so that a stream knows where to begin.

For each source, and each of its partitions, intervals of offsets [first, last]: `{"kafka:posts": {"0": [[0, 99]]}}`.
Messages that nothing is made from, notices for instance, are covered like the others. An interval may span offsets that
no message has.

A topic of Kafka has an id behind its name, where the brokers told one when a run began: `kafka:CLUSTER:TOPIC:ID`. A
source without it may be any of that name, so it counts as each of them.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Sequence

Intervals = list[list[int]]
"""Sorted, with a gap between each two."""
Covers = dict[str, dict[str, Intervals]]
"""By source and partition."""


def joined(intervals: Iterable[Sequence[int]]) -> Intervals:
    """Intervals in order, without overlaps.

    >>> joined([[7, 9], [0, 3], [4, 5], [2, 3]])
    [[0, 5], [7, 9]]
    """
    found: Intervals = []
    for first, last in sorted(map(tuple, intervals)):
        if found and first <= found[-1][1] + 1:
            found[-1][1] = max(found[-1][1], last)
        else:
            found.append([first, last])
    return found


def union(*parts: Covers) -> Covers:
    """What any of the parts covers.

    >>> union({"a": {"0": [[0, 3]]}}, {"a": {"0": [[4, 5]], "1": []}})
    {'a': {'0': [[0, 5]], '1': []}}
    """
    intervals: dict[str, dict[str, Intervals]] = {}
    for part in parts:
        for source, partitions in part.items():
            of_source = intervals.setdefault(source, {})
            for partition, some in partitions.items():
                of_source[partition] = [*of_source.get(partition, []), *some]
    return {
        source: {partition: joined(some) for partition, some in partitions.items()}
        for source, partitions in intervals.items()
    }


def is_same(one: str, other: str) -> bool:
    """Whether two names of sources may be of the same one.

    >>> is_same("kafka:c:posts", "kafka:c:posts:id"), is_same("kafka:c:posts:id", "kafka:c:posts:new")
    (True, False)
    """
    return f"{one}:".startswith(f"{other}:") or f"{other}:".startswith(f"{one}:")


def of_source(covers: Covers, source: str) -> dict[str, Intervals]:
    """What is covered of a source, by partition, under whichever name.

    >>> of_source({"a": {"0": [[0, 3]]}, "a:id": {"0": [[4, 5]]}, "b": {"0": [[6, 7]]}}, "a:id")
    {'0': [[0, 5]]}
    """
    return union(*({source: some} for name, some in covers.items() if is_same(name, source))).get(source, {})


def is_within(part: Covers, whole: Covers) -> bool:
    """Whether all that one covers is covered by the other."""
    return all(
        partition in known and joined([*known[partition], *some]) == known[partition]
        for source, partitions in part.items()
        for known in [of_source(whole, source)]
        for partition, some in partitions.items()
    )


def without(part: Covers, whole: Covers) -> Covers:
    """What is covered by one and not by the other.

    >>> without({"a": {"0": [[0, 9]], "1": [[3, 4]]}}, {"a": {"0": [[2, 3], [9, 12]]}})
    {'a': {'0': [[0, 1], [4, 8]], '1': [[3, 4]]}}
    """
    left: Covers = {}
    for source, partitions in part.items():
        known = of_source(whole, source)
        for partition, some in partitions.items():
            rest: Intervals = []
            for first, last in joined(some):
                for known_first, known_last in known.get(partition, []):
                    if known_first > last:
                        break
                    if known_first > first:
                        rest.append([first, known_first - 1])
                    first = max(first, known_last + 1)
                if first <= last:
                    rest.append([first, last])
            if rest:
                left.setdefault(source, {})[partition] = rest
    return left


def overlap(one: Covers, other: Covers) -> bool:
    """Whether anything is covered by both.

    >>> overlap({"a": {"0": [[0, 3]]}}, {"a": {"0": [[3, 5]]}}), overlap({"a": {"0": [[0, 3]]}}, {"a": {"1": [[0, 3]]}})
    (True, False)
    """
    return without(one, other) != without(one, {})


def first_uncovered(intervals: Intervals, offset: int) -> int:
    """The first offset from one on that is not covered.

    >>> first_uncovered([[0, 5], [7, 9]], 0), first_uncovered([[0, 5], [7, 9]], 6)
    (6, 6)
    """
    index = bisect.bisect_right(intervals, offset, key=lambda interval: interval[0]) - 1
    return max(offset, intervals[index][1] + 1) if index >= 0 else offset


def check(covers: Covers) -> None:
    """Raises:
    ValueError, TypeError, AttributeError: if these are no such intervals.
    """
    for partitions in covers.values():
        for partition, intervals in partitions.items():
            int(partition)
            for first, last in intervals:
                if not 0 <= first <= last:
                    raise ValueError(f"offsets {first} to {last} of partition {partition}")
