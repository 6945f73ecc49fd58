"""Manifests: what is written is read again, and nothing else passes for one."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from pipelines.cli.options import parse
from pipelines.data_set.manifest import DIRECTORY, DataFile, Input, Manifest, Model, claim, names, read, read_all
from pipelines.runs.identity import identity
from torchmoji_core.errors import InputError
from transforms.storage import files as storage
from transforms.storage.listing import FileFacts


def make(sequence: int, **values: Any) -> Manifest:
    """A manifest of a run named after its number."""
    return dataclasses.replace(
        Manifest(
            sequence=sequence,
            run_id=f"run{sequence}",
            kind="annotate",
            status="done",
            started="2026-01-31T10:00:00+00:00",
            finished="2026-01-31T10:00:05+00:00",
            code_version="1",
            identity={"outputs": ["top"], "top_k": 5},
            model=Model("tiny", "abc", "fp32 (MKL)"),
        ),
        **values,
    )


def write(output: Path, manifest: Manifest) -> Path:
    assert claim(str(output), manifest)
    return output / DIRECTORY / manifest.name


FULL = make(
    7,
    inputs=(
        Input("/in/a.jsonl", 10, 1_700_000_000.25, "jsonl", 3, 1),
        Input("s3://bucket/ünï 😂.csv", 0, None, "csv"),
        Input("/in/half \udcff.txt", 5, 0.0, "text", 1, 0),
    ),
    files=(DataFile("date=2026-01-31/part-run7-1.parquet", 4, 100, "f" * 64, {"/in/a.jsonl": 3, "half \ufffd": 1}),),
    dead_letters=(DataFile("_dead_letters/part-run7-2.jsonl", 1, 20, "e" * 64, {"/in/a.jsonl": 1}),),
    retired=("part-run1-1.parquet", "_dead_letters/part-run1-2.jsonl", "lang=..%2F../part-run1-3.parquet"),
    dropped=("/in/gone \udc00.jsonl",),
    generation=2,
    promotes=True,
    counts={"read": 5, "dead": 1},
)


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    """With lone surrogates, as names of files can have them."""
    path = write(tmp_path, FULL)
    assert path == tmp_path / DIRECTORY / "00000007.json"
    assert read(str(path)) == FULL
    assert [file.name for file in (tmp_path / DIRECTORY).iterdir()] == ["00000007.json"]


def test_any_json_reader_can_read_it(tmp_path: Path) -> None:
    values = json.loads(write(tmp_path, FULL).read_text(encoding="utf-8"))
    assert values["version"] == 3
    assert values["files"][0]["rows"] == 4
    assert values["inputs"][0]["modified"] == 1_700_000_000.25


def test_they_are_read_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    numbers = [11, 2, 100, 9, 1, 10]
    for number in numbers:
        write(tmp_path, make(number))
    assert [manifest.sequence for manifest in read_all(str(tmp_path))] == sorted(numbers)


def test_only_what_follows_the_last_checkpoint_is_read(tmp_path: Path) -> None:
    for number in range(1, 13):
        write(tmp_path, make(number, checkpoint=number in (4, 10)))
    (tmp_path / DIRECTORY / "00000003.json").write_text("no manifest, and superseded")
    found = read_all(str(tmp_path))
    assert [(manifest.sequence, manifest.checkpoint) for manifest in found] == [(10, True), (11, False), (12, False)]


def test_any_number_of_manifests_is_read(tmp_path: Path) -> None:
    for number in range(1, 201):
        write(tmp_path, make(number, checkpoint=number == 50))
    assert [manifest.sequence for manifest in read_all(str(tmp_path))] == list(range(50, 201))


def test_a_listing_that_lacks_a_number_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that is listed while two appear may show the second of them only."""
    for number in (1, 2, 3):
        write(tmp_path, make(number))
    match, lacking = storage.match, iter(["00000002.json"])

    def listed(patterns: list[str]) -> list[FileFacts]:
        missing = next(lacking, None)
        return [file for file in match(patterns) if Path(file.path).name != missing]

    monkeypatch.setattr(storage, "match", listed)
    assert [manifest.sequence for manifest in read_all(str(tmp_path))] == [1, 2, 3]


def test_a_manifest_that_was_moved_away_is_missing(tmp_path: Path) -> None:
    for number in (1, 2, 3):
        write(tmp_path, make(number))
    (tmp_path / DIRECTORY / "00000002.json").unlink()
    assert [manifest.sequence for manifest in read_all(str(tmp_path))] == [1, 3]


def test_without_manifests_there_are_none(tmp_path: Path) -> None:
    assert read_all(str(tmp_path)) == read_all(str(tmp_path / "nowhere")) == []


def test_a_number_is_claimed_by_one(tmp_path: Path) -> None:
    path = write(tmp_path, make(1, counts={"read": 1}))
    assert not claim(str(tmp_path), make(1, run_id="other", counts={"read": 2}))
    assert read(str(path)).counts == {"read": 1}


# --- the form before -----------------------------------------------------------------------------------------------


def write_old(output: Path, manifest: Manifest) -> Path:
    """As versions before 3 have written it."""
    kind = ".checkpoint" if manifest.checkpoint else ""
    path = output / DIRECTORY / f"{manifest.sequence:08}-{manifest.run_id}{kind}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"version": 2} | dataclasses.asdict(manifest), indent=1))
    return path


