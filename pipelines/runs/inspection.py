"""A look at the inputs before they are read: their layouts and fields, samples, and whether all is there."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipelines.cli.options import ScoreConfig
from torchmoji_core.errors import InputError, is_outage, shortage_of
from transforms.input import layouts
from transforms.input.fields import FieldError, FieldMapping, KeptField, infer_kind
from transforms.input.forms import Form, FormOptions, tells_format
from transforms.input.inputs import InputFile
from transforms.input.layouts import AUTO, PLAIN
from transforms.input.parts import first_records, recognize_layout
from transforms.input.paths import getter
from transforms.input.posts import PostReader, value_of
from transforms.input.raw_records import DamagedFileError, Record
from transforms.input.recognition import recognize
from transforms.input.source_file import SourceError
from transforms.storage.files import is_local, open_raw

SAMPLED_RECORDS, SAMPLED_FILES = 1000, 20
"""Before a run, so many first records of so many files that have any are looked at, while something is sought."""
MORE_RECORDS, MORE_FILES = 10, 1000
"""If it is not found: so many of so many more files, spread over the rest, since a few files do not tell for all."""
DESCRIBED_FILES = 5
"""So many of the first files are described in any case."""
SAMPLES, SHOWN_CHARACTERS = 3, 300
_CANDIDATES = 20
_DEPTH = 4
_OF_OTHERS = frozenset(("user", "author", "account", "business", "parent", "conversation", "channel", "reply"))
"""Whose ids are none of the post: many posts have the same."""


@dataclass
class Group:
    """Files of one form and layout, as far as they were looked at."""

    form: str
    layout: str
    files: int = 0
    posts: int = 0
    with_id: int = 0
    paths: dict[str, Counter[str]] = field(default_factory=dict)
    """Where text, id and time were found, and how often."""
    refused: str = ""
    """Why an id is none."""
    others: dict[str, str] = field(default_factory=dict)
    """Where the layout has time, language and author, which nobody asked for."""
    samples: list[tuple[str, str]] = field(default_factory=list)
    """Ids and texts as they will be read."""
    id_names: list[str] = field(default_factory=list)
    """Fields that look like ids of posts, where none is used."""
    seeks_ids: bool = True
    """Whether ids are to be more than hashes."""

    def describe(self, with_samples: bool) -> Iterator[str]:
        """A few lines for people.

        Args:
            with_samples: whether to show some ids and texts.
        """
        parts = [f"{what} from {', '.join(counts)}" for what, counts in self.paths.items() if counts]
        parts += [f"{what} in {path}" for what, path in self.others.items()]
        nothing = "no text so far" if self.posts or not self.samples else "lines of text"
        yield f"layout      {self.layout}, {self.form}: {'; '.join(parts) or nothing}"
        if self.refused:
            yield f"    dead letters: {self.refused}"
        elif self.posts and not self.with_id and self.seeks_ids:
            other = f"; --id_field {self.id_names[0]} takes that one" if self.id_names else ""
            yield f"    no record has an id: ids are hashes of file and position{other}"
        for tweet_id, text in self.samples if with_samples else ():
            yield f"    {tweet_id}  {text[:SHOWN_CHARACTERS]!r}{'...' if len(text) > SHOWN_CHARACTERS else ''}"


@dataclass
class Seen:
    """What the records that were looked at have."""

    paths: set[str] = field(default_factory=set)
    """Of the files that were looked at."""
    groups: dict[tuple[str, str], Group] = field(default_factory=dict)
    names: dict[str, None] = field(default_factory=dict)
    """Of top-level fields."""
    texts: dict[str, None] = field(default_factory=dict)
    """Paths of strings."""
    lists: dict[str, None] = field(default_factory=dict)
    """Paths of lists of objects."""
    is_by_columns: bool = False
    """Whether a record looks like a whole table."""
    has_header: bool = False
    """Whether names of fields are from a first line."""
    values: dict[str, list[Any]] = field(default_factory=dict)
    """Of kept fields, by the columns' names."""
    records: int = 0
    found: set[str] = field(default_factory=set)
    """Of text, id and time, which some record has."""
    reason: FieldError | None = None
    """Why a record has no text."""


