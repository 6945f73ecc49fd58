"""What fields of options may be, and what is said of others."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from torchmoji_core.errors import InputError
from torchmoji_core.options import NOT_NEGATIVE, POSITIVE, SHARE, Range, check_options, option


@dataclass(frozen=True)
class Options:
    """One of each kind."""

    rate: float = option(1.0, "above 0", within=POSITIVE)
    share: float = option(0.5, "of all", within=SHARE)
    size: int | None = option(None, "none, or some", within=NOT_NEGATIVE)
    seed: int = option(1, "of random numbers", within=Range(0, below=10))
    kind: str = option("a", "one of two", choices=("a", "b"))
    names: tuple[str, ...] = option(("a",), "some of two", choices=("a", "b"))
    other: str = "anything"

    def __post_init__(self) -> None:
        check_options(self)


@pytest.mark.parametrize(
    "given",
    [
        {"rate": 1e-300},
        {"rate": np.float32(1)},
        {"share": 0},
        {"size": 0},
        {"size": None},
        {"seed": 9},
        {"seed": np.int8(9)},
        {"kind": "b"},
        {"names": ("b", "a")},
        {"names": ["b"]},
    ],
)
def test_what_is_within_is_taken(given: dict[str, Any]) -> None:
    assert vars(Options(**given)).items() >= given.items()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"rate": 0}, "rate must be above 0, not 0"),
        ({"rate": math.inf}, "rate must be above 0 and finite, not inf"),
        ({"rate": math.nan}, "rate must be above 0 and finite, not nan"),
        ({"share": 1}, "share must be at least 0 and below 1, not 1"),
        ({"size": -1}, "size must be at least 0, not -1"),
        ({"seed": 10}, "seed must be at least 0 and below 10, not 10"),
        ({"kind": "c"}, "kind 'c' is unknown; choose from a, b"),
        ({"names": ("a", "c")}, "names 'c' is unknown; choose from a, b"),
        ({"names": ()}, "names: none given; choose from a, b"),
        ({"rate": "1"}, "rate must be a number (above 0), not '1'"),
        ({"rate": None}, "rate must be a number (above 0), not None"),
        ({"share": [0.5]}, "share must be a number (at least 0 and below 1), not [0.5]"),
        ({"size": 1.0}, "size must be a whole number (at least 0), not 1.0"),
        ({"seed": math.nan}, "seed must be a whole number (at least 0 and below 10), not nan"),
        ({"kind": None}, "kind None is unknown; choose from a, b"),
        ({"kind": np.arange(2)}, "kind array([0, 1]) is unknown; choose from a, b"),
        ({"names": "ab"}, "names must be a list of some of a, b, not 'ab'"),
        ({"names": {"a"}}, "names must be a list of some of a, b, not {'a'}"),
        ({"names": 1}, "names must be a list of some of a, b, not 1"),
        ({"names": (("a",),)}, "names ('a',) is unknown; choose from a, b"),
    ],
)
def test_what_is_not_is_named_with_what_may_be(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        Options(**given)
    assert str(caught.value) == message
