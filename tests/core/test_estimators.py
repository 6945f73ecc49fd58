"""What scikit-learn asks of an estimator, of features and classifiers of texts; `encode` and `finetune` below them."""

from __future__ import annotations

import inspect
import multiprocessing
import pickle
import warnings
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
import pytest
import torch
from numpy.typing import NDArray
from sklearn.base import clone
from sklearn.compose import ColumnTransformer
from sklearn.exceptions import NotFittedError, SkipTestWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.utils import estimator_checks as checks

from tests.tiny import tiny_bundle
from torchmoji_core import EmojiFeatures, FineTuningOptions, InputError, TweetClassifier, finetune, load_bundle
from torchmoji_core.bundle import Bundle
from torchmoji_core.training.options import METHODS

BASE = tiny_bundle(["sun", "rain", "snow", "and", "more", "today"], seed=3)
QUICK: dict[str, Any] = {
    "learning_rate": 0.05,
    "fine_learning_rate": 0.02,
    "epoch_samples": 60,
    "batch_size": 20,
    "most_epochs": 12,
    "patience": 3,
    "output_dropout": 0.1,
}


def weather(count: int, seed: int) -> tuple[list[str], list[str]]:
    generator = np.random.default_rng(seed)
    names = generator.choice(["rain", "snow", "sun"], count).tolist()
    fillings = generator.choice(["and", "more", "today"], (count, 3)).tolist()
    return [" ".join([*filling[:2], name, *filling[2:]]) for name, filling in zip(names, fillings, strict=True)], names


TEXTS, NAMES = weather(90, 1)
OTHERS, THEIR_NAMES = weather(30, 2)


def classifier(**changes: Any) -> TweetClassifier:
    return TweetClassifier(BASE, **{"method": "last", "random_state": 1, **QUICK, **changes})


FITTED = classifier(method="full").fit(TEXTS, NAMES)
SECONDS = 120
"""That another process may take; one that waits for threads that it does not have would take for ever."""


def predict_with_what_is_inherited(texts: list[str]) -> NDArray[Any]:
    return FITTED.predict(texts)


class TestLabels:
    @pytest.mark.parametrize("missing", [None, float("nan"), pd.NA])
    def test_a_missing_label_is_named_by_its_row(self, missing: Any) -> None:
        labels = pd.Series([*NAMES[:4], missing, *NAMES[5:]], dtype=object)
        with pytest.raises(ValueError, match=r"row 4 \(counted from 0\) has no label"):
            classifier().fit(TEXTS, labels)

    def test_several_columns_of_other_numbers_are_refused_and_not_taken_for_truth(self) -> None:
        with pytest.raises(ValueError, match=r"0 and 1, one for each class"):
            classifier().fit(TEXTS, [[2, 1], [0, 3]] * 45)

    def test_times_are_refused_before_training_since_no_bundle_could_be_saved(self) -> None:
        with pytest.raises(ValueError, match=r"labels are times"):
            classifier().fit(TEXTS, pd.to_datetime(["2024-01-01", "2024-01-02"] * 45))

    def test_one_column_is_taken_as_its_values_as_scikit_learn_does(self) -> None:
        with pytest.warns(Warning, match="column-vector"):
            fitted = classifier(most_epochs=1).fit(TEXTS, pd.DataFrame({"label": NAMES}))
        assert fitted.classes_.tolist() == ["rain", "snow", "sun"]
        assert fitted.predict(TEXTS[:3]).shape == (3,)


def test_parameters_that_are_numbers_of_numpy_can_be_saved(tmp_path: Path) -> None:
    fitted = classifier(most_epochs=np.int64(1), learning_rate=np.float32(0.05), random_state=np.int64(1))
    fitted.fit(TEXTS, NAMES).save(tmp_path / "saved")
    assert TweetClassifier.load(tmp_path / "saved").predict(TEXTS).tolist() == fitted.predict(TEXTS).tolist()


