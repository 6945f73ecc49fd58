"""How command lines are read: options from dataclasses, times, errors of one line. Imports no Beam."""

from __future__ import annotations

import argparse
import dataclasses
import re
from collections.abc import Collection
from typing import Any, NoReturn, TypeVar, get_args, get_origin, get_type_hints

from pipelines.cli.exits import told
from torchmoji_core.errors import InputError
from torchmoji_core.files import read_limited

T = TypeVar("T")

_MAX_PROPERTIES_BYTES = 1 << 20
_SECONDS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86_400}


class OneLineParser(argparse.ArgumentParser):
    """An argument parser whose errors are `InputError`s, one line instead of the whole usage."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message.removeprefix('argument ')}; --help lists all options")

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        """End after --help, whose output is all that it does."""
        super().exit(told(status, is_all=True), message)


def add_options(
    parser: argparse._ActionsContainer,
    options: type[Any],
    without: Collection[str] = (),
    are_told: bool = False,
    **defaults: Any,
) -> None:
    """Add an option to a parser, or a group of one, for each field of a dataclass that is an `option`.

    Args:
        parser: to add to.
        options: the dataclass.
        without: fields to leave out.
        are_told: whether what is not given is not in what is parsed, so that it can be told.
        **defaults: instead of the fields' own.
    """
    types = get_type_hints(options)
    for field in dataclasses.fields(options):
        if "help" not in field.metadata or field.name in without:
            continue
        given, kind = dict(field.metadata), types[field.name]
        name, meaning = given.pop("name", field.name), given.pop("help").replace("%", "%%")
        given.pop("within", None)
        default = shown = defaults.get(field.name, field.default)
        if kind is bool:
            given["action"] = "store_true"
        elif get_origin(kind) is tuple:
            shown = ",".join(default or ())
            given.pop("choices", None)  # of each name; argparse would look for all of them together
            if not given.keys() & {"nargs", "action"}:
                given["type"], default = names, shown
        else:
            given.setdefault("type", next(each for each in (*get_args(kind), kind) if each is not type(None)))
            if given["type"] is seconds:
                given["metavar"], shown = "TIME", None if default is None else as_time(default)
        if shown not in (None, False, ""):
            meaning += f" (default: {shown})"
        parser.add_argument(f"--{name}", default=argparse.SUPPRESS if are_told else default, help=meaning, **given)


def take_options(options: type[T], given: argparse.Namespace, **others: Any) -> T:
    """What `add_options` has added, as the dataclass.

    Args:
        options: the dataclass.
        given: the parsed command line; options that it does not have keep their defaults.
        others: further fields.

    Raises:
        InputError: if the dataclass refuses a value.
    """
    for field in dataclasses.fields(options):  # type: ignore[arg-type]
        name = field.metadata.get("name", field.name)
        if "help" in field.metadata and hasattr(given, name):
            others.setdefault(field.name, getattr(given, name))
    return options(**others)


def names(text: str) -> tuple[str, ...]:
    """Names that commas separate."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


def shares(text: str) -> tuple[float, ...]:
    """Numbers that commas separate.

    Raises:
        argparse.ArgumentTypeError: if one is no number.
    """
    try:
        return tuple(map(float, text.split(",")))
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be numbers like 0.8,0.1,0.1, not {text!r}") from None


def seconds(text: str) -> float:
    """Seconds of a time like 90, 500ms, 90s, 10m, 2h or 1d.

    Raises:
        argparse.ArgumentTypeError: if it is not a time.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(ms|[smhd]?)", text.strip())
    if match is None:
        raise argparse.ArgumentTypeError(f"must be a time like 500ms, 30s, 10m, 2h or 1d, not {text!r}")
    return float(match[1]) * _SECONDS[match[2] or "s"]


def as_time(number: float) -> str:
    """Seconds as `seconds` reads them."""
    unit = next(unit for unit in ("h", "m", "s", "ms") if unit == "ms" or (number and number % _SECONDS[unit] == 0))
    return f"{number / _SECONDS[unit]:g}{unit}"


def read_properties(option: str, path: str) -> dict[str, str]:
    """Settings of a client from a file of lines `name=value`; blank lines and those with # in front say nothing.

    Args:
        option: name of the option, for errors, which show no value: it may be a secret.
        path: of the file.

    Raises:
        InputError: if it cannot be read, or has another line.
    """
    content = read_limited(f"--{option} {path}", path, _MAX_PROPERTIES_BYTES)
    try:
        lines = content.decode().splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"--{option} {path}: cannot be read: it is not UTF-8 at byte {error.start}") from None
    settings = {}
    for number, line in enumerate(lines, 1):
        name, equals, value = line.partition("=")
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        if not equals or not name.strip():
            raise InputError(f"--{option} {path}: line {number} is not NAME=VALUE")
        settings[name.strip()] = value.strip()
    return settings
