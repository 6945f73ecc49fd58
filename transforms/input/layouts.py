"""Layouts: what platforms and tools call the parts of a post, one entry each in `LAYOUTS`.

A layout is told from the first records of a file. Paths go into nested fields with dots; conditions are those of
`paths.holds`. How a record is read by its layout is in `posts`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torchmoji_core.errors import InputError
from torchmoji_core.options import check_choice
from transforms.input.paths import holds, look_up, top

AUTO = "auto"
"""As the name of a layout, or in the place of a field: as the records tell."""
RECOGNIZED_FROM = 20
"""So many records of a file tell its layout."""
_FIELDS_OF_NOTICES = 2
"""At most: a record with more may be a post of another layout, with a field of such a name."""
_MAX_DEPTH = 32
"""How deep lists of posts may lie in each other."""

Fields = dict[str, Any]


@dataclass(frozen=True)
class Layout:
    """How posts of one origin are written."""

    name: str
    about: str
    """What it is, for people."""
    marks: tuple[str, ...]
    """Conditions, each of which tells a post of this layout."""
    text: tuple[str, ...]
    """Paths, of which the first that is there and not blank has the text; "title + body" are parts of one text."""
    id: tuple[str, ...] = ("id",)
    time: tuple[str, ...] = ()
    language: str = ""
    author: str = ""
    posts: tuple[str, ...] = ()
    """Paths under which a record holds its post, or a list of posts, instead of being one itself."""
    only: str = ""
    """Condition on a post; all others are notices."""
    notices: tuple[str, ...] = ()
    """Conditions on records that have no text and need none."""
    html: tuple[str, ...] = ()
    """Those paths of texts that hold HTML."""
    is_escaped: bool = False
    """Whether texts hold HTML's entities, `&lt;` for `<`, and no other HTML."""
    blanks: tuple[str, ...] = ()
    """What stands where a text was deleted."""
    shared_in: str = ""
    """Field with the post that a post repeats, whose text is whole where that of the repetition is cut."""
    find_shared: Callable[[Fields, Fields], Fields | None] | None = None
    """If the field does not hold that post itself: finds it, given a post and its record."""
    cut: tuple[str, ...] = ()
    """Paths of texts that are cut if the field `truncated` says so."""
    make_id: Callable[[Any, Fields], str | None] | None = None
    """Gives the id, from the value in its place (or None) and the post."""
    is_rich: bool = False
    """Whether a text may be a list of pieces, plain ones or objects with a text."""
    columns: tuple[str, ...] = ()
    """Of a CSV file that comes without a header."""
    fits: Callable[[Fields], bool] | None = None
    """A further mark, where conditions cannot say it."""
    also: tuple[str, ...] = ()
    """Paths that the functions of the layout look at, and nothing else here names."""

    def is_post(self, post: Fields) -> bool:
        """Whether a record is a post of this layout."""
        return any(holds(mark, post) for mark in self.marks) or (self.fits is not None and self.fits(post))

    def is_notice(self, record: Fields) -> bool:
        """Whether a record without a text needs none."""
        return any(holds(notice, record) for notice in self.notices)

    def is_of(self, record: Fields) -> bool:
        """Whether a record is a post of this layout, or holds posts."""
        if self.is_post(record):
            return True
        if not any(top(path) in record for path in self.posts):
            return False
        return any(isinstance(post, dict) and self.is_post(post) for _, post, _ in self.members(record)[:1])

    def members(self, record: Fields) -> list[tuple[str, Any, Fields]]:
        """The posts of a record, each with what tells it from the others, and with its surroundings.

        A post that is found in a list has a number, or several with dots between them; one that is alone has none, and
        one that another post holds has its path. Its surroundings are the record, with the post in the place of the
        list.
        """
        return list(_member(self, record, "", record, _MAX_DEPTH))

    @property
    def top_names(self) -> set[str]:
        """Columns of a table that are of any concern: all paths, and their first names."""
        return column_names(
            (*_of_conditions(self.marks), *self.texts, *self.id, *self.time, self.language, self.author, *self.read_too)
        )

    @property
    def texts(self) -> tuple[str, ...]:
        """Paths of texts and of parts of texts."""
        return tuple(part for text in self.text for part in text.split(" + "))

    @property
    def read_too(self) -> tuple[str, ...]:
        """Paths that reading a post looks at, besides those of text, id and time."""
        conditions = (*self.notices, self.only, *(self.marks if self.posts else ()))
        return (*_of_conditions(conditions), *self.posts, self.shared_in, *self.of_shared, *self._cut_by, *self.also)

    @property
    def of_shared(self) -> dict[str, str]:
        """What a flattened record calls the fields of the post that it repeats, and what that post calls them."""
        names = (*self.texts, *self._cut_by) if self.shared_in else ()
        return {f"{self.shared_in}.{name}": name for name in names}

    @property
    def _cut_by(self) -> tuple[str, ...]:
        return ("truncated",) if self.cut else ()


