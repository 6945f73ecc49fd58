"""Models that change while a pipeline runs: what is taken, what is refused, and which rows which model scored."""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest
import torch
from apache_beam.ml.inference.base import ModelMetadata
from apache_beam.testing import test_stream
from apache_beam.transforms.window import FixedWindows, TimestampedValue

from tests.object_store_server import ObjectStoreServer
from tests.tiny import forge_weights, tiny_bundle, with_huge_weights
from tests.transforms.conftest import WORDS, Ran, Run, assert_scores, make_texts
from tests.transforms.creators import HANG_GUARD
from torchmoji_core.bundle import Bundle, load_bundle
from torchmoji_core.errors import InputError
from torchmoji_core.model import Dimensions, TorchMoji
from transforms import AnnotateTweets, Tweet, WatchModels, metrics
from transforms.columns import OUTPUTS
from transforms.options import ScoreOptions
from transforms.scoring.loaded_model import LoadedModel, load_model
from transforms.scoring.model_refresh import Announce
from transforms.scoring.model_watch import Lookout, ModelWatch, Search, find_bundles

OTHER_WORDS = [*reversed(WORDS), "zyxwv"]


@pytest.fixture(scope="session")
def second() -> Bundle:
    return tiny_bundle(WORDS, seed=21)


@pytest.fixture(scope="session")
def third() -> Bundle:
    """Reads other tokens, and fewer."""
    return replace(tiny_bundle(OTHER_WORDS, seed=22), maxlen=7)


@pytest.fixture
def models(tmp_path: Path) -> Path:
    path = tmp_path / "models"
    path.mkdir()
    return path


def save(bundle: Bundle, path: Path, changed: float | None = None) -> str:
    """Save a bundle, and say when."""
    bundle.save(path)
    if changed is not None:
        for file in path.iterdir() if path.is_dir() else [path]:
            os.utime(file, (changed, changed))
    return str(path)


def shaped(bundle: Bundle, hidden: int = 4, classes: Sequence[str] = ()) -> Bundle:
    torch.manual_seed(5)
    names = tuple(classes or bundle.classes)
    module = TorchMoji(Dimensions(len(bundle.vocabulary), 6, hidden, len(names)))
    return replace(bundle, classes=names, state=module.state_dict())


# --- which bundle --------------------------------------------------------------------------------------------------


def test_newest_first_and_only_what_may_be_a_bundle(bundle: Bundle, models: Path) -> None:
    save(bundle, models / "b", 200)
    save(bundle, models / "a", 200)
    save(bundle, models / "old.zip", 100)
    save(bundle, models / "new.zip", 300)
    save(bundle, models / ".being-written", 400)
    save(bundle, models / ".being-written.zip", 400)
    (models / "notes.txt").write_text("no bundle")
    (models / "empty").mkdir()
    names = ["new.zip", "b", "a", "old.zip"]
    assert [Path(found.location).name for found in find_bundles(f"{models}/*")] == names
    assert [Path(found.location).name for found in find_bundles(f"{models}/*/")] == names
    assert [Path(found.location).name for found in find_bundles(f"{models}/*.zip")] == ["new.zip", "old.zip"]
    assert [Path(found.location).name for found in find_bundles(f"{models}/a")] == ["a"]
    assert find_bundles(f"{models}/nothing*") == []
    assert [Path(found.location).name for found in find_bundles(f"file://{models}/*")] == names


class Looking(Search):
    """Looks as a run does: what was found is what is used from then on."""

    def __init__(self, model: str, pattern: str) -> None:
        options = ScoreOptions(model)
        first = load_model(model, options)
        super().__init__(pattern, options, first.first)
        self.current = first.scorer.fingerprint
        self.loads: list[str] = []

    def load(self, location: str) -> LoadedModel:
        self.loads.append(Path(location).name)
        return super().load(location)

    def __call__(self) -> tuple[str, tuple[str, ...]]:
        """The name of what was found, and the reasons of what is refused."""
        location, model = self.look(self.current) or ("", None)
        if model is not None:
            self.current = model.scorer.fingerprint
        return Path(location).name, tuple(self.refused)


