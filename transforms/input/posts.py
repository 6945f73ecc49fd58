"""Records -> tweets: the posts of a record by its layout and the fields that were asked for. Pure, no Beam.

A `PostReader` is made once for a part of a file, or a stream, so that a record costs little more than its look-ups.
"""

from __future__ import annotations

import contextlib
import itertools
import json
from collections import Counter
from collections.abc import Callable, Sequence
from html import unescape
from typing import Any, NamedTuple

from torchmoji_core.errors import InputError
from torchmoji_core.inference.scores import valid_unicode
from transforms import metrics
from transforms.input import layouts
from transforms.input.fields import (
    DATE,
    HOUR,
    FieldError,
    FieldMapping,
    convert_kept,
    partition_directory,
    position_id,
    to_id,
    to_microseconds,
)
from transforms.input.html_text import has_html, html_to_text
from transforms.input.layouts import AUTO, PLAIN, Layout
from transforms.input.paths import getter, holds, top
from transforms.input.raw_records import RAW_KEPT, Record
from transforms.records import DeadLetter, Tweet

Fields = dict[str, Any]
_CLEANERS: dict[str, Callable[[str], str] | None] = {"keep": None, "entities": unescape, "tags": html_to_text}
_ELLIPSIS = "…"


class _Text(NamedTuple):
    """One of the places where a text may be."""

    path: str
    parts: tuple[tuple[Callable[[Fields], Any], Callable[[str], str] | None], ...]
    """How each of its parts is got, and cleaned."""


class NoTextError(FieldError):
    """A record has no text, and is no notice."""


