"""The convert command: real files in, a bundle that scores alike out; or one line of error and nothing written."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from torch import Tensor

from pipelines import convert
from pipelines.cli.exits import WRONG_INPUT, run_command
from tests.tiny import SMALL, State, make_state, torch_file
from torchmoji_core import checkpoints
from torchmoji_core.bundle import Bundle, load_bundle
from torchmoji_core.errors import InputError
from torchmoji_core.labels import DEEPMOJI_EMOJIS
from torchmoji_core.model import Dimensions, ModelOutput, TorchMoji, pack_ids
from torchmoji_core.vocabulary import SPECIAL_TOKENS, Vocabulary

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT.parent / "shared" / "golden"


def keras_file(state: State) -> bytes:
    """A state as Keras 2's save_weights writes it."""
    layers: dict[str, list[Tensor]] = {
        "embedding": [state["embed.weight"]],
        "bi_lstm_0": [],
        "bi_lstm_1": [],
        "attlayer": [state["attention_layer.attention_vector"][:, None]],
        "softmax": [state["output_layer.0.weight"].t(), state["output_layer.0.bias"]],
    }
    for number in (0, 1):
        for suffix in ("_l0", "_l0_reverse"):
            weight_ih, weight_hh, bias_ih, bias_hh = (
                state[f"lstm_{number}.{name}{suffix}"] for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            )
            layers[f"bi_lstm_{number}"] += [weight_ih.t(), weight_hh.t(), bias_ih + bias_hh]
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        file.attrs["layer_names"] = [name.encode() for name in layers]
        for layer, arrays in layers.items():
            names = [f"{layer}/array_{number}:0" for number in range(len(arrays))]
            group = file.create_group(layer)
            group.attrs["weight_names"] = [name.encode() for name in names]
            for name, array in zip(names, arrays, strict=True):
                group.create_dataset(name, data=array.numpy())
    return buffer.getvalue()


def write_vocabulary(path: Path, size: int = SMALL.vocabulary) -> Path:
    words = [f"word{number}" for number in range(size - len(SPECIAL_TOKENS))]
    path.write_text(Vocabulary([*SPECIAL_TOKENS, *words]).to_json())
    return path


def outputs(model: TorchMoji) -> ModelOutput:
    with torch.inference_mode():
        return model(pack_ids([[12, 13, 14, 15], [16], [17, 18, 59]]))


