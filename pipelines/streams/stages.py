"""What a stream does with messages, on this machine and in jobs that read Kafka: the functions of the graph, one after
another.

    prepare: parse, check, tokenize        score: cut into batches, run the model        write: files in place

It has no threads and no queues; those are in `loop`.
"""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence

import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.transforms.window import IntervalWindow
from apache_beam.utils.timestamp import Timestamp

from pipelines.cli.options import ScoreConfig
from pipelines.cli.streaming_options import StreamOptions
from pipelines.data_set.coverage import Covers
from pipelines.streams.pubsub import PubSubTopic
from pipelines.streams.sources import Publisher
from torchmoji_core.batching import BatchLimits, LengthBuckets
from torchmoji_core.errors import InputError, RunError
from transforms import metrics
from transforms.addresses import KafkaTopic
from transforms.annotate import check_tweet
from transforms.input.messages import MessageFields, MessageParser
from transforms.output.commit import journal_directory, put_in_place, record_together
from transforms.output.kafka import KafkaSink
from transforms.output.write import DeadLetterFiles, ScoreFiles
from transforms.records import DeadLetter, Message, TokenizedTweet, Tweet
from transforms.scoring.batch import tweet_size
from transforms.scoring.loaded_model import load_model
from transforms.scoring.model_watch import Lookout, ModelWatch
from transforms.scoring.score import ScoredBatch, score_batch
from transforms.scoring.tokenize import tokenize
from transforms.storage import files as storage

Prepared = TokenizedTweet | DeadLetter


