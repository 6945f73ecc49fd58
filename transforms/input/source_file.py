"""SourceFile: a file being read whose own failures can be told from damage of its content."""

from __future__ import annotations

import errno
import mmap
from typing import BinaryIO

from torchmoji_core.errors import raise_shortage

PROBED_BYTES = 32 << 20
"""More than any decompressor takes for a window."""


class SourceError(Exception):
    """Reading failed: the disk, the network or the machine is at fault, and no record. What was raised is its cause."""


class SourceFile:
    """Reads another file; whatever goes wrong in it is a `SourceError`, which no reader of a format takes for damage.

    Decompressors and Arrow raise OSErrors for content that is damaged, as files do for disks and networks that fail.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.closed = False
        """For Arrow. The file is closed by the code that opened it."""

    def read(self, size: int = -1) -> bytes:
        try:
            return self._file.read(size)
        except Exception as error:
            raise SourceError(str(error)) from error

    def readline(self, size: int = -1) -> bytes:
        try:
            return self._file.readline(size)
        except Exception as error:
            raise SourceError(str(error)) from error

    def seek(self, offset: int, whence: int = 0) -> int:
        """Go to a position, which may be what the content claims.

        Raises:
            ValueError: if no file has such a position.
        """
        try:
            return self._file.seek(offset, whence)
        except Exception as error:
            if isinstance(error, ValueError | OverflowError) or getattr(error, "errno", None) == errno.EINVAL:
                raise ValueError(f"position {offset} is outside the file") from None
            raise SourceError(str(error)) from error

    def tell(self) -> int:
        return self._file.tell()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def close(self) -> None:
        """Does nothing."""


def raise_unless_damage(error: Exception) -> None:
    """Raise again an error that a reader of a format has caught, if the system is at fault, not the content.

    The system's errors have numbers; those that libraries raise for damaged content do not. An error with a number
    comes from something besides reading, such as a library that loads a part of itself.

    Without memory, some decompressors (brotli) call good content corrupt. So an error counts only if there is memory.

    Raises:
        MemoryError: if there is too little memory to believe what the library says.
    """
    raise_shortage(error)
    if isinstance(error, OSError) and error.errno is not None:
        raise error
    try:
        mmap.mmap(-1, PROBED_BYTES).close()  # not touched, so it takes address space and no time
    except OSError as lack:
        raise MemoryError(str(lack)) from error
