"""A scorer gives tables of any kind columns of scores, in any process, as the pipeline writes them."""

from __future__ import annotations

import multiprocessing
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from tests.tiny import tiny_bundle
from torchmoji_core import ArrowScorer, Bundle, InputError, RunError, arrow_scorer
from torchmoji_core.bundle_files import WEIGHTS
from torchmoji_core.inference.scorer import Scorer
from torchmoji_core.inference.scores import SCORE_OUTPUTS

SECONDS = 120
BUNDLE = tiny_bundle(["so", "happy", "late", "again", "train"], seed=5)
TEXTS = ["so happy", None, "", " ", "late again 😊", "the train, so LATE", "so happy"]
NUMBERS = list(range(len(TEXTS)))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "tiny"
    BUNDLE.save(path)
    return path


@pytest.fixture(scope="module")
def scorer(model: Path) -> ArrowScorer:
    return ArrowScorer(model=model)


def expected(bundle: Bundle = BUNDLE, texts: list[str | None] = TEXTS) -> pa.RecordBatch:
    scorer = Scorer(bundle, embedding_type="float32", cache_mb=0)
    return scorer.score(texts, missing="empty").to_arrow()


def arrow(kind: pa.DataType) -> Callable[[], pa.Table]:
    return lambda: pa.table({"text": pa.array(TEXTS, kind), "number": NUMBERS})


def dictionary() -> pa.Table:
    return pa.table({"text": pa.array(TEXTS).dictionary_encode(), "number": NUMBERS})


def chunked() -> pa.Table:
    return pa.concat_tables([arrow(pa.string())().slice(0, 2), arrow(pa.string())().slice(2)])


def frame(kind: Any) -> Callable[[], pd.DataFrame]:
    # An index that does not count from 0 must stay.
    return lambda: pd.DataFrame({"text": pd.Series(TEXTS, dtype=kind), "number": NUMBERS}).set_index(
        pd.Index(NUMBERS[::-1])
    )


KINDS: dict[str, Callable[[], Any]] = {
    "table": arrow(pa.string()),
    "batch": lambda: arrow(pa.string())().to_batches()[0],
    "large_string": arrow(pa.large_string()),
    "string_view": arrow(pa.string_view()),
    "dictionary": dictionary,
    "chunked": chunked,
    "pandas of objects": frame(object),
    "pandas of strings": frame("string"),
    "pandas of categories": frame("category"),
    "polars": lambda: pl.DataFrame({"text": TEXTS, "number": NUMBERS}),
    "polars of categories": lambda: pl.DataFrame({"text": pl.Series(TEXTS, dtype=pl.Categorical), "number": NUMBERS}),
}


def columns_of(data: Any) -> pa.Table:
    if isinstance(data, pd.DataFrame):
        return pa.Table.from_pandas(data, preserve_index=False)
    if isinstance(data, pl.DataFrame):
        return data.to_arrow()
    return data


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_table_keeps_its_type_rows_and_order(kind: str, scorer: ArrowScorer) -> None:
    data = KINDS[kind]()
    scored = scorer(data)
    assert type(scored) is type(data)
    found = columns_of(scored)
    assert found["number"].to_pylist() == NUMBERS
    assert [text or None for text in found["text"].to_pylist()] == [text or None for text in TEXTS]
    assert found.column_names == ["text", "number", *expected().schema.names]
    for name in expected().schema.names:
        assert found[name].to_pylist() == expected().column(name).to_pylist(), name
    if isinstance(data, pd.DataFrame):
        assert scored.index.tolist() == data.index.tolist()
    if isinstance(data, (pa.Table, pa.RecordBatch)):
        assert scored.schema == scorer.schema(data.schema)


@pytest.mark.parametrize("kind", KINDS)
def test_no_rows_have_the_same_columns(kind: str, scorer: ArrowScorer) -> None:
    data = KINDS[kind]()
    empty = data.head(0) if isinstance(data, (pd.DataFrame, pl.DataFrame)) else data.slice(0, 0)
    scored = scorer(empty)
    assert columns_of(scored).num_rows == 0
    assert columns_of(scored).column_names == columns_of(scorer(data)).column_names
    if isinstance(data, (pa.Table, pa.RecordBatch)):
        assert scored.schema == scorer(data).schema