def test_manifests_of_the_form_before_are_read_and_gone_on_with(tmp_path: Path) -> None:
    changes = [make(1), make(2, checkpoint=True), make(3, retired=("part-1",)), make(4), make(5, checkpoint=True)]
    for old in changes[:3]:
        write_old(tmp_path, old)
    assert read_all(str(tmp_path)) == changes[1:3]
    for new in changes[3:4]:
        write(tmp_path, new)
    assert read_all(str(tmp_path)) == changes[1:4]
    write(tmp_path, changes[4])
    assert read_all(str(tmp_path)) == changes[4:]
    assert names(str(tmp_path)) == [
        "00000001-run1.json", "00000002-run2.checkpoint.json", "00000003-run3.json", "00000004.json", "00000005.json",
    ]  # fmt: skip


def test_who_writes_the_form_before_leaves_the_new_one_alone(tmp_path: Path) -> None:
    """It takes another version for damage, and ends."""
    assert json.loads(write(tmp_path, make(1)).read_text())["version"] != 2


def test_what_is_not_named_like_a_manifest_is_none(tmp_path: Path) -> None:
    write(tmp_path, make(1))
    (tmp_path / DIRECTORY / "copy of 1.json").touch()
    with pytest.raises(InputError, match=r"copy of 1\.json: not the name of a manifest; move it away"):
        read_all(str(tmp_path))


def test_a_manifest_under_another_number_is_none(tmp_path: Path) -> None:
    path = write(tmp_path, make(1))
    path.rename(path.with_name("00000002.json"))
    with pytest.raises(InputError, match=r"00000002\.json: not a manifest \(sequence of another file"):
        read_all(str(tmp_path))


# --- damage --------------------------------------------------------------------------------------------------------


def spoiled(**values: Any) -> str:
    """The JSON of a manifest in which some values are others."""
    good: dict[str, Any] = {"version": 3} | json.loads(json.dumps(dataclasses.asdict(make(1))))
    return json.dumps(good | values)


def without(name: str) -> str:
    values = json.loads(spoiled())
    del values[name]
    return json.dumps(values)


NO_MANIFESTS: dict[str, str | bytes] = {
    "empty": "",
    "truncated": spoiled()[:-40],
    "not UTF-8": b"\xff\xfe",
    "no object": "[]",
    "null": "null",
    "deep": "[" * 100_000,
    "deep in a value": '{"version": 3, "identity": ' + '{"a":' * 100_000,
    "of the first version": spoiled(version=1),
    "of a version to come": spoiled(version=4),
    "of no version": without("version"),
    "without files": without("files"),
    "without a model": without("model"),
    "without a sequence": without("sequence"),
    "with something unknown": spoiled(surprise=1),
    "with a model that is none": spoiled(model="tiny"),
    "with files that are none": spoiled(files=[{"path": "a"}]),
    "with files that are strings": spoiled(files=["a"]),
    "with a sequence in words": spoiled(sequence="one"),
    "with an identity that is none": spoiled(identity=[]),
    "with a retired number": spoiled(retired=[5]),
}


@pytest.mark.parametrize("name", NO_MANIFESTS)
def test_what_is_no_manifest_is_named_with_what_to_do(name: str, tmp_path: Path) -> None:
    content = NO_MANIFESTS[name]
    path = tmp_path / DIRECTORY / "00000001.json"
    path.parent.mkdir()
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError) as caught:
        read_all(str(tmp_path))
    message = str(caught.value)
    assert message.startswith(f"{path}: not a manifest (")
    assert "move it away" in message
    assert "\n" not in message


HOSTILE = [
    "/etc/passwd", "../other/part-1.parquet", "date=2026-01-31/../../part-1.parquet", "..", "s3://bucket/part-1.parquet",
    "file:///etc/passwd", "", ".", "./", "date=2026-01-31/", "date=2026-01-31/./part-1.parquet", "a//b",
]  # fmt: skip


@pytest.mark.parametrize("path", HOSTILE)
@pytest.mark.parametrize("where", ["files", "dead_letters", "retired"])
def test_paths_that_leave_the_output_are_refused(path: str, where: str, tmp_path: Path) -> None:
    """They may be deleted one day; an empty one is the output itself."""
    entry = path if where == "retired" else {"path": path, "rows": 1, "bytes": 1, "sha256": ""}
    file = tmp_path / "00000001.json"
    file.write_text(spoiled(**{where: [entry]}))
    with pytest.raises(InputError, match="leaves the output") as caught:
        read(str(file))
    assert str(file) in str(caught.value)


def test_a_manifest_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"00000001\.json: cannot be read"):
        read(str(tmp_path / "00000001.json"))


def test_an_identity_has_no_credentials_and_all_that_tells_commands_apart() -> None:
    def of(*options: str) -> dict[str, Any]:
        return identity(parse(["--output", "out", *options])[0])

    hidden = of(
        "--input", "s3://me:hunter2@host/in/key@2x", "/in/a@b:c@d",
        "--model", "https://hunter2@host/model.zip?v=1&sig=hunter2",
    )  # fmt: skip
    assert hidden["model"] == "https://***@host/model.zip?v=1&sig=***" and "hunter2" not in str(hidden)
    assert "/in/a@b:c@d" in hidden["inputs"]
    for one, other in (("/in/token=1/*", "/in/token=2/*"), ("s3://bucket/pw=1/a@b", "s3://bucket/pw=2/a@b")):
        assert of("--input", one) != of("--input", other)
    assert of("--keep_fields", "password:string,sig")["keep_fields"] == ["password:string", "sig:string"]