def test_the_newest_is_taken_and_loaded_once(model: str, second: Bundle, third: Bundle, models: Path) -> None:
    looking = Looking(model, f"{models}/*")
    assert looking() == ("", ())
    save(second, models / "v2", 200)
    save(third, models / "v1", 100)
    assert looking() == ("v2", ())
    assert looking.current == second.fingerprint
    assert looking() == looking() == ("", ())
    assert looking.loads == ["v2"]
    save(third, models / "v3.zip", 300)
    assert looking() == ("v3.zip", ())
    assert looking.current == third.fingerprint
    assert looking() == ("", ())
    assert looking.loads == ["v2", "v3.zip"]


def test_a_model_that_is_withdrawn_gives_way_to_the_one_before(
    model: str, second: Bundle, third: Bundle, models: Path
) -> None:
    """Which model is used depends on what is there alone, as it will after a restart."""
    looking = Looking(model, f"{models}/*")
    save(second, models / "v2", 200)
    save(third, models / "v3", 300)
    assert looking() == ("v3", ())
    shutil.rmtree(models / "v3")
    assert looking() == ("v2", ())
    shutil.rmtree(models / "v2")
    assert looking() == ("", ())
    assert looking.current == second.fingerprint


def test_the_first_model_under_another_name_is_no_other_model(model: str, models: Path) -> None:
    shutil.copytree(model, models / "copy")
    looking = Looking(model, f"{models}/*")
    assert looking() == looking() == ("", ())
    assert looking.loads == ["copy"]