class Run:
    """Runs the command in this process on files in one directory; `output` is where its bundle goes."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder = folder
        self.output = folder / "bundle"
        self.vocabulary = write_vocabulary(folder / "vocabulary.json")
        self._monkeypatch, self._capsys = monkeypatch, capsys

    def write(self, content: bytes, name: str = "weights.bin") -> Path:
        path = self.folder / name
        path.write_bytes(content)
        return path

    def __call__(self, checkpoint: object, *more: str) -> tuple[int, str, str]:
        """Exit status, standard output, standard error; options in `more` come after the required ones."""
        required = ["--checkpoint", checkpoint, "--vocabulary", self.vocabulary, "--output", self.output]
        self._monkeypatch.setattr(sys, "argv", ["convert", *map(str, required), *more])
        self._capsys.readouterr()
        status = run_command(convert.main)
        return status, *self._capsys.readouterr()

    def refused(self, checkpoint: object, *more: str) -> str:
        """The one line of a run that must fail without writing anything."""
        before = sorted(self.folder.rglob("*"))
        status, out, err = self(checkpoint, *more)
        assert status == WRONG_INPUT
        assert out == ""
        assert len(err.splitlines()) == 1
        assert err.startswith(("error: ", "failed: "))
        assert "Traceback" not in err
        assert sorted(self.folder.rglob("*")) == before
        return err


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    return Run(tmp_path, monkeypatch, capsys)


STATE = make_state()
FORMATS: dict[str, bytes] = {
    "torch zip": torch_file(STATE),
    "torch legacy": torch_file(STATE, legacy=True),
    "keras hdf5": keras_file(STATE),
}


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("suffix", ["", ".zip"])
def test_each_format_becomes_a_bundle_that_scores_alike(run: Run, form: str, suffix: str) -> None:
    run.output = run.folder / f"new/bundle{suffix}"
    status, out, err = run(run.write(FORMATS[form], "weights.file"))
    assert (status, err) == (0, "")
    bundle = load_bundle(run.output)
    assert bundle.name == "weights"
    assert bundle.classes == DEEPMOJI_EMOJIS
    assert bundle.maxlen == 30
    assert bundle.dimensions == SMALL
    assert bundle.vocabulary.tokens == Vocabulary.load(run.vocabulary).tokens
    assert bundle.provenance == {
        "made_by": "python -m pipelines.convert",
        "checkpoint": "weights.file",
        "sha256": hashlib.sha256(FORMATS[form]).hexdigest(),
        "format": form,
    }
    assert str(run.output) in out
    assert bundle.fingerprint in out
    assert "vocabulary 60, embedding 6, hidden 4, classes 64" in out
    expected = TorchMoji(SMALL)
    expected.load_state_dict(STATE)
    for found, wanted in zip(outputs(bundle.model()), outputs(expected.eval()), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


def test_options_reach_the_bundle(run: Run) -> None:
    state = make_state(Dimensions(60, 6, 4, 3))
    classes = run.folder / "classes.json"
    classes.write_text('["joy", "anger", "fear"]')
    more = ["--name", "feelings", "--maxlen", "50", "--classes", str(classes), "--half"]
    status, _, err = run(run.write(torch_file(state)), *more)
    assert (status, err) == (0, "")
    bundle = load_bundle(run.output)
    assert (bundle.name, bundle.maxlen, bundle.classes) == ("feelings", 50, ("joy", "anger", "fear"))
    assert {tensor.dtype for tensor in bundle.state.values()} == {torch.float16}
    assert all(torch.equal(bundle.state[name], tensor.half()) for name, tensor in state.items())
    assert "pytorch" not in bundle.card


def test_the_same_input_gives_the_same_fingerprint(run: Run) -> None:
    checkpoint = run.write(FORMATS["torch zip"])
    fingerprints = set()
    for number, more in enumerate([[], ["--check_known_answers", "no"]]):
        run.output = run.folder / f"bundle{number}"
        assert run(checkpoint, *more)[0] == 0
        fingerprints.add(load_bundle(run.output).fingerprint)
    assert len(fingerprints) == 1


def test_a_uri_is_read_once_and_its_query_is_not_recorded(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    read = []

    def read_uri(uri: str, limit: int) -> bytes:
        read.append(uri)
        return FORMATS["torch zip"]

    monkeypatch.setattr(checkpoints, "read_uri", read_uri)
    uri = "https://example.org/folder/pytorch_model.bin?signature=secret"
    assert run(uri)[0] == 0
    assert read == [uri]
    assert load_bundle(run.output).provenance["checkpoint"] == "pytorch_model.bin"
    assert b"secret" not in b"".join(path.read_bytes() for path in run.output.iterdir())


class Malicious:
    """Creates a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.target}",)


@pytest.mark.parametrize("save", [pickle.dumps, torch_file, lambda bad: torch_file({**STATE, "x": bad}, legacy=True)])
def test_a_malicious_checkpoint_is_not_run(run: Run, save: Callable[[object], bytes]) -> None:
    assert "refused" in run.refused(run.write(save(Malicious(run.folder / "created"))))


