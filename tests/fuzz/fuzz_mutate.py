"""Inputs that are almost right: seeds, changed in a few places."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

LARGEST = 1 << 16
"""Bytes of an input: growing further finds nothing and takes long."""


def mutated(random: Random, seeds: Sequence[bytes], tokens: Sequence[bytes]) -> bytes:
    """A seed after one to eight changes; rarely of more than ``LARGEST`` bytes."""
    data = bytearray(random.choice(seeds))
    for _ in range(min(8, 1 + int(random.expovariate(0.5)))):
        _change(random, data, seeds, tokens)
    return bytes(data[:LARGEST])


def _change(random: Random, data: bytearray, seeds: Sequence[bytes], tokens: Sequence[bytes]) -> None:
    """One change, in place."""
    size = len(data)
    at = random.randrange(size + 1)
    # mostly short: a change that takes away half of the input leaves little to be wrong with the rest
    length = min(1 + int(random.expovariate(0.2)), size - at)
    match random.randrange(9):
        case 0 if at < size:  # another bit
            data[at] ^= 1 << random.randrange(8)
        case 1 if at < size:  # another byte: anything, a border, or a neighbour of what it was
            data[at] = random.choice(
                (random.randrange(256), 0, 255, 127, 128, data[at] - 1 & 255, data[at] + 1 & 255)
            )
        case 2:
            del data[at : at + length]
        case 3:  # ends early
            del data[at:]
        case 4:  # something twice
            data[at:at] = data[at : at + length] * random.choice((1, 1, 2, 30))
        case 5 if tokens:
            data[at:at] = random.choice(tokens)
        case 6 if tokens:  # in the place of something
            token = random.choice(tokens)
            data[at : at + len(token)] = token
        case 7:  # the rest of another input
            other = random.choice(seeds)
            data[at:] = other[random.randrange(len(other) + 1) :]
        case _:
            data[at:at] = random.randbytes(length or 1)