def test_nulls_alone_are_empty_rows(scorer: ArrowScorer) -> None:
    assert scorer(pa.table({"text": pa.nulls(3)}))["status"].to_pylist() == ["empty"] * 3


def test_rows_do_not_depend_on_their_company(scorer: ArrowScorer, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(1)
    words = generator.choice(["so", "happy", "late", "again", "train", "unknown"], (60, 8))
    texts = [" ".join(row[: generator.integers(0, 9)]) for row in words.tolist()]
    whole = scorer(pa.table({"text": texts}))
    monkeypatch.setattr(arrow_scorer, "ROWS_AT_ONCE", 7)
    assert scorer(pa.table({"text": texts})).equals(whole)
    order = generator.permutation(60)
    assert scorer(pa.table({"text": texts}).take(order)).equals(whole.take(order))
    parts = pa.table({"text": texts}).to_batches(max_chunksize=11)
    assert pa.Table.from_batches(list(scorer.batches(iter(parts)))).equals(whole)


@pytest.mark.parametrize("outputs", [("attention",), (), SCORE_OUTPUTS])
def test_outputs_choose_columns(model: Path, outputs: tuple[str, ...]) -> None:
    scored = ArrowScorer(model=model, outputs=outputs, embedding_type="float16", top_k=2)(arrow(pa.string())())
    names = {"attention": "attention", "top": "top_emojis", "probabilities": "probabilities", "embedding": "embedding"}
    assert scored.column_names[2:-4] == [names[name] for name in names if name in outputs] or len(outputs) == 4
    if "attention" in outputs:
        assert [item["token"] for item in scored["attention"][0].as_py()] == ["so", "happy"]
    if "embedding" in outputs:
        assert scored.schema.field("embedding").type.value_type == pa.float16()
        assert len(scored["top_emojis"][0]) == 2


def test_the_schema_is_known_without_weights(model: Path, tmp_path: Path, scorer: ArrowScorer) -> None:
    shutil.copytree(model, tmp_path / "light")
    (tmp_path / "light" / WEIGHTS).write_bytes(b"no weights")
    data = arrow(pa.string())().replace_schema_metadata({"mine": "kept"})
    schema = ArrowScorer(model=tmp_path / "light").schema(data.schema)
    assert schema == scorer(data).schema
    metadata = scorer(data).schema.metadata
    assert metadata[b"mine"] == b"kept"
    assert metadata[b"torchmoji.fingerprint"].decode() == scorer.fingerprint == BUNDLE.fingerprint
    assert schema.metadata.items() <= metadata.items()


class TestColumns:
    def test_they_are_arrays_for_plain_functions(self, scorer: ArrowScorer) -> None:
        found = scorer.columns(pd.Series(TEXTS, dtype=object))
        rows = expected()
        assert found["status"].tolist() == rows.column("status").to_pylist()
        assert found["n_tokens"].tolist() == rows.column("n_tokens").to_pylist()
        top = rows.column("top_emojis").to_pylist()
        lists = {name: rows.column(name).to_pylist() for name in ("probabilities", "embedding")}
        for field in ("emoji", "probability"):
            lists[f"top_emojis_{field}"] = [row and [item[field] for item in row] for row in top]
        for name, values in lists.items():
            assert [None if row is None else row.tolist() for row in found[name]] == values

    def test_nothing_is_raised_for_what_texts_are(self, scorer: ArrowScorer) -> None:
        odd = ["so happy", None, float("nan"), 5, b"bytes", ["list"], "\ud800 lone", "a" * 100_000, "\x00"]
        found = scorer.columns(odd)
        assert found["status"].tolist()[:6] == ["scored", *["empty"] * 5]
        assert all(len(values) == len(odd) for values in found.values())
        assert all(len(values) == 0 for values in scorer.columns([]).values())

    def test_one_text_is_no_column(self, scorer: ArrowScorer) -> None:
        with pytest.raises(TypeError, match=r"give \[text\]"):
            scorer.columns("so happy")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (pa.table({"body": TEXTS}), "'text', is not among 'body'; name it: ArrowScorer('column')"),
        (pd.DataFrame({"body": TEXTS}), "'text', is not among 'body'"),
        (pl.DataFrame({"body": TEXTS}), "'text', is not among 'body'"),
        (pa.table([TEXTS, TEXTS], ["text", "text"]), "'text', is there twice"),
        (pd.DataFrame([["a", "b"]], columns=["text", "text"]), "'text', is there twice"),
        (pa.table({"text": [1, 2]}), "'text' is int64, not texts; cast it to string"),
        (pa.table({"text": [b"a"]}), "'text' is binary, not texts"),
        (pa.table({"text": [["a"]]}), "'text' is list<"),
        (pl.DataFrame({"text": [1, 2]}), "'text' is int64, not texts"),
        (pd.DataFrame({"text": [1, 2]}), "row 0"),
        (pa.table({"text": TEXTS, "status": NUMBERS}), "has a column 'status' already"),
        (pd.DataFrame({"text": TEXTS, "embedding": NUMBERS}), "has a column 'embedding' already"),
        (TEXTS, r"not builtins.list; for a list or a Series of texts there is scorer.columns"),
        (pl.LazyFrame({"text": TEXTS}), "not polars.LazyFrame"),
    ],
)
def test_wrong_data_is_named_in_one_line(data: Any, message: str, scorer: ArrowScorer) -> None:
    with pytest.raises((InputError, TypeError)) as error:
        scorer(data)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"text": None}, "takes the name of one column of texts, not None"),
        ({"outputs": "top"}, "outputs must be a list of some of top, probabilities, embedding, attention, not 'top'"),
        ({"outputs": None}, "outputs must be a list of some of top"),
        ({"outputs": (name for name in ["top"])}, "outputs must be a list of some of top"),
        ({"outputs": ["tops"]}, "outputs 'tops' is unknown"),
        ({"precision": "fp8"}, "precision 'fp8' is unknown"),
        ({"precision": ["fp32"]}, "precision .'fp32'. is unknown"),
        ({"embedding_type": "double"}, "embedding_type 'double' is unknown"),
        ({"top_k": 0}, "top_k must be at least 1"),
        ({"top_k": "2"}, r"top_k must be a whole number \(at least 1\), not '2'"),
        ({"top_k": 2.0}, r"top_k must be a whole number \(at least 1\), not 2.0"),
        ({"threads": 0}, "threads must be at least 1"),
        ({"threads": "2"}, "threads must be a whole number"),
        ({"fingerprint": 5}, "fingerprint must be that of a bundle"),
        ({"model": BUNDLE}, "takes the path or URI of a model"),
        ({"model": "/nowhere/at/all"}, "/nowhere/at/all"),
    ],
)
def test_wrong_options_are_named_before_any_work(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ArrowScorer(**options)


def test_a_scorer_is_small_and_equal_to_its_copy(scorer: ArrowScorer, monkeypatch: pytest.MonkeyPatch) -> None:
    scorer(arrow(pa.string())())
    assert len(pickle.dumps(ArrowScorer())) < 250
    copied = pickle.loads(pickle.dumps(scorer))
    assert copied == scorer
    assert hash(copied) == hash(scorer)
    monkeypatch.setattr(arrow_scorer, "load_bundle", lambda source: pytest.fail("the model is loaded once a process"))
    assert copied(arrow(pa.string())()).equals(scorer(arrow(pa.string())()))


def test_a_relative_path_is_that_of_where_it_was_given(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(model.parent)
    made = ArrowScorer(model="tiny")
    monkeypatch.chdir(tmp_path)
    assert made(arrow(pa.string())())["status"][0].as_py() == "scored"


def test_a_name_stays_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHMOJI_CACHE", str(tmp_path))
    BUNDLE.save(tmp_path / "deepmoji" / "bundle")
    made = ArrowScorer(model="deepmoji")
    assert made.model == "deepmoji"
    assert made.fingerprint == BUNDLE.fingerprint


def test_a_model_that_was_replaced_is_refused(model: Path, tmp_path: Path) -> None:
    shutil.copytree(model, tmp_path / "model")
    made = ArrowScorer(model=tmp_path / "model")
    shutil.rmtree(tmp_path / "model")
    tiny_bundle(["other"], seed=6).save(tmp_path / "model")
    with pytest.raises(RunError, match="it was replaced meanwhile"):
        made(arrow(pa.string())())


def score_it(scorer: ArrowScorer) -> pa.Table:
    return scorer(arrow(pa.string())())


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_other_processes_score_alike(method: str, scorer: ArrowScorer) -> None:
    here = score_it(scorer)  # so that a forked process inherits a model in use
    with multiprocessing.get_context(method).Pool(1) as pool:
        assert pool.apply_async(score_it, (scorer,)).get(SECONDS).equals(here)


def test_duckdb_reads_and_is_read(scorer: ArrowScorer) -> None:
    duckdb = pytest.importorskip("duckdb")
    tweets = arrow(pa.string())()
    scored = scorer(duckdb.sql("SELECT * FROM tweets ORDER BY number").to_arrow_table())
    assert scored.num_rows == tweets.num_rows
    assert duckdb.sql("SELECT count(*) FROM scored WHERE status = 'scored'").fetchall() == [(4,)]


def test_duckdb_writes_batch_by_batch_by_a_second_connection(
    scorer: ArrowScorer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    duckdb = pytest.importorskip("duckdb", minversion="1.5")  # which has to_arrow_reader
    monkeypatch.chdir(tmp_path)
    with duckdb.connect() as connection:
        connection.sql("CREATE TABLE tweets AS SELECT 'so happy' AS text, number FROM range(5000) AS rows(number)")
        reader = connection.sql("SELECT * FROM tweets").to_arrow_reader(2048)
        scored = pa.RecordBatchReader.from_batches(scorer.schema(reader.schema), scorer.batches(reader))
        assert scored.schema.names[2:] == expected().schema.names
        connection.cursor().sql("COPY (FROM scored) TO 'scored.parquet'")
        found = connection.sql("SELECT count(*), sum(number), count(embedding) FROM 'scored.parquet'").fetchall()
    assert found == [(5000, 4999 * 2500, 5000)]


def test_a_lazy_frame_of_polars(scorer: ArrowScorer) -> None:
    lazy = pl.LazyFrame({"text": TEXTS})
    lazy = lazy.map_batches(scorer, schema=scorer(lazy.head(0).collect()).schema)  # as docs/engines.md says
    assert lazy.select("status").collect()["status"].to_list() == expected().column("status").to_pylist()


@pytest.mark.parametrize(
    "texts", [pa.array(TEXTS), pa.chunked_array([TEXTS]), pa.array(TEXTS).dictionary_encode(), pd.Series(TEXTS)]
)
def test_columns_of_arrays_of_arrow_are_those_of_a_list(texts: Any, scorer: ArrowScorer) -> None:
    assert scorer.columns(texts)["status"].tolist() == scorer.columns(TEXTS)["status"].tolist()
    assert scorer.columns(texts)["status"].tolist().count("scored") == 4


def test_columns_refuse_a_table_whose_names_would_be_scored(scorer: ArrowScorer) -> None:
    with pytest.raises(TypeError, match=r"one column of texts, not a DataFrame"):
        scorer.columns(pd.DataFrame({"text": TEXTS}))


class Renamed(ArrowScorer):
    """Of a user."""


def test_a_subclass_comes_back_from_a_pickle(model: Path) -> None:
    made = pickle.loads(pickle.dumps(Renamed(model=model)))
    assert type(made) is Renamed
    assert made == Renamed(model=model)
