"""README's table of columns says what the code makes."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from torchmoji_core.bundle import load_bundle
from transforms.columns import MESSAGE_COLUMN, OUTPUTS, PARTITION_COLUMN, RESERVED_COLUMNS, columns_of
from transforms.input.fields import KeptField
from transforms.options import ScoreOptions
from transforms.scoring.loaded_model import load_model

README = Path(__file__).parents[2] / "README.md"


def test_the_readme_has_the_table_of_columns() -> None:
    """To mend it: put what this says is missing into README.md."""
    expected = []
    for column in columns_of(load_bundle().classes, "float32", [pa.field("kept fields", pa.null())]):
        if column.name in (PARTITION_COLUMN, MESSAGE_COLUMN):
            continue
        kind = str(column.type).replace("item: ", "").replace("tz=", "").replace("double", "float")
        name, kind = (column.name, "as given, or as in the data") if kind == "null" else (f"`{column.name}`", kind)
        given = f"output `{column.output}`" if column.output in OUTPUTS else ""
        expected.append(
            f"| {name} | {f'`{kind}`' if '<' in kind else kind} | {'; '.join(filter(None, (given, column.about)))} |"
        )
    table = README.read_text().partition("| column | type | |\n|---|---|---|\n")[2].partition("\n\n")[0]
    assert table.splitlines() == expected, "\n".join(expected)


def test_what_can_be_chosen_is_what_gives_columns() -> None:
    options = ScoreOptions(outputs=OUTPUTS, timestamp=True, keep=(KeptField("lang"),), cache_mb=0)
    names = load_model(None, options).schema.names
    assert set(names) == RESERVED_COLUMNS - {PARTITION_COLUMN, MESSAGE_COLUMN, "top_classes"} | {"lang"}
    assert names[0] == "id" and names[-1] == "fingerprint"
