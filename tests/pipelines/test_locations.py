"""file:// URIs wherever a path is taken."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines import compact, score, verify
from pipelines.data_set.snapshot import live_files
from tests.pipelines.conftest import Finished, posts, write_lines
from torchmoji_core.errors import InputError
from torchmoji_core.locations import plain

Run = Callable[..., Finished]


def test_every_option_takes_them(tmp_path: Path, model: str, run_main: Run) -> None:
    write_lines(tmp_path / "the in.jsonl", posts(5))
    output = f"file://{tmp_path}/scored%20here"
    finished = run_main(
        score.main, "--model", f"file://{model}", "--input", f"file://{tmp_path}/the%20in.jsonl", "--output", output,
        "--report", f"file://{tmp_path}/report.json",
    )  # fmt: skip
    assert finished.status == 0, finished.err
    directory = tmp_path / "scored here"
    assert live_files(output) == [str(path) for path in directory.glob("*.parquet")]
    assert json.loads((tmp_path / "report.json").read_text())["scored"] == 5
    for command in (verify.main, compact.main):
        assert run_main(command, output).status == 0
    assert not (tmp_path / "file:").exists()


@pytest.mark.parametrize(
    ("location", "path"),
    [
        ("file:///a/b%20c", "/a/b c"),
        ("file://localhost/a", "/a"),
        ("file:/a", "/a"),
        ("FILE:///a", "/a"),
        ("/a%20b", "/a%20b"),
        ("a:b", "a:b"),
        ("s3://bucket/file:%20", "s3://bucket/file:%20"),
        ("file:///half%FF", "/half\udcff"),
    ],
)
def test_what_they_stand_for(location: str, path: str) -> None:
    assert plain(location) == path


@pytest.mark.parametrize("location", ["file://other.example/a", "file://relative", "file:"])
def test_files_of_other_machines_are_refused(location: str) -> None:
    with pytest.raises(InputError, match="is no file on this machine"):
        plain(location)
