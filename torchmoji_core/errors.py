"""The errors a user can cause, and which errors are the machine's; the command lines print messages alone."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
from collections.abc import Iterator
from enum import Enum
from typing import NamedTuple


class TorchMojiError(Exception):
    """Base of all errors raised on purpose; the message names the thing at fault and the remedy."""


class InputError(TorchMojiError):
    """A file, option or model that cannot be used as it is (exit status 2 of the command lines)."""


class RunError(TorchMojiError):
    """Work that was begun and could not be finished (exit status 1 of the command lines)."""


class ChangedError(RunError):
    """A file is not what it was when it was listed, so what was read of it may be of two contents."""

    @classmethod
    def of(cls, path: str) -> ChangedError:
        """The error about a file."""
        return cls(f"input {json.dumps(path)} changed while it was read; run again when nothing writes to it")


class UnavailableError(OSError):
    """A store or server that has failed while it was tried again; it may answer later."""


class LockHeldError(TorchMojiError):
    """Another run is writing to the same output."""


def first_line(error: BaseException, longest: int | None = None) -> str:
    """What an error says, in one line; of strangers' libraries and files no more than so many characters."""
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return line if longest is None else shortened(line, longest)


LONGEST_REASON = 300


def shortened(text: str, longest: int = LONGEST_REASON) -> str:
    """The words that fit into so many characters, with three dots for the others."""
    text = " ".join(text.split())
    if len(text) <= longest:
        return text
    cut = text[: longest - len(" ...")]
    return f"{cut.rpartition(' ')[0] or cut} ..."


CONTENT_ERRORS = (ValueError, TypeError, LookupError, ArithmeticError, AttributeError, RecursionError)
"""What Python and its libraries raise for a value that cannot be used: of the wrong type or form, or out of range."""


class Shortage(NamedTuple):
    """Something that a machine has run out of."""

    what: str
    """One line that names it and its limit."""
    remedy: str
    codes: tuple[int, ...]
    """Of the system's errors."""
    said: str = r"(?!)"
    """Regular expression of what libraries say about it, since many have no class of errors for it."""

    def __str__(self) -> str:
        return f"{self.what}; {self.remedy}"


DISK = Shortage("disk full", "free space, or raise the quota", (errno.ENOSPC, errno.EDQUOT))
FILE_SIZE = Shortage(
    "a file has reached the size limit", "lower --rows_per_file, or raise the limit (ulimit -f)", (errno.EFBIG,)
)
FILES = Shortage("too many open files", "raise the limit (ulimit -n)", (errno.EMFILE, errno.ENFILE))
MEMORY = Shortage(
    "out of memory",
    "lower --max_batch_tokens, --threads or --direct_num_workers where the command has them, or free some, or raise "
    "the limit (ulimit -v, or the container's)",
    (errno.ENOMEM, errno.ENOBUFS),
    r"MemoryError|OutOfMemory|bad_alloc|(?i:can(?:no|')t allocate|(?:unable|failed|could not) (?:to )?allocate"
    r"|(?:not enough|insufficient|out of) memory|allocation[ _](?:error|failed)|failed to map segment)"
    # zlib by its number; torch; Arrow; oneDNN, whose kernels are compiled into memory that it asks for
    r"|(?:^|zlib\.)error: Error -4 while|zlib inflateInit failed"
    r"|alloc_cpu\.cpp|\b(?:m|re)alloc of size \d+ failed|could not create a (?:primitive(?! desc)|memory)"
    # Python itself, where there was no room for the error
    r"|(?:error return|returned NULL|result) without (?:setting an )?exception",
)
THREADS = Shortage(
    "out of memory, or of threads and processes: none could be started",
    "lower --threads or --direct_num_workers where the command has them, or free memory, or raise the limits (ulimit "
    "-u and -v, or the container's)",
    (errno.EAGAIN,),
    r"(?i:can(?:no|')t (?:start|create) new thread|thread initializer failed|thread creation failed"
    r"|pthread_create failed)|BrokenThreadPool|BrokenProcessPool",
)
SHORTAGES = (DISK, FILE_SIZE, FILES, MEMORY, THREADS)


