"""The token table: what is accepted, what is refused and why."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from torchmoji_core.errors import InputError
from torchmoji_core.vocabulary import (
    AT,
    BREAK,
    LONGEST_WORD,
    MASK,
    NUMBER,
    SPECIAL_TOKENS,
    UNKNOWN,
    URL,
    Vocabulary,
)


def test_ids_follow_the_order_of_the_tokens(vocabulary: Vocabulary) -> None:
    assert [vocabulary[token] for token in vocabulary.tokens] == list(range(len(vocabulary)))
    assert list(vocabulary) == list(vocabulary.tokens)
    assert "nowhere" not in vocabulary
    assert vocabulary.get("nowhere", UNKNOWN) == 1


def test_special_ids_are_those_of_deepmoji(vocabulary: Vocabulary) -> None:
    names = ("CUSTOM_MASK", "CUSTOM_UNKNOWN", "CUSTOM_AT", "CUSTOM_URL", "CUSTOM_NUMBER", "CUSTOM_BREAK")
    assert tuple(vocabulary[name] for name in names) == (MASK, UNKNOWN, AT, URL, NUMBER, BREAK) == (0, 1, 2, 3, 4, 5)


def test_the_published_vocabulary_is_read(shared: Path) -> None:
    path = shared / "data" / "deepmoji_vocabulary.json"
    vocabulary = Vocabulary.load(path)
    assert len(vocabulary) == 50_000
    assert dict(vocabulary) == json.loads(path.read_text())
    assert Vocabulary.from_json(vocabulary.to_json()).tokens == vocabulary.tokens


@given(st.lists(st.text(st.characters(codec=None), max_size=5), unique=True, max_size=20))
@settings(max_examples=50, deadline=None)
def test_json_round_trip(words: list[str]) -> None:
    vocabulary = Vocabulary((*SPECIAL_TOKENS, *words))
    content = vocabulary.to_json()
    assert content.isascii()
    assert Vocabulary.from_json(content).tokens == vocabulary.tokens
    assert Vocabulary.from_json(content.encode()).to_json() == content


def test_the_order_in_the_file_does_not_matter(vocabulary: Vocabulary) -> None:
    shuffled = dict(sorted(vocabulary.items(), reverse=True))
    assert Vocabulary.from_json(json.dumps(shuffled)).tokens == vocabulary.tokens


SPECIAL = {token: index for index, token in enumerate(SPECIAL_TOKENS)}
BAD = {
    "not JSON": ("{", "not JSON"),
    "not UTF-8": (b'{"\xff": 0}', "not JSON"),
    "very deep": ("[" * 200_000, "not JSON"),
    "a list": ("[]", "object"),
    "ids as text": ('{"a": "0"}', "integer"),
    "ids as floats": ('{"a": 0.0}', "integer"),
    "ids as booleans": ('{"a": false}', "integer"),
    "NaN": ('{"a": NaN}', "integer"),
    "empty": ("{}", "special tokens"),
    "a gap": (json.dumps(SPECIAL | {"a": 11}), "gaps"),
    "an id twice": (json.dumps(SPECIAL | {"a": 10, "b": 10}), "repeats"),
    "a negative id": (json.dumps(SPECIAL | {"a": -1}), "from 0 to 10"),
    "a token twice": (json.dumps(SPECIAL)[:-1] + ', "a": 10, "a": 11}', "gaps"),
    "other special tokens": ('{"<pad>": 0, "<unk>": 1}', "special tokens"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_content_is_refused_in_one_line(name: str) -> None:
    content, reason = BAD[name]
    with pytest.raises(InputError, match=reason) as error:
        Vocabulary.from_json(content, "here.json")
    assert str(error.value).startswith("here.json") and "\n" not in str(error.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"missing\.json: cannot be read \(No such file"):
        Vocabulary.load(tmp_path / "missing.json")
    with pytest.raises(InputError, match="cannot be read"):
        Vocabulary.load(tmp_path)


def test_a_token_given_twice_is_named() -> None:
    with pytest.raises(InputError, match="'dog' appears more than once"):
        Vocabulary((*SPECIAL_TOKENS, "cat", "dog", "dog"))


def test_extend_takes_the_most_frequent_unknown_tokens(vocabulary: Vocabulary) -> None:
    counts = {"bee": 3, "ant": 3, "love": 100, "wasp": 9, "fly": 1}
    assert vocabulary.extend(counts, 3).tokens == (*vocabulary.tokens, "wasp", "ant", "bee")
    assert vocabulary.extend(dict(reversed(counts.items())), 3).tokens[-3:] == ("wasp", "ant", "bee")
    assert vocabulary.extend(counts, 0).tokens == vocabulary.tokens
    assert len(vocabulary.extend(counts, 100)) == len(vocabulary) + 4


def test_coverage_counts_unknown_tokens(vocabulary: Vocabulary) -> None:
    assert vocabulary.coverage([UNKNOWN, 12, 13, 14]) == 0.75
    assert vocabulary.coverage(iter([12])) == 1
    assert math.isnan(vocabulary.coverage([]))


def test_a_limit_below_0_is_refused(vocabulary: Vocabulary) -> None:
    with pytest.raises(InputError, match="limit must be at least 0, not -1"):
        vocabulary.extend({"wasp": 2}, -1)
    with pytest.raises(InputError, match="limit must be a whole number"):
        vocabulary.extend({"wasp": 2}, "5")  # type: ignore[arg-type]


def test_a_vocabulary_is_only_extended_by_words_that_a_bundle_can_hold(vocabulary: Vocabulary) -> None:
    """What holds of each makes the file small enough, whatever the words are."""
    words = [f"{number:0{LONGEST_WORD}}" for number in range(3_000)]
    wider = vocabulary.extend(dict.fromkeys([*words, "b" * (LONGEST_WORD + 1), "c" * 1_000_000], 1), 10_000)
    assert len(wider) == len(vocabulary) + len(words)
    assert Vocabulary.from_json(wider.to_json()) == wider


def test_tokens_that_no_bundle_could_hold_are_refused() -> None:
    content = json.dumps(SPECIAL | {"x" * 200_000: len(SPECIAL)})
    with pytest.raises(InputError, match=r"vocabulary: 200,2\d\d bytes for 11 tokens.* the longest has 200,000 char"):
        Vocabulary.from_json(content)


def test_a_token_that_is_no_text_is_refused() -> None:
    with pytest.raises(InputError, match="token 10 is 7, not a text"):
        Vocabulary((*SPECIAL_TOKENS, 7))  # type: ignore[arg-type]


def test_of_two_that_save_at_once_one_is_kept(
    vocabulary: Vocabulary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "vocabulary.json"
    written = Path.write_bytes

    def another_is_faster(self: Path, content: bytes) -> int:
        written(path, b"of another")
        return written(self, content)

    monkeypatch.setattr(Path, "write_bytes", another_is_faster)
    with pytest.raises(InputError, match="exists already"):
        vocabulary.save(path)
    assert path.read_bytes() == b"of another" and list(tmp_path.iterdir()) == [path]


def test_a_path_is_needed_to_save(vocabulary: Vocabulary) -> None:
    with pytest.raises(TypeError, match="a path is a str or a Path, not None"):
        vocabulary.save(None)  # type: ignore[arg-type]


def test_a_saved_vocabulary_is_read_again_and_never_overwritten(vocabulary: Vocabulary, tmp_path: Path) -> None:
    path = tmp_path / "new" / "vocabulary.json"
    vocabulary.save(path)
    assert Vocabulary.load(path).tokens == vocabulary.tokens
    assert [entry.name for entry in path.parent.iterdir()] == ["vocabulary.json"]
    with pytest.raises(InputError, match="exists already; give a new name"):
        vocabulary.save(path)
    with pytest.raises(InputError, match="a path on this machine is needed"):
        vocabulary.save("s3://bucket/vocabulary.json")
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written"):
        vocabulary.save(tmp_path / "file" / "vocabulary.json")
