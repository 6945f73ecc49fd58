"""Bounds of what strangers' files may ask for: how far compressed content expands, and how large a model is.

The bounds of models are generous: the published one has 22 million weights. For larger ones set
$TORCHMOJI_MODEL_LIMITS to the factor by which all of them are raised; it holds in every command, worker and program.
"""

from __future__ import annotations

import os

from torchmoji_core.errors import InputError
from torchmoji_core.names import shown
from torchmoji_core.options import Range, check_number

MAX_EXPANSION = 200
MAX_EXPANDED_BYTES = 64 << 20
"""A file is read until it has expanded to more than both `MAX_EXPANSION` times what was read of it and this.

JSON lines, CSV and text compress 3 to 20 times, tweets with all of Twitter's fields about 10; as soon as rows differ in
nothing but an id of a few bytes, still below 200. Weights hardly compress at all. The most that gzip can reach is
1,032, zstandard 32,000, bzip2 a million. Only what is less than 330 kB can be stopped at 64 MiB, and more never before
200 times its size, so a file costs at most what 200 of its size would have cost uncompressed.
"""

MOST_THREADS = 1_024
"""More than any machine has use for."""
VARIABLE = "TORCHMOJI_MODEL_LIMITS"
MODEL_LIMITS = {
    "weights": 1 << 28,  # 1 GiB as float32
    "vocabulary": 250_000,
    "embedding": 4_096,
    "hidden": 4_096,
    "classes": 10_000,  # a batch of 512 rows has 20 MB of probabilities
    # No post has as many tokens. A batch has a row of attention of this width for each of 512 texts, 20 MB; and one
    # text of that length is about as many tokens as a whole batch may have.
    "maxlen": 10_000,
}
"""The most that a model may have of each: numbers, tokens, channels."""


def model_limit(what: str) -> int:
    """The most that a model may have of one of `MODEL_LIMITS`.

    Raises:
        InputError: if $TORCHMOJI_MODEL_LIMITS is no factor.
    """
    factor = os.environ.get(VARIABLE, "1")
    try:
        raised = MODEL_LIMITS[what] * float(factor)
        if raised >= 1:
            return int(raised)
    except (ValueError, OverflowError):
        pass
    raise InputError(f"${VARIABLE} must be a number by which the bounds of models are raised, not {shown(factor)}")


def check_threads(name: str, value: int | None) -> None:
    """Accept a number of torch's threads, or none.

    Raises:
        InputError: if there can be no such number: torch ends the process where it cannot start them.
    """
    if value is not None:
        check_number(name, value, Range(1, below=MOST_THREADS + 1), is_whole=True)


def check_limit(name: str, what: str, value: object) -> None:
    """Accept a size that a model may have.

    Args:
        name: what it is called in the error.
        what: one of `MODEL_LIMITS`.
        value: the size.

    Raises:
        InputError: if it is no positive integer, or larger than the limit, with the remedy.
    """
    if type(value) is not int or value < 1:
        raise InputError(f"{name} must be a positive integer, not {shown(value)}")
    limit = model_limit(what)
    if value > limit:
        factor = f"={-(-value // MODEL_LIMITS[what])}" if value < 1 << 53 else ""
        raise InputError(
            f"{name} must be a positive integer of at most {limit:,}, not {shown(value)}; for a larger model that you "
            f"trust, set the environment variable {VARIABLE}{factor}"
        )
