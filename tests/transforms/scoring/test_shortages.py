"""What a machine lacks is the fault of no row: every row is scored, or the run fails; only bad rows are dead letters.

A shortage strikes at any call of our code, into Python or into a library's native code: `Striker` counts them as a
profiler does, and raises at the one that is drawn. So nothing is left out for not having been thought of.
"""

from __future__ import annotations

import bz2
import contextlib
import errno
import functools
import gzip
import io
import json
import os
import random
import resource
import sys
import threading
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures.thread import BrokenThreadPool
from pathlib import Path
from types import FrameType
from typing import Any, ClassVar

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from tests.transforms.conftest import functions_of, make_texts
from torchmoji_core.batching import BatchLimits
from torchmoji_core.errors import DISK, FILES, MEMORY, THREADS, RunError, Shortage, raise_shortage, shortage_of
from torchmoji_core.inference.cache import ScoreCache
from transforms.annotate_files import AnnotateFiles
from transforms.columns import OUTPUTS
from transforms.input.fields import FieldMapping, KeptField
from transforms.input.inputs import InputFile
from transforms.input.parts import UnreadableInput, split_file, unreadable_path
from transforms.input.read import PartReader, ReadTweets, SplitInputs
from transforms.input.source_file import SourceError, raise_unless_damage
from transforms.options import ScoreOptions
from transforms.records import DeadLetter, PartCount, TokenizedBatch, TokenizedTweet, Tweet
from transforms.scoring.loaded_model import LoadedModel
from transforms.scoring.run_inference import RecordBatchHandler
from transforms.scoring.score import bisect
from transforms.storage import files as storage

OURS = (f"{Path(storage.__file__).parent}{os.sep}", f"{Path(raise_shortage.__code__.co_filename).parent}{os.sep}")
GOOD = 24

Make = Callable[[], Exception]
SHORTAGES: dict[str, Make] = {
    "MemoryError": MemoryError,
    "Arrow's MemoryError": lambda: pa.ArrowMemoryError("malloc of size 64 failed"),
    "torch's allocator": lambda: RuntimeError(
        "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
        "allocate 4096 bytes. Error code 12 (Cannot allocate memory)"
    ),
    "C++": lambda: RuntimeError("std::bad_alloc"),
    "oneDNN": lambda: RuntimeError("could not create a primitive"),
    "TorchScript": lambda: RuntimeError("The following operation failed in the TorchScript interpreter."),
    "zstandard": lambda: zstandard.ZstdError("zstd decompress error: Allocation error : not enough memory"),
    "threads": lambda: RuntimeError("can't start new thread"),
    "pool": lambda: BrokenThreadPool("A thread initializer failed, the thread pool is not usable anymore"),
    **{
        name: (lambda code: lambda: OSError(code, os.strerror(code)))(getattr(errno, name))
        for name in ("ENOMEM", "EMFILE", "ENFILE", "ENOSPC", "EDQUOT", "EAGAIN", "EIO")
    },
}


class Striker:
    """Counts the calls that our code makes, in all threads, and raises at one of them, and at some after it."""

    def __init__(self) -> None:
        self.calls = 0
        self.at: range = range(0)
        self.make: Make = MemoryError
        self.active = False

    def __call__(self, frame: FrameType, event: str, argument: object) -> None:
        if not self.active or event not in ("call", "c_call"):
            return
        caller = frame if event == "c_call" else frame.f_back
        if caller is None or not caller.f_code.co_filename.startswith(OURS):
            return
        self.calls += 1
        if self.calls - 1 in self.at:
            raise self.make()

    @contextlib.contextmanager
    def striking(self) -> Iterator[None]:
        self.calls, self.active = 0, True
        sys.setprofile(self)
        try:
            yield
        finally:
            sys.setprofile(None)
            self.active = False


@pytest.fixture(scope="module")
def striker() -> Striker:
    return Striker()


