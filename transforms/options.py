"""What to score with and which columns to make: the options that the transforms share. Imports no Beam and no torch."""

from __future__ import annotations

from dataclasses import dataclass

from torchmoji_core.errors import InputError
from torchmoji_core.inference import PRECISIONS
from torchmoji_core.inference.cache import DEFAULT_CACHE_MB
from torchmoji_core.inference.scores import DEFAULT_TOP, EMBEDDING_TYPES, SCORE_OUTPUTS
from torchmoji_core.limits import check_threads
from torchmoji_core.options import option
from transforms.input.fields import KeptField

FINGERPRINT_COLUMN = "fingerprint"
"""Of the model that scored the row; models may change while a stream runs."""
OUTPUTS = ("text", "source", *SCORE_OUTPUTS, FINGERPRINT_COLUMN)
ROWS_PER_FILE = 100_000
DEFAULT_OUTPUTS = ("text", "top", "probabilities", "embedding")
PARQUET_ENCODINGS = ("plain", "byte_stream_split")
"""How files hold probabilities and embeddings; the second makes them a fifth smaller, and Spark 4.0 cannot read it."""
ENCODING = b"torchmoji.parquet_encoding"
"""Key of files' metadata, from which whoever writes rows on takes it; not there where the encoding is plain."""
RUN_ID = b"torchmoji.run_id"
"""Key of files' metadata: the run that wrote them."""
PARTITION_COLUMN = "_partition"
"""Travels with the rows to the writer, which makes directories of it; it is in no file."""
RESERVED_COLUMNS = (
    "id", "text", "source", "timestamp", PARTITION_COLUMN, "top_emojis", "top_classes", "probabilities", "embedding",
    "attention", "n_tokens", "n_unknown", "truncated", "status", "cut_by_platform", FINGERPRINT_COLUMN,
)  # fmt: skip


@dataclass(frozen=True)
class ScoreOptions:
    """What to score with, and which columns to make."""

    model: str | None = option(
        None, "bundle: directory, .zip, or URI of either (default: the bundled model)", metavar="BUNDLE"
    )
    precision: str = option(
        "auto", "of the products; auto: the fastest that the processor has instructions for", choices=PRECISIONS
    )
    outputs: tuple[str, ...] = option(DEFAULT_OUTPUTS, f"any of {','.join(OUTPUTS)}", metavar="COLUMNS")
    top_k: int = option(DEFAULT_TOP, "classes in the top column", metavar="K")
    embedding_type: str | None = option(
        "float32",
        "float32 holds multiples of 1/4096; float16 takes a bit less, is half as exact, and fewer tools read it",
        choices=EMBEDDING_TYPES,
    )
    """None for float32 as computed."""
    parquet_encoding: str = option(
        "plain",
        "of probabilities and embeddings; byte_stream_split takes a fifth less",
        choices=PARQUET_ENCODINGS,
    )
    keep: tuple[KeptField, ...] = ()
    """Types of the values in `Tweet.extra`."""
    timestamp: bool = False
    """Whether to write the column timestamp."""
    partitioned: bool = False
    """Whether rows go to the directories that `Tweet.partition` names."""
    threads: int | None = option(
        None, "batches that each process scores at the same time (default: the cores shared out)", metavar="N"
    )
    cache_mb: int = option(
        DEFAULT_CACHE_MB,
        "bound of each process's cache of recent results, a temporary file; 0 scores repeated texts again",
        metavar="MB",
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

    def __post_init__(self) -> None:
        """Make tuples of what was given in other collections, each column once.

        Raises:
            InputError: naming the option and its valid values.
        """
        object.__setattr__(self, "outputs", tuple(dict.fromkeys(self.outputs)))
        object.__setattr__(self, "keep", tuple(self.keep))
        for name in self.outputs:
            if name not in OUTPUTS:
                raise InputError(f"outputs: {name!r} is unknown; choose from {', '.join(OUTPUTS)}")
        if not self.outputs:
            raise InputError(f"outputs: none given; choose from {', '.join(OUTPUTS)}")
        if self.precision not in PRECISIONS:
            raise InputError(f"precision {self.precision!r} is unknown; choose one of {', '.join(PRECISIONS)}")
        if self.embedding_type not in (None, *EMBEDDING_TYPES):
            raise InputError(
                f"embedding_type {self.embedding_type!r} is unknown; choose one of {', '.join(EMBEDDING_TYPES)}"
            )
        if self.parquet_encoding not in PARQUET_ENCODINGS:
            raise InputError(
                f"parquet_encoding {self.parquet_encoding!r} is unknown; choose one of {', '.join(PARQUET_ENCODINGS)}"
            )
        if self.top_k < 1:
            raise InputError(f"top_k must be at least 1, not {self.top_k}")
        check_threads("threads", self.threads)
        if self.cache_mb < 0:
            raise InputError(f"cache_mb must be at least 0, not {self.cache_mb}")
        for field in self.keep:
            if field.name in RESERVED_COLUMNS:
                raise InputError(
                    f"kept field {field.name!r} has the name of an output column; leave it out, or "
                    f"rename it: {field.path}:as=input_{field.name}"
                )
