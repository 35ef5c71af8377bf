"""Codes of a quantiser through a context-adaptive binary arithmetic coder, in plain Python: slow, but it says it all.

A code is a tree of binary decisions: is it above 0, then its bits, highest first. Each decision is predicted thrice,
by counting what followed under three contexts: the weighted sum of four neighbours; the left and the upper one; the
plane's mean so far with four neighbours further out and whether the plane before has something here. The three
chances p are mixed as `squash(sum_m w_m * stretch(p_m))`, stretch(p) = ln(p / (1 - p)), squash its inverse, and the
weights follow the gradient of the coding cost (M. Mahoney, Adaptive Weighing of Context Models for Lossless Data
Compression, 2005). Context coding of a binarised value is that of D. Marpe, H. Schwarz and T. Wiegand (CABAC, 2003),
section III.

All integers: chances have 16 bits, stretched ones 8 bits of fraction, weights 16. Every stream starts from the same
model.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.int32]

NUM_CONTEXTS = 24 + 17 * 17 + 12 * 12 * 2
"""Of the three predictions together."""
FIRST_STATE = 32768 << 7
"""An even chance, seen never."""
FIRST_WEIGHT = 26214
"""0.4."""
_SLOWEST = 1 / 100
"""Least rate at which a chance follows what is seen."""
_LAST_STRETCH = 2047
_LAST_WEIGHT = 1 << 22
"""64: no stream drives a weight further."""


class Shape(NamedTuple):
    """Rows of packed codes, `row_bytes` apart; each row has planes of height times width codes."""

    row_bytes: int
    num_rows: int
    num_planes: int
    height: int
    width: int
    bits: int
    high_first: int
    """1 where the first of 1-bit codes is the most significant bit of its byte, as `bitplane` has it; otherwise code i
    is in bits i * bits and up of a little-endian stream."""


@cache
def tables(bits: int) -> Integers:
    """stretch by chance >> 4, squash by stretched + 2048, rates, then levels of sums, values and means of codes.

    Logarithms are rounded far from any tie (a test says how far), so every platform has the same.
    """
    chances = [(at + 0.5) / 4096 for at in range(4096)]
    stretch = [round(256 * math.log(p / (1 - p))) for p in chances]
    squash = [round(65536 / (1 + math.exp(-at / 256))) for at in range(-2048, 2048)]
    rate = [int(65536 * max(1 / (seen + 1.5), _SLOWEST)) for seen in range(128)]
    most = (1 << bits) - 1
    made = np.zeros(11264, np.int32)
    made[:4096] = np.clip(stretch, -_LAST_STRETCH, _LAST_STRETCH)
    made[4096:8192] = np.clip(squash, 32, 65536 - 32)
    made[8192:8320] = rate
    for start, num_levels, largest in ((8320, 24, 6 * most), (9856, 17, most), (10112, 12, 4 * most)):
        made[start : start + largest + 1] = [int(level(at, num_levels, largest)) for at in range(largest + 1)]
    return made


def level(value: int, num_levels: int, largest: int) -> float:
    """Of a value from 0 to `largest` on a logarithmic scale, to be rounded down: 0 has level 0 alone."""
    return 1 + math.log2(1 + value) / math.log2(1 + largest) * (num_levels - 1.001) if value else 0.0


def encode(data: bytes, shape: Shape, capacity: int) -> bytes | None:
    """The stream, or None where it takes more than `capacity` bytes."""
    coder = _Coder(shape.bits, b"", decodes=False)
    _walk(coder, np.frombuffer(data, np.uint8), shape)
    for shift in (24, 16, 8, 0):
        coder.out.append(coder.low >> shift & 255)
    return bytes(coder.out) if len(coder.out) <= capacity else None


def decode(stream: bytes, data: npt.NDArray[np.uint8], shape: Shape) -> None:
    """Undo `encode` into zeroed `data`. Raises ValueError for a stream longer or shorter than its codes need."""
    coder = _Coder(shape.bits, stream, decodes=True)
    for _ in range(4):
        coder.word = coder.word << 8 | coder.next()
    _walk(coder, data, shape)
    if coder.at != len(stream):
        raise ValueError(f"a stream of {len(stream)} bytes whose codes end at {coder.at}")


@dataclass
class _Coder:
    bits: int
    stream: bytes
    decodes: bool

    def __post_init__(self) -> None:
        self.stretch, self.squash, self.rate = (tables(self.bits)[a:b].tolist() for a, b in _PARTS)
        self.model = [FIRST_STATE] * (NUM_CONTEXTS << self.bits)
        self.weights = [FIRST_WEIGHT] * (3 << self.bits)
        self.out = bytearray()
        self.at, self.word, self.low, self.high = 0, 0, 0, 0xFFFFFFFF

    def next(self) -> int:
        self.at += 1
        return self.stream[self.at - 1] if self.at <= len(self.stream) else 0

    def bit(self, slots: tuple[int, int, int], node: int, bit: int) -> int:
        """Code one decision; while decoding `bit` is ignored, and what was read comes back."""
        states = [self.model[slot + node] for slot in slots]
        stretched = [self.stretch[state >> 11] for state in states]
        mixed = sum(self.weights[3 * node + m] * stretched[m] for m in range(3)) >> 16
        chance = self.squash[2048 + max(-_LAST_STRETCH, min(mixed, _LAST_STRETCH))]
        middle = self.low + ((self.high - self.low) * chance >> 16)
        if self.decodes:
            bit = int(self.word <= middle)
        self.low, self.high = (self.low, middle) if bit else (middle + 1, self.high)
        while not (self.low ^ self.high) >> 24:
            if self.decodes:
                self.word = (self.word << 8 & 0xFFFFFFFF) | self.next()
            else:
                self.out.append(self.low >> 24)
            self.low, self.high = self.low << 8 & 0xFFFFFFFF, (self.high << 8 & 0xFFFFFFFF) | 255
        missed = (bit << 16) - chance
        for m, (slot, state) in enumerate(zip(slots, states, strict=True)):
            seen, p = state & 127, state >> 7
            p += (65535 * bit - p) * (self.rate[seen] >> 1) >> 15
            self.model[slot + node] = p << 7 | min(seen + 1, 127)
            weight = self.weights[3 * node + m] + (stretched[m] * missed + 8192 >> 14)
            self.weights[3 * node + m] = max(-_LAST_WEIGHT, min(weight, _LAST_WEIGHT))
        return bit

    def code(self, slots: tuple[int, int, int], code: int) -> int:
        some = self.bit(slots, 0, int(code > 0))
        if not some or self.bits == 1:
            return some
        node = 1
        for k in range(self.bits - 1, -1, -1):
            node = 2 * node + self.bit(slots, node, code >> k & 1)
        return node - (1 << self.bits)


_PARTS = ((0, 4096), (4096, 8192), (8192, 8320))


def _walk(coder: _Coder, data: npt.NDArray[np.uint8], shape: Shape) -> None:
    """Codes every value of a batch in order; while decoding, packs them into `data`."""
    num_values = shape.num_planes * shape.height * shape.width
    order: Literal["big", "little"] = "big" if shape.high_first else "little"
    for row in data.reshape(shape.num_rows, shape.row_bytes):
        bits_Vb = np.zeros((num_values, 8), np.uint8)
        bits_Vb[:, : shape.bits] = np.unpackbits(row, count=num_values * shape.bits, bitorder=order).reshape(
            num_values, shape.bits
        )
        codes: list[int] = np.packbits(bits_Vb, axis=1, bitorder="little")[:, 0].tolist()
        for at, slots in _contexts(codes, shape):
            codes[at] = coder.code(slots, codes[at])
        bits_Vb = np.unpackbits(np.array(codes, np.uint8)[:, None], axis=1, bitorder="little")
        if coder.decodes:
            row[:] = np.packbits(bits_Vb[:, : shape.bits].reshape(-1), bitorder=order)


def _contexts(codes: list[int], shape: Shape) -> Iterator[tuple[int, tuple[int, int, int]]]:
    """Index of each code, and where the models of its three contexts begin; reads only codes before it."""
    table = tables(shape.bits)
    sums, values, means = table[8320:9856].tolist(), table[9856:10112].tolist(), table[10112:].tolist()
    width, area, nodes = shape.width, shape.height * shape.width, 1 << shape.bits
    for plane in range(shape.num_planes):
        total = 0
        for y in range(shape.height):
            for x in range(width):
                seen = y * width + x
                i = plane * area + seen
                left = codes[i - 1] if x else 0
                up = codes[i - width] if y else left
                left = left if x else up
                up_left = codes[i - width - 1] if x and y else min(left, up)
                up_right = codes[i - width + 1] if y and x + 1 < width else up
                left2, up2 = codes[i - 2] if x > 1 else left, codes[i - 2 * width] if y > 1 else up
                before = codes[i - area] if plane else 0
                mean = 4 * total // seen if seen else 4 * before
                third = (means[mean] * 12 + means[up_left + up_right + left2 + up2]) * 2 + int(before > 0)
                yield (
                    i,
                    (
                        sums[2 * left + 2 * up + up_left + up_right] * nodes,
                        (24 + values[left] * 17 + values[up]) * nodes,
                        (24 + 17 * 17 + third) * nodes,
                    ),
                )
                total += codes[i]