def check_fields(
    form: FormOptions,
    mapping: FieldMapping,
    files: Sequence[InputFile],
    without_type: Collection[str] = (),
    spares_bad_files: bool = False,
) -> tuple[FieldMapping, Seen]:
    """Make sure that the fields are there, and fill in the types of kept ones.

    Args:
        form: what the command line says of the files.
        mapping: and of their fields.
        files: the inputs. Those that are damaged are passed over here: the run will say what they are, and where.
        without_type: kept fields whose types are to be told from the data.
        spares_bad_files: whether those that are in no form that is read are, too, unless all are such.

    Returns:
        The fields, and what was seen, for `describe`.

    Raises:
        InputError: if a file's format is unknown, no record has a text, or a field that was asked for is in none.
    """
    problem: InputError | None = None
    seen = Seen(values={kept.name: [] for kept in mapping.keep})
    sought = {"text"}
    sought |= {"id"} if mapping.id not in ((AUTO,), ()) else set()
    sought |= {"time"} if mapping.timestamp else set()
    for file, count in _to_look_at(files, seen):
        try:
            _look_at(file, form, mapping, count, seen)
        except DamagedFileError:
            continue
        except InputError as error:
            is_spared = spares_bad_files and tells_format(file.path)  # of others, only what was named gets here
            if not is_spared or is_outage(error) or shortage_of(error) is not None:
                raise
            problem = problem or error
        if sought <= seen.found and all(map(_has_a_value, seen.values.values())):
            break
    of_fields = mapping.keep or mapping.timestamp or mapping.text != (AUTO,) or mapping.id not in ((AUTO,), ())
    if seen.found and not seen.names and of_fields:
        raise InputError(
            "text lines have no fields: leave out --text_field, --id_field, --timestamp_field and --keep_fields, or if "
            "they are rows of a table, give --format csv"
        )
    if problem is not None and not seen.records:
        raise problem
    if not seen.names and seen.reason is None:
        return mapping, seen  # nothing readable in the sample: the run will say what and where
    is_all_seen = len(files) <= SAMPLED_FILES + MORE_FILES
    if is_all_seen:
        _check_found(seen, sought, mapping)
    kept = []
    for each in mapping.keep:
        is_typed = each.name not in without_type
        if not _has_a_value(seen.values[each.name]) and not (is_typed and not is_all_seen) and seen.names:
            raise InputError(f"kept field {each.path!r} is in no record; fields are: {_listed(seen.names)}")
        kept.append(each if is_typed else KeptField(each.name, infer_kind(seen.values[each.name]), each.path))
    return dataclasses.replace(mapping, keep=tuple(kept)), seen


def describe(config: ScoreConfig, files: Sequence[InputFile], seen: Seen | None = None) -> tuple[Group, ...]:
    """What the inputs are, by the first of them and those that have been looked at."""
    seen = seen or Seen()
    for file in files[: MORE_FILES if config.dry_run else DESCRIBED_FILES]:
        if file.path not in seen.paths:
            with contextlib.suppress(InputError):  # the run will say it
                _look_at(file, config.form, config.fields, MORE_RECORDS, seen)
    return tuple(seen.groups.values())


def _check_found(seen: Seen, sought: set[str], mapping: FieldMapping) -> None:
    if "text" not in seen.found and seen.reason is not None:
        raise InputError(f"no record has a text ({seen.reason}){_remedy(seen, mapping)}")
    names = [*seen.names, *(path for path in seen.texts if path not in seen.names)]
    if "id" in sought - seen.found:
        raise InputError(f"--id_field {','.join(mapping.id)} is in no record; fields are: {_listed(names)}")
    if "time" in sought - seen.found:
        if mapping.timestamp == AUTO:
            known = ", ".join(group.layout for group in seen.groups.values())
            raise InputError(
                f"--timestamp_field auto: no record of layout {known} has a time; leave it out, or give one of: "
                f"{_listed(names)}"
            )
        raise InputError(f"--timestamp_field {mapping.timestamp} is in no record; fields are: {_listed(names)}")