class TestEncode:
    def test_rows_are_embeddings_whatever_the_batch(self) -> None:
        expected = BASE.score(TEXTS).embedding
        assert np.array_equal(BASE.encode(iter(TEXTS)), expected)
        assert np.array_equal(BASE.encode(TEXTS, batch_size=7), expected)
        assert BASE.encode([]).shape == (0, BASE.dimensions.channels)

    def test_one_text_gives_one_vector(self) -> None:
        assert np.array_equal(BASE.encode("rain today"), BASE.encode(["rain today"])[0])

    def test_normalized_vectors_have_length_1_and_those_of_no_tokens_0(self) -> None:
        lengths = np.linalg.norm(BASE.encode(["rain", "", "snow and"], normalize=True), axis=1)
        assert lengths == pytest.approx([1, 0, 1], abs=1e-6)

    def test_a_progress_bar_is_shown_when_asked_for(self, capsys: pytest.CaptureFixture[str]) -> None:
        BASE.encode(TEXTS)
        assert capsys.readouterr().err == ""
        BASE.encode(TEXTS, show_progress_bar=True)
        assert "1/1" in capsys.readouterr().err

    def test_wrong_calls_are_named(self) -> None:
        for batch_size, valid in ((0, "at least 1"), ("2", "a whole number"), (2.0, "a whole number")):
            with pytest.raises(InputError, match=f"batch_size must be {valid}.* not {batch_size!r}"):
                BASE.encode(TEXTS, batch_size=batch_size)
        for precision in ("fp8", ["fp32"], None):
            with pytest.raises(InputError, match=r"precision .* is unknown; choose from auto, fp32"):
                BASE.encode(TEXTS, precision=precision)
        with pytest.raises(TypeError, match=r"encode takes one column of texts, not a DataFrame"):
            BASE.encode(pd.DataFrame({"text": TEXTS}))


class TestFinetune:
    def test_it_gives_a_bundle_with_its_scores(self) -> None:
        options = FineTuningOptions(method="last", **QUICK)
        bundle = finetune(BASE, iter(TEXTS), pd.Series(NAMES), options=options, name="weather")
        assert bundle.name == "weather"
        assert bundle.classes == ("rain", "snow", "sun")
        assert bundle.provenance["texts"] == {"train": 72, "val": 9, "test": 9}
        assert set(bundle.provenance["scores"]) == {"train", "val", "test"}

    def test_splits_are_drawn_in_given_ratios(self) -> None:
        options = FineTuningOptions(method="last", most_epochs=1)
        bundle = finetune(BASE, TEXTS, NAMES, split_ratios=(0.5, 0.2, 0.3), options=options)
        assert bundle.provenance["texts"] == {"train": 45, "val": 18, "test": 27}
        with pytest.raises(InputError, match="one of splits, validation_data and split_ratios"):
            finetune(BASE, TEXTS, NAMES, split_ratios=(0.8, 0.1, 0.1), splits=["train"] * 90)
        with pytest.raises(InputError, match="split_ratios must be three shares"):
            finetune(BASE, TEXTS, NAMES, split_ratios=(80, 10, 10))

    def test_wrong_data_is_named_before_any_training(self) -> None:
        for arguments, message in (
            ((TEXTS, NAMES[1:]), "90 texts and 89 labels"),
            ((["rain", " "], ["a", "b"]), "row 2: the text is empty"),
            ((TEXTS, ["a"] * 90), "all training texts are of class 'a'"),
        ):
            with pytest.raises(InputError, match=message):
                finetune(BASE, *arguments)
        with pytest.raises(InputError, match="validation_data: 30 texts and 29 labels"):
            finetune(BASE, TEXTS, NAMES, validation_data=(OTHERS, THEIR_NAMES[1:]))
        with pytest.raises(InputError, match="one of splits, validation_data and split_ratios"):
            finetune(BASE, TEXTS, NAMES, splits=["train"] * 90, validation_data=(OTHERS, THEIR_NAMES))
        with pytest.raises(TypeError, match=r"finetune takes a list of texts; for one text give \[text\]"):
            finetune(BASE, "rain", ["a"])

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"bundle": "emoji64"}, r"takes a loaded bundle, not 'emoji64'; give load_bundle\(...\)"),
            ({"labels": None}, "labels must be a list, an array or a Series, not None"),
            ({"splits": "train"}, "splits must be a list, an array or a Series, not 'train'"),
            ({"classes": "rain,snow,sun"}, "classes must be a list, an array or a Series, not 'rain,snow,sun'"),
            ({"classes": [1, 2, 3]}, "the name of a class must be one line of text"),
            ({"validation_data": OTHERS}, r"validation_data must be \(texts, labels\), not \["),
            ({"validation_data": (OTHERS, 1)}, "labels of validation_data must be a list"),
            ({"options": {"method": "last"}}, r"options must be FineTuningOptions\(...\), not {"),
            ({"options": FineTuningOptions(method="new"), "size": (4,)}, r"size must be two numbers.* not \(4,\)"),
            ({"options": FineTuningOptions(method="new"), "size": ("4", 4)}, "'embedding' must be a positive integer"),
            ({"checkpoint": 1}, "checkpoint must be a path, not 1"),
            ({"name": None}, "name must be one line of text"),
            ({"data_name": b"texts"}, "data_name must be one line of text"),
        ],
    )
    def test_wrong_arguments_are_named_before_any_training(self, arguments: dict[str, Any], message: str) -> None:
        with pytest.raises((InputError, TypeError), match=message):
            finetune(**{"bundle": BASE, "texts": TEXTS, "labels": NAMES, **arguments})

    def test_a_checkpoint_may_be_named_by_a_string(self, tmp_path: Path) -> None:
        options = FineTuningOptions(method="last", **QUICK)
        made = finetune(BASE, TEXTS, NAMES, options=options, checkpoint=str(tmp_path / "progress"))
        assert made.fingerprint == finetune(BASE, TEXTS, NAMES, options=options).fingerprint

    def test_options_that_are_numbers_of_numpy_can_be_saved(self, tmp_path: Path) -> None:
        options = FineTuningOptions(method="last", **{**QUICK, "most_epochs": np.int64(1), "patience": np.int8(3)})
        finetune(BASE, TEXTS, NAMES, options=options).save(tmp_path / "saved")
        assert load_bundle(tmp_path / "saved").provenance["options"]["most_epochs"] == 1


