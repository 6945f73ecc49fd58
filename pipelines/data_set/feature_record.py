"""What features are by, and the record of what they were made of, beside their files."""

from __future__ import annotations

import dataclasses
import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass

from torchmoji_core.errors import InputError
from torchmoji_core.names import shown
from transforms.columns import TIMESTAMP_COLUMN
from transforms.storage import files as storage

RECORD = "_features.json"
PERIODS = ("hour", "day", "week", "month")
"""In UTC; a week begins on Monday."""
EVENT_TIMESTAMP = "event_timestamp"
VECTORS = ("probabilities", "embedding")
_OF_FEATURES = ("tweets", "scored", "first_share", "entropy", EVENT_TIMESTAMP, *VECTORS)
_VERSION = 1
_NO_UNIT = "all"


@dataclass(frozen=True)
class Grouping:
    """What rows of one group have in common."""

    entity: tuple[str, ...]
    """Columns."""
    period: str | None
    """One of `PERIODS`; None to take all time together."""

    @classmethod
    def parse(cls, text: str) -> Grouping:
        """Read `user,day`: columns, and at most one period, in any order.

        Raises:
            InputError: for an empty name, one that is there twice, or two periods.
        """
        names = [name.strip() for name in text.split(",")]
        periods = [name for name in names if name in PERIODS]
        entity = tuple(name for name in names if name not in PERIODS)
        if not all(names) or len(set(names)) < len(names) or len(periods) > 1:
            raise InputError(
                f"--by {text}: expected columns and at most one of {', '.join(PERIODS)}, each once, as in --by user,day"
            )
        for name in entity:
            if name in (*_OF_FEATURES, TIMESTAMP_COLUMN):
                raise InputError(f"--by {text}: {name!r} is no entity; by time, give one of {', '.join(PERIODS)}")
        return cls(entity, periods[0] if periods else None)

    def __str__(self) -> str:
        return ",".join([*self.entity, *([self.period] if self.period else [])])

    @property
    def unit(self) -> str:
        """SQL of the name of the unit of time that a period belongs to: what is made again at a time."""
        form = {"hour": "%Y-%m-%d", "day": "%Y-%m-%d", "week": "%Y-%m-%d", "month": "%Y-%m", None: None}[self.period]
        return f"'{_NO_UNIT}'" if form is None else f"strftime(period, '{form}')"

    @property
    def start(self) -> str:
        """SQL of the start of a row's period."""
        return "NULL::TIMESTAMP" if self.period is None else f"date_trunc('{self.period}', time)"


@dataclass(frozen=True)
class Looked:
    """What one file of the data set has rows of."""

    units: tuple[str, ...]
    rows: int
    left_out: dict[str, int]
    """Rows that are in no group, by the column in which they have nothing."""


def file_name(unit: str) -> str:
    """Of the features of a unit."""
    return f"features-{unit}.parquet"


def write_record(output: str, source: str, by: Grouping, looked: Mapping[str, Looked]) -> None:
    """Write what the files of features are made of, for the next call."""
    content = {
        "version": _VERSION,
        "by": str(by),
        "source": source,
        "files": {path: dataclasses.asdict(each) for path, each in looked.items()},
    }
    name = f"{output}/_features-{uuid.uuid4().hex}.tmp"
    storage.publish(f"{output}/{RECORD}", json.dumps(content, indent=1).encode(), name)


def read_record(output: str, source: str, by: Grouping) -> dict[str, Looked]:
    """What the features there were made of; nothing where there are none.

    Raises:
        InputError: if there is something else, or features of another data set or grouping.
    """
    path = f"{output}/{RECORD}"
    if not storage.exists(path):
        others = [facts.path for facts in storage.match([f"{output}/*"]) if not _is_ours(facts.path)]
        if others:
            raise InputError(f"{output} holds something else than features ({shown(others[0])}); give a new --output")
        return {}
    try:
        record = json.loads(storage.read_bytes(path))
        files = {
            name: Looked(tuple(each["units"]), each["rows"], dict(each["left_out"]))
            for name, each in record["files"].items()
        }
        version, made_by, made_of = record["version"], record["by"], record["source"]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InputError(f"{path} cannot be read; delete {output} to make all features again") from None
    if version != _VERSION:
        raise InputError(f"{path} is of version {version}, this program reads {_VERSION}; give a new --output")
    if made_by != str(by) or made_of != source:
        raise InputError(
            f"{output} holds features of {made_of} by {made_by}, not of {source} by {by}; give another --output"
        )
    return files


def _is_ours(path: str) -> bool:
    """Whether a file is the lock, or one that a killed run has left."""
    name = path.rpartition("/")[2]
    return name.startswith(("_lock", "_features", "features-"))
