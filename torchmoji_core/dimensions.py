"""The sizes of a model, from which the sizes of all its files follow. Imports no torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from torchmoji_core.limits import check_limit


@dataclass(frozen=True)
class Dimensions:
    """Sizes of a model. DeepMoji's published one is (50,000, 256, 512, 64)."""

    vocabulary: int
    embedding: int
    hidden: int
    classes: int

    def __post_init__(self) -> None:
        """Raises:
        InputError: if one is no positive integer, or above what `torchmoji_core.limits` allow.
        """
        for name, value in asdict(self).items():
            check_limit(f"model dimension {name!r}", name, value)
        check_limit("the number of a model's weights", "weights", self.weights)

    @property
    def channels(self) -> int:
        """Width of the tweet embedding: two bidirectional layers and the word embedding; 2304 at full size."""
        return 4 * self.hidden + self.embedding

    @property
    def weights(self) -> int:
        """How many numbers the model consists of."""
        lstm = sum(8 * self.hidden * (width + self.hidden + 2) for width in (self.embedding, 2 * self.hidden))
        return self.vocabulary * self.embedding + lstm + self.channels + self.classes * (self.channels + 1)