KEPT = (KeptField("lang"), KeptField("likes", "int64"), KeptField("more", "json"))
FIELDS = FieldMapping(timestamp="at", keep=KEPT, partition_by=("date",))
OPTIONS = {"outputs": OUTPUTS, "keep": FIELDS.keep, "timestamp": True, "partitioned": True}


def rows() -> list[dict[str, Any]]:
    times = ["2024-01-31T10:00:00Z", "Wed Jan 31 10:00:00 +0000 2024", "1706695200", None]
    return [
        {"id": str(n), "text": text, "lang": "en", "likes": n, "at": times[n % 4], "more": {"n": [n, None]}}
        for n, text in enumerate([*make_texts(GOOD - 2, seed=3), "", "again"])
    ]


def lines(bad: bool) -> bytes:
    """JSON lines, one of them of a wrong type, one no JSON, if wanted."""
    content = [json.dumps(row).encode() for row in rows()]
    if bad:
        content[7:7] = [b'{"id": "x", "text": 5}', b"{"]
    return b"\n".join(content) + b"\n"


def write_parquet(path: Path) -> None:
    table = pa.Table.from_pylist([row | {"more": json.dumps(row["more"])} for row in rows()])
    pq.write_table(table, path, row_group_size=16, compression="zstd")


def write_csv(path: Path) -> None:
    content = [",".join(rows()[0])]
    content += [f'{row["id"]},"{row["text"]}",en,{row["likes"]},{row["at"] or ""},"{{}}"' for row in rows()]
    path.write_text("\n".join(content) + "\n")


NAMES = ("good.jsonl", "bad.jsonl", "bad.jsonl.gz", "good.jsonl.zst", "good.jsonl.bz2", "good.csv", "good.parquet")
"""Of the files; a bad one has two lines that are no tweets."""


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, InputFile]:
    directory = tmp_path_factory.mktemp("in")
    (directory / "good.jsonl").write_bytes(lines(bad=False))
    (directory / "bad.jsonl").write_bytes(lines(bad=True))
    (directory / "bad.jsonl.gz").write_bytes(gzip.compress(lines(bad=True)))
    (directory / "good.jsonl.zst").write_bytes(zstandard.compress(lines(bad=False)))
    (directory / "good.jsonl.bz2").write_bytes(bz2.compress(lines(bad=False)))
    write_csv(directory / "good.csv")
    write_parquet(directory / "good.parquet")
    return {name: InputFile(str(directory / name), (directory / name).stat().st_size, 1e9) for name in NAMES}


class Remembered(ScoreCache):
    """A cache that can be found again, to be made empty."""

    made: ClassVar[list[Remembered]] = []

    def __init__(self, megabytes: int, record: Any) -> None:
        super().__init__(megabytes, record)
        self.made.append(self)


class Pipeline:
    """The steps from files to record batches as Beam calls them, in this thread."""

    def __init__(self, model: str, threads: int, cache_mb: int) -> None:
        options = ScoreOptions(model, threads=threads, cache_mb=cache_mb, **OPTIONS)  # type: ignore[arg-type]
        self.handler = RecordBatchHandler(options)
        self.path = model
        self.model: LoadedModel = self.handler.load_model()
        self.undisturbed: dict[Any, tuple[int, list[DeadLetter]]] = {}
        """Calls and dead letters of runs in which nothing is short."""

    def __call__(
        self, file: InputFile, steps: tuple[beam.DoFn, ...], poison: list[TokenizedTweet]
    ) -> tuple[list[str], list[DeadLetter]]:
        """Ids of the rows, and dead letters. Nothing is known of an earlier call."""
        for cache in Remembered.made:
            cache.renew()
        dead: list[DeadLetter] = []
        ids: list[str] = []

        def results(outputs: Iterator[Any]) -> Iterator[Any]:
            for output in outputs:
                value = getattr(output, "value", output)
                if isinstance(value, DeadLetter):
                    dead.append(value)
                elif not isinstance(value, PartCount):
                    yield value

        def score(batch: TokenizedBatch) -> None:
            for scored in self.handler.run_inference([*batch.rows, *poison], self.model):
                ids.extend(id_ for part in scored.parts for id_ in part.column("id").to_pylist())
                dead.extend(scored.dead_letters)
            poison.clear()

        split, read = steps
        read.start_bundle()
        for part in results(split.process(file)):
            for batch in results(read.process(part)):
                score(batch)
        for batch in results(read.finish_bundle()):
            score(batch)
        return ids, dead


