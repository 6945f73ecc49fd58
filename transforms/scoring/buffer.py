"""BufferTweets: makes batches of an endless trickle.

A stateful stage in front of `BatchByLength`, for runners whose bundles are of a few tweets. It holds tweets across
bundles, then lets many of them go in one. Where bundles are large it is not needed, and `AnnotateTweets` leaves it out.

Bundles of endless input are of some ten tweets. In a batch of ten a row costs 2.6 times what it costs in one of 512; in
one of 64, 1.2 times. It holds texts and token ids, never rows of the model, which are larger.
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
from apache_beam.utils.timestamp import Timestamp
from apache_beam.utils.windowed_value import WindowedValue

from torchmoji_core.batching import BatchLimits
from torchmoji_core.errors import InputError
from torchmoji_core.options import AT_LEAST_1, POSITIVE, check_number
from transforms import metrics
from transforms.records import TokenizedTweet
from transforms.scoring.batch import tweet_size

_END = GlobalWindow().max_timestamp()
"""Of the input."""
_Block = list[tuple[TokenizedTweet, int]]
"""Of each tweet: itself, and its timestamp in microseconds."""
_Keyed = tuple[bytes, _Block]


@dataclass(frozen=True)
class BufferOptions:
    """When held tweets go on to the model."""

    max_latency: float = 1.0
    """Seconds that a tweet waits at most for others."""
    shards: int = 4
    """Groups that are held apart from each other. It bounds how many workers can score at the same time, and divides
    what one batch could have."""
    bucket_width: int = 16
    """Lengths in tokens that are held together. `BatchByLength` sorts them more finely."""
    clock: Callable[[], float] = time.time
    """Seconds since 1970, as the runner's own clock for timers has them. It travels to workers, by pickle."""

    def __post_init__(self) -> None:
        """Raises:
        InputError: naming the option and its valid values.
        """
        check_number("max_latency, in seconds,", self.max_latency, POSITIVE)
        for name in ("shards", "bucket_width"):
            check_number(name, getattr(self, name), AT_LEAST_1, is_whole=True)


class BufferTweets(beam.PTransform):
    """Hold tweets until there are enough for a batch. Every tweet comes out once.

    Timestamps and windows come out as they went in, and no tweet is too late: state and timers are in the global
    window, where Beam drops nothing. What is held under one key is bounded by `limits`; the order is not kept.
    """

    def __init__(self, options: BufferOptions = BufferOptions(), limits: BatchLimits = BatchLimits()) -> None:  # noqa: B008
        """Args:
        options: when tweets go on.
        limits: of a batch, and of what is held under one key.
        """
        super().__init__()
        self._options, self._limits = options, limits

    def expand(self, tweets: beam.PCollection[TokenizedTweet]) -> beam.PCollection[TokenizedTweet]:
        """Raises:
        InputError: if a timestamp alone does not tell the window.
        """
        windowing = tweets.windowing
        if not isinstance(windowing.windowfn, FixedWindows | GlobalWindows):
            raise InputError(
                "tweets are held in FixedWindows or GlobalWindows, not in " + type(windowing.windowfn).__name__
            )
        return (
            tweets
            | "Key" >> beam.ParDo(_Key(self._options, self._limits)).with_output_types(_Keyed)
            | "GlobalWindow" >> beam.WindowInto(GlobalWindows())
            | "Hold" >> beam.ParDo(_Hold(self._options, self._limits)).with_output_types(TokenizedTweet)
            | "Window" >> beam.WindowInto(windowing, allowed_lateness=windowing.allowed_lateness)
        )