class TestFeatures:
    def test_columns_are_probabilities_and_embeddings_with_names(self) -> None:
        scores = BASE.score(TEXTS)
        features = EmojiFeatures(BASE).set_output(transform="pandas").fit_transform(TEXTS)
        assert isinstance(features, pd.DataFrame)
        assert features.columns[0] == "emoji_joy"
        assert features.columns[47] == "emoji_white_heart_suit"
        assert list(features.columns[64:]) == [f"embedding_{channel}" for channel in range(scores.embedding.shape[1])]
        assert features.columns.is_unique
        assert np.array_equal(features.to_numpy(), np.hstack([scores.probabilities, scores.embedding]))

    def test_one_kind_alone(self) -> None:
        features = EmojiFeatures(BASE, "embedding").fit(TEXTS)
        assert np.array_equal(features.transform(TEXTS), BASE.encode(TEXTS))
        assert len(features.get_feature_names_out()) == BASE.dimensions.channels

    def test_a_model_of_other_classes_names_them(self) -> None:
        names = EmojiFeatures(FITTED.bundle_, "probabilities").fit().get_feature_names_out()
        assert names.tolist() == ["class_rain", "class_snow", "class_sun"]

    def test_empty_and_missing_texts_give_zeros(self) -> None:
        assert not EmojiFeatures(BASE, missing="empty").fit_transform(["", None, float("nan")]).any()
        with pytest.raises(TypeError, match="row 1"):
            EmojiFeatures(BASE).fit_transform(["rain", None])

    def test_in_a_pipeline_over_a_column_of_a_table(self) -> None:
        table = pd.DataFrame({"text": TEXTS, "length": [len(text) for text in TEXTS]}, index=range(100, 190))
        columns = ColumnTransformer([("mood", EmojiFeatures(BASE), "text"), ("rest", "passthrough", ["length"])])
        model = make_pipeline(columns, LogisticRegression(max_iter=50))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it has not converged
            assert model.fit(table, NAMES).predict(table).shape == (90,)

    @pytest.mark.parametrize(
        ("texts", "message"),
        [
            ("rain", r"EmojiFeatures takes a list of texts; for one text give \[text\]"),
            (pd.DataFrame({"text": TEXTS}), "EmojiFeatures takes one column of texts, not a DataFrame"),
            (np.zeros((3, 2)), "EmojiFeatures takes one column of texts, not a ndarray"),
            ([1.5], "row 0"),
        ],
    )
    def test_what_is_no_text_is_refused(self, texts: Any, message: str) -> None:
        with pytest.raises(TypeError, match=message):
            EmojiFeatures(BASE).fit_transform(texts)

    @pytest.mark.parametrize(
        ("parameters", "message"),
        [
            ({"features": "emoji"}, "features 'emoji' is unknown; choose from probabilities, embedding"),
            ({"features": ()}, "features: none given; choose from probabilities, embedding"),
            ({"features": None}, "features must be a list of some of probabilities, embedding, not None"),
            ({"features": [None]}, "features None is unknown"),
            ({"missing": "drop"}, "missing 'drop' is unknown; choose from error, empty"),
            ({"missing": None}, "missing None is unknown"),
            ({"model": "nowhere/at/all"}, "nowhere/at/all"),
            ({"model": np.arange(2)}, "no such directory or file"),
        ],
    )
    def test_wrong_parameters_are_named_by_fit(self, parameters: dict[str, Any], message: str) -> None:
        features = EmojiFeatures(**{"model": BASE, **parameters})
        with pytest.raises(InputError, match=message):
            features.fit(TEXTS)