@pytest.mark.parametrize(
    "content,expected",
    [
        (b"", "empty"),
        (b"<!DOCTYPE html><title>Dropbox</title>", "dl=1 rather than dl=0"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (FORMATS["torch zip"][:-100], "download it again"),
        (FORMATS["torch legacy"][:-1], "download it again"),
        (FORMATS["keras hdf5"][:-1], "download it again"),
        (torch_file({**STATE, "embed.weight": torch.zeros(60, 7)}), "have shape"),
        (torch_file({f"module.{name}": tensor for name, tensor in STATE.items()}), "'embed.weight' is missing"),
        (torch_file({**STATE, "epoch": 1}), "'epoch' is a int"),
        (torch_file({**STATE, "embed.weight": torch.full((60, 6), torch.inf)}), "NaN or infinity"),
        (torch_file({**STATE, "embed.weight": torch.ones(60, 6, dtype=torch.int64)}), "torch.int64"),
        (keras_file({**STATE, "embed.weight": torch.ones(60, 6, dtype=torch.int64)}), "int64"),
        (keras_file({**STATE, "embed.weight": torch.full((60, 6), 1e300, dtype=torch.float64)}), "NaN or infinity"),
    ],
)
def test_bad_checkpoints_end_in_one_line(run: Run, content: bytes, expected: str) -> None:
    error = run.refused(run.write(content, "given.bin"))
    assert expected in error
    assert "given.bin" in error


def test_missing_files_end_in_one_line(run: Run) -> None:
    assert "No such file" in run.refused(run.folder / "absent.bin")
    assert "directory" in run.refused(run.folder)
    checkpoint = run.write(FORMATS["torch zip"])
    assert "absent.json" in run.refused(checkpoint, "--vocabulary", str(run.folder / "absent.json"))
    assert "absent.json" in run.refused(checkpoint, "--classes", str(run.folder / "absent.json"))


def test_an_unreachable_uri_ends_in_one_line(run: Run) -> None:
    # A server that is down may be there tomorrow.
    assert "127.0.0.1" in run.refused("http://127.0.0.1:9/pytorch_model.bin?dl=1")
    assert "nosuchscheme" in run.refused("nosuchscheme://bucket/pytorch_model.bin")


def test_a_vocabulary_of_another_model_is_refused(run: Run) -> None:
    other = write_vocabulary(run.folder / "other.json", 61)
    error = run.refused(run.write(FORMATS["torch zip"]), "--vocabulary", str(other))
    assert "61 tokens" in error
    assert "60 rows" in error


@pytest.mark.parametrize(
    "content,expected",
    [
        (None, "--classes FILE"),
        ('["a", "b"]', "2 names"),
        ('["a", "b", "b"]', "2 of them different"),
        ('["a", "b", ""]', "list of strings"),
        ('{"a": 1, "b": 2, "c": 3}', "list of strings"),
        ("a b c", "not JSON"),
        ('["a", "b", "\\ud800"]', "each name must be one line"),
        ('["a", "b", "c\\n"]', "each name must be one line"),
        ('["a", "b", "\\u001b[31m"]', "each name must be one line"),
        ("[" * 100_000, "not JSON"),
        ("[" + "[]," * (2 << 20), "has more than 4,194,304 bytes"),
        ("\ud800".encode("utf-8", "surrogatepass").decode("latin-1"), "not JSON"),
    ],
)
def test_class_names_must_fit_the_outputs(run: Run, content: str | None, expected: str) -> None:
    checkpoint = run.write(torch_file(make_state(Dimensions(60, 6, 4, 3))))
    classes = run.folder / "classes.json"
    more = []
    if content is not None:
        classes.write_text(content, encoding="latin-1")
        more = ["--classes", str(classes)]
    assert expected in run.refused(checkpoint, *more)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--maxlen", "0"], "--maxlen"),
        (["--maxlen", "1000000000"], "--maxlen must be a positive integer of at most 10,000"),
        (["--name", "two\nlines"], "--name must be one line"),
        (["--name", "caf\udce9"], "--name must be one line"),
        (["--output", "s3://bucket/bundle"], "local path"),
    ],
)
def test_options_that_cannot_be(extra: list[str], message: str, tmp_path: Path) -> None:
    required = ["--checkpoint", "nowhere.bin", "--vocabulary", "nowhere.json", "--output", str(tmp_path / "out")]
    with pytest.raises(InputError, match=message) as error:
        convert.main([*required, *extra])
    assert "\n" not in str(error.value)


def test_outputs_that_cannot_be(run: Run) -> None:
    checkpoint = run.write(FORMATS["torch zip"])
    assert "cannot be written" in run.refused(checkpoint, "--output", str(checkpoint / "below"))
    assert "exists already" in run.refused(checkpoint, "--output", str(run.vocabulary))
    run.output.mkdir()
    assert "exists already" in run.refused(checkpoint)


def test_weights_beyond_float16_are_not_rounded_to_infinity(run: Run) -> None:
    checkpoint = run.write(torch_file({**STATE, "output_layer.0.bias": torch.full((64,), 1e5)}))
    assert "leave --half out" in run.refused(checkpoint, "--half")
    assert run(checkpoint)[0] == 0


