"""Single files: what their encoding takes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from torchmoji_core.inference.scores import EMBEDDING_STEP
from transforms.options import ENCODING, PARQUET_ENCODINGS
from transforms.output.file_writers import ParquetFileWriter


def test_embeddings_are_smallest_in_the_encoding_of_the_default(tmp_path: Path) -> None:
    components = np.random.default_rng(0).normal(0, 0.15, (2000, 256)).clip(-1, 1)
    rounded = (np.round(components / EMBEDDING_STEP) * EMBEDDING_STEP).astype(np.float32)
    embedding = pa.array(list(rounded), pa.list_(pa.float32()))
    default, *others = (_size(embedding, encoding, tmp_path) for encoding in (None, *PARQUET_ENCODINGS[1:]))
    assert default < min(others)


def test_half_floats_have_no_dictionary(tmp_path: Path) -> None:
    _size(pa.array([np.zeros(4, np.float16)], pa.list_(pa.float16())), None, tmp_path)
    assert "RLE_DICTIONARY" not in pq.read_metadata(tmp_path / "None.parquet").row_group(0).column(0).encodings


def _size(embedding: pa.Array, encoding: str | None, directory: Path) -> int:
    """Bytes of a file of embeddings, which can be read back."""
    schema = pa.schema({"embedding": embedding.type}, {ENCODING: encoding} if encoding else None)
    path = directory / f"{encoding}.parquet"
    writer = ParquetFileWriter(str(path), str(path), schema, 1000)
    writer.write(pa.record_batch([embedding], schema=schema))
    writer.close()
    assert pq.read_table(path)["embedding"].combine_chunks().equals(embedding)
    return path.stat().st_size
