"""ScoreBatches: the bundle's own scores, typed columns, and what one bad row costs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import apache_beam as beam
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.transforms.conftest import Ran, Run, assert_scores, make_texts
from torchmoji_core import __version__
from torchmoji_core.bundle import Bundle, load_bundle
from torchmoji_core.errors import InputError, RunError
from torchmoji_core.model import Dimensions, TorchMoji
from torchmoji_core.tokenizer import TOKENIZER_VERSION
from transforms import metrics
from transforms.columns import OUTPUTS
from transforms.input.fields import KeptField
from transforms.options import ScoreOptions
from transforms.records import DeadLetter, TokenizedBatch, TokenizedTweet, Tweet
from transforms.scoring.loaded_model import load_model
from transforms.scoring.run_inference import RecordBatchHandler, ScoreBatches
from transforms.scoring.score import ScoreFileBatches, bisect
from transforms.scoring.tokenize import tokenize

ALL = OUTPUTS


def tokenized(bundle: Bundle, texts: Mapping[str, str], extra: tuple[Any, ...] = ()) -> list[TokenizedTweet]:
    return [
        tokenize(Tweet(key, text, 1_000_000, extra), bundle.tokenizer, bundle.maxlen) for key, text in texts.items()
    ]


def named(texts: Iterable[str]) -> dict[str, str]:
    return {f"id-{index}": text for index, text in enumerate(texts)}


def score(
    run: Run,
    batches: list[list[TokenizedTweet]],
    options: ScoreOptions,
    transform: type[ScoreBatches | ScoreFileBatches] = ScoreBatches,
) -> Ran:
    def build(pipeline: beam.Pipeline) -> Mapping[str, beam.PCollection[Any]]:
        created = pipeline | beam.Create(batches).with_output_types(list[TokenizedTweet])
        if transform is ScoreFileBatches:
            created = created | beam.Map(TokenizedBatch).with_output_types(TokenizedBatch)
        outcome = created | "ScoreBatches" >> transform(options)
        return {"batches": outcome.results, "dead": outcome.dead_letters | beam.Flatten()}

    return run(build)


def rows_of(ran: Ran) -> list[dict[str, Any]]:
    return [row for batch in ran["batches"] for row in batch.to_pylist()]


# --- scores --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("embedding_type", ["float16", "float32"])
@pytest.mark.parametrize("precision", ["auto", "fp32", "fp64"])
def test_rows_are_the_scores_of_the_bundle(
    embedding_type: str, precision: str, run: Run, bundle: Bundle, model: str
) -> None:
    texts = named([*make_texts(100), "", "  ", "xyzzy"])
    rows = tokenized(bundle, texts)
    options = ScoreOptions(model, precision, ALL, top_k=7, embedding_type=embedding_type)
    ran = score(run, [rows[:40], rows[40:41], rows[41:]], options)
    assert sorted(len(batch) for batch in ran["batches"]) == [1, 40, 62]
    assert_scores(rows_of(ran), texts, bundle, ALL, embedding_type, 7, precision)
    assert ran["dead"] == []


@pytest.mark.parametrize("outputs", [(name,) for name in ALL] + [("attention", "text", "top")], ids="+".join)
def test_only_the_outputs_asked_for(outputs: tuple[str, ...], run: Run, bundle: Bundle, model: str) -> None:
    texts = named(make_texts(5))
    ran = score(run, [tokenized(bundle, texts)], ScoreOptions(model, outputs=outputs))
    columns = {"top": "top_emojis"}
    assert set(ran["batches"][0].schema.names) == {
        "id", "n_tokens", "n_unknown", "truncated", "status", "cut_by_platform",
        *(columns.get(name, name) for name in outputs),
    }  # fmt: skip
    assert_scores(rows_of(ran), texts, bundle, outputs)


@pytest.mark.parametrize("texts", [["", ""], ["", "i love rain"], ["i love rain", ""]], ids=str)
@pytest.mark.parametrize("embedding_type", ["float16", "float32"])
def test_texts_without_tokens(texts: list[str], embedding_type: str, run: Run, bundle: Bundle, model: str) -> None:
    options = ScoreOptions(model, outputs=ALL, embedding_type=embedding_type)
    ran = score(run, [tokenized(bundle, named(texts))], options)
    assert_scores(rows_of(ran), named(texts), bundle, ALL, embedding_type)
    ran["batches"][0].validate(full=True)
    assert ran.count(metrics.EMPTY) == texts.count("")


def test_more_classes_asked_for_than_there_are(run: Run, bundle: Bundle, model: str) -> None:
    ran = score(run, [tokenized(bundle, named(["i love rain"]))], ScoreOptions(model, top_k=1000))
    (row,) = rows_of(ran)
    assert len({item["emoji"] for item in row["top_emojis"]}) == 64


def test_a_model_with_classes_of_words(run: Run, bundle: Bundle, tmp_path: Path) -> None:
    torch.manual_seed(3)
    module = TorchMoji(Dimensions(len(bundle.vocabulary), 6, 4, 3))
    other = Bundle("moods", ("anger", "fear", "joy"), bundle.vocabulary, module.state_dict(), maxlen=3)
    other.save(tmp_path / "moods")
    ran = score(run, [tokenized(other, named(["i love rain so much"]))], ScoreOptions(str(tmp_path / "moods")))
    (row,) = rows_of(ran)
    assert {item["class"] for item in row["top_classes"]} == {"anger", "fear", "joy"}
    assert (row["n_tokens"], row["truncated"]) == (3, True)


# --- schema --------------------------------------------------------------------------------------------------------


def test_schema_and_metadata(run: Run, bundle: Bundle, model: str) -> None:
    keep = (KeptField("likes", "int64"), KeptField("user.name"), KeptField("day", "date"))
    options = ScoreOptions(model, "fp32", ALL, keep=keep, timestamp=True, embedding_type="float32", run_id="run-1")
    ran = score(run, [tokenized(bundle, named(["i love rain"]), extra=(3, "ann", None))], options)
    (batch,) = ran["batches"]
    assert batch.schema.names == [
        "id", "text", "source", "likes", "user.name", "day", "timestamp", "top_emojis", "probabilities", "embedding",
        "attention", "n_tokens", "n_unknown", "truncated", "status", "cut_by_platform", "fingerprint",
    ]  # fmt: skip
    types = {field.name: field.type for field in batch.schema}
    assert types["likes"] == pa.int64()
    assert types["day"] == pa.date32()
    assert types["timestamp"] == pa.timestamp("us", tz="UTC")
    assert types["probabilities"].value_type == types["embedding"].value_type == pa.float32()
    (row,) = batch.to_pylist()
    assert (row["likes"], row["user.name"], row["day"]) == (3, "ann", None)
    assert row["timestamp"] == datetime(1970, 1, 1, 0, 0, 1, tzinfo=UTC)
    metadata = {key.decode(): value.decode() for key, value in batch.schema.metadata.items()}
    assert json.loads(metadata.pop("torchmoji.classes")) == list(bundle.classes)
    assert metadata.pop("torchmoji.arithmetic") in ("fp32 (oneDNN)", "fp32 (MKL)", "fp32 (BLAS)")
    assert metadata == {
        "torchmoji.bundle": "tiny",
        "torchmoji.fingerprint": bundle.fingerprint,
        "torchmoji.tokenizer": TOKENIZER_VERSION,
        "torchmoji.precision": "fp32",
        "torchmoji.maxlen": "30",
        "torchmoji.version": __version__,
        "torchmoji.run_id": "run-1",
    }


def test_all_batches_have_one_schema(run: Run, bundle: Bundle, model: str) -> None:
    """An all-empty batch, one of a single row, one with a poison row: they go into one file."""
    poison = TokenizedTweet(Tweet("poison", "x"), [10**6], 1, False)
    batches = [
        tokenized(bundle, named(["", ""])),
        tokenized(bundle, {"a": "love"}),
        [poison, *tokenized(bundle, {"b": "rain"})],
    ]
    ran = score(run, batches, ScoreOptions(model, outputs=ALL))
    assert len(ran["batches"]) == 3
    first, *others = [batch.schema for batch in ran["batches"]]
    assert all(schema.equals(first, check_metadata=True) for schema in others)


def test_types_of_the_outputs_are_known() -> None:
    """So that Beam uses the coders of `records`: it sizes batches without encoding them, and keeps their metadata."""
    created = beam.Pipeline() | beam.Create([[]]).with_output_types(list[TokenizedTweet])
    outcome = created | ScoreBatches(ScoreOptions("unused"))
    assert outcome.results.element_type is pa.RecordBatch
    assert {letters.element_type for letters in outcome.dead_letters} == {DeadLetter}


# --- bad rows ------------------------------------------------------------------------------------------------------


def healthy_and(
    bundle: Bundle, bad: Mapping[int, TokenizedTweet], n: int = 16
) -> tuple[dict[str, str], list[TokenizedTweet]]:
    texts = named(make_texts(n))
    rows = tokenized(bundle, texts)
    for index, row in sorted(bad.items()):
        rows.insert(index, row)
    return texts, rows


@pytest.mark.parametrize("positions", [[0], [7], [16], [0, 1], [3, 9, 16]], ids=str)
def test_a_poison_row_costs_itself_alone(positions: list[int], run: Run, bundle: Bundle, model: str) -> None:
    outside = len(bundle.vocabulary)
    poison = {
        position: TokenizedTweet(Tweet(f"poison-{position}", "poison ☠"), [11, outside, 12], 3, False)
        for position in positions
    }
    texts, rows = healthy_and(bundle, poison)
    ran = score(run, [rows], ScoreOptions(model, outputs=("text", "top", "probabilities", "embedding")))
    assert_scores(rows_of(ran), texts, bundle, ("text", "top", "probabilities", "embedding"))
    assert sorted(letter.position for letter in ran["dead"]) == sorted(f"poison-{position}" for position in positions)
    for letter in ran["dead"]:
        assert type(letter) is DeadLetter
        assert letter.source == "score"
        assert "cannot be scored: token ids must be at least 0 and below" in letter.reason
        assert letter.raw == "poison ☠".encode()


@pytest.mark.parametrize("cache_mb", [0, 64])
def test_repeated_texts_are_scored_once(cache_mb: int, run: Run, bundle: Bundle, model: str) -> None:
    texts = make_texts(20)
    repeated = named([*texts, *texts[:5], *texts, ""])
    rows = tokenized(bundle, repeated)
    ran = score(run, [rows[:25], rows[25:]], ScoreOptions(model, outputs=ALL, cache_mb=cache_mb))
    assert_scores(rows_of(ran), repeated, bundle, ALL)
    assert ran.count(metrics.SCORED) == 45
    assert ran.count(metrics.REUSED) == (25 if cache_mb else 0)


def test_a_bad_row_does_not_get_the_scores_of_a_good_one(run: Run, bundle: Bundle, model: str) -> None:
    """Its ids are written as the good row's are in another type."""
    rows = [
        TokenizedTweet(Tweet("good", "x"), [11], 1, False),
        TokenizedTweet(Tweet("bad", "x"), ["11"], 1, False),
    ]
    ran = score(run, [rows[:1], rows[1:]], ScoreOptions(model))
    assert [row["id"] for row in rows_of(ran)] == ["good"]
    assert [letter.position for letter in ran["dead"]] == ["bad"]


