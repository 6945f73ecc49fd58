"""TokenizeTweets: Tweet -> TokenizedTweet. The rules are in `torchmoji_core.tokenizer`."""

from __future__ import annotations

from collections.abc import Iterator

import apache_beam as beam

from torchmoji_core.bundle import load_tokenizer
from torchmoji_core.tokenizer import Tokenizer
from torchmoji_core.vocabulary import UNKNOWN
from transforms import metrics
from transforms.records import TokenizedTweet, Tweet
from transforms.scoring.per_process import PerProcess


def tokenize(tweet: Tweet, tokenizer: Tokenizer, maxlen: int) -> TokenizedTweet:
    """Token ids of a tweet, the first `maxlen`."""
    ids = tokenizer.ids(tweet.text, maxlen + 1)
    truncated = len(ids) > maxlen
    if truncated:
        ids = ids[:maxlen]
    return TokenizedTweet(tweet, ids, len(ids), truncated, ids.count(UNKNOWN))


class TokenizeTweets(beam.PTransform):
    """Tokenize with the vocabulary of a bundle; every tweet comes out, those without tokens too."""

    def __init__(self, model: str | None = None) -> None:
        """Args:
        model: bundle, by path or URI; None for the bundled one.
        """
        super().__init__()
        self._model = model

    def expand(self, tweets: beam.PCollection[Tweet]) -> beam.PCollection[TokenizedTweet]:
        return tweets | "Tokenize" >> beam.ParDo(_Tokenize(self._model)).with_output_types(TokenizedTweet)


class _Tokenize(beam.DoFn):
    def __init__(self, model: str | None) -> None:
        self._model = model
        self._held: PerProcess[tuple[Tokenizer, int]] = PerProcess()

    def setup(self) -> None:
        self._tokenizer, self._maxlen = self._held.get(lambda: load_tokenizer(self._model))

    def process(self, tweet: Tweet) -> Iterator[TokenizedTweet]:
        tokenized = tokenize(tweet, self._tokenizer, self._maxlen)
        metrics.distribution(metrics.TEXT_TOKENS).update(tokenized.length)
        yield tokenized
