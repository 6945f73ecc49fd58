"""What the tests, examples and scripts of DeepMoji and torchMoji do, done here with texts of our own.

docs/from_torchmoji.md sets each of them beside its test. Many have theirs in the file of what they are about; the
others are below. What needs the published weights is the business of `torchmoji_core.checkpoints.known_answers`.
"""

from __future__ import annotations

import ast
import csv
import pickle
import re
import statistics
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_packed_sequence

import torchmoji_core
from tests.tiny import tiny_bundle
from torchmoji_core import FineTuningOptions, finetune, load_bundle
from torchmoji_core.model import Dimensions, TorchMoji, pack_ids
from torchmoji_core.token_rules import fold_chunk, split_chunk
from torchmoji_core.training.classifier import ClassifierTraining
from torchmoji_core.training.dataset import TweetDataset
from torchmoji_core.training.finetuning import OUTPUT_LAYER, stages_of
from torchmoji_core.training.labelled_texts import LabelledTexts, label_texts
from torchmoji_core.training.prediction import forward
from torchmoji_core.training.sampler import BalancedBatchSampler
from torchmoji_core.vocabulary import SPECIAL_TOKENS, UNKNOWN, Vocabulary

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "from_torchmoji.md").read_text()

WORDS = ["sun", "rain", "snow", "and", "more", "today", "again", "!"]
BASE = tiny_bundle(WORDS, seed=3)
QUICK: dict[str, Any] = {
    "learning_rate": 0.05,
    "fine_learning_rate": 0.02,
    "epoch_samples": 60,
    "batch_size": 20,
    "most_epochs": 6,
    "patience": 2,
    "output_dropout": 0.1,
}
TEXTS = ["sun and more sun!", "rain again", "more snow and rain today"]