def test_files_are_scored_like_all_else(run: Run, bundle: Bundle, model: str) -> None:
    """Rows, dead letters and counts are those of RunInference's way."""
    poison = TokenizedTweet(Tweet("poison", "x"), [10**6], 1, False)
    rows = tokenized(bundle, named(make_texts(30)))
    batches = [[*rows[:10], poison], rows[10:]]
    ours, others = (score(run, batches, ScoreOptions(model), way) for way in (ScoreFileBatches, ScoreBatches))
    in_order = [sorted(rows_of(ran), key=lambda row: str(row["id"])) for ran in (ours, others)]
    assert in_order[0] == in_order[1] and len(in_order[0]) == 30
    assert ours["dead"] == others["dead"] and len(ours["dead"]) == 1
    counted = {name: count for name, count in others.counters.items() if name != "num_inferences"}
    assert ours.counters == counted


def test_a_batch_of_poison_alone(run: Run, model: str) -> None:
    rows = [TokenizedTweet(Tweet(str(index), "x"), [-1], 1, False) for index in range(5)]
    ran = score(run, [rows], ScoreOptions(model))
    assert ran["batches"] == []
    assert len(ran["dead"]) == 5
    assert ran.count(metrics.SCORED) == ran.count(metrics.BATCHES) == 0


