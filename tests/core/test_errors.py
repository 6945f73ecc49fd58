"""What is said of errors, and what the numbers of the system's errors tell of."""

from __future__ import annotations

import errno
import os

import pytest

from torchmoji_core.errors import (
    DISK,
    FILES,
    MEMORY,
    SHORTAGES,
    Fault,
    Shortage,
    UnavailableError,
    fault_of,
    is_outage,
    may_pass,
    shortage_of,
    shortened,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("as it is", "as it is"),
        (" of\ntwo  lines ", "of two lines"),
        ("words that do not fit", "words that ..."),
        ("a-word-that-is-long", "a-word-that- ..."),
    ],
)
def test_what_is_too_long_ends_with_a_word_and_dots(text: str, expected: str) -> None:
    assert shortened(text, 16) == expected


@pytest.mark.parametrize(
    ("number", "fault", "passes"),
    [
        (errno.ENOENT, Fault.FILE, False),
        (errno.EACCES, Fault.FILE, False),
        (errno.EISDIR, Fault.FILE, False),
        (errno.ENXIO, Fault.FILE, False),
        (errno.EROFS, Fault.USE, False),
        (errno.EEXIST, Fault.USE, False),
        (errno.EINVAL, Fault.USE, False),
        (errno.EIO, Fault.OUTAGE, True),
        (errno.ETIMEDOUT, Fault.OUTAGE, True),
        (errno.EPIPE, Fault.OUTAGE, True),
        (errno.ECONNREFUSED, None, True),
        (errno.ENOSPC, DISK, True),
        (errno.EMFILE, FILES, True),
        (errno.ENOMEM, MEMORY, True),
    ],
)
def test_a_number_tells_the_fault(number: int, fault: Fault | Shortage | None, passes: bool) -> None:
    error = OSError(number, os.strerror(number))
    assert fault_of(error) == fault
    assert may_pass(error) == passes
    assert is_outage(error) == (fault is Fault.OUTAGE)
    assert shortage_of(error) == (fault if isinstance(fault, Shortage) else None)


def test_an_address_does_not_mend_by_itself_and_a_store_that_is_down_does() -> None:
    assert fault_of(OSError("no number")) is None
    assert not may_pass(OSError("no such host"))
    assert may_pass(UnavailableError("no answer"))


@pytest.mark.parametrize("shortage", SHORTAGES, ids=lambda shortage: shortage.what)
def test_no_number_of_a_shortage_tells_of_another_fault(shortage: Shortage) -> None:
    assert {fault_of(OSError(code, "")) for code in shortage.codes} == {shortage}
