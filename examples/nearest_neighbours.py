"""Texts that feel alike: the nearest neighbours of a text by the cosine of their embeddings.

python examples/nearest_neighbours.py "cannot wait to see you"
"""

from __future__ import annotations

import sys

import numpy as np

from torchmoji_core import load_bundle

TEXTS = [
    "two more sleeps until the festival, so excited",
    "my train is late again, i give up",
    "she said yes!!! best day of my life",
    "miss my dog so much, the house is quiet",
    "who ate my lunch from the fridge, seriously",
    "this lecture never ends, so bored",
    "happy birthday to the best mum in the world",
    "lol that cat fell off the sofa again",
    "feeling ill, staying in bed all day",
    "new song is out and it is fire",
]


def main(query: str) -> None:
    bundle = load_bundle()
    embeddings = bundle.encode(TEXTS, normalize=True)
    cosines = embeddings @ bundle.encode(query, normalize=True)
    print(query)
    for index in np.argsort(-cosines)[:3]:
        print(f"  {cosines[index]:.2f}  {TEXTS[index]}")


if __name__ == "__main__":
    main(*sys.argv[1:2] or ["cannot wait to see you"])
