"""Emoji features in a model of scikit-learn, beside words: is a review glad or cross?

python examples/features_for_scikit_learn.py
"""

from __future__ import annotations

from itertools import product

from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold, cross_val_score
from sklearn.pipeline import make_pipeline, make_union
from sklearn.preprocessing import StandardScaler

from torchmoji_core import EmojiFeatures

GLAD = ("best {} ever, thank you so much", "love this {} 😊", "the {} made my day!!", "so happy with my {}")
CROSS = (
    "worst {} ever, never again",
    "the {} broke after a day, so annoyed",
    "ugh, this {}",
    "i want my money back for the {}",
)
THINGS = ("phone", "coffee", "hotel", "game", "show", "train", "haircut", "pizza")


def main() -> None:
    texts = [text.format(thing) for text, thing in product(GLAD + CROSS, THINGS)]
    labels = ["glad"] * len(GLAD) * len(THINGS) + ["cross"] * len(CROSS) * len(THINGS)
    # Each sentence is in the training data or in the test data, whatever the thing is.
    groups = [number for number in range(len(GLAD + CROSS)) for _ in THINGS]
    emojis = make_pipeline(EmojiFeatures(), StandardScaler())
    for name, features in (
        ("words", TfidfVectorizer()),
        ("emojis", emojis),
        ("both", make_union(TfidfVectorizer(), emojis)),
    ):
        model = make_pipeline(features, LogisticRegression(max_iter=1_000))
        accuracy = cross_val_score(model, texts, labels, groups=groups, cv=StratifiedGroupKFold(4)).mean()
        print(f"{name:<7} accuracy on sentences not seen before: {accuracy:.2f}")


if __name__ == "__main__":
    main()