def column_names(paths: Iterable[str]) -> set[str]:
    """What a table may call paths: by the whole of them, or by their first names, with the rest nested in it."""
    return {name for path in paths if path for name in (path, top(path))}


def _of_conditions(conditions: Iterable[str]) -> Iterator[str]:
    return (part.partition("=")[0] for condition in conditions for part in condition.split())


def _members(layout: Layout, record: Fields, number: str, depth: int) -> Iterator[tuple[str, Any, Fields]]:
    """What is in a record that is not a post itself, or beside one."""
    there = {path: value for path in layout.posts if isinstance(value := look_up(record, path), dict | list)}
    for path, value in there.items():
        # One alone that is not in a list is told by its path from the post that holds it.
        is_named = len(there) > 1 or (isinstance(value, dict) and layout.is_post(record))
        parts = (number, path if is_named else "")
        if isinstance(value, dict):
            yield from _member(layout, value, ".".join(filter(None, parts)), record, depth)
        else:
            for index, member in enumerate(value):
                place = ".".join(filter(None, (*parts, str(index))))
                yield from _member(layout, member, place, {**record, path: member}, depth)


def _member(layout: Layout, member: Any, number: str, view: Fields, depth: int) -> Iterator[tuple[str, Any, Fields]]:
    """A post with those that it holds in turn, or what holds posts as these alone."""
    held = list(_members(layout, member, number, depth - 1)) if depth and isinstance(member, dict) else []
    if held and layout.is_notice(member) and not any(isinstance(post, dict) for _, post, _ in held):
        held = []  # what it names is nothing to be read
    if not held or layout.is_post(member):
        yield number, member, view
    yield from held


# --- what paths cannot say -----------------------------------------------------------------------------------------

_V2_FIELDS = frozenset((
    "id", "text", "edit_history_tweet_ids", "attachments", "author_id", "card_uri", "community_id",
    "context_annotations", "conversation_id", "created_at", "display_text_range", "edit_controls", "entities", "geo",
    "in_reply_to_user_id", "lang", "media_metadata", "note_tweet", "possibly_sensitive", "public_metrics",
    "referenced_tweets", "reply_settings", "scopes", "source", "withheld", "author", "in_reply_to_user", "__twarc",
))  # fmt: skip


def _is_plain_v2(post: Fields) -> bool:
    """Whether a record has nothing but what version 2 of the API gives, of which id and text are always there."""
    tweet_id, text = post.get("id"), post.get("text")
    is_id = isinstance(tweet_id, str) and tweet_id.isascii() and tweet_id.isdecimal()
    return is_id and isinstance(text, str) and post.keys() <= _V2_FIELDS


def _retweeted(post: Fields, record: Fields) -> Fields | None:
    """The tweet that a tweet of version 2 repeats: flattened into the reference, or among the includes."""
    references = post.get("referenced_tweets")
    if not isinstance(references, list):
        return None
    for reference in references:
        if isinstance(reference, dict) and reference.get("type") == "retweeted":
            if "text" in reference:
                return reference
            included = look_up(record, "includes.tweets")
            for tweet in included if isinstance(included, list) else ():
                if isinstance(tweet, dict) and tweet.get("id") == reference.get("id"):
                    return tweet
    return None


def _gnip_shared(post: Fields, record: Fields) -> Fields | None:
    shared = post.get("object")
    return shared if post.get("verb") == "share" and isinstance(shared, dict) else None


def _after_colon(tweet_id: Any, post: Fields) -> Any:
    return tweet_id.rpartition(":")[2] if isinstance(tweet_id, str) else tweet_id


def _at_uri(tweet_id: Any, post: Fields) -> Any:
    """The URI that Bluesky knows a post by, which an event tells in three parts."""
    parts = [post.get("did"), look_up(post, "commit.collection"), look_up(post, "commit.rkey")]
    return f"at://{'/'.join(parts)}" if all(isinstance(part, str) for part in parts) else tweet_id


# --- the table -----------------------------------------------------------------------------------------------------

_DELETED = ("[deleted]", "[removed]", "[deleted by user]", "[removed by reddit]", "[ Removed by Reddit ]")

