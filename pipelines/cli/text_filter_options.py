"""The options that say which texts of a corpus are left out."""

from __future__ import annotations

import argparse
from collections.abc import Mapping

from pipelines.cli.parsing import add_options, take_options
from torchmoji_core.locations import local_path
from torchmoji_core.training.text_filter import TextFilter, read_words


def add_text_filter(parser: argparse.ArgumentParser) -> None:
    """Add them to a parser."""
    add_options(parser, TextFilter)
    parser.add_argument(
        "--english_words",
        type=local_path,
        metavar="FILE",
        help="list of words, one a line: texts are left out that have too few of them, less than 60 %% of their words, "
        "or half of fewer than five",
    )


def take_text_filter(given: argparse.Namespace) -> TextFilter:
    """The filter of a parsed command line.

    Raises:
        InputError: for an unknown kind, or a list of words that cannot be read.
    """
    words = read_words(given.english_words) if given.english_words else frozenset()
    return take_options(TextFilter, given, english_words=words)


def describe_left_out(left_out: Mapping[str, int]) -> str:
    """How many texts were left out for which reason, in a line."""
    return f"left out {', '.join(f'{number:,} {reason}' for reason, number in left_out.items()) or 'none'}"
