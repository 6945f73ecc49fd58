"""Beam transforms that annotate tweets; import them from here.

>>> import transforms
>>> outcome = tweets | transforms.AnnotateTweets(model="gs://models/emoji64")
"""

from importlib import import_module
from typing import Any

_NAMES = {
    "annotate": ("AnnotateTweets",),
    "input.fields": ("FieldMapping", "KeptField"),
    "input.messages": ("MessageFields", "ParseMessages", "ReadMessages"),
    "input.read": ("ReadTweets",),
    "options": ("ScoreOptions",),
    "output.publish": ("PublishScores",),
    "output.write": ("WriteDeadLetters", "WriteScores"),
    "records": ("DeadLetter", "Outcome", "TokenizedTweet", "Tweet"),
    "rows": ("AnnotateForYaml", "AnnotateRows"),
    "scoring.batch": ("BatchByLength",),
    "scoring.buffer": ("BufferOptions", "BufferTweets"),
    "scoring.embeddings": ("TorchMojiEmbeddings",),
    "scoring.model_handler": ("TorchMojiModelHandler",),
    "scoring.model_refresh": ("WatchModels",),
    "scoring.run_inference": ("ScoreBatches",),
    "scoring.tokenize": ("TokenizeTweets",),
}
"""What is public, by the module that it is in."""
_MODULES = {name: module for module, names in _NAMES.items() for name in names}
__all__ = sorted(_MODULES)


def __getattr__(name: str) -> Any:
    """Import a public name on first use: command lines answer --help without loading Beam."""
    if name not in _MODULES:
        raise AttributeError(f"module 'transforms' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(f"transforms.{_MODULES[name]}"), name)