LAYOUTS: tuple[Layout, ...] = (
    Layout(
        "twitter-v1",
        "Twitter API 1.1: REST, and streams with their notices",
        marks=("id_str full_text", "id_str text", "extended_tweet.full_text", "retweeted_status.id_str"),
        text=("extended_tweet.full_text", "full_text", "text"),
        id=("id_str", "id"),
        time=("created_at",),
        language="lang",
        author="user.screen_name",
        posts=("statuses",),
        notices=(
            "delete.status",
            "scrub_geo.user_id",
            "limit.track",
            "status_withheld.id",
            "user_withheld.id",
            "disconnect.code",
            "warning.code",
            "friends",
            "friends_str",
            "event source target",
        ),
        is_escaped=True,
        shared_in="retweeted_status",
        cut=("text",),
    ),
    Layout(
        "twitter-v2",
        "Twitter API 2: tweets, responses `{data, includes}`, pages, `twarc flatten`",
        marks=(
            "text edit_history_tweet_ids",
            "text referenced_tweets",
            "note_tweet.text",
            "text public_metrics",
        ),
        text=("note_tweet.text", "text"),
        time=("created_at",),
        language="lang",
        author="author.username",
        posts=("data",),
        notices=("meta.result_count", "delete.tweet", "delete.id"),
        is_escaped=True,
        shared_in="referenced_tweets",
        find_shared=_retweeted,
        fits=_is_plain_v2,
        also=("includes",),
    ),
    Layout(
        "twitter-archive",
        "a Twitter account's archive, `tweets.js`",
        marks=("id_str full_text", "id_str text"),
        text=("full_text", "text"),
        id=("id_str", "id"),
        time=("created_at",),
        language="lang",
        posts=("tweet",),
        is_escaped=True,
        shared_in="retweeted_status",
        cut=("text",),
    ),
    Layout(
        "twitter-archive-notes",
        "the archive's long tweets, `note-tweet.js`",
        marks=("noteTweet.core.text",),
        text=("noteTweet.core.text",),
        id=("noteTweet.noteTweetId",),
        time=("noteTweet.createdAt",),
        is_escaped=True,
    ),
    Layout(
        "twitter-archive-likes",
        "tweets that the account liked, `like.js`",
        marks=("like.tweetId like.fullText",),
        text=("like.fullText",),
        id=("like.tweetId",),
        is_escaped=True,
    ),
    Layout(
        "gnip",
        "Gnip's Activity Streams of tweets",
        marks=("body postedTime", "body verb", "objectType=activity body"),
        text=("object.long_object.body", "long_object.body", "body"),
        time=("postedTime",),
        language="twitter_lang",
        author="actor.preferredUsername",
        notices=("info.message",),
        is_escaped=True,
        shared_in="object",
        find_shared=_gnip_shared,
        also=("verb",),
        make_id=_after_colon,
    ),
    Layout(
        "snscrape",
        "snscrape's tweets",
        marks=("rawContent renderedContent", "_type=snscrape.modules.twitter.Tweet", "content renderedContent"),
        text=("rawContent", "content", "renderedContent"),
        time=("date",),
        language="lang",
        author="user.username",
        is_escaped=True,
        shared_in="retweetedTweet",
    ),
    Layout(
        "twint",
        "twint's tweets",
        marks=("conversation_id tweet", "tweet likes_count", "tweet nlikes"),
        text=("tweet",),
        time=("created_at", "date"),
        language="language",
        author="username",
    ),
    Layout(
        "sentiment140",
        "Sentiment140, with its six columns or without a header",
        marks=("target ids flag user text",),
        text=("text",),
        id=("ids",),
        time=("date",),
        author="user",
        is_escaped=True,
        columns=("target", "ids", "date", "flag", "user", "text"),
    ),
    Layout(
        "bluesky-jetstream",
        "events of Bluesky's Jetstream",
        marks=("did time_us kind",),
        text=("commit.record.text",),
        id=(),
        time=("commit.record.createdAt", "time_us"),
        language="commit.record.langs",
        author="did",
        only="kind=commit commit.operation=create commit.collection=app.bsky.feed.post",
        make_id=_at_uri,
        also=("did", "commit.collection", "commit.rkey"),
    ),
    Layout(
        "bluesky",
        "posts of Bluesky's API: records with their URI, feeds, searches",
        marks=("uri record.text", "uri value.text", "uri record.createdAt"),
        text=("record.text", "value.text"),
        id=("uri",),
        time=("record.createdAt", "value.createdAt", "indexedAt"),
        language="record.langs",
        author="author.handle",
        posts=("feed", "posts", "records", "thread", "post", "replies"),
    ),
    Layout(
        "bluesky-record",
        "Bluesky's records alone",
        marks=("$type=app.bsky.feed.post text",),
        text=("text",),
        id=("uri",),
        time=("createdAt",),
        language="langs",
    ),
    Layout(
        "mastodon",
        "statuses of Mastodon's API, and of those who took it over",
        marks=("content reblog", "content spoiler_text", "content visibility", "content account.acct"),
        text=("content",),
        time=("created_at",),
        language="language",
        author="account.acct",
        posts=("statuses",),
        html=("content",),
        shared_in="reblog",
    ),
    Layout(
        "activitypub",
        "activities and outboxes of ActivityPub, as Mastodon's archive has them",
        marks=("type=Create object.content", "type=Announce object", "type=Note|Article|Page|Question content"),
        text=("object.content", "content"),
        id=("object.id", "id"),
        time=("object.published", "published"),
        author="actor",
        posts=("orderedItems",),
        only="type=Create|Note|Article|Page|Question",
        html=("object.content", "content"),
    ),
    Layout(
        "reddit",
        "Reddit's comments and submissions in one table",
        marks=("body title selftext link_id", "body title selftext parent_id", "body title selftext subreddit"),
        text=("body", "title + selftext"),
        time=("created_utc",),
        author="author",
        is_escaped=True,
        blanks=_DELETED,
    ),
    Layout(
        "reddit-comments",
        "Reddit's comments",
        marks=("body link_id", "body parent_id subreddit", "body subreddit author"),
        text=("body",),
        time=("created_utc",),
        author="author",
        posts=("data",),
        is_escaped=True,
        blanks=_DELETED,
    ),
    Layout(
        "reddit-submissions",
        "Reddit's submissions: title and text",
        marks=("title selftext",),
        text=("title + selftext",),
        time=("created_utc",),
        author="author",
        posts=("data",),
        is_escaped=True,
        blanks=_DELETED,
    ),
    Layout(
        "reddit-api",
        "listings and things of Reddit's API",
        marks=("kind=t1|t3 data.id",),
        text=("data.body", "data.title + data.selftext"),
        id=("data.id",),
        time=("data.created_utc",),
        author="data.author",
        posts=("data.children", "data.replies"),
        notices=("kind=more",),
        is_escaped=True,
        blanks=_DELETED,
    ),
    Layout(
        "youtube",
        "comments and threads of YouTube's API",
        marks=("snippet.textOriginal", "snippet.textDisplay"),
        text=("snippet.textOriginal", "snippet.textDisplay"),
        time=("snippet.publishedAt",),
        author="snippet.authorDisplayName",
        posts=("items", "snippet.topLevelComment", "replies.comments"),
        html=("snippet.textDisplay",),
    ),
    Layout(
        "youtube-comment-downloader",
        "comments of youtube-comment-downloader",
        marks=("cid text votes",),
        text=("text",),
        id=("cid",),
        time=("time_parsed",),
        author="author",
    ),
    Layout(
        "yt-dlp",
        "comments of yt-dlp, in a video's info.json",
        marks=("id text author_id parent timestamp", "id text author parent _time_text"),
        text=("text",),
        time=("timestamp",),
        author="author",
        posts=("comments",),
    ),
    Layout(
        "telegram",
        "Telegram's export, `result.json`",
        marks=("type=message|service date_unixtime", "type=message from_id text"),
        text=("text",),
        time=("date_unixtime", "date"),
        author="from",
        posts=("messages",),
        only="type=message",
        is_rich=True,
    ),
    Layout(
        "discord",
        "DiscordChatExporter's messages",
        marks=("type timestamp content author.isBot",),
        text=("content",),
        time=("timestamp",),
        author="author.name",
        posts=("messages",),
        only="type=Default|Reply",
    ),
    Layout(
        "hacker-news",
        "items of Hacker News",
        marks=("by time type=comment|story|job|poll|pollopt", "type=comment|story id deleted"),
        text=("title + text",),
        time=("time",),
        author="by",
        notices=("id type=comment|story|poll|pollopt|job deleted",),
        html=("text",),
    ),
    Layout(
        "4chan",
        "threads and posts of 4chan's API",
        marks=("no resto time",),
        text=("sub + com",),
        id=("no",),
        time=("time",),
        author="name",
        posts=("posts", "threads"),
        notices=("no resto",),
        html=("sub", "com"),
    ),
    Layout(
        "yelp",
        "Yelp's reviews",
        marks=("review_id business_id text",),
        text=("text",),
        id=("review_id",),
        time=("date",),
        author="user_id",
    ),
    Layout(
        "amazon-reviews",
        "Amazon's reviews, as McAuley's sets have them",
        marks=("asin reviewText", "asin text rating"),
        text=("reviewText", "text"),
        id=(),
        time=("unixReviewTime", "timestamp"),
        author="reviewerID",
    ),
)