class Fault(Enum):
    """What else the number of a system's error can tell of."""

    FILE = "a file that is gone, forbidden or none, as long as nobody changes that"
    USE = "a file or place that cannot be used in that way"
    OUTAGE = "a disk, network or server that fails now"


_NUMBERS: dict[Fault | Shortage, tuple[int, ...]] = {
    Fault.FILE: (
        errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP,
        errno.ENODEV, errno.ENXIO,
    ),
    Fault.USE: (errno.EROFS, errno.EEXIST, errno.EINVAL, errno.ENOTSUP),
    # Where a connection is refused nobody listens: the address may be wrong, so that is none.
    Fault.OUTAGE: (
        errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ECONNRESET, errno.ECONNABORTED, errno.EPIPE,
        errno.EHOSTUNREACH, errno.EHOSTDOWN, errno.ENETUNREACH, errno.ENETDOWN, errno.ENETRESET,
    ),
    **{shortage: shortage.codes for shortage in SHORTAGES},
}  # fmt: skip
_FAULTS = {number: fault for fault, numbers in _NUMBERS.items() for number in numbers}


def fault_of(error: OSError) -> Fault | Shortage | None:
    """What the number of a system's error tells of; None for errors without one, and for all other numbers."""
    return None if error.errno is None else _FAULTS.get(error.errno)


def may_pass(error: OSError) -> bool:
    """Whether the same may succeed later with nothing in the command changed: a store that is down, a failing disk.

    A name or right that is wrong does not mend by itself, nor does an address (whose errors have no number).
    """
    lasting = error.errno is None or fault_of(error) in (Fault.FILE, Fault.USE)
    return isinstance(error, UnavailableError) or not lasting


def shortage_of(error: BaseException | str) -> Shortage | None:
    """What the machine had run out of when an error was raised; None if the error tells of no such thing.

    Errors about values, and ours, are not searched for words: their texts quote what strangers wrote.

    Args:
        error: with all that it comes from; or what somebody has printed of one, as workers do.
    """
    if isinstance(error, str):
        return _shortage_said(error)
    for each in _causes(error):
        if isinstance(each, MemoryError):
            return MEMORY
        if isinstance(each, OSError) and each.errno is not None:
            fault = fault_of(each)
            found = fault if isinstance(fault, Shortage) else None
        elif isinstance(each, (*CONTENT_ERRORS, TorchMojiError)):
            found = None
        else:  # the type's name says more than the text of some
            found = _shortage_said(f"{type(each).__name__}: {each}")
        if found is not None:
            return found
    return None


def _shortage_said(text: str) -> Shortage | None:
    for shortage in SHORTAGES:
        codes = "|".join(rf"\bErrno {code}\b|{re.escape(os.strerror(code))}" for code in shortage.codes)
        if re.search(f"{codes}|{shortage.said}", text):
            return shortage
    return None


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error and all that it comes from, hidden or not."""
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        each = waiting.pop()
        if each is not None and id(each) not in seen:
            seen.add(id(each))
            yield each
            waiting += [each.__context__, each.__cause__]


def is_outage(error: BaseException) -> bool:
    """Whether an error comes of a store, server or disk that fails now, so that the same may succeed later."""
    return any(
        isinstance(each, UnavailableError) or (isinstance(each, OSError) and fault_of(each) is Fault.OUTAGE)
        for each in _causes(error)
    )


def raise_shortage(error: BaseException) -> None:
    """Raise an error again if it tells of a shortage.

    To be called first wherever an error would be put down to a row, a file or a model: a shortage is the fault of none.
    """
    if shortage_of(error) is not None:
        raise error


@contextlib.contextmanager
def panics_are_errors() -> Iterator[None]:
    """What a library written in Rust raises where it is short of files or threads, as an error like others.

    Its kind, pyo3's PanicException, is no Exception, and passes all that expects one.

    Raises:
        OSError: instead.
    """
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise OSError(f"a library gave up: {first_line(error)}") from error
