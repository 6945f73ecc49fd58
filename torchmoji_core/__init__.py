"""DeepMoji's model for tweets: tokenizer, network, bundles, scoring, training. Useful alone; imports no Beam.

>>> from torchmoji_core import load_bundle
>>> load_bundle().score(["I love mom's cooking"]).top(3)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from torchmoji_core.bundle import Bundle, load_bundle
from torchmoji_core.errors import InputError, RunError, TorchMojiError

if TYPE_CHECKING:
    from torchmoji_core.arrow_scorer import ArrowScorer
    from torchmoji_core.estimators import EmojiFeatures, TweetClassifier
    from torchmoji_core.training.classifier import finetune
    from torchmoji_core.training.options import FineTuningOptions

__version__ = "0.1.0"
__all__ = [
    "ArrowScorer",
    "Bundle",
    "EmojiFeatures",
    "FineTuningOptions",
    "InputError",
    "RunError",
    "TorchMojiError",
    "TweetClassifier",
    "finetune",
    "load_bundle",
]

_ON_DEMAND = {
    "ArrowScorer": "torchmoji_core.arrow_scorer",
    "EmojiFeatures": "torchmoji_core.estimators",
    "TweetClassifier": "torchmoji_core.estimators",
    "FineTuningOptions": "torchmoji_core.training.options",
    "finetune": "torchmoji_core.training.classifier",
}
"""Names by module that are imported when they are asked for: they need torch, pyarrow or scikit-learn."""


def __getattr__(name: str) -> Any:
    if name not in _ON_DEMAND:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_ON_DEMAND[name]), name)
