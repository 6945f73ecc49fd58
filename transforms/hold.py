"""HoldTweets: what lets an endless trickle be scored in batches, and its windows be written in few files.

A stateful stage in front of `BatchByLength`, for runners whose bundles are of a few tweets. It holds tweets across
bundles, then lets many of them go in one. Where bundles are large it is not needed, and `AnnotateTweets` leaves it out.
"""

from __future__ import annotations

import itertools
import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import apache_beam as beam
from apache_beam.coders import FloatCoder, ListCoder, TupleCoder, VarIntCoder, registry
from apache_beam.transforms.timeutil import TimeDomain
from apache_beam.transforms.userstate import BagStateSpec, ReadModifyWriteStateSpec, TimerSpec, on_timer
from apache_beam.transforms.window import FixedWindows, GlobalWindow, GlobalWindows, TimestampedValue
from apache_beam.utils.timestamp import MIN_TIMESTAMP, Timestamp
from apache_beam.utils.windowed_value import WindowedValue

from torchmoji_core.batching import BatchLimits
from torchmoji_core.errors import InputError
from transforms import metrics
from transforms.batch import tweet_size
from transforms.records import TokenizedTweet

UNTIL = ("batch", "pane")
WINDOW_SLOTS = 64
"""Keys that the windows of a shard take in turn: Beam's local runner keeps every key that it has ever met."""
_NEVER = GlobalWindow().max_timestamp().micros
"""The end of the input, in microseconds."""
_Block = list[tuple[TokenizedTweet, int, int]]
"""Of each tweet: itself, its timestamp, and the end of its window or of the input, in microseconds."""
_Keyed = tuple[bytes, _Block]