@pytest.mark.parametrize(
    ("tweet", "ids"),
    [
        (Tweet("bad", "text", 5, ("many",)), [11]),
        (Tweet("bad", "text", 5, (2**63,)), [11]),
        (Tweet("bad", "text", 5, ()), [11]),
        (Tweet("bad", "text", "yesterday", (1,)), [11]),  # type: ignore[arg-type]
        (Tweet("bad", "text", 2**63, (1,)), [11]),
        (Tweet("bad", "lone \ud83d surrogate", 5, (1,)), [11]),
        (Tweet("bad", "text", 5, (1,)), [11, 12, 13]),  # more ids than the text has tokens to attend to
        (Tweet("bad", "text", 5, (1,)), ["11"]),
        (Tweet("bad", "text", 5, (1,)), None),
    ],
    ids=["type", "range", "missing", "time", "far time", "surrogate", "ids", "id type", "no ids"],
)
def test_a_row_that_fits_no_column_costs_itself_alone(
    tweet: Tweet, ids: Any, run: Run, bundle: Bundle, model: str
) -> None:
    """Other people's pipelines make such rows; the first ones once ended the run."""
    texts = named(make_texts(8))
    rows = tokenized(bundle, texts, extra=(7,))
    rows.insert(3, TokenizedTweet(tweet, ids, 1, False))
    options = ScoreOptions(model, outputs=ALL, keep=(KeptField("likes", "int64"),), timestamp=True)
    ran = score(run, [rows], options)
    assert_scores(rows_of(ran), texts, bundle, ALL)
    (letter,) = ran["dead"]
    assert letter.position == "bad"
    assert letter.raw
    assert ran.count(metrics.SCORED) == 8


