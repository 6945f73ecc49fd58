"""TokenizeTweets: Tweet -> TokenizedTweet. The rules are in `torchmoji_core.tokenizer`."""

from __future__ import annotations

import apache_beam as beam

from torchmoji_core.bundle import load_tokenizer
from torchmoji_core.tokenizer import Tokenizer
from transforms.records import TokenizedTweet, Tweet
from transforms.scoring.per_process import PerProcess


def tokenize(tweet: Tweet, tokenizer: Tokenizer, maxlen: int) -> TokenizedTweet:
    """Token ids of a tweet, the first `maxlen`."""
    ids = tokenizer.encode(tweet.text, maxlen + 1)
    length = len(ids)
    if length > maxlen:
        return TokenizedTweet(tweet, ids[:maxlen], maxlen, True)
    return TokenizedTweet(tweet, ids, length, False)


class TweetTokenizer:
    """The tokenizer of a bundle, loaded once in each process, however often it is pickled."""

    def __init__(self, model: str | None) -> None:
        """Args:
        model: bundle, by path or URI; None for the bundled one.
        """
        self._model = model
        self._held: PerProcess[tuple[Tokenizer, int]] = PerProcess()

    def get(self) -> tuple[Tokenizer, int]:
        """The tokenizer, and how many tokens of a text the model reads."""
        return self._held.get(self._load)

    def tokenize(self, tweet: Tweet) -> TokenizedTweet:
        """As `tokenize`."""
        return tokenize(tweet, *self.get())

    def _load(self) -> tuple[Tokenizer, int]:
        return load_tokenizer(self._model)


class TokenizeTweets(beam.PTransform):
    """Tokenize with the vocabulary of a bundle; every tweet comes out, those without tokens too."""

    def __init__(self, model: str | None = None) -> None:
        """Args:
        model: bundle, by path or URI; None for the bundled one.
        """
        super().__init__()
        self._model = model

    def expand(self, tweets: beam.PCollection[Tweet]) -> beam.PCollection[TokenizedTweet]:
        return tweets | "Tokenize" >> beam.Map(TweetTokenizer(self._model).tokenize).with_output_types(TokenizedTweet)
