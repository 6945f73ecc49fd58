"""A few seconds of fuzzing in every run of the suite: the seeds, and simple mutations of them, without guidance."""

from __future__ import annotations

import random

import pytest

from tests.fuzz.targets import BOUNDS, TARGETS

MUTATIONS = 6


@pytest.mark.parametrize("name", TARGETS)
def test_mutated_inputs_break_no_promise(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module, bound, value in BOUNDS:
        monkeypatch.setattr(module, bound, value)
    generator = random.Random(name)
    for seed in TARGETS[name].seeds:
        TARGETS[name].run(seed)
        for _ in range(MUTATIONS):
            TARGETS[name].run(mutate(seed, generator))


def mutate(content: bytes, generator: random.Random) -> bytes:
    """Change, remove, double or put in some bytes."""
    changed = bytearray(content)
    for _ in range(generator.randint(1, 4)):
        place = generator.randrange(len(changed) + 1)
        size = generator.choice([1, 1, 1, 2, 8, 64])
        kind = generator.randrange(4)
        piece = changed[place : place + size]
        changed[place : place + size] = [
            generator.randbytes(len(piece)),
            b"",
            piece * 2,
            generator.randbytes(size) + piece,
        ][kind]
    return bytes(changed)