def test_known_answers_demanded_of_other_weights_are_an_error(run: Run) -> None:
    error = run.refused(run.write(FORMATS["torch zip"]), "--check_known_answers", "yes")
    assert "not the published weights" in error


@pytest.mark.parametrize("wanted", ["yes", "auto"])
def test_known_answers_that_are_right_are_reported(run: Run, wanted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def checked(bundle: Bundle) -> list[str]:
        assert bundle.state["embed.weight"].dtype == torch.float32, "identity is not a matter of rounding"
        return []

    monkeypatch.setattr(checkpoints, "PUBLISHED", SMALL)
    monkeypatch.setattr(checkpoints, "known_answers", checked)
    status, out, err = run(run.write(FORMATS["torch zip"]), "--check_known_answers", wanted, "--half")
    assert (status, err) == (0, "")
    assert out.startswith("known answers: 7 of 7\n")


@pytest.mark.parametrize("wanted,warnings", [("auto", 1), ("no", 0)])
def test_other_weights_of_the_published_size_are_a_warning(
    run: Run, wanted: str, warnings: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "PUBLISHED", SMALL)
    status, out, err = run(run.write(FORMATS["torch zip"]), "--check_known_answers", wanted)
    assert status == 0
    assert "known answers" not in out
    assert len(err.splitlines()) == warnings
    assert err.count("warning: ") == err.count("not the published weights") == warnings
    assert load_bundle(run.output).dimensions == SMALL


def command(*arguments: object, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pipelines.convert", *map(str, arguments)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_as_a_process(tmp_path: Path) -> None:
    (tmp_path / "weights.hdf5").write_bytes(FORMATS["keras hdf5"])
    write_vocabulary(tmp_path / "vocabulary.json")
    arguments = ["--checkpoint", "weights.hdf5", "--vocabulary", "vocabulary.json", "--output", "bundle"]
    done = command(*arguments, folder=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    config = json.loads((tmp_path / "bundle" / "config.json").read_bytes())
    assert config["provenance"]["format"] == "keras hdf5"
    again = command(*arguments, folder=tmp_path)
    assert again.returncode == WRONG_INPUT
    assert again.stdout == ""
    assert len(again.stderr.splitlines()) == 1


def test_a_malicious_checkpoint_as_a_process(tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_bytes(torch_file({**STATE, "x": Malicious(tmp_path / "created")}))
    write_vocabulary(tmp_path / "vocabulary.json")
    before = sorted(tmp_path.iterdir())
    arguments = ["--checkpoint", "weights.bin", "--vocabulary", "vocabulary.json", "--output", "bundle"]
    done = command(*arguments, folder=tmp_path)
    assert done.returncode == WRONG_INPUT
    assert len(done.stderr.splitlines()) == 1
    assert "Traceback" not in done.stderr
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.skipif(not (GOLDEN / "make_reference_weights.py").exists(), reason="no ../shared/golden here")
def test_full_size_gives_the_reference_outputs(run: Run) -> None:
    specification = importlib.util.spec_from_file_location("reference_weights", GOLDEN / "make_reference_weights.py")
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    torch.save(module.state_dict(), run.folder / "pytorch_model.bin")
    write_vocabulary(run.vocabulary, checkpoints.PUBLISHED.vocabulary)
    status, out, err = run(run.folder / "pytorch_model.bin")
    assert status == 0
    assert "vocabulary 50,000, embedding 256, hidden 512, classes 64" in out
    assert len(err.splitlines()) == 1
    assert "not the published weights" in err

    reference = np.load(GOLDEN / "model_reference.npz")
    rows = [ids[:length].tolist() for ids, length in zip(reference["ids"], reference["lengths"], strict=True)]
    with torch.inference_mode():
        output = load_bundle(run.output).model()(pack_ids(rows))
    longest = output.attention.shape[1]
    np.testing.assert_allclose(output.logits.softmax(dim=1), reference["probabilities"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(output.embedding, reference["embedding"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(output.attention, reference["attention"][:, :longest], rtol=0, atol=1e-5)