def truncate(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def broken_zip(bundle: Bundle, path: Path) -> None:
    bundle.save(path.with_suffix(".zip"))
    truncate(path.with_suffix(".zip"))


def without_weights(bundle: Bundle, path: Path) -> None:
    bundle.save(path)
    (path / "model.safetensors").unlink()


def half_weights(bundle: Bundle, path: Path) -> None:
    bundle.save(path)
    truncate(path / "model.safetensors")


def half_config(bundle: Bundle, path: Path) -> None:
    bundle.save(path)
    truncate(path / "config.json")


def no_numbers(bundle: Bundle, path: Path) -> None:
    bundle.save(path)
    forge_weights(path, {name: torch.full_like(bundle.state[name], float("nan")) for name in ["embed.weight"]})


def no_numbers_as_scores(bundle: Bundle, path: Path) -> None:
    replace(bundle, state=with_huge_weights(bundle)).save(path)


BAD: list[tuple[Callable[[Bundle, Path], None], str]] = [
    (broken_zip, "neither a bundle directory nor a readable .zip"),
    (without_weights, "model.safetensors missing"),
    (half_weights, "model.safetensors does not match"),
    (half_config, "config.json is not JSON"),
    (no_numbers, "weights 'embed.weight' hold NaN or infinity"),
    (no_numbers_as_scores, "gives scores that are no finite numbers"),
    (lambda bundle, path: shaped(bundle, hidden=5).save(path), "embeddings of 26 numbers, the model of this run of 22"),
    (lambda bundle, path: shaped(bundle, classes=("joy", "fear")).save(path), r"other classes .*\(2 and 64"),
    (lambda bundle, path: shaped(bundle, classes=bundle.classes[::-1]).save(path), "other classes"),
    (lambda bundle, path: replace(bundle, multi_label=True).save(path), "other classes .* or other rules"),
]


@pytest.mark.parametrize(("spoil", "reason"), BAD, ids=[reason[:24] for _, reason in BAD])
def test_a_bad_bundle_is_refused_once_when_it_has_settled(
    spoil: Callable[[Bundle, Path], None], reason: str, bundle: Bundle, model: str, second: Bundle, models: Path
) -> None:
    looking = Looking(model, f"{models}/*")
    save(second, models / "good", 100)
    spoil(bundle, models / "newer")
    assert looking() == ("good", ())  # it may be on its way, so nothing is said of it yet
    name, refused = looking()
    assert name == ""
    assert len(refused) == 1
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(refused[0])
    assert "newer" in refused[0]
    assert "\n" not in refused[0]
    attempts = len(looking.loads)
    assert looking() == looking() == ("", ())
    assert len(looking.loads) == attempts
    assert looking.current == second.fingerprint


@pytest.mark.parametrize("kind", ["directory", "zip"])
def test_a_half_uploaded_bundle_is_taken_when_it_is_whole(kind: str, model: str, second: Bundle, models: Path) -> None:
    """Whatever part of it is there at each look; files are copied in the worst order."""
    suffix = ".zip" if kind == "zip" else ""
    whole = models.parent / f"whole{suffix}"
    second.save(whole)
    looking = Looking(model, f"{models}/*")
    target = models / f"new{suffix}"
    if kind == "directory":
        target.mkdir()
    for name in ["config.json", "vocabulary.json", "model.safetensors"] if kind == "directory" else [""]:
        content = (whole / name).read_bytes()
        for end in range(0, len(content), len(content) // 3):
            (target / name).write_bytes(content[:end])
            assert looking() == ("", ())
        (target / name).write_bytes(content)
    assert looking() == (target.name, ())
    assert looking.current == second.fingerprint


def test_a_refused_bundle_that_changes_is_looked_at_again(model: str, second: Bundle, models: Path) -> None:
    looking = Looking(model, f"{models}/*")
    half_weights(second, models / "new")
    assert looking() == ("", ())
    assert len(looking()[1]) == 1
    shutil.rmtree(models / "new")
    second.save(models / "new")
    assert looking() == ("new", ())


def test_a_bundle_that_is_replaced_is_another(model: str, second: Bundle, third: Bundle, models: Path) -> None:
    looking = Looking(model, f"{models}/*")
    second.save(models / "new")
    assert looking() == ("new", ())
    shutil.rmtree(models / "new")
    third.save(models / "new")
    assert looking() == ("new", ())
    assert looking.current == third.fingerprint


@pytest.mark.parametrize("every", [0, -1, float("nan")])
def test_how_often_is_checked(every: float) -> None:
    for make in (ModelWatch, WatchModels):
        with pytest.raises(InputError, match=f"looked for every {every} seconds; give a positive number"):
            make("models/*", every)


def test_a_place_that_cannot_be_looked_at_is_named(models: Path) -> None:
    ModelWatch(f"{models}/*").check()
    with pytest.raises(InputError, match=r"^models to watch for: nosuch://bucket/models") as raised:
        ModelWatch("nosuch://bucket/models/*").check()
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("suffix", ["", ".zip"])
def test_bundles_in_an_object_store(
    suffix: str, model: str, second: Bundle, third: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A directory's objects arrive one after the other, the one that makes it a bundle first."""
    monkeypatch.setenv("TORCHMOJI_CACHE", str(tmp_path / "cache"))
    with ObjectStoreServer() as server:
        server.use(monkeypatch)
        client = server.client()
        client.create_bucket(Bucket="models")
        looking = Looking(model, f"s3://models/deep/*{suffix}")
        assert looking() == ("", ())
        for name, bundle in (("v2", second), ("v3", third)):
            bundle.save(tmp_path / f"{name}{suffix}")
            for file in sorted((tmp_path / name).iterdir()) if not suffix else [tmp_path / f"{name}{suffix}"]:
                assert looking() == ("", ())
                key = f"deep/{name}/{file.name}" if not suffix else f"deep/{file.name}"
                client.put_object(Bucket="models", Key=key, Body=file.read_bytes())
            assert looking() == (f"{name}{suffix}", ())
            assert looking.current == bundle.fingerprint
            assert looking() == ("", ())


Said = Callable[[], list[str]]


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Said:
    """What was logged of models that were refused and that took the place of others, in order."""
    caplog.set_level(logging.INFO, "transforms.scoring.model_watch")

    def messages() -> list[str]:
        return [record.getMessage() for record in caplog.records if record.name == "transforms.scoring.model_watch"]

    return messages


# --- announced models ----------------------------------------------------------------------------------------------


def tweets_of(texts: Mapping[str, str]) -> list[Tweet]:
    return [Tweet(key, text) for key, text in texts.items()]


def rows_of(ran: Ran) -> list[dict[str, Any]]:
    return [row for batch in ran["batches"] for row in batch.to_pylist()]


def alone(run: Run, model: str, texts: Mapping[str, str], outputs: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Rows by id, as a batch run with one model gives them."""

    def build(pipeline: beam.Pipeline) -> Mapping[str, beam.PCollection[Any]]:
        return {"batches": (pipeline | beam.Create(tweets_of(texts)) | AnnotateTweets(model, outputs)).results}

    return {row["id"]: row for row in rows_of(run(build))}


def announced(
    run: Run, model: str, ids: Sequence[str], texts: Mapping[str, str], outputs: Sequence[str] = OUTPUTS
) -> Ran:
    """Score texts in a stream in which a model is announced for each window; text i is in window i modulo their number.

    Beam's local runner has side inputs that change in windows only.
    """
    stream = test_stream.TestStream()
    for window, model_id in enumerate(ids):
        start = 10 * window
        stream.add_elements([TimestampedValue(ModelMetadata(model_id, ""), start)], tag="models")
        stream.advance_watermark_to(start + 10, tag="models")
        tweets = [Tweet(key, text) for index, (key, text) in enumerate(texts.items()) if index % len(ids) == window]
        stream.add_elements([TimestampedValue(tweet, start) for tweet in tweets], tag="tweets")
        stream.advance_watermark_to(start + 10, tag="tweets")
    stream.advance_watermark_to_infinity(tag="models").advance_watermark_to_infinity(tag="tweets")

    def build(pipeline: beam.Pipeline) -> Mapping[str, beam.PCollection[Any]]:
        streams = pipeline | stream
        updates = streams["models"] | "ModelWindows" >> beam.WindowInto(FixedWindows(10))
        tweets = streams["tweets"] | "TweetWindows" >> beam.WindowInto(FixedWindows(10))
        scored, dead = tweets | AnnotateTweets(model, outputs, model_updates=updates)
        return {"batches": scored, "dead": dead | beam.Flatten()}

    return run(build, streaming=True)


def test_every_row_is_that_of_the_announced_model_alone(
    run: Run, model: str, second: Bundle, third: Bundle, models: Path, said: Said
) -> None:
    """Value for value; with a model of other tokens and fewer of them, and back to the first."""
    paths = [model, save(second, models / "v2"), save(third, models / "v3.zip"), model]
    texts = {f"id-{index:03}": text for index, text in enumerate([*make_texts(60), "", "zyxwv"])}
    ran = announced(run, model, ["", *paths[1:]], texts)
    assert ran["dead"] == []
    rows = {row["id"]: row for row in rows_of(ran)}
    assert rows.keys() == texts.keys()
    for window, path in enumerate(paths):
        mine = {key: text for index, (key, text) in enumerate(texts.items()) if index % 4 == window}
        assert {key: rows[key] for key in mine} == alone(run, path, mine, OUTPUTS)
        assert_scores([rows[key] for key in mine], mine, load_bundle(path), OUTPUTS)
    for batch in ran["batches"]:
        assert set(batch["fingerprint"].to_pylist()) == {batch.schema.metadata[b"torchmoji.fingerprint"].decode()}
        assert batch.schema.metadata[b"torchmoji.maxlen"] == (
            b"7" if batch["fingerprint"][0].as_py() == third.fingerprint else b"30"
        )
    fingerprints = [load_bundle(path).fingerprint[:12] for path in paths]
    assert said() == [f"model {new} takes the place of {old}" for old, new in pairwise(fingerprints)]


@pytest.mark.parametrize(("spoil", "reason"), BAD, ids=[reason[:24] for _, reason in BAD])
def test_an_announced_model_that_cannot_be_used_leaves_the_old_one(
    spoil: Callable[[Bundle, Path], None],
    reason: str,
    run: Run,
    bundle: Bundle,
    model: str,
    second: Bundle,
    models: Path,
    said: Said,
) -> None:
    spoil(bundle, models / "bad")
    bad = str(next(models.iterdir()))
    good = save(second, models / "good")
    texts = {f"id-{index}": text for index, text in enumerate(make_texts(12))}
    ran = announced(run, model, [good, bad], texts, ["top"])
    assert_scores(rows_of(ran), texts, second, ["top", "fingerprint"])
    swap, refusal = said()
    assert "takes the place" in swap
    assert refusal.startswith("a new model is refused, the one before stays: ")
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(refusal)


def test_a_bundle_that_was_replaced_since_its_announcement_is_refused(
    run: Run, bundle: Bundle, model: str, second: Bundle, models: Path, said: Said
) -> None:
    path = save(second, models / "new")
    texts = {"a": "i love rain", "b": "so sad"}
    ran = announced(run, model, [f"{path}#sha256={second.fingerprint}", f"{path}#sha256={'0' * 64}"], texts, ["top"])
    assert_scores(rows_of(ran), texts, second, ["top", "fingerprint"])
    assert ["give each bundle a name of its own" in message for message in said()] == [False, True]


def test_results_of_one_model_are_not_reused_for_another(run: Run, model: str, second: Bundle, models: Path) -> None:
    """The same text in every window; within one, its result is found in the cache."""
    texts = {f"id-{index}": "i love rain" for index in range(6)}
    path = save(second, models / "v2")
    ran = announced(run, model, ["", path, model], texts, ["embedding"])
    rows = {row["id"]: row["embedding"] for row in rows_of(ran)}
    assert rows["id-0"] == rows["id-3"] == rows["id-2"] == rows["id-5"]
    assert rows["id-1"] == rows["id-4"] == alone(run, path, {"x": "i love rain"}, ["embedding"])["x"]["embedding"]
    assert rows["id-0"] != rows["id-1"]


@pytest.mark.parametrize("kind", ["good", "other tokens", "bad", "the same"])
def test_what_is_announced_is_counted(
    kind: str, run: Run, bundle: Bundle, model: str, second: Bundle, third: Bundle, models: Path
) -> None:
    """In a batch run, which can be given a model in the same way."""
    scored_by = {"good": second, "other tokens": third}.get(kind, bundle)
    path = str(models / "no-such-bundle") if kind == "bad" else save(scored_by, models / "new")
    texts = {f"id-{index}": text for index, text in enumerate(make_texts(20))}

    def build(pipeline: beam.Pipeline) -> Mapping[str, beam.PCollection[Any]]:
        updates = pipeline | "Models" >> beam.Create([ModelMetadata(path, "")])
        tweets = pipeline | "Tweets" >> beam.Create(tweets_of(texts))
        return {"batches": (tweets | AnnotateTweets(model, model_updates=updates)).results}

    ran = run(build)
    assert_scores(rows_of(ran), texts, scored_by, ["text", "top", "probabilities", "embedding", "fingerprint"])
    assert ran.count(metrics.MODEL_SWAPS) == (kind in ("good", "other tokens"))
    assert ran.count(metrics.MODELS_REFUSED) == (kind == "bad")
    for name, column in (
        (metrics.TOKENS, "n_tokens"),
        (metrics.TRUNCATED, "truncated"),
        (metrics.UNKNOWN, "n_unknown"),
    ):
        assert ran.count(name) == sum(row[column] for row in rows_of(ran))
    assert ran.counters["num_inferences"] == 20  # Beam's own, under the same name for every model


def test_a_poison_row_costs_itself_after_a_swap_to_other_tokens(
    run: Run, model: str, third: Bundle, models: Path
) -> None:
    texts = {f"id-{index}": text for index, text in enumerate(make_texts(8))}
    path = save(third, models / "v3")

    def build(pipeline: beam.Pipeline) -> Mapping[str, beam.PCollection[Any]]:
        updates = pipeline | "Models" >> beam.Create([ModelMetadata(path, "")])
        poison = Tweet("poison", "love", "no number")  # type: ignore[arg-type]
        tweets = pipeline | "Tweets" >> beam.Create([*tweets_of(texts), poison])
        scored, dead = tweets | AnnotateTweets(model, timestamp=True, model_updates=updates)
        return {"batches": scored, "dead": dead | beam.Flatten()}

    ran = run(build)
    assert_scores(rows_of(ran), texts, third, ["top", "fingerprint"])
    assert [letter.position for letter in ran["dead"]] == ["poison"]


# --- a local run looks by itself -----------------------------------------------------------------------------------


def wait_for_swap(lookout: Lookout, model: LoadedModel) -> LoadedModel:
    end = time.monotonic() + HANG_GUARD
    newest = model
    while newest is model and time.monotonic() < end:
        time.sleep(0.01)
        newest = lookout.newest(model)
    return newest


def test_a_look_takes_place_when_it_is_due(model: str, second: Bundle, third: Bundle, models: Path) -> None:
    options, now = ScoreOptions(model), [100.0]
    first = load_model(model, options)
    lookout = Lookout(ModelWatch(f"{models}/*", 60, clock=lambda: now[0]), options)
    save(second, models / "v2", 200)
    assert lookout.newest(first) is first  # it is loaded while other batches are scored
    found = wait_for_swap(lookout, first)
    assert found.scorer.fingerprint == second.fingerprint
    save(third, models / "v3", 300)
    now[0] += 59.9
    for _ in range(20):
        time.sleep(0.01)
        assert lookout.newest(found) is found
    now[0] += 0.1
    assert lookout.newest(found) is found
    assert wait_for_swap(lookout, found).scorer.fingerprint == third.fingerprint


def test_a_look_that_fails_leaves_the_model(model: str, caplog: pytest.LogCaptureFixture) -> None:
    options = ScoreOptions(model)
    first = load_model(model, options)
    lookout = Lookout(ModelWatch("nosuch://bucket/*", 0.001), options)
    end = time.monotonic() + HANG_GUARD
    while "cannot look for new models: nosuch://bucket" not in caplog.text and time.monotonic() < end:
        assert lookout.newest(first) is first
        time.sleep(0.01)
    assert "cannot look for new models: nosuch://bucket" in caplog.text


# --- announcing ----------------------------------------------------------------------------------------------------

TIME = [0.0]


def clock() -> float:
    return TIME[0]


def at(tick: tuple[float, str]) -> tuple[float, str]:
    """Time passes, and somebody does something in the shell."""
    TIME[0], command = tick
    if command:
        source, target = command.split("->")
        shutil.copytree(source, target)
    return tick


def timed_update(update: ModelMetadata) -> tuple[float, str, str]:
    return TIME[0], *update


def test_announcements(
    run: Run, model: str, bundle: Bundle, second: Bundle, third: Bundle, models: Path, tmp_path: Path, said: Said
) -> None:
    """The first model at once, whatever there is; then each new one once, and no look too soon after another."""
    ticks = [
        (0.0, f"{save(second, tmp_path / 'two')}->{models / 'v2'}"),
        (60.0, ""),
        (120.0, ""),
        (121.0, f"{save(third, tmp_path / 'three')}->{models / 'v3'}"),
        (180.0, ""),
        (240.0, f"{tmp_path / 'bad'}->{models / 'v4'}"),
        (300.0, ""),
        (360.0, ""),
    ]
    half_weights(bundle, tmp_path / "bad")  # last, so that it is the newest
    stream = test_stream.TestStream()
    for tick in ticks:
        stream.add_elements([tick])
    stream.advance_watermark_to_infinity()

    def build(pipeline: beam.Pipeline) -> Mapping[str, beam.PCollection[Any]]:
        watch = ModelWatch(f"{models}/*", 60, clock)
        timed = pipeline | stream | beam.Map(at)
        updates = timed | Announce(watch, ScoreOptions(model))
        return {"updates": updates | beam.Map(timed_update)}

    ran = run(build, streaming=True)
    assert sorted(ran["updates"]) == [
        (0.0, "", ""),
        (60.0, f"{models / 'v2'}#sha256={second.fingerprint}", ""),
        (180.0, f"{models / 'v3'}#sha256={third.fingerprint}", ""),
    ]
    assert [reason.count("model.safetensors does not match") for reason in said()] == [1]


def test_watch_models_is_an_unbounded_source_of_metadata(models: Path) -> None:
    updates = beam.Pipeline() | WatchModels(f"{models}/*")
    assert updates.element_type is ModelMetadata
    assert not updates.is_bounded