class _Key(beam.DoFn):
    """Puts the tweets of a bundle under keys, and measures how old they are.

    Those of one key go on together, in a block: to read and write state costs far more than to look at a tweet.
    """

    def __init__(self, options: BufferOptions, limits: BatchLimits) -> None:
        self._options, self._limits = options, limits

    def start_bundle(self) -> None:
        self._blocks: dict[bytes, _Block] = {}
        self._rows = self._size = 0
        # Not the same for each bundle: they may be of one tweet.
        self._shard = random.randrange(self._options.shards)

    def process(
        self, tweet: TokenizedTweet, timestamp: Any = beam.DoFn.TimestampParam, window: Any = beam.DoFn.WindowParam
    ) -> Iterator[_Keyed]:
        micros = timestamp.micros
        metrics.distribution(metrics.EVENT_LAG).update(round(1000 * self._options.clock()) - micros // 1000)
        # Shards in turn: unlike a hash of something in the tweet, no input can make one of them hot.
        self._shard = (self._shard + 1) % self._options.shards
        key = b"%d/%d" % (self._shard, tweet.length // self._options.bucket_width)
        self._blocks.setdefault(key, []).append((tweet, micros))
        self._rows += 1
        self._size += tweet_size(tweet.tweet)
        self._last = timestamp, window
        if self._rows >= self._limits.max_waiting or self._size >= self._limits.max_waiting_size:
            yield from self._blocks.items()
            self._blocks, self._rows, self._size = {}, 0, 0

    def finish_bundle(self) -> Iterator[WindowedValue]:
        for keyed in self._blocks.items():
            # Beam wants some timestamp and window; the true ones are in the block.
            yield WindowedValue(keyed, self._last[0], (self._last[1],))


class _Held(NamedTuple):
    """What is known of a key's tweets without reading them."""

    rows: int = 0
    tokens: int = 0
    size: int = 0
    """Characters."""
    since: float = math.inf
    """When the first of them came, by the clock."""


class _Hold(beam.DoFn):
    """Each firing of any timer lets all of a key's tweets go. So the order of firings does not matter, and one that
    comes twice, late, or for tweets that have gone, loses and repeats none. As long as there are tweets, a timer is set
    at the end of the input."""

    HELD = ReadModifyWriteStateSpec("held", TupleCoder([VarIntCoder()] * 3 + [FloatCoder()]))
    BLOCKS = BagStateSpec("blocks", ListCoder(TupleCoder([registry.get_coder(TokenizedTweet), VarIntCoder()])))
    CLOCK = TimerSpec("clock", TimeDomain.REAL_TIME)
    WATERMARK = TimerSpec("watermark", TimeDomain.WATERMARK)

    def __init__(self, options: BufferOptions, limits: BatchLimits) -> None:
        self._options, self._limits = options, limits

    def process(
        self,
        element: _Keyed,
        held_state: Any = beam.DoFn.StateParam(HELD),
        blocks: Any = beam.DoFn.StateParam(BLOCKS),
        clock_timer: Any = beam.DoFn.TimerParam(CLOCK),
        watermark_timer: Any = beam.DoFn.TimerParam(WATERMARK),
    ) -> Iterator[TimestampedValue]:
        arrived = element[1]
        now = self._options.clock()
        before, limits = _Held(*(held_state.read() or ())), self._limits
        held = _Held(
            before.rows + len(arrived),
            before.tokens + sum(tweet.length for tweet, _ in arrived),
            before.size + sum(tweet_size(tweet.tweet) for tweet, _ in arrived),
            min(before.since, now),
        )
        if held.rows >= limits.max_rows or held.tokens >= limits.max_tokens or held.size >= limits.max_waiting_size:
            yield from self._release(held, held_state, blocks, arrived)
            return
        blocks.add(arrived)
        if held.since < before.since:
            clock_timer.set(Timestamp.of(held.since + self._options.max_latency))
            watermark_timer.set(_END)
        held_state.write(held)

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
        held_state: Any = beam.DoFn.StateParam(HELD),
        blocks: Any = beam.DoFn.StateParam(BLOCKS),
    ) -> Iterator[TimestampedValue]:
        yield from self._release(_Held(*(held_state.read() or ())), held_state, blocks)

    def _release(
        self, held: _Held, held_state: Any, blocks: Any, arrived: Sequence[tuple[TokenizedTweet, int]] = ()
    ) -> Iterator[TimestampedValue]:
        """Let go what is held, and what has just arrived."""
        held_state.clear()
        if not held.rows:
            return
        released = [*itertools.chain.from_iterable(blocks.read()), *arrived]
        blocks.clear()
        metrics.distribution(metrics.HELD_ROWS).update(len(released))
        metrics.distribution(metrics.BUFFER_WAIT).update(round(1000 * (self._options.clock() - held.since)))
        for tweet, timestamp in released:
            yield TimestampedValue(tweet, Timestamp(micros=timestamp))