@settings(max_examples=100, deadline=None)
@given(n=st.integers(0, 40), poison=st.sets(st.integers(0, 39), max_size=5))
def test_bisection(n: int, poison: set[int]) -> None:
    """Every row once, in order, in as few calls as halving takes."""
    rows = [TokenizedTweet(Tweet(str(index), ""), [], 0, False) for index in range(n)]
    poison = {index for index in poison if index < n}
    calls = 0

    def join_ids(some: list[TokenizedTweet]) -> str:
        nonlocal calls
        calls += 1
        if bad := [row.tweet.id for row in some if int(row.tweet.id) in poison]:
            raise ValueError(f"bad {bad}")
        return " ".join(row.tweet.id for row in some)

    scored, dead = bisect(rows, join_ids, lambda: None)
    assert " ".join(result for _, result in scored).split() == [str(index) for index in range(n) if index not in poison]
    assert all(result == " ".join(row.tweet.id for row in some) for some, result in scored)
    assert [(row.tweet.id, str(error)) for row, error in dead] == [(f"{i}", f"bad ['{i}']") for i in sorted(poison)]
    assert calls <= 1 + len(poison) * (1 + 2 * max(1, n).bit_length())


# --- metrics -------------------------------------------------------------------------------------------------------


def test_counters_add_up(run: Run, bundle: Bundle, model: str) -> None:
    texts, rows = healthy_and(bundle, {4: TokenizedTweet(Tweet("poison", "x"), [10**6], 1, False)}, n=50)
    texts |= {"empty-1": "", "empty-2": " "}
    rows += tokenized(bundle, {"empty-1": "", "empty-2": " "})
    ran = score(run, [rows[:25], rows[25:]], ScoreOptions(model))
    scores = bundle.score(list(texts.values()))
    assert ran.count(metrics.SCORED) == 50
    assert ran.count(metrics.EMPTY) == 2
    assert ran.count(metrics.SCORED) + ran.count(metrics.EMPTY) + len(ran["dead"]) == len(rows)
    assert ran.count(metrics.TOKENS) == scores.n_tokens.sum()
    assert ran.count(metrics.UNKNOWN) == scores.n_unknown.sum() > 0
    assert ran.count(metrics.TRUNCATED) == scores.truncated.sum() > 0
    assert ran.count(metrics.BATCHES) == len(ran["batches"])
    assert ran.distributions[metrics.BATCH_ROWS].sum == 52
    assert ran.distributions[metrics.BATCH_TOKENS].sum == scores.n_tokens.sum()
    tops = {name: count for name, count in ran.counters.items() if name.startswith(metrics.TOP_PREFIX)}
    assert sum(tops.values()) == 50
    favourite = [row[0][0] for row in scores.top(1) if row]
    assert tops == {f"top_{bundle.classes.index(label)}": favourite.count(label) for label in set(favourite)}


def test_the_metrics_of_run_inference(run: Run, bundle: Bundle, model: str) -> None:
    rows = tokenized(bundle, named(make_texts(30)))
    ran = score(run, [rows[:10], rows[10:]], ScoreOptions(model))
    assert ran.count("num_inferences") == 30
    assert ran.distributions["inference_request_batch_size"].sum == 30
    assert ran.distributions["inference_request_batch_size"].max == 20
    assert ran.distributions["inference_request_batch_byte_size"].sum == 4 * sum(row.length for row in rows)
    assert ran.distributions["inference_batch_latency_micro_secs"].count == 2
    assert ran.distributions["load_model_latency_milli_secs"].count == 1
    assert "model_byte_size" in ran.distributions


def test_progress_counts_all_rows(run: Run, bundle: Bundle, model: str, tmp_path: Path) -> None:
    poison = TokenizedTweet(Tweet("poison", "x"), [10**6], 1, False)
    score(run, [tokenized(bundle, named(make_texts(9))), [poison]], ScoreOptions(model, progress=str(tmp_path)))
    assert metrics.Progress.total(str(tmp_path)) == (10, 0)