@pytest.fixture(scope="module", params=[(1, 0), (2, 50)], ids=["one thread", "threads and cache"])
def pipeline(request: pytest.FixtureRequest, model: str, striker: Striker) -> Iterator[Pipeline]:
    threading.setprofile(striker)  # calls in the threads that score are counted too
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("torchmoji_core.inference.scorer.ScoreCache", Remembered)
        yield Pipeline(model, *request.param)
    threading.setprofile(None)
    Remembered.made.clear()


@functools.cache
def steps_of(limits: BatchLimits, strict: bool, model: str) -> tuple[beam.DoFn, ...]:
    """The functions that split a file, and make batches of its parts, as Beam calls them."""
    inputs, reader = SplitInputs([], fields=FIELDS, strict=strict), PartReader(FIELDS, strict)
    return functions_of(AnnotateFiles(inputs, reader, ScoreOptions(model), limits), "SplitFiles", "ReadBatches")


LIMITS = [BatchLimits(), BatchLimits(max_rows=1), BatchLimits(max_rows=7), BatchLimits(max_tokens=60)]
POISON = TokenizedTweet(Tweet("poison", "x", 0, ("en", 1, None)), [10**6], 1, False)


@settings(max_examples=40, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(
    name=st.sampled_from(NAMES),
    limits=st.sampled_from(LIMITS),
    poisoned=st.booleans(),
    strict=st.booleans(),
    kind=st.sampled_from(sorted(SHORTAGES)),
    place=st.floats(0, 1, exclude_max=True),
    lasting=st.sampled_from([1, 2, 10, 10**9]),
)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_whatever_is_short_wherever_every_row_is_scored_or_the_run_fails(
    name: str,
    limits: BatchLimits,
    poisoned: bool,
    strict: bool,
    kind: str,
    place: float,
    lasting: int,
    pipeline: Pipeline,
    inputs: dict[str, InputFile],
    striker: Striker,
) -> None:
    """Args that are drawn:
    poisoned: whether the first batch has a row that no model can score.
    place: of the first call that fails, as a share of all.
    lasting: so many calls fail, one after another.
    """

    steps = steps_of(limits, strict, pipeline.path)

    def run(struck: range, make: Make = MemoryError) -> tuple[list[str], list[DeadLetter]]:
        striker.at, striker.make = struck, make
        with striker.striking():
            return pipeline(inputs[name], steps, [POISON] * poisoned)

    key = (name, limits, poisoned, strict)
    if key not in pipeline.undisturbed:
        ids, dead = run(range(0))
        assert sorted(ids, key=int) == [str(n) for n in range(GOOD)]
        assert len(dead) == 2 * name.startswith("bad") + poisoned
        pipeline.undisturbed[key] = striker.calls, sorted(dead)
    calls, dead = pipeline.undisturbed[key]
    first = int(place * calls)
    try:
        ids, dead_by_then = run(range(first, first + lasting), SHORTAGES[kind])
    except (MemoryError, OSError, RuntimeError, RunError, SourceError, zstandard.ZstdError):
        return
    assert sorted(ids, key=int) == [str(n) for n in range(GOOD)]
    assert sorted(dead_by_then) == dead


# --- one by one ----------------------------------------------------------------------------------------------------


ROWS = [TokenizedTweet(Tweet(str(n), "x"), [1], 1, False) for n in range(8)]


@pytest.mark.parametrize("kind", [kind for kind in SHORTAGES if kind != "EIO"])
def test_a_shortage_in_scoring_is_the_fault_of_no_row(kind: str) -> None:
    """Though each row that is tried alone fails as well."""

    def score(rows: list[TokenizedTweet]) -> None:
        raise SHORTAGES[kind]()

    with pytest.raises(type(SHORTAGES[kind]())):
        bisect(ROWS, score, lambda: None)


def test_a_row_is_given_up_only_if_a_good_one_can_be_scored() -> None:
    def score(rows: list[TokenizedTweet]) -> str:
        raise ValueError("no row can be scored")

    with pytest.raises(RunError, match="a tweet that is known to be good cannot be scored: no row can be scored"):
        bisect(ROWS, score, lambda: score([]))
    scored, dead = bisect(ROWS, score, lambda: None)
    assert scored == [] and [row for row, _ in dead] == ROWS


def test_a_row_that_fails_once_is_scored() -> None:
    failed: list[str] = []

    def score(rows: list[TokenizedTweet]) -> str:
        if ROWS[3] in rows and len(failed) < 4:
            failed.append("")
            raise ValueError("in passing")
        return ""

    scored, dead = bisect(ROWS, score, lambda: None)
    assert dead == [] and sorted(row.tweet.id for rows, _ in scored for row in rows) == list("01234567")


def test_a_shortage_behind_an_error_about_a_value_is_seen() -> None:
    def score(rows: list[TokenizedTweet]) -> None:
        try:
            raise MemoryError
        except MemoryError:
            raise ValueError("no such value") from None

    with pytest.raises(ValueError, match="no such value"):
        bisect(ROWS, score, lambda: None)


@pytest.mark.parametrize(
    ("said", "shortage"),
    [
        ("RuntimeError: [enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate", MEMORY),
        ("RuntimeError: DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes", MEMORY),
        ("MemoryError: Unable to allocate 8.00 PiB for an array", MEMORY),
        ("pyarrow.lib.ArrowMemoryError: realloc of size 128 failed", MEMORY),
        ("RuntimeError: std::bad_alloc", MEMORY),
        ("SystemError: error return without exception set", MEMORY),
        ("zlib.error: Error -4 while decompressing data", MEMORY),
        ("RuntimeError: could not create a primitive", MEMORY),
        ("OSError: [Errno 12] Cannot allocate memory", MEMORY),
        ("ImportError: libx.so: failed to map segment from shared object", MEMORY),
        ("RuntimeError: can't start new thread", THREADS),
        ("concurrent.futures.thread.BrokenThreadPool: A thread initializer failed", THREADS),
        ("BlockingIOError: [Errno 11] Resource temporarily unavailable", THREADS),
        ("OSError: [Errno 24] Too many open files: 'x'", FILES),
        ("OSError: [Errno 23] Too many open files in system", FILES),
        ("OSError: [Errno 122] Disk quota exceeded", DISK),
        ("OSError: [Errno 5] Input/output error", None),
        ("ValueError: [Errno 123] is no time", None),
    ],
)
def test_what_workers_print_tells_the_shortage(said: str, shortage: Shortage | None) -> None:
    assert shortage_of(f"Traceback (most recent call last):\n{said} [while running 'Score']") is shortage


@pytest.mark.parametrize("error", [ValueError("out of memory"), pa.ArrowInvalid("bad_alloc"), KeyError("MemoryError")])
def test_what_strangers_write_is_no_shortage(error: Exception) -> None:
    """Errors about values quote them, and nobody may end a run by a text."""
    assert shortage_of(error) is None


def test_zlib_says_a_lack_of_memory_by_a_number() -> None:
    assert shortage_of(zlib.error("Error -4 while decompressing data")) is MEMORY
    assert shortage_of(zlib.error("Error -3 while decompressing data: invalid code lengths set")) is None


@pytest.mark.parametrize("error", [OSError("Corrupt brotli compressed data."), zlib.error("Error -3 while ...")])
def test_what_is_called_damage_while_memory_is_short_is_none(error: Exception) -> None:
    """Brotli says the same of good content for which it has had no memory."""
    raise_unless_damage(error)
    limits = resource.getrlimit(resource.RLIMIT_AS)
    raised: BaseException | None = None
    resource.setrlimit(resource.RLIMIT_AS, (1 << 20, limits[1]))
    try:
        raise_unless_damage(error)
    except MemoryError as lack:
        raised = lack
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
    assert raised is not None and shortage_of(raised) is MEMORY


class Failing(io.BytesIO):
    """A file whose reads fail after the first bytes."""

    def __init__(self, content: bytes, error: Exception) -> None:
        super().__init__(content)
        self.error, self.reads = error, 0

    def read(self, size: int | None = -1) -> bytes:
        self.reads += 1
        if self.reads > 2:
            raise self.error
        return super().read(size)

    def readline(self, size: int | None = -1) -> bytes:
        self.reads += 1
        if self.reads > 2:
            raise self.error
        return super().readline(size)


READING = [MemoryError(), OSError(errno.EMFILE, "x"), OSError(errno.EIO, "Input/output error"), TimeoutError("store")]


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("error", READING, ids=repr)
@pytest.mark.parametrize("name", ["good.jsonl", "good.csv", "good.parquet", "good.jsonl.zst"])
def test_a_disk_or_store_that_fails_while_reading_makes_no_dead_letter(
    name: str, error: Exception, strict: bool, inputs: dict[str, InputFile], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = inputs[name]
    (part,) = split_file(file)
    content = Path(file.path).read_bytes()
    if name.endswith("zst"):  # more than is read at once
        content = zstandard.compress(
            b"\n".join(json.dumps({"text": random.randbytes(400).hex()}).encode() for _ in range(400))
        )
    monkeypatch.setattr(storage, "open_raw", lambda path: Failing(content, error))
    (reader,) = functions_of(ReadTweets([], strict=strict), "ReadParts")
    reader.setup()
    given: list[Any] = []
    with pytest.raises((SourceError, UnreadableInput)) as raised:
        given.extend(reader.process(part))
    assert not any(isinstance(output, beam.pvalue.TaggedOutput) for output in given)
    if shortage_of(error) is None:
        assert unreadable_path(f"UnreadableInput: {raised.value}") == file.path
        assert "reading failed" in str(raised.value)
    else:
        assert shortage_of(raised.value) is shortage_of(error)


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize(
    ("code", "kind"), [(errno.EMFILE, OSError), (errno.ENOMEM, OSError), (errno.EIO, UnreadableInput)]
)
def test_a_file_that_the_system_cannot_open_is_no_dead_letter(
    code: int, kind: type[Exception], strict: bool, inputs: dict[str, InputFile], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = inputs["good.parquet"]
    (part,) = split_file(file)

    def fail(path: str) -> None:
        raise OSError(code, os.strerror(code), path)

    monkeypatch.setattr(storage, "open_raw", fail)
    splitter, reader = functions_of(ReadTweets([], strict=strict), "SplitFiles", "ReadParts")
    reader.setup()
    for process in (lambda: reader.process(part), lambda: splitter.process(file)):
        with pytest.raises(kind, match=os.strerror(code)):
            list(process())


@pytest.mark.parametrize("fault", [0, 1])
def test_a_cache_whose_writing_is_cut_short_holds_no_wrong_results(fault: int) -> None:
    """A worker may go on after that, with the next bundle."""
    records = np.zeros(8, [("value", np.int64, 1000)])
    cache = ScoreCache(1, records.dtype)
    records["value"] = np.arange(8)[:, None]
    keys = [bytes([n]) for n in range(8)]
    cache.keep(keys[:4], records[:4])
    taken = iter(range(10))

    class Short(np.ndarray[Any, Any]):
        """Of which so many parts can be taken for writing them, and then there is no memory."""

        def __getitem__(self, index: Any) -> Any:
            if next(taken) == fault:
                raise MemoryError
            return super().__getitem__(index)

    with pytest.raises(MemoryError):
        cache.keep(keys[4:], records[4:].view(Short))
    cache.keep(keys[2:], records[2:])
    found, values = cache.find(keys)
    assert [values["value"][place][0] for place in range(len(found))] == [key[0] for key in found]