def weather(count: int, seed: int, kinds: int = 2) -> tuple[list[str], list[int]]:
    """Texts with one weather word, and its number."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(kinds, size=count).tolist()
    filling = generator.choice(["and", "more", "today", "again"], (count, 3)).tolist()
    return [" ".join([*row[:2], WORDS[label], *row[2:]]) for row, label in zip(filling, labels, strict=True)], labels


LABELLED, LABELS = weather(140, 1)
SPLITS = ["train"] * 80 + ["val"] * 30 + ["test"] * 30


# --- tokens -------------------------------------------------------------------------------------------------------

SPLIT = {
    "words": {"40C outside?": ["40", "C", "outside", "?"]},
    "emojis": {
        "we 🍕 on fridays": ["we", "🍕", "on", "fridays"],
        "so🍕good ☂'s": ["so", "🍕", "good", "☂", "'", "s"],
        "*<3*": ["*", "<3", "*"],
        "</333": ["</333"],
        ";-)": [";-)"],
        ">:D": [">:D"],
        "☎☂✿♣": ["☎", "☂", "✿", "♣"],
    },
    "addresses": {
        "www.weather.example": ["www.weather.example"],
        "http://rain.example": ["http://rain.example"],
        "https://rain.example/today?at=6": ["https://rain.example/today?at=6"],
    },
    "tags": {
        "#rainyday": ["#rainyday"],
        "#7_days!": ["#7_days", "!"],
        "all#5%": ["all", "#5", "%"],
        "@snow_day": ["@snow_day"],
        "@7_days": ["@7_days"],
        "first-snow@mail.example": ["first-snow@mail.example"],
    },
    "telephone numbers": {
        "030)555-0199": ["030", ")", "555", "-", "0199"],
        "0800-555-0199": ["0800", "-", "555", "-", "0199"],
        "0800.555.0199": ["0800", ".", "555", ".", "0199"],
    },
    "dates and times": {
        "07:45": ["07", ":", "45"],
        "07:30": ["07", ":3", "0"],  # 3 is a mouth
        "6:15am": ["6", ":", "15", "am"],
        "24/12/20": ["24", "/", "12", "/", "20"],
    },
    "prices": {
        "12.50£": ["12", ".", "50", "£"],
        "$3.20": ["$", "3", ".", "20"],
        "0.5": ["0", ".", "5"],
        "7,50€": ["7", ",", "50", "€"],
        "2,000": ["2", ",", "000"],
        "50euros": ["50", "euros"],
    },
    "digits and others": {
        "7up": ["7", "up"],
        "b12": ["b", "12"],
        "(90)": ["(", "90", ")"],
        "90/": ["90", "/"],
        "90+": ["90", "+"],
        "3d-print": ["3", "d-print"],
        "10-12": ["10", "-", "12"],
        "24/7days": ["24", "/", "7", "days"],
        "9'/2": ["9", "'", "/", "2"],
        "60's,)": ["60", "'", "s", ",", ")"],
        "10.0.0.7": ["10", ".", "0", ".", "0", ".", "7"],
    },
    "punctuation": {
        "can''t": ["can", "''", "t"],
        "y'all": ["y'all"],
        "what?!?!;": ["what", "?", "!", "?", "!", ";"],
        "what??!!..": ["what", "??", "!!", ".."],
        "p.m.": ["p.m."],
        ".x.y": [".", "x", ".", "y"],
        "..go!!__": ["..", "go", "!!", "__"],
        "me(<3)or(3>)you Dr.?": ["me", "(", "<3", ")", "or", "(", "3", ">", ")", "you", "Dr.", "?"],
        "-->": ["--", ">"],
        "<--": ["<", "--"],
        "thanks (@ann)": ["thanks", "(", "@ann", ")"],
    },
}


@pytest.mark.parametrize("kind", SPLIT)
def test_texts_are_split(kind: str) -> None:
    for text, expected in SPLIT[kind].items():
        assert [token for chunk in text.split() for token in split_chunk(chunk)] == expected, text


def test_letters_outside_ascii_stay_and_punctuation_becomes_ascii() -> None:
    assert fold_chunk("ű") == fold_chunk("u\u030b") == "ű"
    assert fold_chunk("őűáíéñ") == "őűáíéñ"
    assert fold_chunk("“ő”…") == '"ő"...'


def test_a_sentence_comes_back_from_its_ids() -> None:
    for sentence, expected in {"sun rain rain": "sun rain rain", "sun rain fog": "sun rain CUSTOM_UNKNOWN"}.items():
        assert " ".join(BASE.tokenizer.words(BASE.tokenizer.ids(sentence))) == expected


def test_texts_become_an_array_padded_with_zeros() -> None:
    rows = [BASE.tokenizer.ids(text, 30) for text in TEXTS]
    padded, lengths = pad_packed_sequence(pack_ids(rows), batch_first=True, total_length=30)
    array = padded.numpy()
    assert array.shape == (len(TEXTS), 30) and lengths.tolist() == [5, 2, 5]
    assert [BASE.tokenizer.words(row) for row in array] == [BASE.tokenizer.tokens(text) for text in TEXTS]
    assert not any(row[length:].any() for row, length in zip(array, lengths, strict=True))


# --- data sets ----------------------------------------------------------------------------------------------------


def test_a_data_set_is_split_by_shares_or_as_its_rows_say() -> None:
    texts, names = [f"day {number} was fine" for number in range(10)], ["odd" if n % 2 else "even" for n in range(10)]
    given = ["train", "train", "train", "val", "train", "val", "val", "test", "test", "train"]
    data = LabelledTexts(texts, names, (), given)
    explicit, drawn = data.split(1), data.divided((0.7, 0.1, 0.2), seed=1).split(1)
    assert {name: part.texts for name, part in explicit.items()} == {
        name: [text for text, split in zip(texts, given, strict=True) if split == name] for name in explicit
    }
    assert {name: len(part.texts) for name, part in drawn.items()} == {"train": 7, "val": 1, "test": 2}
    for parts in (explicit, drawn):
        for part in parts.values():
            assert [part.classes[label] for label in part.labels] == [names[texts.index(text)] for text in part.texts]


def coverages(data: LabelledTexts, base: Vocabulary) -> list[float]:
    """Of the test texts: with a vocabulary of the training texts alone, with a given one, and with that one extended"""
    parts = data.split(1)
    tokens = BASE.tokenizer.tokens  # which tokens a text has does not depend on the vocabulary
    counts = Counter(token for text in parts["train"].texts for token in tokens(text))
    found = []
    for vocabulary in (Vocabulary(SPECIAL_TOKENS).extend(counts, 10_000), base, base.extend(counts, 10_000)):
        found.append(
            vocabulary.coverage(
                vocabulary.get(token, UNKNOWN) for text in parts["test"].texts for token in tokens(text)
            )
        )
    return found


def test_coverages_of_data_sets(tmp_path: Path) -> None:
    data = LabelledTexts(
        ["fog and rain", "fog today", "more hail", "fog and sun", "hail and fog again"],
        [0, 1, 0, 1, 0],
        (),
        ["train", "train", "val", "test", "test"],
    )
    with (tmp_path / "coverage.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["set", "own", "last", "full"], ["fog", *coverages(data, BASE.vocabulary)]])
    # fog and sun hail and fog again
    assert pd.read_csv(tmp_path / "coverage.csv").iloc[0].tolist() == pytest.approx(["fog", 4 / 7, 4 / 7, 6 / 7])


# --- a model as it is ---------------------------------------------------------------------------------------------


def test_texts_become_feature_vectors(tmp_path: Path) -> None:
    np.save(tmp_path / "features.npy", BASE.encode(TEXTS, precision="fp32"))
    features = np.load(tmp_path / "features.npy")
    assert features.shape == (len(TEXTS), BASE.dimensions.channels) and features.dtype == np.float32
    with torch.inference_mode():
        output = BASE.model()(pack_ids([BASE.tokenizer.ids(text) for text in TEXTS]))
    np.testing.assert_allclose(features, output.embedding, atol=1e-5)


def test_texts_are_scored_to_csv_with_the_five_likeliest_emojis_and_the_weightiest_words(tmp_path: Path) -> None:
    scores = BASE.score(TEXTS)
    with (tmp_path / "scores.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        for text, score in zip(TEXTS, scores, strict=True):
            emojis, probabilities = zip(*score.top(5), strict=True)
            tokens = BASE.tokenizer.tokens(text, BASE.maxlen)
            words = [tokens[place] for place in np.argsort(-score.attention, kind="stable")[:2]]
            writer.writerow([text, sum(probabilities), *emojis, *probabilities, *words])
    with (tmp_path / "scores.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    assert [row[0] for row in rows] == TEXTS
    for row, score in zip(rows, scores, strict=True):
        top = list(map(float, row[7:12]))
        assert float(row[1]) == pytest.approx(sum(top)) and 0 < float(row[1]) < 1
        assert top == sorted(score.probabilities.tolist(), reverse=True)[:5]
        assert [score.probabilities[BASE.classes.index(emoji)] for emoji in row[2:7]] == top
        assert score.attention.sum() == pytest.approx(1, abs=1e-5)
        assert set(row[12:]) <= set(BASE.tokenizer.tokens(row[0]))


def test_the_emojis_of_one_text() -> None:
    assert BASE.score([TEXTS[0]])[0].top(5) == BASE.score(TEXTS)[0].top(5)
    assert BASE.score([""])[0].top(5) == []


# --- fine-tuning --------------------------------------------------------------------------------------------------


def trained(method: str, labels: Any = LABELS, texts: list[str] = LABELLED, **changes: Any) -> Any:
    options = FineTuningOptions(method=method, **{**QUICK, **changes})
    return finetune(BASE, texts, labels, splits=SPLITS, options=options)


@pytest.mark.parametrize("method", ["last", "full", "chain-thaw"])
def test_a_task_is_learnt_and_words_are_added_but_for_last(method: str) -> None:
    texts = [f"{text} fog" if label else text for text, label in zip(LABELLED, LABELS, strict=True)]
    bundle = trained(method, texts=texts)
    assert bundle.provenance["scores"]["test"]["accuracy"] >= 0.68
    assert ("fog" in bundle.vocabulary) == (method != "last")
    assert len(bundle.vocabulary) == bundle.dimensions.vocabulary == len(BASE.vocabulary) + (method != "last")


def test_layers_are_frozen_and_thawed_by_stage() -> None:
    parts = LabelledTexts(LABELLED, LABELS, (), SPLITS).split(1)
    options = FineTuningOptions(method="chain-thaw", **{**QUICK, "most_epochs": 1})
    task = ClassifierTraining(parts, BASE, options)
    model = task.training.model
    thawed: list[set[str]] = []

    def report(figures: dict[str, Any]) -> None:
        thawed.append({name.split(".")[0] for name, weight in model.named_parameters() if weight.requires_grad})

    task.run(report, "weather", "made up")
    assert thawed == [set(stage.layers) for stage in stages_of(options)]
    assert thawed[0] == {OUTPUT_LAYER}
    assert all(weight.requires_grad for weight in model.parameters())


def test_class_average_f1_is_that_of_one_class_against_the_rest() -> None:
    texts, labels = weather(140, 2, kinds=3)
    truth = np.eye(3, dtype=bool)[labels]
    truth[::5] = False  # none holds
    bundle = trained("last", truth, texts)
    found = bundle.score(texts, "fp32").probabilities
    val, test = (np.array(SPLITS) == name for name in ("val", "test"))

    def f1(rows: Any, number: int, threshold: float) -> float:
        return f1_score(truth[rows, number], found[rows, number] >= threshold, zero_division=0)

    measured = []
    for number, name in enumerate(bundle.classes):
        candidates = (np.arange(1, 50) / 100).tolist()
        chosen = max(candidates, key=lambda threshold: f1(val, number, threshold))
        assert bundle.provenance["thresholds"][name] == chosen
        measured.append(f1(test, number, chosen))
    assert bundle.provenance["scores"]["test"]["f1"] == pytest.approx(np.mean(measured), abs=1e-4)


def test_the_architecture_is_trained_from_scratch() -> None:
    rows = {name: [row for row, split in enumerate(SPLITS) if split == name] for name in ("train", "test")}
    train, test = (
        TweetDataset.from_texts([LABELLED[row] for row in part], [LABELS[row] for row in part], 2, BASE.tokenizer, 80)
        for part in rows.values()
    )
    torch.manual_seed(1337)
    model = TorchMoji(Dimensions(len(BASE.vocabulary), embedding=6, hidden=4, classes=2)).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    sampler = BalancedBatchSampler(train.labels, batch_size=20, epoch_size=80, lengths=train.lengths)
    for _ in range(5):
        for batch in train.loader(sampler):
            optimizer.zero_grad()
            cross_entropy(model(batch.ids).logits, batch.labels).backward()
            optimizer.step()
    logits, _ = forward(model, test.corpus)
    assert (logits.argmax(dim=1) == test.targets).float().mean() > 0.9


def test_results_of_several_runs_are_averaged(tmp_path: Path) -> None:
    for seed in (1, 2):
        trained("last", seed=seed, most_epochs=2).save(tmp_path / f"weather_last_{seed}")
    bundles = [load_bundle(path) for path in sorted(tmp_path.glob("weather_last_*"))]
    recorded = [bundle.provenance["scores"]["test"]["accuracy"] for bundle in bundles]
    test = [LABELLED[row] for row, split in enumerate(SPLITS) if split == "test"]
    truth = [str(label) for label, split in zip(LABELS, SPLITS, strict=True) if split == "test"]
    measured = [accuracy_score(truth, bundle.score(test, "fp32").predict().astype(str)) for bundle in bundles]
    assert statistics.mean(recorded) == pytest.approx(statistics.mean(measured), abs=1e-4)
    assert statistics.pstdev(recorded) == pytest.approx(statistics.pstdev(measured), abs=1e-4)


# --- the page -----------------------------------------------------------------------------------------------------


def defined_in(file: str) -> set[str]:
    """What a file defines, at any depth; nothing if it is not there."""
    path = ROOT / file
    nodes = list(ast.walk(ast.parse(path.read_text()))) if path.is_file() else []
    names = {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    return names | {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}


def test_tests_that_the_page_names_are_there() -> None:
    named = set(re.findall(r"`(tests/[\w/]+\.py)::(\w+)(?:\[([^]]+)\])?`", PAGE))
    assert len(named) > 40
    assert not [(file, name) for file, name, _ in named if name not in defined_in(file)]
    assert not [(name, case) for file, name, case in named if case and f'"{case}"' not in (ROOT / file).read_text()]


def test_files_and_names_that_the_page_names_are_there() -> None:
    files = {*re.findall(r"`((?:torchmoji_core|transforms|pipelines|benchmarks)/[\w/]+\.py)`", PAGE)}
    files |= {f"{module.replace('.', '/')}.py" for module in re.findall(r"python -m ([\w.]+)", PAGE)}
    files |= {f"docs/{link}" for link in re.findall(r"\]\(([\w./]+\.md)", PAGE)}
    assert len(files) > 15
    assert not [file for file in files if not (ROOT / file).is_file()]
    for names, file in re.findall(r"((?:`\w+`, )*`\w+`) of `([\w/]+\.py)`", PAGE):
        assert {*re.findall(r"\w+", names)} <= defined_in(file), file
    members = set(re.findall(r"`([A-Z]\w+)\.(\w+)", PAGE))
    public = {name: getattr(torchmoji_core, name) for name, _ in members if name in torchmoji_core.__all__}
    assert not [
        (name, member)
        for name, member in members
        if name in public and not (hasattr(public[name], member) or member in public[name].__annotations__)
    ]


def test_the_code_of_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["so much sun", "rain, señor".encode(), "snow and rain", "more snow"]
    labels = [np.array(row) for row in ([True, False], [False, True], [False, False], [True, True])]
    info = [{b"label": label} for label in labels]
    raw = {b"texts": texts, b"info": info, b"train_ind": [0, 3], b"val_ind": [2], b"test_ind": [1]}
    (tmp_path / "raw.pickle").write_bytes(pickle.dumps(raw, protocol=2))  # as Python 2 made it
    monkeypatch.chdir(tmp_path)
    for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        exec(block, {})
    columns = pq.read_table("task.parquet").to_pydict()
    data = label_texts("task.parquet", columns["text"], columns["label"], columns["split"])
    assert data.texts == ["so much sun", "rain, señor", "snow and rain", "more snow"]
    assert data.labels.tolist() == [label.tolist() for label in labels]
    assert data.splits is not None and data.splits.tolist() == ["train", "test", "val", "train"]