@dataclass(frozen=True)
class HoldOptions:
    """When held tweets go on to the model."""

    max_latency: float = 1.0
    """Seconds that a tweet waits at most for others; with `until="pane"`, one that comes after its window's end."""
    shards: int = 4
    """Groups that are held apart from each other. It bounds how many workers can score at the same time, and divides
    what one batch could have."""
    until: str = "batch"
    """`batch`: until a batch is full or `max_latency` has passed. `pane`: until the watermark passes the end of the
    window, for few and larger files."""
    early_every: float | None = None
    """With `until="pane"`, seconds after which an open window's tweets go on before its end; None to wait for it."""
    bucket_width: int = 16
    """Lengths in tokens that are held together, with `until="batch"`. `BatchByLength` sorts them more finely."""
    clock: Callable[[], float] = time.time
    """Seconds since 1970, as the runner's own clock for timers has them. It travels to workers, by pickle."""

    def __post_init__(self) -> None:
        """Raises:
        InputError: naming the option and its valid values.
        """
        if self.until not in UNTIL:
            raise InputError(f"until {self.until!r} is unknown; choose one of {', '.join(UNTIL)}")
        for name, seconds in (("max_latency", self.max_latency), ("early_every", self.early_every)):
            if seconds is not None and not 0 < seconds < math.inf:
                raise InputError(f"{name} must be a number of seconds above 0, not {seconds}")
        if self.early_every is not None and self.until != "pane":
            raise InputError('early_every is for until="pane"; batches go on after max_latency')
        for name in ("shards", "bucket_width"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, not {getattr(self, name)}")


class HoldTweets(beam.PTransform):
    """Hold tweets until there are enough for a batch, or until their window closes. Every tweet comes out once.

    Timestamps and windows come out as they went in, and no tweet is too late: state and timers are in the global
    window, where Beam drops nothing. What is held under one key is bounded by `limits`; the order is not kept.

    With `until="pane"` a window's tweets go on together when the watermark passes its end (the on-time pane), before
    that every `early_every` seconds (early panes), and `max_latency` after they have come if that is later (late
    panes). A window that grows beyond `limits.max_waiting` or `max_waiting_size` goes on in parts.
    """

    def __init__(self, options: HoldOptions = HoldOptions(), limits: BatchLimits = BatchLimits()) -> None:  # noqa: B008
        """Args:
        options: when tweets go on.
        limits: of a batch, and of what is held under one key.
        """
        super().__init__()
        self._options, self._limits = options, limits

    def expand(self, tweets: beam.PCollection[TokenizedTweet]) -> beam.PCollection[TokenizedTweet]:
        """Raises:
        InputError: if the windows are of a kind that a timestamp alone does not tell.
        """
        windowing, options = tweets.windowing, self._options
        kinds = (FixedWindows,) if options.until == "pane" else (FixedWindows, GlobalWindows)
        if not isinstance(windowing.windowfn, kinds):
            names = " or ".join(kind.__name__ for kind in kinds)
            raise InputError(
                f"hold until {options.until} works with {names}, not with {type(windowing.windowfn).__name__}"
            )
        if options.until == "pane":
            keyed = beam.ParDo(_KeyByWindow(options, self._limits, windowing.windowfn.size.micros))
        else:
            keyed = beam.ParDo(_KeyByLength(options, self._limits))
        return (
            tweets
            | "Key" >> keyed.with_output_types(_Keyed)
            | "GlobalWindow" >> beam.WindowInto(GlobalWindows())
            | "Hold" >> beam.ParDo(_Hold(options, self._limits)).with_output_types(TokenizedTweet)
            | "Window" >> beam.WindowInto(windowing, allowed_lateness=windowing.allowed_lateness)
        )


class _Key(beam.DoFn):
    """Puts the tweets of a bundle under keys, and measures how old they are.

    Those of one key go on together, in a block: to read and write state costs far more than to look at a tweet.
    """

    def __init__(self, options: HoldOptions, limits: BatchLimits) -> None:
        self._options, self._limits = options, limits

    def start_bundle(self) -> None:
        self._blocks: dict[bytes, _Block] = {}
        self._rows = self._size = 0
        # Not the same for each bundle: they may be of one tweet.
        self._shard = random.randrange(self._options.shards)

    def place(self, tweet: TokenizedTweet, window: Any) -> tuple[int, int]:
        """Number of what a tweet is held with, and the end of its window or of the input in microseconds."""
        raise NotImplementedError

    def process(
        self, tweet: TokenizedTweet, timestamp: Any = beam.DoFn.TimestampParam, window: Any = beam.DoFn.WindowParam
    ) -> Iterator[_Keyed]:
        micros = timestamp.micros
        metrics.distribution(metrics.EVENT_LAG).update(round(1000 * self._options.clock()) - micros // 1000)
        group, end = self.place(tweet, window)
        # Shards in turn: unlike a hash of something in the tweet, no input can make one of them hot.
        self._shard = (self._shard + 1) % self._options.shards
        self._blocks.setdefault(b"%d/%d" % (self._shard, group), []).append((tweet, micros, end))
        self._rows += 1
        self._size += tweet_size(tweet.tweet)
        self._last = timestamp, window
        if self._rows >= self._limits.max_waiting or self._size >= self._limits.max_waiting_size:
            yield from self._blocks.items()
            self._blocks, self._rows, self._size = {}, 0, 0

    def finish_bundle(self) -> Iterator[WindowedValue]:
        for keyed in self._blocks.items():
            # Beam wants some timestamp and window; those that count are in the block.
            yield WindowedValue(keyed, self._last[0], (self._last[1],))


class _KeyByLength(_Key):
    def place(self, tweet: TokenizedTweet, window: Any) -> tuple[int, int]:
        return tweet.length // self._options.bucket_width, _NEVER


class _KeyByWindow(_Key):
    def __init__(self, options: HoldOptions, limits: BatchLimits, window_micros: int) -> None:
        super().__init__(options, limits)
        self._window_micros = window_micros

    def place(self, tweet: TokenizedTweet, window: Any) -> tuple[int, int]:
        slot = window.end.micros // self._window_micros % WINDOW_SLOTS
        return slot, min(window.max_timestamp().micros, _NEVER)


class _Held(NamedTuple):
    """What is known of a key's tweets without reading them."""

    rows: int = 0
    tokens: int = 0
    size: int = 0
    """Characters."""
    since: float = math.inf
    """When the first of them came, by the clock."""
    due: float = math.inf
    """When they go on, by the clock."""
    end: int = _NEVER + 1
    """When they go on, by the watermark, in microseconds."""
    closed: int = MIN_TIMESTAMP.micros
    """What the watermark is known to have passed, in microseconds."""


class _Hold(beam.DoFn):
    """Every firing of a timer, whichever and whenever, lets all of a key's tweets go: so no order of firings, and none
    that comes twice, late, or for tweets that have gone, can lose or repeat one. As long as there are tweets, the
    watermark's timer is set."""

    HELD = ReadModifyWriteStateSpec("held", TupleCoder([VarIntCoder()] * 3 + [FloatCoder()] * 2 + [VarIntCoder()] * 2))
    BLOCKS = BagStateSpec("blocks", ListCoder(TupleCoder([registry.get_coder(TokenizedTweet), VarIntCoder()])))
    CLOCK = TimerSpec("clock", TimeDomain.REAL_TIME)
    WATERMARK = TimerSpec("watermark", TimeDomain.WATERMARK)

    def __init__(self, options: HoldOptions, limits: BatchLimits) -> None:
        self._options = options
        if options.until == "pane":
            self._max_rows, self._max_tokens = limits.max_waiting, math.inf
        else:
            self._max_rows, self._max_tokens = limits.max_rows, limits.max_tokens
        self._max_size = limits.max_waiting_size

    def process(
        self,
        element: _Keyed,
        held_state: Any = beam.DoFn.StateParam(HELD),
        blocks: Any = beam.DoFn.StateParam(BLOCKS),
        clock_timer: Any = beam.DoFn.TimerParam(CLOCK),
        watermark_timer: Any = beam.DoFn.TimerParam(WATERMARK),
    ) -> Iterator[TimestampedValue]:
        block = element[1]
        now = self._options.clock()
        before = _Held(*(held_state.read() or ()))
        ends = {end for _, _, end in block}
        late = {end for end in ends if end <= before.closed}
        held = _Held(
            before.rows + len(block),
            before.tokens + sum(tweet.length for tweet, _, _ in block),
            before.size + sum(tweet_size(tweet.tweet) for tweet, _, _ in block),
            min(before.since, now),
            min(before.due, now + self._patience(bool(late))),
            min(before.end, *(_NEVER if end in late else end for end in ends)),
            before.closed,
        )
        arrived = [(tweet, timestamp) for tweet, timestamp, _ in block]
        if held.rows >= self._max_rows or held.tokens >= self._max_tokens or held.size >= self._max_size:
            yield from self._release(held, held_state, blocks, arrived)
            return
        blocks.add(arrived)
        if held.due < before.due:
            clock_timer.set(Timestamp.of(held.due))
        if held.end < before.end:
            watermark_timer.set(Timestamp(micros=held.end))
        held_state.write(held)

    def _patience(self, late: bool) -> float:
        """Seconds that a tweet may wait by the clock."""
        if self._options.until == "batch" or late:
            return self._options.max_latency
        return math.inf if self._options.early_every is None else self._options.early_every

    @on_timer(CLOCK)  # type: ignore[untyped-decorator]
    def on_clock(
        self,
        held_state: Any = beam.DoFn.StateParam(HELD),
        blocks: Any = beam.DoFn.StateParam(BLOCKS),
    ) -> Iterator[TimestampedValue]:
        yield from self._release(_Held(*(held_state.read() or ())), held_state, blocks)

    @on_timer(WATERMARK)  # type: ignore[untyped-decorator]
    def on_watermark(
        self,
        timestamp: Any = beam.DoFn.TimestampParam,
        held_state: Any = beam.DoFn.StateParam(HELD),
        blocks: Any = beam.DoFn.StateParam(BLOCKS),
    ) -> Iterator[TimestampedValue]:
        held = _Held(*(held_state.read() or ()))
        yield from self._release(held._replace(closed=max(held.closed, timestamp.micros)), held_state, blocks)

    def _release(
        self, held: _Held, held_state: Any, blocks: Any, arrived: Sequence[tuple[TokenizedTweet, int]] = ()
    ) -> Iterator[TimestampedValue]:
        """Let go what is held, and what has just arrived."""
        rest = _Held(closed=held.closed)
        if self._options.until == "pane" and rest != _Held():
            held_state.write(rest)
        else:
            held_state.clear()
        if not held.rows:
            return
        released = [*itertools.chain.from_iterable(blocks.read()), *arrived]
        blocks.clear()
        metrics.distribution(metrics.HELD_ROWS).update(len(released))
        metrics.distribution(metrics.HOLD_WAIT).update(round(1000 * (self._options.clock() - held.since)))
        for tweet, timestamp in released:
            yield TimestampedValue(tweet, Timestamp(micros=timestamp))
