"""Beam transforms that annotate tweets; import them from here.

>>> import transforms
>>> outcome = tweets | transforms.AnnotateTweets(model="gs://models/emoji64")
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transforms.annotate import AnnotateTweets
    from transforms.input.fields import FieldMapping, KeptField
    from transforms.input.messages import MessageFields, ParseMessages, ReadMessages
    from transforms.input.read import ReadTweets
    from transforms.options import ScoreOptions
    from transforms.output.publish import PublishScores
    from transforms.output.write import WriteDeadLetters, WriteScores
    from transforms.records import DeadLetter, Outcome, TokenizedTweet, Tweet
    from transforms.scoring.batch import BatchByLength
    from transforms.scoring.buffer import BufferOptions, BufferTweets
    from transforms.scoring.model_handler import TorchMojiModelHandler
    from transforms.scoring.model_refresh import WatchModels
    from transforms.scoring.score import ScoreBatches
    from transforms.scoring.tokenize import TokenizeTweets

__all__ = [
    "AnnotateTweets",
    "BatchByLength",
    "BufferOptions",
    "BufferTweets",
    "DeadLetter",
    "FieldMapping",
    "KeptField",
    "MessageFields",
    "Outcome",
    "ParseMessages",
    "PublishScores",
    "ReadMessages",
    "ReadTweets",
    "ScoreBatches",
    "ScoreOptions",
    "TokenizeTweets",
    "TokenizedTweet",
    "TorchMojiModelHandler",
    "Tweet",
    "WatchModels",
    "WriteDeadLetters",
    "WriteScores",
]

_MODULES = {
    "AnnotateTweets": "annotate",
    "BatchByLength": "scoring.batch",
    "DeadLetter": "records",
    "FieldMapping": "input.fields",
    "BufferOptions": "scoring.buffer",
    "BufferTweets": "scoring.buffer",
    "KeptField": "input.fields",
    "MessageFields": "input.messages",
    "Outcome": "records",
    "ParseMessages": "input.messages",
    "PublishScores": "output.publish",
    "ReadMessages": "input.messages",
    "ReadTweets": "input.read",
    "ScoreBatches": "scoring.score",
    "ScoreOptions": "options",
    "TokenizeTweets": "scoring.tokenize",
    "TokenizedTweet": "records",
    "TorchMojiModelHandler": "scoring.model_handler",
    "Tweet": "records",
    "WatchModels": "scoring.model_refresh",
    "WriteDeadLetters": "output.write",
    "WriteScores": "output.write",
}


def __getattr__(name: str) -> Any:
    """Import a public name on first use: command lines answer --help without loading Beam."""
    if name not in _MODULES:
        raise AttributeError(f"module 'transforms' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(f"transforms.{_MODULES[name]}"), name)
