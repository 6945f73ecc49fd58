"""DeepMoji's model for tweets: tokenizer, network, bundles, scoring, training. Useful alone; imports no Beam.

>>> from torchmoji_core import load_bundle
>>> load_bundle().score(["I love mom's cooking"]).top(3)
"""

from torchmoji_core.bundle import Bundle, load_bundle
from torchmoji_core.errors import InputError, RunError, TorchMojiError

__version__ = "0.1.0"
__all__ = ["Bundle", "InputError", "RunError", "TorchMojiError", "load_bundle"]