class PostReader:
    """Reads records of one layout."""

    def __init__(self, mapping: FieldMapping, layout: Layout | None = None, needs_times: bool = False) -> None:
        """Args:
        mapping: which fields were asked for; they win over the layout's.
        layout: what was recognized. None for records that are recognized one by one.
        needs_times: whether a record whose time cannot be read is a dead letter.
        """
        self.mapping = mapping
        is_forced = mapping.layout != AUTO
        self.layout = ours = layouts.named(mapping.layout) if is_forced else layout or PLAIN
        self._may_be_other = not is_forced
        self._is_each_recognized = layout is None and not is_forced
        self._others: dict[str, PostReader] = {}
        self.counts: Counter[str] = Counter()
        """Of what was read, by the names of metrics; the caller takes and clears them."""
        self._shared_in = ours.shared_in if mapping.text == (AUTO,) else ""
        self._of_shared = ours.of_shared if self._shared_in else {}
        self._make_id = ours.make_id if mapping.id == (AUTO,) else None
        self._texts = tuple(map(self._place, ours.text if mapping.text == (AUTO,) else mapping.text))
        first = itertools.takewhile(lambda text: len(text.parts) == 1, self._texts)
        self._single_texts = [(path, *parts[0]) for path, parts in first]
        self._ids = tuple((path, getter(path)) for path in (ours.id if mapping.id == (AUTO,) else mapping.id))
        times = () if mapping.timestamp is None else ours.time if mapping.timestamp == AUTO else (mapping.timestamp,)
        self._times = tuple((path, getter(path)) for path in times)
        self._kept = tuple((field, getter(field.path)) for field in mapping.keep)
        self._tops = tuple(dict.fromkeys(map(top, ours.posts)))
        self._needs_times = needs_times or bool({DATE, HOUR} & {*mapping.partition_by})

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of a table to be read: all that are looked at."""
        ours, asked = self.layout, self.mapping
        paths = (
            *(ours.texts if asked.text == (AUTO,) else ()),
            *(ours.id if asked.id == (AUTO,) else ()),
            *(ours.time if asked.timestamp == AUTO else ()),
            *ours.read_too,
        )
        return tuple(dict.fromkeys((*asked.columns, *sorted(layouts.column_names(paths)))))

    @property
    def id_paths(self) -> tuple[str, ...]:
        """Where ids are looked for, in this order."""
        return tuple(path for path, _ in self._ids)

    @property
    def time_paths(self) -> tuple[str, ...]:
        """Where times are."""
        return tuple(path for path, _ in self._times)

    def _place(self, path: str) -> _Text:
        parts = path.split(" + ") if path in self.layout.text else [path]
        return _Text(path, tuple((getter(part), self._cleaner(part)) for part in parts))

    def _cleaner(self, path: str) -> Callable[[str], str] | None:
        if self.mapping.html != AUTO:
            return _CLEANERS[self.mapping.html]
        if path in self.layout.html:
            return html_to_text
        return unescape if self.layout.is_escaped else None

    # --- records ---

    def members(self, record: Fields) -> Sequence[tuple[str, Any, Fields]]:
        """As `Layout.members`."""
        if self._tops and any(path in record for path in self._tops):
            return self.layout.members(record)
        return (("", record, record),)

    def read(
        self,
        record: Record,
        source: str,
        source_name: str,
        modified: float | None = None,
        default_id: str | None = None,
    ) -> Sequence[Tweet | DeadLetter | None]:
        """The posts of a record with fields, in their order, and None for a notice. Counts them.

        Args:
            record: as a file's or a message's reader gave it.
            source: an id that is missing is a hash of this and the position.
            source_name: of tweets.
            modified: seconds since 1970 of the last change of the file, where known.
            default_id: the id of a record that is one post without an id; None for a hash.
        """
        fields = record.value
        assert isinstance(fields, dict)
        if self._is_each_recognized:
            try:
                layout = layouts.recognize([fields], self.mapping.text == (AUTO,))
            except InputError as error:
                self.counts[metrics.READ] += 1
                return [_dead(record, fields, str(error), source_name)]
            reader = self._other(layout or PLAIN)
            return reader.read(record, source, source_name, modified, default_id)
        origin = source, source_name, modified
        for path in self._tops:
            if path in fields:
                break
        else:
            try:
                tweet = self._tweet(fields, fields, record.position, origin, default_id)
            except FieldError as error:
                return self._read_otherwise(record, fields, error, origin, default_id)
            self.counts[metrics.READ] += 1
            return (tweet,)
        if not (members := self.layout.members(fields)):  # a page of nothing
            self.counts.update((metrics.READ, metrics.NOTICES))
            return (None,)
        found: list[Tweet | DeadLetter | None] = []
        for number, post, view in members:
            member, id_ = (
                (record._replace(position=f"{record.position}.{number}", raw=b""), None)
                if number
                else (record, default_id)
            )
            try:
                if not isinstance(post, dict):
                    raise FieldError(f"a list of posts holds {type(post).__name__}, which is none")
                found.append(self._tweet(post, view, member.position, origin, id_))
            except FieldError as error:
                found += self._read_otherwise(member, post, error, origin, id_)
            else:
                self.counts[metrics.READ] += 1
        return found

    def _read_otherwise(
        self,
        record: Record,
        post: Any,
        error: FieldError,
        origin: tuple[str, str, float | None],
        default_id: str | None,
    ) -> Sequence[Tweet | DeadLetter | None]:
        """A record of another layout, read by that one; a dead letter if none fits."""
        if self._may_be_other and isinstance(error, NoTextError):
            other = layouts.layout_of(post)
            if other is not None and other is not self.layout:
                return self._other(other).read(record._replace(value=post), *origin, default_id)
        self.counts[metrics.READ] += 1
        return (_dead(record, post, str(error), origin[1]),)

    def _other(self, layout: Layout) -> PostReader:
        """A reader for records of another layout than the rest."""
        reader = self._others.get(layout.name)
        if reader is None:
            reader = self._others[layout.name] = PostReader(self.mapping, layout, self._needs_times)
            reader._may_be_other = False
            reader.counts = self.counts
        return reader

    def _tweet(
        self,
        post: Fields,
        view: Fields,
        position: int | str,
        origin: tuple[str, str, float | None],
        default_id: str | None,
    ) -> Tweet | None:
        counts, partition_by = self.counts, self.mapping.partition_by
        found = self.find_text(post, view)
        if found is None:
            counts[metrics.NOTICES] += 1
            return None
        text, _, is_cut = found
        source, source_name, modified = origin
        tweet_id = self.find_id(post, view) or default_id
        timestamp, is_unread = None, False
        if self._times:
            try:
                timestamp = self.find_time(post, view)
            except FieldError:
                if self._needs_times:
                    raise
                is_unread = True
        kept: tuple[Any, ...] = ()
        if self._kept:
            kept = tuple([convert_kept(value_of(get, post, view), field) for field, get in self._kept])
        partition = ""
        if partition_by:
            both = post if view is post else {**view, **post}
            partition = partition_directory(both, self.mapping, timestamp, modified)
        # Nothing behind this raises: what is counted is a tweet.
        if is_unread:
            counts[metrics.TIMES_UNREAD] += 1
        if tweet_id is None:
            counts[metrics.WITHOUT_ID] += 1
            tweet_id = position_id(source, position)
        if is_cut:
            counts[metrics.CUT] += 1
        if ("&" in text or "<" in text) and has_html(text):
            counts[metrics.WITH_HTML] += 1
        return Tweet(tweet_id, text, timestamp, kept, source_name, partition, is_cut)

    # --- fields ---

    def find_text(self, post: Fields, view: Fields) -> tuple[str, str, bool] | None:
        """The text of a post, its path, and whether its platform has cut it; None for a notice.

        Args:
            post: one of `members`.
            view: its surroundings.

        Raises:
            NoTextError: if it has none.
            FieldError: if it is not a string.
        """
        layout = self.layout
        if layout.only and not holds(layout.only, post):
            return None
        shared = post.get(self._shared_in) if self._shared_in else None
        if shared is not None and layout.find_shared is not None:
            shared = layout.find_shared(post, view)
        found = self._text_of(shared, shared) if isinstance(shared, dict) else None
        if found is None:
            shared, found = None, self._text_of(post, view)
            if self._of_shared and (found is None or not found[0] or found[0].startswith("RT @")):
                flattened = {inner: post[outer] for outer, inner in self._of_shared.items() if post.get(outer)}
                if whole := self._text_of(flattened, flattened):
                    shared, found = flattened, whole
            if found is None:
                if layout.is_notice(post):
                    return None
                raise NoTextError(f"no text: none of the fields {', '.join(text.path for text in self._texts)}")
        text, path = found
        is_cut = text[-1:] == _ELLIPSIS and text.startswith("RT @")
        if path in layout.cut and not is_cut:
            truncated = (shared or post).get("truncated")
            is_cut = truncated is True or (isinstance(truncated, str) and truncated.lower() in ("true", "1"))
        return text, path, is_cut

    def _text_of(self, post: Fields, view: Fields) -> tuple[str, str] | None:
        for path, get, clean in self._single_texts:  # what it mostly is; the rest is done below
            value = get(post)
            if value is None:
                continue
            if not (value.__class__ is str and value) or value in self.layout.blanks:
                break
            if clean is not None and ("&" in value or "<" in value) and not (value := clean(value)):
                break
            return value if value.isascii() else valid_unicode(value), path
        blank = None
        for path, parts in self._texts:
            text, is_deleted = None, False
            for get, clean in parts:
                value = get(post)
                if value is None and (view is post or (value := get(view)) is None):
                    continue
                if not isinstance(value, str):
                    value = _joined(value, path, self.layout.is_rich)
                if value in self.layout.blanks:
                    value, is_deleted = "", True
                if clean is not None and ("&" in value or "<" in value):
                    value = clean(value)
                text = f"{text}\n\n{value}" if text and value else text or value
            if text:
                return valid_unicode(text), path
            if text is not None and blank is None:
                blank = text, path
            if is_deleted:  # another place has no text of this post
                break
        return blank

    def find_id(self, post: Fields, view: Fields) -> str | None:
        """The id of a post; None if it has none.

        Raises:
            FieldError: as `to_id`.
        """
        for path, get in self._ids:
            value = get(post)
            if value is None and view is not post:
                value = get(view)
            if value is not None and value != "":
                is_simple = value.__class__ is str and value.isalnum() and value.isascii()  # as most are
                tweet_id = value if is_simple else to_id(value, path)
                return tweet_id if self._make_id is None else self._make_id(tweet_id, post)
        return None if self._make_id is None else self._make_id(None, post)

    def find_time(self, post: Fields, view: Fields) -> int | None:
        """Microseconds since 1970 in UTC; None where it is missing or null, or none is asked for.

        Raises:
            FieldError: if it is no time.
        """
        for path, get in self._times:
            value = value_of(get, post, view)
            if value is not None and value != "":
                return to_microseconds(value, path)
        return None


def value_of(get: Callable[[Fields], Any], post: Fields, view: Fields) -> Any:
    """A value of a post, or else of its surroundings."""
    value = get(post)
    return get(view) if value is None and view is not post else value


def _joined(value: Any, path: str, is_rich: bool) -> str:
    if is_rich and isinstance(value, list):
        texts = [piece.get("text") if isinstance(piece, dict) else piece for piece in value]
        if all(isinstance(text, str) for text in texts):
            return "".join(map(str, texts))
    raise FieldError(f"text field {path!r} is {type(value).__name__}, not a string")


def _dead(record: Record, post: Any, reason: str, source_name: str) -> DeadLetter:
    raw = record.raw
    if not raw:
        with contextlib.suppress(RecursionError, ValueError):
            raw = json.dumps(post, ensure_ascii=False, default=str).encode("utf-8", "replace")
    return DeadLetter(source_name, str(record.position), reason, raw[:RAW_KEPT])