class TestClassifier:
    @pytest.mark.parametrize("method", METHODS)
    def test_each_method_predicts_labels(self, method: str) -> None:
        fitted = classifier(method=method).fit(TEXTS, NAMES)
        assert fitted.classes_.tolist() == ["rain", "snow", "sun"]
        assert fitted.predict_proba(OTHERS).sum(axis=1) == pytest.approx(1)
        assert set(fitted.predict(OTHERS)) <= set(NAMES)
        assert fitted.score(OTHERS, THEIR_NAMES) == (fitted.predict(OTHERS) == np.array(THEIR_NAMES)).mean()

    def test_it_learns(self) -> None:
        assert FITTED.score(OTHERS, THEIR_NAMES) > 0.9

    @pytest.mark.parametrize(
        "labels",
        [[-1, 4, 7], [False, True, True], ["a", "b", "c"], np.array([0.0, 1.0, 2.0])],
        ids=["ints", "bools", "names", "floats"],
    )
    def test_labels_come_back_as_they_were_given_from_a_file_too(self, labels: Any, tmp_path: Path) -> None:
        given = np.array([labels[{"rain": 0, "snow": 1, "sun": 2}[name]] for name in NAMES])
        fitted = classifier().fit(TEXTS, given)
        predicted = fitted.predict(OTHERS)
        assert set(predicted.tolist()) <= set(given.tolist())
        fitted.save(tmp_path / "bundle")
        loaded = TweetClassifier.load(tmp_path / "bundle")
        assert loaded.predict(OTHERS).tolist() == predicted.tolist()
        assert np.array_equal(loaded.predict_proba(OTHERS), fitted.predict_proba(OTHERS))

    def test_several_classes_of_a_text(self) -> None:
        held = np.array([[name != "sun", name != "rain"] for name in NAMES]).astype(int)
        fitted = classifier(method="full", most_epochs=60, patience=10).fit(TEXTS, held)
        assert fitted.classes_.tolist() == [0, 1]
        assert fitted.predict(OTHERS).shape == (30, 2)
        assert fitted.predict([""]).tolist() == [[0, 0]]
        assert fitted.score(TEXTS, held) > 0.8

    def test_a_text_without_tokens_says_nothing(self) -> None:
        assert FITTED.predict_proba([""]) == pytest.approx(np.full((1, 3), 1 / 3))

    def test_the_same_random_state_gives_the_same_weights(self) -> None:
        one, other = (classifier(random_state=7).fit(TEXTS, NAMES).bundle_ for _ in range(2))
        assert one.fingerprint == other.fingerprint
        drawn = (classifier(random_state=np.random.RandomState(seed)).fit(TEXTS, NAMES) for seed in (1, 2))
        assert len({each.bundle_.fingerprint for each in drawn}) == 2

    def test_it_is_what_finetune_makes_of_the_same_texts(self) -> None:
        ours = classifier().fit(TEXTS, NAMES, validation_data=(OTHERS, THEIR_NAMES)).bundle_
        splits = ["train"] * len(TEXTS) + ["val"] * len(OTHERS)
        options = FineTuningOptions(method="last", seed=1, **QUICK)
        theirs = finetune(BASE, TEXTS + OTHERS, NAMES + THEIR_NAMES, splits=splits, options=options)
        assert all(torch.equal(tensor, theirs.state[name]) for name, tensor in ours.state.items())

    @pytest.mark.parametrize(
        ("method", "predict"),
        [("fork", predict_with_what_is_inherited), ("fork", FITTED.predict), ("spawn", FITTED.predict)],
        ids=["inherited", "sent by fork", "sent by spawn"],
    )
    def test_it_predicts_alike_in_another_process(self, method: str, predict: Callable[[list[str]], Any]) -> None:
        here = FITTED.predict(OTHERS)  # so that a forked process inherits a model in use
        with multiprocessing.get_context(method).Pool(1) as pool:
            assert pool.apply_async(predict, (OTHERS,)).get(SECONDS).tolist() == here.tolist()

    def test_cross_validation_and_grid_search(self) -> None:
        assert cross_val_score(classifier(), TEXTS, NAMES, cv=2).shape == (2,)
        search = GridSearchCV(classifier(), {"learning_rate": [1e-6, 0.05]}, cv=2).fit(np.array(TEXTS), NAMES)
        assert search.best_params_ == {"learning_rate": 0.05}

    @pytest.mark.parametrize("estimator", [FITTED, EmojiFeatures(BASE).fit()], ids=["classifier", "features"])
    def test_copies_are_equal(self, estimator: Any, tmp_path: Path) -> None:
        def of(some: Any) -> Any:
            return some.predict_proba(OTHERS) if hasattr(some, "predict_proba") else some.transform(OTHERS)

        before = of(estimator)
        joblib.dump(estimator, tmp_path / "estimator")
        for copied in (pickle.loads(pickle.dumps(estimator)), joblib.load(tmp_path / "estimator")):
            assert np.array_equal(of(copied), before)
        fresh = clone(estimator)
        with pytest.raises(NotFittedError):
            of(fresh)
        assert {name: value for name, value in fresh.get_params().items() if name != "model"} == {
            name: value for name, value in estimator.get_params().items() if name != "model"
        }

    @pytest.mark.parametrize(
        ("texts", "labels", "changes", "message"),
        [
            (TEXTS, NAMES[1:], {}, "90 texts and 89 labels"),
            (TEXTS, ["a"] * 90, {}, "all training texts are of class 'a'"),
            (["rain"], ["a"], {}, "leaves none to train"),
            (TEXTS, NAMES, {"validation_fraction": 1.5}, "validation_fraction must be above 0 and below 1, not 1.5"),
            (TEXTS, NAMES, {"validation_fraction": "a"}, r"validation_fraction must be a number \(above 0 .* not 'a'"),
            (TEXTS, NAMES, {"method": "most"}, "method .most. is unknown"),
            (TEXTS, NAMES, {"method": None}, "method None is unknown"),
            (TEXTS, NAMES, {"learning_rate": -1.0}, "learning_rate must be above 0, not -1.0"),
            (TEXTS, NAMES, {"learning_rate": None}, r"learning_rate must be a number \(above 0\), not None"),
            (TEXTS, NAMES, {"most_epochs": 2.5}, r"most_epochs must be a whole number \(above 0\), not 2.5"),
            (TEXTS, NAMES, {"balanced": "yes"}, "balanced must be a whole number .* not 'yes'"),
            (TEXTS, NAMES, {"random_state": "a"}, "random_state must be a whole number, a RandomState or None, not .a"),
            (TEXTS, NAMES, {"random_state": -1}, "random_state must be at least 0 and below 4294967296, not -1"),
            (TEXTS, None, {}, "labels must be a list, an array or a Series, not None"),
            (TEXTS, "rain", {}, "labels must be a list, an array or a Series, not 'rain'"),
            (TEXTS, [["a"], ["a", "b"]] * 45, {}, "lists of different lengths"),
            (["rain", None], ["a", "b"], {}, "row 1"),
            ("rain", ["a"], {}, r"give \[text\]"),
            (pd.DataFrame({"text": TEXTS}), NAMES, {}, "one column of texts"),
            (TEXTS, np.linspace(0, 1, 90), {}, "continuous"),
        ],
    )  # fmt: skip
    def test_wrong_use_is_named(self, texts: Any, labels: Any, changes: dict[str, Any], message: str) -> None:
        with pytest.raises((InputError, TypeError, ValueError), match=message):
            classifier(**changes).fit(texts, labels)

    def test_data_to_validate_on_is_a_pair(self) -> None:
        with pytest.raises(TypeError, match=r"validation_data must be \(texts, labels\)"):
            classifier().fit(TEXTS, NAMES, validation_data=OTHERS)  # type: ignore[arg-type]

    def test_a_label_of_validation_that_is_no_class(self) -> None:
        with pytest.raises(InputError, match="'fog', which no training text has"):
            classifier().fit(TEXTS, NAMES, validation_data=(["rain"], ["fog"]))

    def test_defaults_are_those_of_fine_tuning(self) -> None:
        defaults = {each.name: each.default for each in fields(FineTuningOptions)}
        for name, parameter in inspect.signature(TweetClassifier).parameters.items():
            assert parameter.default == defaults.get(name, parameter.default)


