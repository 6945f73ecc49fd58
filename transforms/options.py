"""What to score with and which columns to make: the options that the transforms share. Imports no Beam and no torch."""

from __future__ import annotations

from dataclasses import dataclass

from torchmoji_core.errors import InputError
from torchmoji_core.inference import PRECISIONS
from torchmoji_core.inference.cache import DEFAULT_CACHE_MB
from torchmoji_core.inference.scores import DEFAULT_TOP, EMBEDDING_TYPES, SCORE_OUTPUTS
from torchmoji_core.limits import check_threads
from torchmoji_core.options import AT_LEAST_1, NOT_NEGATIVE, check_options, option
from transforms.columns import MESSAGE_COLUMN, OUTPUTS, PARTITION_COLUMN, RESERVED_COLUMNS, TIMESTAMP_COLUMN
from transforms.input.fields import KeptField

ROWS_PER_FILE = 100_000
DEFAULT_OUTPUTS = ("text", "top", "probabilities", "embedding")
PARQUET_ENCODINGS = ("dictionary", "plain", "byte_stream_split")
"""How files hold embeddings, and by the last also probabilities, which repeat too little for a dictionary."""
ENCODING = b"torchmoji.parquet_encoding"
"""Key of files' metadata, so that rows are rewritten with the same encoding; missing where it is the first of them."""
RUN_ID = b"torchmoji.run_id"
"""Key of files' metadata: the run that wrote them."""


@dataclass(frozen=True)
class ScoreOptions:
    """What to score with, and which columns to make."""

    model: str | None = option(
        None, "bundle: directory, .zip, or URI of either (default: the bundled model)", metavar="BUNDLE"
    )
    precision: str = option(
        "auto", "of the products; auto: the fastest that the processor has instructions for", choices=PRECISIONS
    )
    outputs: tuple[str, ...] = option(
        DEFAULT_OUTPUTS, f"any of {','.join(OUTPUTS)}", metavar="COLUMNS", choices=OUTPUTS
    )
    top_k: int = option(DEFAULT_TOP, "classes in the top column", metavar="K", within=AT_LEAST_1)
    embedding_type: str | None = option(
        "float32",
        "float32 holds multiples of 1/4096; float16 is half as exact, takes more space, and fewer tools read it",
        choices=EMBEDDING_TYPES,
    )
    """None for float32 as computed."""
    parquet_encoding: str = option(
        PARQUET_ENCODINGS[0],
        "of embeddings; dictionary is the smallest, and what every reader knows",
        choices=PARQUET_ENCODINGS,
    )
    keep: tuple[KeptField, ...] = ()
    """Types of the values in `Tweet.extra`."""
    timestamp: bool = False
    """Whether to write the column timestamp."""
    partitioned: bool = False
    """Whether rows go to the directories that `Tweet.partition` names."""
    messages: bool = False
    """Whether the records of files tell which message each row is from, by `Tweet.message`."""
    threads: int | None = option(
        None, "batches that each process scores at the same time (default: the cores shared out)", metavar="N"
    )
    cache_mb: int = option(
        DEFAULT_CACHE_MB,
        "bound of each process's cache of recent results, a temporary file; 0 scores repeated texts again",
        metavar="MB",
        within=NOT_NEGATIVE,
    )
    fingerprint: str | None = None
    """What the model must have as its fingerprint wherever it is loaded; None for any."""
    run_id: str = ""
    """Recorded in the files."""
    progress: str | None = None
    """Directory of `metrics.Progress`, in local runs."""

    @property
    def score_outputs(self) -> tuple[str, ...]:
        """The outputs that come from the model."""
        return tuple(name for name in self.outputs if name in SCORE_OUTPUTS)

    @property
    def column_outputs(self) -> tuple[str, ...]:
        """What gives columns: the outputs, and what the records have."""
        of_records = {
            TIMESTAMP_COLUMN: self.timestamp,
            PARTITION_COLUMN: self.partitioned,
            MESSAGE_COLUMN: self.messages,
        }
        return (*self.outputs, *(name for name, is_there in of_records.items() if is_there))

    def __post_init__(self) -> None:
        """Make tuples of what was given in other collections, each column once.

        Raises:
            InputError: naming the option and its valid values.
        """
        check_options(self)
        object.__setattr__(self, "outputs", tuple(dict.fromkeys(self.outputs)))
        object.__setattr__(self, "keep", tuple(self.keep))
        check_threads("threads", self.threads)
        for field in self.keep:
            if field.name in RESERVED_COLUMNS:
                raise InputError(
                    f"kept field {field.name!r} has the name of an output column; leave it out, or "
                    f"rename it: {field.path}:as=input_{field.name}"
                )
