"""Codecs of the catalogue as tests name them, and their payloads damaged as a careless or hostile peer may."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from tierline.core.coding import codec_for
from tierline.core.errors import UnknownCodec

EDGES = (0x00, 0x01, 0x7F, 0x80, 0xFE, 0xFF)
WORDS = (0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0x7FC00000, 0x7F800000)


def mutant(corpus: Sequence[bytes], rng: Random, max_edits: int = 4) -> bytes:
    """One of `corpus`, damaged in one to `max_edits` ways; half of them hit its first bytes, where headers are."""
    data = bytearray(rng.choice(corpus))
    for _ in range(1 + int(rng.random() * max_edits)):
        reach = len(data) if rng.random() < 0.5 else min(len(data), 32)
        at = int(rng.random() * (reach + 1))
        kind = int(rng.random() * 8)
        if kind <= 1 and at < len(data):
            data[at] ^= 1 << int(rng.random() * 8)
        elif kind == 2 and at < len(data):
            data[at] = rng.choice(EDGES)
        elif kind == 3:
            data[at : at + 4] = rng.choice(WORDS).to_bytes(4, rng.choice(("little", "big")))
        elif kind == 4:
            del data[at:]
        elif kind == 5:
            del data[at : at + 1 + int(rng.random() * 8)]
        elif kind == 6:
            data[at:at] = rng.randbytes(1 + int(rng.random() * 8))
        else:
            other = rng.choice(corpus)
            data[at:] = other[int(rng.random() * (len(other) + 1)) :]
    return bytes(data)


def plain_token(name: str) -> str:
    """Token that uses a codec of the catalogue with as little beside it as it needs."""
    try:
        return codec_for(name).token
    except UnknownCodec:
        return codec_for(f"affine:4+{name}").token