class Stages:
    """The work on messages, with the model in use. Each method is for one thread at a time."""

    def __init__(
        self,
        config: ScoreConfig,
        stream: StreamOptions,
        publisher: Publisher | None = None,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        """Load the model.

        Args:
            config: what to score, with the id of the run.
            stream: its options for endless input.
            publisher: where rows go beside the files.
            check: raises if this stream may not write any more, since another has taken its place.

        Raises:
            InputError, RunError: if the model cannot be loaded.
        """
        self._config, self._publisher, self._check = config, publisher, check
        self._parser = MessageParser(stream.source.uri, message_fields(config, stream))
        self._window = round(1e6 * stream.window)
        self._model = load_model(config.score.model, config.score)
        scorer = self._model.scorer
        # A later model that reads other tokens tokenizes texts again.
        self._tokenizer, self._maxlen = scorer.tokenizer, scorer.maxlen
        self._lookout = None
        if stream.model_watch is not None:
            self._lookout = Lookout(ModelWatch(stream.model_watch, stream.model_poll), config.score)

    def prepare(self, message: Message) -> list[Prepared]:
        """The tokens of a message's tweets, or dead letters; nothing for a notice."""
        return [self._prepare(parsed) for parsed in self._parser.parse(message)]

    def _prepare(self, parsed: Tweet | DeadLetter) -> Prepared:
        checked = parsed if isinstance(parsed, DeadLetter) else check_tweet(parsed, len(self._config.score.keep))
        if isinstance(checked, DeadLetter):
            return checked
        tokenized = tokenize(checked, self._tokenizer, self._maxlen)
        metrics.distribution(metrics.EVENT_LAG).update(round(1000 * time.time()) - (checked.timestamp or 0) // 1000)
        return tokenized

    def score(self, prepared: Sequence[Prepared]) -> ScoredBatch:
        """Score tweets with the newest model there is; dead letters come along.

        Raises:
            RunError, Exception: if the machine or the program is at fault.
        """
        if self._lookout is not None:
            self._model = self._lookout.newest(self._model)
        letters = [item for item in prepared if isinstance(item, DeadLetter)]
        parts: list[pa.RecordBatch] = []
        tweets = (item for item in prepared if isinstance(item, TokenizedTweet))
        for batch in batches(tweets, self._config.limits):
            scored = score_batch(batch, self._model, self._config.score)
            parts += scored.parts
            letters += scored.dead_letters
        return ScoredBatch(tuple(parts), tuple(letters))

    def write(self, scored: ScoredBatch, covers: Covers) -> None:
        """Write rows and dead letters, and publish rows. On return the files are in place and on the disk, with one
        record that says so of all of them.

            closed under temporary names  ->  in place  ->  rows published  ->  recorded

        Wherever that ends, the record is there and all is done, or nothing counts and all is done again.

        Args:
            scored: what to write.
            covers: which messages it is made from, for the record.

        Raises:
            RunError, OSError: if that cannot be done.
        """
        output, run_id = self._config.output, self._config.score.run_id
        rows = ScoreFiles(output, run_id, self._config.rows_per_file, journal=True)
        for part in scored.parts:
            for window, of_window in split_by_window(part, self._window):
                rows.write(of_window, window)
        letters = DeadLetterFiles(output, run_id, journal=True, tells_messages=bool(covers))
        now = _window_of(time.time_ns() // 1000, self._window)
        for letter in scored.dead_letters:
            metrics.counter(metrics.DEAD).inc()
            letters.write(letter, now)
        of_rows, of_letters = ([file for _, file in files.close()] for files in (rows, letters))
        put_in_place([*of_rows, *of_letters])
        if self._publisher is not None:
            try:
                self._publisher.publish(scored.parts)
            except (InputError, RunError):  # they count for nothing, and a supervisor starts the stream again and again
                with contextlib.suppress(OSError):
                    storage.delete(file.final for file in (*of_rows, *of_letters))
                raise
        if of_rows or of_letters or covers:
            path = f"{journal_directory(output, run_id)}/{uuid.uuid4().hex[:12]}.json"
            self._check()
            record_together(of_rows, of_letters, path, covers)


def open_publisher(stream: StreamOptions) -> Publisher | None:
    """Where rows go beside the files.

    Raises:
        InputError: if it cannot be written.
    """
    if isinstance(stream.publish, KafkaTopic):
        return KafkaSink(stream.publish, stream.producer_settings())
    return None if stream.publish is None else PubSubTopic(stream.publish.path)


def batches(tweets: Iterable[TokenizedTweet], limits: BatchLimits) -> Iterator[list[TokenizedTweet]]:
    """Cut tweets into batches of similar length."""
    buckets: LengthBuckets[TokenizedTweet] = LengthBuckets(limits)
    for tweet in tweets:
        batch = buckets.add(tweet, tweet.length, tweet_size(tweet.tweet))
        if batch is not None:
            yield batch
    yield from buckets.drain()


def split_by_window(batch: pa.RecordBatch, window: int) -> Iterator[tuple[IntervalWindow, pa.RecordBatch]]:
    """Rows by the window of event time that their column timestamp is in.

    Args:
        batch: rows.
        window: its length in microseconds.
    """
    times = batch.column("timestamp").cast(pa.int64()).to_numpy()
    starts = pa.array(times // window * window)
    found: Sequence[int] = starts.unique().to_pylist()
    for start in found:
        rows = batch if len(found) == 1 else batch.filter(pc.equal(starts, start))
        yield _window_of(start, window), rows


def _window_of(micros: int, window: int) -> IntervalWindow:
    start = micros // window * window
    return IntervalWindow(Timestamp(micros=start), Timestamp(micros=start + window))


def message_fields(config: ScoreConfig, stream: StreamOptions) -> MessageFields:
    """Where a message has what a tweet consists of.

    Args:
        config: the command line.
        stream: its options for endless input.
    """
    source = stream.source
    return MessageFields(
        config.fields,
        stream.format,
        stream.id_attribute,
        stream.timestamp_attribute,
        stream.allowed_lateness,
        # Ids must not depend on which brokers of a cluster are named.
        f"kafka:{source.topic}" if isinstance(source, KafkaTopic) else None,
    )
