"""Rows with a schema, Beam's MLTransform and Beam YAML give what a bundle gives."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import apache_beam as beam
import numpy as np
import pytest
from apache_beam.ml.rag.embeddings.base import create_rag_adapter
from apache_beam.ml.rag.types import Chunk, Content
from apache_beam.ml.transforms.base import MLTransform
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.typehints.row_type import RowTypeConstraint

import transforms
from tests.transforms.conftest import Run, make_texts
from torchmoji_core import Bundle, InputError
from torchmoji_core.inference.scorer import Scorer

# Its types must be more than names, which they would be in a class of this module.
Post = NamedTuple("Post", [("user", int), ("body", str | None)])  # noqa: UP014
TEXTS: list[str | None] = [*make_texts(40), None, "", " "]
POSTS = [Post(number, text) for number, text in enumerate(TEXTS)]


def test_rows_have_the_columns_of_the_files_behind_their_own(run: Run, bundle: Bundle, model: str) -> None:
    def build(pipeline: beam.Pipeline) -> Mapping[str, beam.PCollection[Any]]:
        posts = pipeline | beam.Create(POSTS).with_output_types(Post)
        rows, dead = posts | transforms.AnnotateRows("body", model, top_k=2)
        fields = dict(rows.element_type._fields)
        assert list(fields) == ["user", "body", *names]
        assert fields["user"] is int
        (letters,) = (dead,) if not isinstance(dead, tuple) else dead
        return {"rows": rows | beam.Map(beam.Row.as_dict), "dead": letters}

    expected = Scorer(bundle, embedding_type="float32").score(TEXTS, missing="empty").to_arrow(top_k=2)
    names = expected.schema.names
    ran = run(build)
    assert ran["dead"] == []
    found = sorted(ran["rows"], key=lambda row: row["user"])
    assert [(row["user"], row["body"]) for row in found] == list(POSTS)
    for name in names:
        values = expected.column(name).to_pylist()
        if name == "top_emojis":
            values = [row and [(item["emoji"], item["probability"]) for item in row] for row in values]
            assert [row[name] and [(item.emoji, item.probability) for item in row[name]] for row in found] == values
        else:
            assert [row[name] for row in found] == values, name


class Later(NamedTuple):
    """Of types that are names only, since this module postpones annotations."""

    text: str


def test_a_named_tuple_of_postponed_annotations(run: Run, model: str) -> None:
    def build(pipeline: beam.Pipeline) -> Mapping[str, beam.PCollection[Any]]:
        rows = pipeline | beam.Create([Later("so")]).with_output_types(Later) | transforms.AnnotateRows(model=model)
        return {"rows": rows.results | beam.Map(lambda row: row.status)}

    assert run(build)["rows"] == ["scored"]


def test_a_row_whose_text_is_no_text_is_a_dead_letter_of_its_own(run: Run, model: str) -> None:
    anything = RowTypeConstraint.from_fields([("text", Any)])

    def build(pipeline: beam.Pipeline) -> Mapping[str, beam.PCollection[Any]]:
        rows = pipeline | beam.Create([beam.Row(text="a"), beam.Row(text=5), beam.Row(text=b"x")])
        annotated = rows | beam.Map(lambda row: row).with_output_types(anything) | transforms.AnnotateRows(model=model)
        return {"rows": annotated.results | beam.Map(lambda row: row.status), "dead": annotated.dead_letters[0]}

    ran = run(build)
    assert ran["rows"] == ["scored"]
    assert sorted(letter.reason for letter in ran["dead"]) == [
        "'text' is no text but bytes",
        "'text' is no text but int",
    ]


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([{"text": "a"}], {}, "takes rows with a schema, not"),
        ([beam.Row(body="a")], {}, "the rows have no column 'text' of texts, but body"),
        ([beam.Row(text="a", status=1)], {}, "the rows have a column 'status' already"),
        ([beam.Row(text="a")], {"outputs": ["tops"]}, "outputs 'tops' is unknown"),
        ([beam.Row(text="a")], {"outputs": "top"}, "outputs must be a list of some of top"),
        ([beam.Row(text=5)], {}, "the column 'text' is of <class 'int'>, not of texts"),
        ([beam.Row(text="a")], {"model": "/nowhere"}, "/nowhere"),
        ([beam.Row(text="a")], {"top_k": 0}, "top_k"),
    ],
)
def test_wrong_use_is_named_when_the_pipeline_is_built(rows: list[Any], options: dict[str, Any], message: str) -> None:
    pipeline = beam.Pipeline(runner=FnApiRunner())
    with pytest.raises(InputError, match=message):
        pipeline | beam.Create(rows) | transforms.AnnotateRows(**options)


class TestEmbeddings:
    @pytest.mark.parametrize("feature", ["embedding", "probabilities"])
    def test_vectors_take_the_place_of_texts_also_by_the_artifacts(
        self, run: Run, bundle: Bundle, model: str, tmp_path: Path, feature: str
    ) -> None:
        expected = getattr(bundle.score(TEXTS, missing="empty").fillna(), feature)
        rows = [{"number": number, "text": text} for number, text in enumerate(TEXTS)]
        made = MLTransform(write_artifact_location=str(tmp_path)).with_transform(
            transforms.TorchMojiEmbeddings(columns=["text"], model=model, feature=feature)
        )
        for transform in (made, MLTransform(read_artifact_location=str(tmp_path))):
            ran = run(lambda pipeline, used=transform: {"rows": pipeline | beam.Create(rows) | used})
            found = sorted(ran["rows"], key=lambda row: row["number"])
            assert np.array_equal(np.array([row["text"] for row in found], np.float32), expected)
        artifacts = [path for path in tmp_path.rglob("*") if path.is_file()]
        assert 0 < sum(path.stat().st_size for path in artifacts) < 5_000, "they hold no weights"
        assert any(bundle.fingerprint in path.read_text() for path in artifacts)

    def test_normalized_vectors_of_several_columns(self, run: Run, bundle: Bundle, model: str) -> None:
        embeddings = transforms.TorchMojiEmbeddings(columns=["a", "b"], model=model, normalize=True)
        ran = run(lambda pipeline: {"rows": pipeline | beam.Create([{"a": "so", "b": ""}]) | _plain(embeddings)})
        assert ran["rows"][0]["a"] == pytest.approx(bundle.encode("so", normalize=True).tolist())
        assert not any(ran["rows"][0]["b"])

    @pytest.mark.parametrize("sizes", [{"min_batch_size": 1000}, {"max_batch_size": 2}])
    def test_one_size_of_batches_alone(self, run: Run, bundle: Bundle, model: str, sizes: dict[str, int]) -> None:
        embeddings = transforms.TorchMojiEmbeddings(columns=["a"], model=model, **sizes)
        ran = run(lambda pipeline: {"rows": pipeline | beam.Create([{"a": "so"}] * 3) | _plain(embeddings)})
        assert [row["a"] for row in ran["rows"]] == [bundle.encode("so").tolist()] * 3

    def test_chunks_of_beams_vector_databases(self, run: Run, bundle: Bundle, model: str) -> None:
        embeddings = transforms.TorchMojiEmbeddings(type_adapter=create_rag_adapter(), model=model)
        chunks = [Chunk(content=Content(text="so happy"), id="1")]
        ran = run(lambda pipeline: {"chunks": pipeline | beam.Create(chunks) | _plain(embeddings)})
        assert ran["chunks"][0].embedding.dense_embedding == bundle.encode("so happy").tolist()

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({}, "takes columns, a list of names, or a type_adapter"),
            ({"columns": "text"}, "takes a list of columns"),
            ({"columns": [5]}, "takes a list of columns"),
            ({"columns": ["text"], "feature": "top"}, "feature 'top' is unknown"),
            ({"columns": ["text"], "batch": 5}, "has no option 'batch'"),
            ({"columns": ["text"], "model": "/nowhere"}, "/nowhere"),
            ({"columns": ["text"], "precision": "fp8"}, "fp8"),
        ],
    )
    def test_wrong_options_are_named_at_once(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(InputError, match=message):
            transforms.TorchMojiEmbeddings(**options)


def _plain(embeddings: transforms.TorchMojiEmbeddings) -> beam.PTransform:
    return embeddings.get_ptransform_for_processing()


def test_the_example_of_beam_yaml(caplog: pytest.LogCaptureFixture) -> None:
    from apache_beam.yaml.main import run as run_yaml

    example = Path(__file__).parents[2] / "examples" / "annotate.yaml"
    with caplog.at_level("INFO"):
        run_yaml([f"--yaml_pipeline_file={example}", "--allow_unsafe_triggers"])
    logged = [record.getMessage() for record in caplog.records if '"user"' in record.getMessage()]
    assert len(logged) == 3
    assert sum('"status": "empty"' in message for message in logged) == 1
