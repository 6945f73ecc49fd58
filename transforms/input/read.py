"""ReadTweets: files of any supported format and filesystem -> tweets, in parts (`parts`)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import apache_beam as beam

from torchmoji_core.files import name_as_text
from transforms import metrics
from transforms.input.fields import FieldMapping
from transforms.input.forms import FormOptions
from transforms.input.inputs import InputFile, match_files
from transforms.input.parts import Split, parts_of, reader_of, tweets_of
from transforms.records import DeadLetter, Outcome, PartCount, Tweet

DEAD, COUNTS = "dead", "counts"


BESIDE: dict[str, type[Any]] = {DEAD: DeadLetter, COUNTS: PartCount}
"""What comes beside tweets, by its tag."""


BEAT_RECORDS = 10_000
"""How often reading shows progress, since what is read may never come to be scored."""


class InputParts(NamedTuple):
    """What `SplitInputs` gives."""

    parts: beam.PCollection[Split]
    """Shuffled."""
    dead_letters: beam.PCollection[DeadLetter]
    counts: beam.PCollection[PartCount]
    """One of each file."""


class SplitInputs(beam.PTransform):
    """Find files, and cut each into parts. Gives `InputParts`.

    Only the parts' names are shuffled, so reading and all that follows runs in parallel with nothing but file names
    kept in between.
    """

    def __init__(
        self,
        inputs: Sequence[str | InputFile],
        form: FormOptions = FormOptions(),  # noqa: B008
        fields: FieldMapping = FieldMapping(),  # noqa: B008
        strict: bool = False,
        before: Callable[[], None] | None = None,
    ) -> None:
        """Args:
        inputs: paths, globs or URIs that Beam's filesystems know, or files that have been listed already.
        form: what is said of the files' form, which else each file shows.
        fields: where records have their text, id and so on; unused in format text.
        strict: whether a file that is gone or forbidden is an `UnreadableInput`, instead of one dead letter. One that
            the system fails to read always is.
        before: called by a worker before any file is opened; it may raise what ends the run.
        """
        super().__init__()
        self._inputs, self._before = list(inputs), before
        self._split = _SplitFiles(form, strict, fields)

    def expand(self, pbegin: beam.Pipeline) -> InputParts:
        split = (
            pbegin
            # One element, so that a file which several patterns match is read once.
            | "Inputs" >> beam.Create([self._inputs], reshuffle=False)
            | "MatchFiles" >> beam.FlatMap(_match, self._before)
            | "ReshuffleFiles" >> beam.Reshuffle()
            | "SplitFiles"
            >> beam.ParDo(self._split).with_output_types(Any, **BESIDE).with_outputs(*BESIDE, main="parts")
        )
        return InputParts(split["parts"] | "ReshuffleParts" >> beam.Reshuffle(), split[DEAD], split[COUNTS])


class ReadTweets(beam.PTransform):
    """Read tweets from files. Gives an `Outcome` of Tweets and DeadLetters; nothing is skipped."""

    def __init__(
        self,
        inputs: Sequence[str | InputFile],
        form: FormOptions = FormOptions(),  # noqa: B008
        fields: FieldMapping = FieldMapping(),  # noqa: B008
        strict: bool = False,
        progress: str | None = None,
    ) -> None:
        """Args as of `SplitInputs` and `PartReader`."""
        super().__init__()
        self._inputs = SplitInputs(inputs, form, fields, strict)
        self._read = _ReadParts(PartReader(fields, strict, progress))

    def expand(self, pbegin: beam.Pipeline) -> Outcome:
        split = pbegin | "SplitInputs" >> self._inputs
        read = split.parts | "ReadParts" >> beam.ParDo(self._read).with_output_types(Tweet, **BESIDE).with_outputs(
            *BESIDE, main="tweets"
        )
        return Outcome(read["tweets"], (split.dead_letters, read[DEAD]))


def _match(inputs: list[str | InputFile], before: Callable[[], None] | None) -> Iterator[InputFile]:
    if before is not None:
        before()
    found = {file.path: file for file in match_files([pattern for pattern in inputs if isinstance(pattern, str)])}
    found.update({file.path: file for file in inputs if isinstance(file, InputFile)})
    for path in sorted(found):
        metrics.counter(metrics.FILES_READ).inc()
        yield found[path]


class _SplitFiles(beam.DoFn):
    def __init__(self, form: FormOptions, strict: bool, fields: FieldMapping = FieldMapping()) -> None:  # noqa: B008
        self._form, self._strict, self._fields = form, strict, fields

    def process(self, file: InputFile) -> Iterator[Split | beam.pvalue.TaggedOutput]:
        parts = dead = 0
        for part in parts_of(file, self._form, self._fields, self._strict):
            if isinstance(part, DeadLetter):
                metrics.counter(metrics.READ).inc()
                dead += 1
            else:
                parts += 1
            yield beside(part)
        yield beside(PartCount(name_as_text(file.path), parts, dead, 0))


class PartReader:
    """Reads parts of files in a worker: counts what it reads, and shows progress."""

    def __init__(self, fields: FieldMapping, strict: bool = False, progress: str | None = None) -> None:
        """Args:
        fields: where records have their text, id and so on.
        strict: see `SplitInputs`.
        progress: directory of `metrics.Progress`, in local runs.
        """
        self._fields, self._strict, self._directory = fields, strict, progress
        self._progress: metrics.Progress | None = None

    def read(self, part: Split) -> Iterator[Tweet | DeadLetter | PartCount]:
        """The tweets of a part, dead letters, and at last how many records there were.

        Raises:
            UnreadableInput, ChangedError: see `raise_unless_gone`.
        """
        if self._progress is None:
            self._progress = metrics.Progress(self._directory)
        reader = reader_of(part, self._fields)
        total: Counter[str] = Counter()
        for number, tweet in enumerate(tweets_of(part, reader, self._strict), 1):
            if number % BEAT_RECORDS == 0:
                self._progress.add()
                total.update(reader.counts)
                metrics.count(reader.counts)
            if tweet is not None:
                yield tweet
        total.update(reader.counts)
        metrics.count(reader.counts)
        metrics.counter(metrics.BYTES_READ).inc(part.bytes_)
        self._progress.add(bytes_read=part.bytes_)
        yield PartCount(name_as_text(part.file.path), -1, total[metrics.READ], total[metrics.NOTICES])


def beside(item: Any) -> Any:
    """An element under the tag of its kind, if it is one of `BESIDE`."""
    for tag, kind in BESIDE.items():
        if isinstance(item, kind):
            return beam.pvalue.TaggedOutput(tag, item)
    return item


class _ReadParts(beam.DoFn):
    def __init__(self, reader: PartReader) -> None:
        self._reader = reader

    def process(self, part: Split) -> Iterator[Tweet | beam.pvalue.TaggedOutput]:
        return map(beside, self._reader.read(part))
