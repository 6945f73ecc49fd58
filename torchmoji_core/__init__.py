"""DeepMoji's model for tweets: tokenizer, network, bundles, scoring, training. Useful alone; imports no Beam.

>>> from torchmoji_core import load_bundle
>>> load_bundle().score(["I love mom's cooking"]).top(3)
"""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

from torchmoji_core.bundle import Bundle, load_bundle
from torchmoji_core.errors import InputError, RunError, TorchMojiError

if TYPE_CHECKING:
    from torchmoji_core.arrow_scorer import ArrowScorer
    from torchmoji_core.attention import AttentionWeightedAverage
    from torchmoji_core.dimensions import Dimensions
    from torchmoji_core.estimators import EmojiFeatures, TweetClassifier
    from torchmoji_core.initialization import INITIALIZATIONS
    from torchmoji_core.lstm import HardSigmoidLSTM
    from torchmoji_core.model import Dropout, ModelOutput, TorchMoji, pack_ids
    from torchmoji_core.tokenizer import Tokenizer
    from torchmoji_core.training.classifier import finetune
    from torchmoji_core.training.dataset import Batch, TweetDataset, collate
    from torchmoji_core.training.labelled_texts import LabelledTexts, label_texts
    from torchmoji_core.training.options import FineTuningOptions
    from torchmoji_core.training.sampler import BalancedBatchSampler
    from torchmoji_core.training.text_filter import TextFilter
    from torchmoji_core.training.words import count_words, vocabulary_of
    from torchmoji_core.vocabulary import Vocabulary

__version__ = "0.1.0"
__all__ = [
    "INITIALIZATIONS",
    "ArrowScorer",
    "AttentionWeightedAverage",
    "BalancedBatchSampler",
    "Batch",
    "Bundle",
    "Dimensions",
    "Dropout",
    "FineTuningOptions",
    "HardSigmoidLSTM",
    "InputError",
    "LabelledTexts",
    "ModelOutput",
    "RunError",
    "TextFilter",
    "Tokenizer",
    "TorchMoji",
    "TorchMojiError",
    "TweetDataset",
    "Vocabulary",
    "collate",
    "count_words",
    "finetune",
    "label_texts",
    "load_bundle",
    "pack_ids",
    "vocabulary_of",
]
if importlib.util.find_spec("sklearn"):  # which is an extra; without it an import of * would fail
    __all__ += ["EmojiFeatures", "TweetClassifier"]

_ON_DEMAND = {
    "ArrowScorer": "torchmoji_core.arrow_scorer",
    "AttentionWeightedAverage": "torchmoji_core.attention",
    "BalancedBatchSampler": "torchmoji_core.training.sampler",
    "Batch": "torchmoji_core.training.dataset",
    "Dimensions": "torchmoji_core.dimensions",
    "Dropout": "torchmoji_core.model",
    "EmojiFeatures": "torchmoji_core.estimators",
    "FineTuningOptions": "torchmoji_core.training.options",
    "HardSigmoidLSTM": "torchmoji_core.lstm",
    "INITIALIZATIONS": "torchmoji_core.initialization",
    "LabelledTexts": "torchmoji_core.training.labelled_texts",
    "ModelOutput": "torchmoji_core.model",
    "TextFilter": "torchmoji_core.training.text_filter",
    "Tokenizer": "torchmoji_core.tokenizer",
    "TorchMoji": "torchmoji_core.model",
    "TweetClassifier": "torchmoji_core.estimators",
    "TweetDataset": "torchmoji_core.training.dataset",
    "Vocabulary": "torchmoji_core.vocabulary",
    "collate": "torchmoji_core.training.dataset",
    "count_words": "torchmoji_core.training.words",
    "finetune": "torchmoji_core.training.classifier",
    "label_texts": "torchmoji_core.training.labelled_texts",
    "pack_ids": "torchmoji_core.model",
    "vocabulary_of": "torchmoji_core.training.words",
}
"""Names by module that are imported when they are asked for: most need torch, pyarrow or scikit-learn."""


def __getattr__(name: str) -> Any:
    if name not in _ON_DEMAND:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_ON_DEMAND[name]), name)


def __dir__() -> list[str]:
    """Those on demand as well, for completion and `help`."""
    return sorted({*globals(), *__all__})