PLAIN = Layout(
    "plain",
    "any other fields or columns: see below",
    marks=(),
    text=("extended_tweet.full_text", "full_text", "data.text", "text"),
    id=("id_str", "data.id", "id"),
)
"""All other records. The text is looked for under the names that files have most often."""
PLAIN_NAMES = (
    "text", "fulltext", "tweet", "tweets", "tweettext", "tweetcontent", "tweetfulltext", "originaltweet", "content",
    "body", "comment", "commenttext", "commentbody", "review", "reviewtext", "reviewbody", "message", "post",
    "posttext", "caption", "sentence", "sentimenttext", "utterance",
)  # fmt: skip
"""Of the text, in any case, with or without spaces, `_` and `-`."""


class _Columns:
    """Names of columns that may tell a layout, or have a text."""

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and (name in _TOP_NAMES or is_text_name(name))


COLUMNS = _Columns()
_BY_NAME = {layout.name: layout for layout in (*LAYOUTS, PLAIN)}
NAMES = tuple(_BY_NAME)
_TOP_NAMES = frozenset(name for layout in (*LAYOUTS, PLAIN) for name in layout.top_names)


def named(name: str) -> Layout:
    """The layout of a name, of which that of plain fields may be followed by a colon and the one with the text.

    Raises:
        InputError: if there is none.
    """
    name, colon, field = name.partition(":")
    check_choice("--layout", name, (PLAIN.name,) if colon else NAMES)
    return _of_field(field) if colon else _BY_NAME[name]