# --- the handler ---------------------------------------------------------------------------------------------------


def test_the_model_can_be_swapped(bundle: Bundle, model: str, tmp_path: Path) -> None:
    other = Bundle("other", bundle.classes, bundle.vocabulary, bundle.state, maxlen=5)
    other.save(tmp_path / "other")
    handler = RecordBatchHandler(ScoreOptions(model))
    assert handler.load_model().scorer.fingerprint == bundle.fingerprint
    handler.update_model_path(str(tmp_path / "other"))
    assert handler.load_model().schema.metadata[b"torchmoji.fingerprint"].decode() == other.fingerprint
    handler.update_model_path(None)
    assert handler.load_model().scorer.maxlen == 5


def test_inference_arguments_are_refused() -> None:
    handler = RecordBatchHandler(ScoreOptions("unused"))
    handler.validate_inference_args(None)
    handler.validate_inference_args({})
    with pytest.raises(ValueError, match="no inference_args"):
        handler.validate_inference_args({"temperature": 1})


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_change_neither_results_nor_torch(threads: int, run: Run, bundle: Bundle, model: str) -> None:
    """A setting of our own must not slow down or speed up the rest of somebody's process."""
    texts = named(make_texts(80))
    before = torch.get_num_threads()
    ran = score(run, [tokenized(bundle, texts)], ScoreOptions(model, outputs=ALL, threads=threads))
    assert_scores(rows_of(ran), texts, bundle, ALL)
    assert torch.get_num_threads() == before


def test_a_missing_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no-such-bundle"):
        load_model(str(tmp_path / "no-such-bundle"), ScoreOptions())


def test_another_model_than_the_run_was_planned_with_is_refused(bundle: Bundle, model: str) -> None:
    """Somebody may have replaced it between planning and scoring, and rows of two models would be one data set."""
    assert load_model(model, ScoreOptions(fingerprint=bundle.fingerprint)).scorer.fingerprint == bundle.fingerprint
    other = "0" * len(bundle.fingerprint)
    with pytest.raises(RunError, match=f"{bundle.fingerprint[:12]}.*planned with {other[:12]}.*replaced"):
        load_model(model, ScoreOptions(fingerprint=other))


def test_a_run_fails_whose_model_is_another(run: Run, bundle: Bundle, model: str) -> None:
    options = ScoreOptions(model, fingerprint="0" * 64)
    with pytest.raises(Exception, match="was replaced meanwhile"):
        score(run, [tokenized(bundle, {"a": "love"})], options)


def test_the_columns_source_and_partition_are_the_tweets(run: Run, bundle: Bundle, model: str) -> None:
    rows = [
        row._replace(tweet=row.tweet._replace(source="in.jsonl", partition="lang=en"))
        for row in tokenized(bundle, {"a": "love", "b": "rain"})
    ]
    ran = score(run, [rows], ScoreOptions(model, outputs=("source", "top"), partitioned=True))
    (batch,) = ran["batches"]
    assert batch.column("source").to_pylist() == ["in.jsonl"] * 2
    assert batch.column("_partition").to_pylist() == ["lang=en"] * 2


def test_a_dead_letter_names_the_file_of_the_row(run: Run, bundle: Bundle, model: str) -> None:
    poison = TokenizedTweet(Tweet("poison", "x", source="in.jsonl"), [10**6], 1, False)
    ran = score(run, [[poison, *tokenized(bundle, {"b": "rain"})]], ScoreOptions(model))
    (letter,) = ran["dead"]
    assert (letter.source, letter.position, letter.raw) == ("in.jsonl", "poison", b"x")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"outputs": ("top", "emoji")}, "outputs 'emoji' is unknown; choose from text, source, top"),
        ({"outputs": ()}, "outputs: none given"),
        ({"precision": "fp8"}, "precision 'fp8' is unknown; choose from auto"),
        ({"embedding_type": "float64"}, "embedding_type 'float64' is unknown; choose from float32, float16"),
        ({"top_k": 0}, "top_k must be at least 1"),
        ({"threads": 0}, "threads must be at least 1"),
        ({"keep": (KeptField("embedding"),)}, "kept field 'embedding' has the name of an output column"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_options_are_checked_when_they_are_made(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ScoreOptions(**arguments)


def test_the_saved_bundle_is_the_one_compared_with(bundle: Bundle, model: str) -> None:
    assert load_bundle(model).fingerprint == bundle.fingerprint
