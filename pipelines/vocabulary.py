"""python -m pipelines.vocabulary: a vocabulary from the words of a corpus, for pipelines.pretrain."""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

from pipelines.cli.exits import DONE, TOO_MANY_DEAD_LETTERS, end, run_command
from pipelines.cli.logs import LOG_FORMATS, announce
from pipelines.cli.options import InputOptions, OutputOptions
from pipelines.cli.parsing import OneLineParser, add_options, take_options
from pipelines.cli.text_filter_options import add_text_filter, describe_left_out, take_text_filter
from torchmoji_core.bundle_files import check_output
from torchmoji_core.errors import InputError
from torchmoji_core.limits import check_limit
from torchmoji_core.locations import local_path
from transforms.input.fields import FieldMapping
from transforms.input.formats import absolute
from transforms.input.forms import FormOptions

if TYPE_CHECKING:
    from transforms.input.inputs import InputFile
    from transforms.records import DeadLetter, Tweet


def parser() -> argparse.ArgumentParser:
    result = OneLineParser(
        prog="python -m pipelines.vocabulary",
        description="Count the words of texts, and write the most frequent ones as a vocabulary: a JSON object from "
        "token to id, DeepMoji's ten special tokens first. --input - reads standard input.",
        epilog="Exit status: 0 done, 1 failed, 2 wrong options or input, 3 too many records that cannot be read.",
        allow_abbrev=False,
    )
    add_options(result, InputOptions)
    add_options(result, FormOptions)
    add_options(result, FieldMapping, without=("id", "timestamp", "partition_by"))
    add_text_filter(result)
    result.add_argument("--output", required=True, type=local_path, help="file to write: vocabulary.json")
    result.add_argument(
        "--start", type=local_path, metavar="FILE", help="vocabulary to extend; its tokens keep their ids"
    )
    result.add_argument(
        "--vocabulary_size", type=int, default=50_000, metavar="N", help="most entries (default: %(default)s)"
    )
    result.add_argument(
        "--min_count", type=int, default=2, metavar="N", help="rarer words are left out (default: %(default)s)"
    )
    result.add_argument("--log_format", choices=LOG_FORMATS, default="text",
        help="json: all output is one JSON object a line, on standard error (default: %(default)s)")  # fmt: skip
    return result


def main(arguments: list[str]) -> int:
    """Count and write. Returns the exit status."""
    options = parser().parse_args(arguments)
    if not options.input:
        raise InputError("--input: none given; give files, directories or globs")
    check_output(options.output)
    check_limit("--vocabulary_size", "vocabulary", options.vocabulary_size)
    if options.min_count < 1:
        raise InputError(f"--min_count must be at least 1, not {options.min_count}")
    text_filter = take_text_filter(options)
    form, fields = take_options(FormOptions, options), take_options(FieldMapping, options)

    from tqdm import tqdm

    from pipelines.runs.inputs import check_readable, list_inputs, named, spool_pipes
    from pipelines.runs.inspection import check_fields
    from torchmoji_core.training.words import count_words, vocabulary_of
    from torchmoji_core.vocabulary import SPECIAL_TOKENS, Vocabulary

    start = Vocabulary.load(options.start) if options.start else SPECIAL_TOKENS
    vocabulary_of({}, 1, options.vocabulary_size, start)  # says now if it is too small
    with tempfile.TemporaryDirectory(prefix="torchmoji-") as scratch:
        inputs = list_inputs([absolute(pattern) for pattern in options.input], form.format)
        spool_pipes(inputs, scratch)
        check_readable(inputs)
        files = [inputs.files[path] for path in sorted(inputs.files)]
        fields, _ = check_fields(form, fields, files)
        reading = _Reading(files, form, fields)
        left_out: Counter[str] = Counter()
        bar = tqdm(reading.texts(), unit=" texts", file=sys.stderr, disable=options.log_format == "json" or None)
        counts = count_words(text_filter.kept(bar, left_out))
    vocabulary = vocabulary_of(counts, options.min_count, options.vocabulary_size, start)
    total, known = counts.total(), sum(count for token, count in counts.items() if token in vocabulary)
    if not total:
        raise InputError(f"there are no words to count: {reading.describe()}; left out {left_out.total():,}")
    vocabulary.save(options.output)
    announce(
        "written",
        [
            f"wrote {options.output}: {len(vocabulary):,} tokens, which are {known / total:.2%} of the {total:,} met",
            f"read {len(files):,} file(s): {reading.describe()}",
            *([describe_left_out(left_out)] if left_out else []),
            *([f"passed over {named(inputs.passed_over)}"] if inputs.passed_over else []),
        ],
        tokens=len(vocabulary),
        met=total,
        known=known,
        read=reading.read,
        texts=reading.found,
        dead=reading.dead,
        left_out=dict(left_out),
    )
    if reading.dead > OutputOptions.max_dead_fraction * reading.read:
        message = f"too many records cannot be read: {reading.dead / reading.read:.1%} of all"
        announce("too_many_dead_letters", message, level=logging.ERROR)
        return TOO_MANY_DEAD_LETTERS
    return DONE


class _Reading:
    """The texts of files, one after another, and accounts of what was read."""

    def __init__(self, files: list[InputFile], form: FormOptions, fields: FieldMapping) -> None:
        self._files, self._form, self._fields = files, form, fields
        self.read = self.found = self.dead = 0
        self._first_fault = ""

    def describe(self) -> str:
        """What was met, in a line."""
        notices = self.read - self.found - self.dead
        parts = [f"{self.found:,} texts", f"{notices:,} notices"] if notices else [f"{self.found:,} texts"]
        fault = f" (the first: {self._first_fault})" if self._first_fault else ""
        return ", ".join([*parts, f"{self.dead:,} records that cannot be read{fault}"])

    def texts(self) -> Iterator[str]:
        from transforms.records import DeadLetter

        for outcome in self._outcomes():
            self.read += 1
            if isinstance(outcome, DeadLetter):
                self.dead += 1
                self._first_fault = self._first_fault or f"{outcome.source}, {outcome.position}: {outcome.reason}"
            elif outcome is not None:
                self.found += 1
                yield outcome.text

    def _outcomes(self) -> Iterator[Tweet | DeadLetter | None]:
        from transforms.input.parts import parts_of, reader_of, tweets_of
        from transforms.records import DeadLetter

        for file in self._files:
            for part in parts_of(file, self._form, self._fields):
                if isinstance(part, DeadLetter):
                    yield part
                else:
                    yield from tweets_of(part, reader_of(part, self._fields))


if __name__ == "__main__":
    end(run_command(main))
