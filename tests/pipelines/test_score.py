"""The score command on good input: what a user gets, file by file and value by value."""

from __future__ import annotations

import base64
import bz2
import gzip
import json
import os
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import zstandard

from pipelines.data_set.snapshot import live_files
from tests.pipelines.conftest import Finished, posts, read_dead_letters, read_live, read_scores, write_lines
from tests.tiny import tiny_bundle
from torchmoji_core import ArrowScorer
from torchmoji_core.bundle import Bundle
from transforms.input.fields import position_id

Score = Callable[..., Finished]


def test_the_command_alone_scores_the_sample(
    shell_score: Score, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    finished = shell_score("--runner=DirectRunner")
    assert finished.status == 0, finished.err
    assert "prism" not in (finished.out + finished.err).lower(), "no other engine of Beam's is looked for"
    assert not (tmp_path / "home" / ".apache_beam").exists()
    table = read_scores(tmp_path / "scored")
    assert len(table) == 360
    assert len(set(table["id"].to_pylist())) == 360
    assert table.schema.names == [
        "id", "text", "top_emojis", "probabilities", "embedding", "n_tokens", "n_unknown", "truncated", "status",
        "cut_by_platform",
    ]  # fmt: skip
    for name in ("read ", "scored ", "empty ", "dead ", "tokens ", "tweets/s", "fingerprint", "commonest"):
        assert name in finished.out
    assert "Traceback" not in finished.err


def test_rows_are_what_the_bundle_says(run_score: Score, bundle: Bundle, tmp_path: Path) -> None:
    rows = posts(500)
    write_lines(tmp_path / "in.jsonl", rows)
    assert run_score("--input", "in.jsonl", "--output", "out").status == 0
    table = read_scores(tmp_path / "out")
    assert table["id"].to_pylist() == [row["id"] for row in rows]  # type: ignore[index]
    scores = bundle.score([row["text"] for row in rows])  # type: ignore[index]
    np.testing.assert_allclose(np.stack(table["probabilities"].to_numpy()), scores.probabilities, atol=1e-5)
    np.testing.assert_allclose(np.stack(table["embedding"].to_numpy()), scores.embedding, atol=1.3e-4)
    for expected, row in zip(scores.top(5), table["top_emojis"].to_pylist(), strict=True):
        assert [(top["emoji"], pytest.approx(top["probability"], abs=1e-5)) for top in row] == expected


def test_rows_are_what_a_scorer_for_arrow_gives(run_score: Score, model: str, tmp_path: Path) -> None:
    rows = posts(300)
    write_lines(tmp_path / "in.jsonl", rows)
    assert (
        run_score("--input", "in.jsonl", "--output", "out", "--outputs", "text,top,probabilities,embedding").status == 0
    )
    written = read_scores(tmp_path / "out")
    scored = ArrowScorer("text", model)(written.select(["id", "text"]))
    common = [name for name in written.column_names if name in scored.column_names]
    assert common == scored.column_names
    assert written.select(common).to_pylist() == scored.to_pylist()
    metadata = written.schema.metadata
    assert {key: metadata[key] for key in scored.schema.metadata if key.startswith(b"torchmoji.")} == {
        key: value for key, value in scored.schema.metadata.items() if key.startswith(b"torchmoji.")
    }


def test_metadata_describes_the_file(run_score: Score, bundle: Bundle, tmp_path: Path) -> None:
    write_lines(tmp_path / "in.jsonl", posts(3))
    run_score("--input", "in.jsonl", "--output", "out")
    (file,) = (tmp_path / "out").glob("*.parquet")
    metadata = pq.read_schema(file).metadata
    assert metadata[b"torchmoji.fingerprint"].decode() == bundle.fingerprint
    assert json.loads(metadata[b"torchmoji.classes"]) == list(bundle.classes)
    assert {b"torchmoji.bundle", b"torchmoji.tokenizer", b"torchmoji.precision", b"torchmoji.maxlen"} <= metadata.keys()
    assert metadata[b"torchmoji.run_id"].decode() in file.name
    assert pq.ParquetFile(file).metadata.row_group(0).column(0).compression == "ZSTD"


@pytest.mark.parametrize("embedding_type", ["float16", "float32"])
def test_other_readers_agree(run_score: Score, tmp_path: Path, embedding_type: str) -> None:
    write_lines(tmp_path / "in.jsonl", posts(40))
    run_score("--input", "in.jsonl", "--output", "out", "--embedding_type", embedding_type)
    expected = read_scores(tmp_path / "out")
    pandas = pd.read_parquet(tmp_path / "out").sort_values("id")
    polars = pl.read_parquet(tmp_path / "out" / "*.parquet").sort("id")
    duck = duckdb.sql(f"select * from '{tmp_path}/out/*.parquet' order by id").fetchall()
    columns = expected.schema.names
    assert pandas["id"].tolist() == polars["id"].to_list() == [row[0] for row in duck] == expected["id"].to_pylist()
    for name in ("probabilities", "embedding"):
        values = np.array(expected[name].to_pylist(), float)
        np.testing.assert_array_equal(np.stack(pandas[name].to_list()), values)
        np.testing.assert_array_equal(np.array(polars[name].to_list(), float), values)
        np.testing.assert_array_equal(np.array([row[columns.index(name)] for row in duck], float), values)
    assert polars["top_emojis"].to_list() == expected["top_emojis"].to_pylist()


VECTORS = ("probabilities.list.element", "embedding.list.element")


@pytest.mark.parametrize(
    ("options", "encoding", "encoded"),
    [
        ((), "RLE_DICTIONARY", {"embedding.list.element"}),
        (("--parquet_encoding", "byte_stream_split"), "BYTE_STREAM_SPLIT", set(VECTORS)),
    ],
    ids=["dictionary", "byte_stream_split"],
)
def test_encodings_of_vectors_hold_the_same_values_and_are_kept(
    run_score: Score,
    run_compact: Callable[..., Finished],
    tmp_path: Path,
    options: tuple[str, ...],
    encoding: str,
    encoded: set[str],
) -> None:
    write_lines(tmp_path / "in.jsonl", posts(200))
    for output, chosen in (("out", options), ("plain", ("--parquet_encoding", "plain"))):
        assert run_score("--input", "in.jsonl", "--output", output, "--rows_per_file", 100, *chosen).status == 0
    assert read_live(tmp_path / "out").equals(read_live(tmp_path / "plain"))
    assert run_compact().status == 0
    (file,) = live_files("out")
    columns = pq.read_metadata(file).row_group(0)
    chunks = [columns.column(number) for number in range(columns.num_columns)]
    assert {chunk.path_in_schema for chunk in chunks if encoding in chunk.encodings} & set(VECTORS) == encoded
    assert pl.scan_delta("out").sort("id").collect().to_dicts() == read_live(tmp_path / "plain").to_pylist()


def _json_lines(rows: list[Any]) -> bytes:
    return b"\n".join(json.dumps(row).encode() for row in rows)


def _csv(rows: list[Any], path: Path) -> None:
    pa.csv.write_csv(pa.Table.from_pylist(rows), path)


WRITERS: dict[str, Callable[[list[Any], Path], object]] = {
    "posts.jsonl": lambda rows, path: write_lines(path, rows),
    "posts.jsonl.gz": lambda rows, path: path.write_bytes(gzip.compress(_json_lines(rows))),
    "posts.ndjson.bz2": lambda rows, path: path.write_bytes(bz2.compress(_json_lines(rows))),
    "posts.jsonl.zst": lambda rows, path: path.write_bytes(zstandard.compress(_json_lines(rows))),
    "posts.csv": _csv,
    "posts.parquet": lambda rows, path: pq.write_table(pa.Table.from_pylist(rows), path),
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_gives_the_same_rows(run_score: Score, tmp_path: Path, name: str) -> None:
    rows = posts(60)
    write_lines(tmp_path / "reference.jsonl", rows)
    WRITERS[name](rows, tmp_path / name)
    assert run_score("--input", "reference.jsonl", "--output", "a").status == 0
    assert run_score("--input", name, "--output", "b").status == 0
    assert read_scores(tmp_path / "a").equals(read_scores(tmp_path / "b"))


@pytest.mark.parametrize("given", ["in", "in/", "in/*", "./in/a.jsonl in/b.jsonl"])
def test_inputs_may_be_directories_globs_and_lists(run_score: Score, tmp_path: Path, given: str) -> None:
    (tmp_path / "in").mkdir()
    write_lines(tmp_path / "in" / "a.jsonl", posts(3))
    write_lines(tmp_path / "in" / "b.jsonl", [{"text": "so happy"}])
    assert run_score("--input", *given.split(), "--output", "out").status == 0
    ids = read_scores(tmp_path / "out")["id"].to_pylist()
    path = str(tmp_path / "in" / "b.jsonl")
    assert sorted(ids) == sorted(["post-00000", "post-00001", "post-00002", position_id(path, 0)])


def test_text_lines_have_stable_ids(run_score: Score, tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("so happy\n\nso sad\n")
    for output in ("a", "b"):
        assert run_score("--input", "in.txt", "--output", output).status == 0
    first, second = (read_scores(tmp_path / name) for name in "ab")
    assert first.equals(second)
    assert len(set(first["id"].to_pylist())) == 3
    assert sorted(first["status"].to_pylist()) == ["empty", "scored", "scored"]


def test_tweets_of_both_api_versions(run_score: Score, tmp_path: Path) -> None:
    version_1 = [
        {"id_str": "11", "id": 11, "text": "i love ...", "extended_tweet": {"full_text": "i love the rain"}},
        {"id_str": "12", "id": 12, "full_text": "so late today"},
        {"id_str": "13", "id": 13, "text": "coffee !"},
    ]
    version_2 = [{"data": {"id": "21", "text": "the bus is late"}}]
    write_lines(tmp_path / "v1.jsonl", [*version_1])
    write_lines(tmp_path / "v2.jsonl", [*version_2])
    assert run_score("--input", "v1.jsonl", "v2.jsonl", "--output", "out").status == 0
    table = read_scores(tmp_path / "out")
    assert table["id"].to_pylist() == ["11", "12", "13", "21"]
    assert table["text"].to_pylist() == ["i love the rain", "so late today", "coffee !", "the bus is late"]


def test_kept_fields_are_typed(run_score: Score, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"id": "1", "user": {"name": "ann"}, "likes": 3, "score": 1.5, "ok": True, "tags": ["x", "y"]},
        {"id": "2", "user": {}, "likes": None, "score": 2, "ok": False, "tags": None},
    ]
    rows[0] |= {"text": "a", "at": "2026-03-01T10:00:00Z"}
    rows[1] |= {"text": "b", "at": "2026-03-01T12:00:00+02:00"}
    write_lines(tmp_path / "in.jsonl", [*rows])
    keep = "user.name,likes,score,ok,tags"
    finished = run_score("--input", "in.jsonl", "--output", "out", "--keep_fields", keep, "--timestamp_field", "at")
    assert finished.status == 0, finished.err
    table = read_scores(tmp_path / "out")
    types = {field.name: str(field.type) for field in table.schema}
    assert types["likes"] == "int64" and types["score"] == "double" and types["ok"] == "bool"
    assert types["timestamp"] == "timestamp[us, tz=UTC]"
    assert table.select(["user.name", "likes", "score", "ok", "tags"]).to_pylist() == [
        {"user.name": "ann", "likes": 3, "score": 1.5, "ok": True, "tags": '["x", "y"]'},
        {"user.name": None, "likes": None, "score": 2.0, "ok": False, "tags": None},
    ]
    assert len(set(table["timestamp"].to_pylist())) == 1


def test_outputs_choose_the_columns(run_score: Score, tmp_path: Path) -> None:
    write_lines(tmp_path / "in.jsonl", posts(5))
    assert run_score("--input", "in.jsonl", "--output", "out", "--outputs", "attention,top", "--top_k", "2").status == 0
    table = read_scores(tmp_path / "out")
    assert table.schema.names == [
        "id",
        "top_emojis",
        "attention",
        "n_tokens",
        "n_unknown",
        "truncated",
        "status",
        "cut_by_platform",
    ]
    for row in table.to_pylist():
        assert len(row["top_emojis"]) == 2
        assert len(row["attention"]) == row["n_tokens"]
        assert sum(part["weight"] for part in row["attention"]) == pytest.approx(1, abs=1e-5)


def test_files_roll_over(run_score: Score, tmp_path: Path) -> None:
    write_lines(tmp_path / "in.jsonl", posts(250))
    assert run_score("--input", "in.jsonl", "--output", "out", "--rows_per_file", "100").status == 0
    sizes = sorted(pq.read_metadata(file).num_rows for file in (tmp_path / "out").glob("*.parquet"))
    assert sizes == [50, 100, 100]


def test_odd_texts_are_rows(run_score: Score, tmp_path: Path) -> None:
    texts = {"empty": "", "space": " \t ", "emoji": "😂❤️👩‍👩‍👧", "surrogate": "so \ud800 sad", "nul": "a\0b"}
    texts["long"] = "so happy " * 120_000
    write_lines(tmp_path / "in.jsonl", [{"id": name, "text": text} for name, text in texts.items()])
    assert run_score("--input", "in.jsonl", "--output", "out").status == 0
    rows = {row["id"]: row for row in read_scores(tmp_path / "out").to_pylist()}
    assert rows.keys() == texts.keys()
    assert {name for name, row in rows.items() if row["status"] == "empty"} == {"empty", "space"}
    assert rows["empty"]["probabilities"] is None and rows["empty"]["embedding"] is None
    assert rows["long"]["truncated"] and rows["long"]["n_tokens"] == 30
    assert not rows["emoji"]["truncated"] and rows["emoji"]["n_unknown"] == rows["emoji"]["n_tokens"] > 0


def test_dead_letters_say_what_and_where(run_score: Score, tmp_path: Path) -> None:
    good = posts(30)
    bad = [b'{"text": "caf\xe9"}', b"not json", b'{"id": 5}', b'{"text": 5}', b"[1]"]
    write_lines(tmp_path / "in.jsonl", [*good[:15], *bad, *good[15:]])
    finished = run_score("--input", "in.jsonl", "--output", "out", "--max_dead_fraction", "0.5")
    assert finished.status == 0, finished.err
    assert len(read_scores(tmp_path / "out")) == 30
    letters = read_dead_letters(tmp_path / "out")
    assert len(letters) == len(bad)
    content = (tmp_path / "in.jsonl").read_bytes()
    for letter in letters:
        raw = base64.b64decode(letter["raw"])
        assert raw in bad
        assert content[int(letter["position"]) :].startswith(raw)
        assert letter["source"] == str(tmp_path / "in.jsonl")
    (manifest,) = (tmp_path / "out" / "_manifests").glob("*.json")
    counts = json.loads(manifest.read_text())["counts"]
    assert counts["read"] == 35 == counts["scored"] + counts.get("empty", 0) + counts["dead"]


def test_too_many_dead_letters_is_status_3(run_score: Score, tmp_path: Path) -> None:
    write_lines(tmp_path / "in.jsonl", [*posts(3), "x", "y"])
    finished = run_score("--input", "in.jsonl", "--output", "out")
    assert finished.status == 3
    assert "40.0%" in finished.err and "--max_dead_fraction" in finished.err


@pytest.mark.parametrize(
    ("name", "compress"),
    [("bad.jsonl.gz", gzip.compress), ("bad.jsonl.zst", zstandard.compress)],
)
def test_a_truncated_file_among_good_ones(
    run_score: Score, tmp_path: Path, name: str, compress: Callable[[bytes], bytes]
) -> None:
    write_lines(tmp_path / "good.jsonl", posts(20))
    rng = np.random.default_rng(0)  # random words, so that compressed bytes and lines go along
    lines = [json.dumps({"id": f"x{i}", "text": rng.bytes(60).hex()}).encode() for i in range(2000)]
    content = compress(b"\n".join(lines))
    (tmp_path / name).write_bytes(content[: len(content) * 2 // 3])
    finished = run_score("--input", "*.jsonl*", "--output", "out")
    assert finished.status == 0, finished.err
    ids = read_scores(tmp_path / "out")["id"].to_pylist()
    assert sum(id_.startswith("post-") for id_ in ids) == 20
    assert 800 < sum(id_.startswith("x") for id_ in ids) < 1400
    (letter,) = read_dead_letters(tmp_path / "out")
    assert (
        letter["source"] == str(tmp_path / name)
        and int(letter["position"]) > 0
        and "cannot be read" in letter["reason"]
    )


def test_a_truncated_parquet_among_good_ones(run_score: Score, tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        rows = [{"id": f"{name}{i}", "text": "so happy"} for i in range(10)]
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / f"{name}.parquet")
    content = (tmp_path / "b.parquet").read_bytes()
    (tmp_path / "b.parquet").write_bytes(content[: len(content) // 2])
    finished = run_score("--input", "*.parquet", "--output", "out")
    assert finished.status == 0, finished.err
    assert len(read_scores(tmp_path / "out")) == 20
    (letter,) = read_dead_letters(tmp_path / "out")
    assert letter["source"] == str(tmp_path / "b.parquet") and "Parquet" in letter["reason"]


def test_dry_run_prints_the_plan_and_writes_nothing(run_score: Score, tmp_path: Path) -> None:
    write_lines(tmp_path / "in.jsonl", posts(3))
    finished = run_score("--input", "in.jsonl", "--output", "out", "--dry_run")
    assert finished.status == 0
    for part in ("1 file(s)", "in.jsonl", "fingerprint", "dry run"):
        assert part in finished.out
    assert not (tmp_path / "out").exists()


def manifests(output: Path) -> list[Path]:
    return sorted((output / "_manifests").glob("*.json"))


def make_older(output: Path, hours: float) -> None:
    """As if all had been done so long before."""
    by = timedelta(hours=hours)
    times_of_files = {path: path.stat().st_mtime for path in output.rglob("*") if path.is_file()}
    for path in manifests(output):
        content = json.loads(path.read_text())
        for times, names in ((content, ("finished",)), (content["retired_since"], [*content["retired_since"]])):
            for name in names:
                times[name] = (datetime.fromisoformat(times[name]) - by).isoformat()
        path.write_text(json.dumps(content))
    for path, modified in times_of_files.items():
        os.utime(path, (modified - by.total_seconds(),) * 2)


class TestResultsThatAreThere:
    @pytest.fixture(autouse=True)
    def results(self, run_score: Score, tmp_path: Path) -> None:
        write_lines(tmp_path / "in.jsonl", posts(5))
        write_lines(tmp_path / "other.jsonl", [{"id": "other", "text": "so sad"}])
        assert run_score("--input", "in.jsonl", "--output", "out").status == 0

    def test_the_same_command_replaces_them(self, run_score: Score, tmp_path: Path) -> None:
        reader = live_files(str(tmp_path / "out"))
        assert run_score("--input", "in.jsonl", "--output", "out").status == 0
        assert len(read_live(tmp_path / "out")) == 5
        assert not {*reader} & {*live_files(str(tmp_path / "out"))}
        assert all(Path(path).exists() for path in reader), "a reader that began before can finish"

    def test_what_was_replaced_a_day_ago_is_deleted_by_the_next(self, run_score: Score, tmp_path: Path) -> None:
        """However often the command runs: a file that is retired again by each lives no longer for that."""
        output = tmp_path / "out"
        for _ in range(3):
            make_older(output, hours=10)
            assert run_score("--input", "in.jsonl", "--output", "out").status == 0
        # Begun 30, 20, 10 and 0 hours ago, and so retired 20, 10 and 0 hours ago.
        assert (len(list(output.glob("*.parquet"))), len(manifests(output))) == (4, 3)
        for _ in range(2):
            make_older(output, hours=10)
            assert run_score("--input", "in.jsonl", "--output", "out").status == 0
        assert (len(list(output.glob("*.parquet"))), len(manifests(output))) == (4, 3)
        assert len(read_live(output)) == 5

    def test_another_command_is_refused(self, run_score: Score, tmp_path: Path) -> None:
        finished = run_score("--input", "other.jsonl", "--output", "out")
        assert finished.status == 2 and "--if_exists" in finished.err
        assert len(read_scores(tmp_path / "out")) == 5

    @pytest.mark.parametrize(("policy", "rows"), [("append", 6), ("replace", 1)])
    def test_unless_it_says_how(self, run_score: Score, tmp_path: Path, policy: str, rows: int) -> None:
        assert run_score("--input", "other.jsonl", "--output", "out", "--if_exists", policy).status == 0
        assert len(read_live(tmp_path / "out")) == rows

    def test_a_replacement_after_an_append_is_refused(self, run_score: Score, tmp_path: Path) -> None:
        assert run_score("--input", "other.jsonl", "--output", "out", "--if_exists", "append").status == 0
        for name in ("in.jsonl", "other.jsonl"):
            finished = run_score("--input", name, "--output", "out")
            assert finished.status == 2 and "another command (other inputs)" in finished.err
        assert len(read_live(tmp_path / "out")) == 6
        assert run_score("--input", "in.jsonl", "other.jsonl", "--output", "out").status == 0
        assert len(read_live(tmp_path / "out")) == 6

    def test_rows_of_another_model_are_not_added(self, run_score: Score, tmp_path: Path) -> None:
        tiny_bundle(["so"], seed=1).save(tmp_path / "other")
        arguments = ("--input", "other.jsonl", "--output", "out", "--if_exists", "append", "--model", "other")
        finished = run_score(*arguments)
        assert finished.status == 2 and "rows of two models do not mix" in finished.err
        assert len(read_live(tmp_path / "out")) == 5

    def test_rows_whose_embeddings_have_another_type_are_not_added(self, run_score: Score, tmp_path: Path) -> None:
        options = ("--input", "other.jsonl", "--output", "out", "--embedding_type", "float16")
        finished = run_score(*options, "--if_exists", "append")
        assert finished.status == 2 and "--embedding_type as float32, and this command as float16" in finished.err
        assert run_score(*options, "--if_exists", "replace").status == 0

    def test_a_default_that_has_changed_since_is_named_with_its_old_value(self, run_score: Score) -> None:
        options = ("--input", "in.jsonl", "--output", "half")
        assert run_score(*options, "--embedding_type", "float16").status == 0
        finished = run_score(*options)
        assert finished.status == 2 and "(other embedding_type: float16 there)" in finished.err
        assert run_score(*options, "--embedding_type", "float16").status == 0

    def test_fail(self, run_score: Score) -> None:
        assert run_score("--input", "in.jsonl", "--output", "out", "--if_exists", "fail").status == 2