@pytest.mark.parametrize("estimator", [TweetClassifier(), EmojiFeatures()], ids=["classifier", "features"])
@pytest.mark.parametrize(
    "check",
    [
        checks.check_do_not_raise_errors_in_init_or_set_params,
        checks.check_estimator_cloneable,
        checks.check_estimator_repr,
        checks.check_estimator_tags_renamed,
        checks.check_get_params_invariance,
        checks.check_mixin_order,
        checks.check_no_attributes_set_in_init,
        checks.check_parameters_default_constructible,
        checks.check_set_params,
        checks.check_valid_tag_types,
    ],
    ids=lambda check: check.__name__,
)
def test_checks_of_scikit_learn(estimator: Any, check: Callable[[str, Any], None]) -> None:
    """Those of parameters, tags and copies. All others make numbers for X, which texts are not."""
    check(type(estimator).__name__, clone(estimator))


@pytest.mark.parametrize("estimator", [TweetClassifier(), EmojiFeatures()], ids=["classifier", "features"])
def test_scikit_learn_knows_that_x_is_text(estimator: Any) -> None:
    with pytest.warns(SkipTestWarning, match="string=True"):
        checks.check_estimator(estimator)


DATA = Path(__file__).parents[3] / "shared" / "data" / "benchmarks" / "SS-Youtube.parquet"


@pytest.mark.skipif(not DATA.exists(), reason="the data is not there")
def test_on_a_published_set_it_equals_the_command(tmp_path: Path) -> None:
    from pipelines.finetune import main

    assert main(["--data", str(DATA), "--method", "last", "--seed", "3", "--output", str(tmp_path / "made")]) == 0
    theirs: Bundle = load_bundle(tmp_path / "made")
    rows = pd.read_parquet(DATA)
    train, val, test = (rows[rows["split"] == name] for name in ("train", "val", "test"))
    ours = TweetClassifier(method="last", random_state=3)
    ours.fit(train["text"], train["label"], validation_data=(val["text"], val["label"]))
    assert all(torch.equal(tensor, theirs.state[name]) for name, tensor in ours.bundle_.state.items())
    # The command measures in float32, which may not be what this processor scores fastest with.
    expected = theirs.provenance["scores"]["test"]["accuracy"]
    assert ours.score(test["text"], test["label"]) == pytest.approx(expected, abs=0.003)