def _remedy(seen: Seen, mapping: FieldMapping) -> str:
    """What can be done where no record has a text."""
    if seen.is_by_columns:
        return "; it is a table by columns, as pandas writes it: write it with to_json(orient='records', lines=True)"
    said = ""
    if seen.lists:
        path = next(iter(seen.lists)).replace("'", "'\\''")  # in a shell's quotes
        said += f"; if its records are in the list {path}, write them as lines: jq -c '{path}[]' A > B.jsonl"
    remedy = "; leave out --layout, or" if mapping.layout != AUTO else ";"
    said += f"{remedy} give --text_field one of: {_listed(seen.texts)}" if seen.texts else "; no field is a string"
    if seen.has_header:
        said += "; if the first line is a row, give --no_header, and --columns with names of your own"
    return said


def _listed(names: Iterable[str]) -> str:
    return ", ".join(list(names)[:_CANDIDATES])


def _to_look_at(files: Sequence[InputFile], seen: Seen) -> Iterator[tuple[InputFile, int]]:
    """Files, and how many of their first records: the first that have some, and then others all over the rest.

    A file that cannot be read has no records; the run will say what is wrong, and where.
    """
    waiting = iter(files)
    sampled = 0
    for file in waiting:
        before = seen.records
        yield file, SAMPLED_RECORDS
        sampled += seen.records > before
        if sampled == SAMPLED_FILES:
            break
    rest = list(waiting)
    for file in rest[:: max(1, -(-len(rest) // MORE_FILES))]:
        yield file, MORE_RECORDS


def _look_at(file: InputFile, options: FormOptions, mapping: FieldMapping, count: int, seen: Seen) -> None:
    """Look at the first records of a file.

    Raises:
        InputError: if it is in no form that can be read, several of its fields could be the text, or a store is down.
    """
    path = file.path
    seen.paths.add(path)
    try:
        with open_raw(file.place) as opened:
            for form in recognize(opened, path, options):
                _look_at_records(first_records(file, opened, form), form, mapping, count, seen)
    except InputError as error:
        raise type(error)(f"input {path}: {error}") from None
    except (OSError, SourceError) as error:
        cause = error.__cause__ if isinstance(error, SourceError) else error
        # A store that is down is tried again for minutes: not for each of a thousand files.
        is_of_file = is_local(path) or isinstance(cause, FileNotFoundError | PermissionError)
        if not is_of_file or shortage_of(error) is not None:
            raise InputError(f"input {path}: cannot be read ({error})") from None


def _look_at_records(records: Iterator[Record], form: Form, mapping: FieldMapping, count: int, seen: Seen) -> None:
    first = list(itertools.islice(records, layouts.RECOGNIZED_FROM))
    reader = PostReader(mapping, recognize_layout(first, mapping) or PLAIN)
    key = (form.describe(), reader.layout.name)
    group = seen.groups.setdefault(key, Group(*key, seeks_ids=mapping.id != ()))
    group.files += 1
    seen.has_header |= bool(form.format.delimiter) and form.dialect.has_header
    for record in itertools.chain(first, itertools.islice(records, max(0, count - len(first)))):
        seen.records += 1
        if isinstance(record.value, dict):
            _look_at_record(record.value, reader, group, seen)
            continue
        seen.found.add("text")  # a line is one
        if len(group.samples) < SAMPLES:
            group.samples.append((f"line at byte {record.position}", record.value))


def _look_at_record(fields: dict[str, Any], reader: PostReader, group: Group, seen: Seen) -> None:
    seen.names.update(dict.fromkeys(fields))
    if len(seen.texts) < 10 * _CANDIDATES:
        seen.texts.update(dict.fromkeys(_strings(fields)))
    mapping = reader.mapping
    for _, post, view in reader.members(fields):
        if not isinstance(post, dict):
            continue
        for kept in mapping.keep:
            seen.values.setdefault(kept.name, []).append(value_of(getter(kept.path), post, view))
        try:
            found = reader.find_text(post, view)
        except FieldError as error:
            seen.reason = error
            seen.lists.update(dict.fromkeys(_lists(post)))
            seen.is_by_columns |= _is_by_columns(post)
            continue
        if found is None:
            seen.found.add("text")  # as far as that goes: none is missing
            continue
        text, text_path, _ = found
        seen.found.add("text")
        group.posts += 1
        group.paths.setdefault("text", Counter())[text_path] += 1
        for what, places in (("id", reader.id_paths), ("time", reader.time_paths)):
            if path := _first_there(places, post, view):
                seen.found.add(what)
                group.paths.setdefault(what, Counter())[path] += 1
        tweet_id = None
        try:
            tweet_id = reader.find_id(post, view)
        except FieldError as error:
            group.refused = str(error)
        group.with_id += tweet_id is not None
        layout = reader.layout
        for what, places in (("time", layout.time), ("language", (layout.language,)), ("author", (layout.author,))):
            if what not in group.paths and (path := _first_there(places, post, view)):
                group.others.setdefault(what, path)
        if not group.with_id and not group.id_names:
            group.id_names += [name for name in post if isinstance(name, str) and _may_be_id(name)]
        if len(group.samples) < SAMPLES:
            group.samples.append((tweet_id or ("(refused)" if group.refused else "(a hash)"), text))


def _may_be_id(name: str) -> bool:
    parts = name.lower().split("_")
    return "id" in parts and _OF_OTHERS.isdisjoint(parts)


def _first_there(paths: Iterable[str], post: dict[str, Any], view: dict[str, Any]) -> str | None:
    """The first of some paths under which there is a value."""
    return next((path for path in paths if path and value_of(getter(path), post, view) not in (None, "")), None)


def _strings(fields: Mapping[str, Any], before: str = "", depth: int = _DEPTH) -> Iterator[str]:
    """Paths of all strings in a record that a path can reach."""
    for name, value in fields.items():
        if not isinstance(name, str) or "," in name or name != name.strip() or (before and "." in name):
            continue
        if isinstance(value, str):
            yield before + name
        elif isinstance(value, dict) and depth and "." not in name:
            yield from _strings(value, f"{before}{name}.", depth - 1)


def _lists(fields: Mapping[str, Any], before: str = "", depth: int = _DEPTH) -> Iterator[str]:
    """Paths of all lists of objects in a record, as `jq` has them."""
    for name, value in fields.items():
        if not isinstance(name, str):
            continue
        is_plain = name.isidentifier() and name.isascii()
        path = f"{before}.{name}" if is_plain else f"{before or '.'}[{json.dumps(name)}]"
        if isinstance(value, list) and value and isinstance(value[0], dict):
            yield path
        elif isinstance(value, dict) and depth:
            yield from _lists(value, path, depth - 1)


def _is_by_columns(fields: Mapping[str, Any]) -> bool:
    """Whether a record is a whole table, as pandas and others write it by default.

    That is for each column its values by their rows' names, or in a list, or for each row's number its fields; or names
    of columns, and a list of lists.
    """
    if isinstance(fields.get("columns"), list) and isinstance(fields.get("data"), list):
        return True
    values = list(fields.values())
    if len(values) > 1 and all(isinstance(value, list) for value in values):
        return len({len(value) for value in values}) == 1 and not any(isinstance(value, dict) for value in values[0])
    if not values or not all(isinstance(value, dict) and value for value in values):
        return False
    are_numbered = all(name.isdecimal() for name in fields) or all(name.isdecimal() for name in values[0])
    return are_numbered and all(value.keys() == values[0].keys() for value in values)


def _has_a_value(values: Iterable[Any]) -> bool:
    return any(value is not None for value in values)