def _of_field(field: str) -> Layout:
    return replace(PLAIN, name=f"{PLAIN.name}:{field}", text=(field,), id=(*PLAIN.id, "ID", "Id"))


def recognize(records: Iterable[Any], finds_text: bool = True) -> Layout | None:
    """The layout that most of some records have, the first of the table where several have as many; None for none.

    Notices tell a layout only where nothing else does.

    Args:
        records: those without fields are passed over.
        finds_text: whether the text is to be found, and not given.

    Raises:
        InputError: if no platform's layout fits, and several fields could be the text.
    """
    posts = [record for record in records if isinstance(record, dict)]
    votes = Counter(layout.name for record in posts for layout in LAYOUTS if layout.is_of(record))
    if votes:
        return max((layout for layout in LAYOUTS if layout.name in votes), key=lambda layout: votes[layout.name])
    notices = (layout for record in posts for layout in LAYOUTS if _is_sole_notice(layout, record))
    return _plain(posts, finds_text) or next(notices, None)


def layout_of(record: Fields) -> Layout | None:
    """The first layout of a platform that one record is of, or is a notice of."""
    of_it = (layout for layout in LAYOUTS if layout.is_of(record))
    return next(of_it, None) or next((layout for layout in LAYOUTS if _is_sole_notice(layout, record)), None)


def _is_sole_notice(layout: Layout, record: Fields) -> bool:
    return len(record) <= _FIELDS_OF_NOTICES and layout.is_notice(record)


def columns_of(row: Sequence[str]) -> tuple[str, ...] | None:
    """The names of the columns of a CSV file without a header, by its first row; None if they are not known."""
    looks_known = row[:1] and row[0] in _LABELS
    return next((layout.columns for layout in LAYOUTS if looks_known and len(layout.columns) == len(row)), None)


_LABELS = ("0", "2", "4")
"""What rows of Sentiment140 begin with."""


def is_text_name(name: str) -> bool:
    """Whether a field's name tells that it has the text, where no layout does."""
    return name.casefold().translate(_SEPARATORS) in PLAIN_NAMES


_SEPARATORS = {ord(character): None for character in " _-"}


def _plain(records: Sequence[Fields], finds_text: bool) -> Layout | None:
    if any(look_up(record, path) is not None for record in records for path in PLAIN.text):
        return PLAIN
    strings = dict.fromkeys(name for record in records for name, value in record.items() if isinstance(value, str))
    found = [name for name in strings if isinstance(name, str) and is_text_name(name)]
    if not finds_text:
        return None
    if len(found) > 1:
        raise InputError(f"the text may be in {' or '.join(found)}; give --text_field, one of: {','.join(found)}")
    return _of_field(found[0]) if found else None
