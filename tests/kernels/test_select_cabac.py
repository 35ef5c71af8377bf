"""The arithmetic of `sparse_bitmap`, `topk` and `cabac`: compiled kernels write and read what the oracles do."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tierline.kernels import cabac, sparse_bitmap, topk
from tierline.kernels.library import library
from tierline.kernels.numpy import cabac as cabac_oracle
from tierline.kernels.numpy import sparse_bitmap as sparse_oracle
from tierline.kernels.numpy import topk as topk_oracle

RNG = np.random.default_rng(5)
SHAPES = [(1, 1), (3, 7), (2, 64), (1, 512), (5, 1001), (2, 5000)]
SPARSE = {"numpy": sparse_oracle, "compiled": sparse_bitmap}
TOPK = {"numpy": topk_oracle, "compiled": topk}
CABAC = {"numpy": cabac_oracle, "compiled": cabac}


@pytest.fixture(params=["numpy", "compiled"])
def kind(request: pytest.FixtureRequest) -> str:
    if request.param == "compiled" and library() is None:
        pytest.skip("no C++ compiler")
    return str(request.param)


def relu(shape: tuple[int, int]) -> np.ndarray:
    return np.maximum(RNG.normal(size=shape), 0).astype(np.float32)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_marked_values_lie_together_and_come_back(kind: str, shape: tuple[int, int]) -> None:
    kernel, x_BV = SPARSE[kind], relu(shape)
    bitmap_BP = kernel.mark(x_BV)
    assert np.array_equal(bitmap_BP, np.packbits(x_BV > 0, axis=1))
    assert kernel.count(bitmap_BP).tolist() == (x_BV > 0).sum(axis=1).tolist()
    values = kernel.gather(x_BV, bitmap_BP)
    assert values.tolist() == x_BV[x_BV > 0].tolist()
    back_BV = np.full_like(x_BV, 7)
    kernel.scatter(values, bitmap_BP, back_BV)
    assert np.array_equal(back_BV, x_BV)


def test_neither_zero_is_marked_but_everything_else_is(kind: str) -> None:
    x_BV = np.array([[0.0, -0.0, 1e-45, np.nan, -np.inf]], np.float32)
    assert SPARSE[kind].mark(x_BV).tolist() == [[0b00111000]]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("share", [0.01, 0.3, 1.0])
def test_the_largest_are_chosen_and_of_equal_ones_the_first(kind: str, shape: tuple[int, int], share: float) -> None:
    num_chosen = max(1, int(share * shape[1]))
    for x_BV in (RNG.normal(size=shape).astype(np.float32), RNG.integers(-3, 4, shape).astype(np.float32)):
        chosen_BV = np.unpackbits(TOPK[kind].choose(x_BV, num_chosen), axis=1, count=shape[1])
        for row, chosen in zip(x_BV, chosen_BV, strict=True):
            order = sorted(range(shape[1]), key=lambda i: (-abs(row[i]), i))
            assert np.flatnonzero(chosen).tolist() == sorted(order[:num_chosen])


@pytest.mark.parametrize("num_chosen", [1, 2, 3])
def test_nothing_that_is_not_finite_is_dropped(kind: str, num_chosen: int) -> None:
    x_BV = np.array([[1, 2, 3, 4], [np.inf, 0, np.nan, -np.inf]], np.float32)
    if num_chosen < 3:
        with pytest.raises(ValueError, match=f"more than {num_chosen} values"):
            TOPK[kind].choose(x_BV, num_chosen)
    else:
        assert TOPK[kind].choose(x_BV, num_chosen).tolist() == [[0b01110000], [0b10110000]]


@pytest.mark.parametrize(("num_values", "num_chosen"), [(1, 1), (9, 1), (100, 5), (1000, 7), (64, 40), (5000, 250)])
def test_positions_come_back_and_cost_little(num_values: int, num_chosen: int) -> None:
    positions = np.stack([np.sort(RNG.permutation(num_values)[:num_chosen]) for _ in range(3)])
    mark_BV = np.zeros((3, num_values), np.uint8)
    np.put_along_axis(mark_BV, positions, 1, axis=1)
    bitmap_BP = np.packbits(mark_BV, axis=1)
    packed_BQ = topk.pack_positions(bitmap_BP, num_values, num_chosen)
    assert packed_BQ.shape == (3, topk.positions_bytes(num_values, num_chosen))
    assert np.array_equal(topk.unpack_positions(packed_BQ, num_values, num_chosen), bitmap_BP)
    assert packed_BQ.shape[1] <= (num_values + 7) // 8
    least_bits = math.log2(math.comb(num_values, num_chosen))
    assert 8 * packed_BQ.shape[1] <= least_bits + 0.6 * num_chosen + 16 or packed_BQ.shape[1] == (num_values + 7) // 8


def test_positions_that_no_encoder_writes_are_refused() -> None:
    """V = 100: 4 low bits each; then k + 6 bits, the i-th position's set bit at (position >> 4) + i."""
    good_BP = topk.unpack_positions(np.array([[0x53, 0b00000011], [0x33, 0b10000001]], np.uint8), 100, 2)
    assert [np.flatnonzero(row).tolist() for row in np.unpackbits(good_BP, axis=1)] == [[3, 5], [3, 99]]
    for bad, num_chosen, match in (
        ([0x10, 0b1], 1, "padding"),
        ([0x00, 0b10000001], 1, "padding"),
        ([0x00, 0b00010000], 2, "not 2 positions"),
        ([0x33, 0b00000011], 2, "ascend"),
        ([0x35, 0b00000011], 2, "ascend"),
        ([0x43, 0b10000001], 2, "behind the row's end"),
    ):
        with pytest.raises(ValueError, match=match):
            topk.unpack_positions(np.array([bad], np.uint8), 100, num_chosen)


@pytest.mark.parametrize(("bits", "high_first"), [(1, 0), (1, 1), (2, 0), (3, 0), (4, 0), (7, 0), (8, 0)])
@pytest.mark.parametrize("size", [(2, 3, 5, 7), (1, 1, 1, 9), (3, 2, 1, 1)], ids=str)
def test_streams_are_equal_and_read_by_both(bits: int, size: tuple[int, ...], high_first: int) -> None:
    num_rows, num_values = size[0], math.prod(size[1:])
    shape = cabac.Shape((num_values * bits + 7) // 8, *size, bits, high_first)
    codes_BV = np.minimum(RNG.geometric(0.4, (num_rows, num_values)) - 1, 2**bits - 1).astype(np.uint8)
    bit_BX = np.unpackbits(codes_BV[:, :, None], axis=2, count=bits, bitorder="little").reshape(num_rows, -1)
    packed_BP = np.packbits(bit_BX, axis=1, bitorder="big" if high_first else "little")
    stream = cabac_oracle.encode(packed_BP.tobytes(), shape, 10**6)
    assert stream is not None
    assert cabac.encode(packed_BP.tobytes(), shape, 10**6) == stream
    assert cabac.encode(packed_BP.tobytes(), shape, len(stream) - 1) is None
    for kernel in CABAC.values():
        back_BP = np.zeros_like(packed_BP)
        kernel.decode(stream, back_BP, shape)
        assert np.array_equal(back_BP, packed_BP)
        for damaged in (stream[:-1], stream + b"\0"):
            with pytest.raises(ValueError, match="codes end at"):
                kernel.decode(damaged, np.zeros_like(packed_BP), shape)


def test_any_bytes_are_read_alike() -> None:
    shape = cabac.Shape(30, 2, 3, 4, 5, 4, 0)
    for length in (4, 40, 90):
        stream = RNG.bytes(length)
        found = []
        for kernel in CABAC.values():
            codes_BP = np.zeros((2, 30), np.uint8)
            try:
                kernel.decode(stream, codes_BP, shape)
            except ValueError as error:
                found.append((str(error), codes_BP.tobytes()))
            else:
                found.append(("", codes_BP.tobytes()))
        assert found[0] == found[1]


@pytest.mark.parametrize("bits", range(1, 9))
def test_no_rounded_logarithm_is_near_a_tie(bits: int) -> None:
    """So the tables are the same on every platform, whose logarithms differ in the last of 53 bits."""
    most = 2**bits - 1
    for num_levels, largest in ((24, 6 * most), (17, most), (12, 4 * most)):
        levels = np.array([cabac_oracle.level(value, num_levels, largest) for value in range(1, largest + 1)])
        assert np.abs(levels - np.rint(levels)).min() > 1e-5
        assert levels.max() < num_levels
    chances = (np.arange(4096) + 0.5) / 4096
    scaled = [256 * np.log(chances / (1 - chances)), 65536 / (1 + np.exp(-np.arange(-2048, 2048) / 256))]
    for value in scaled:
        assert np.abs(value - np.floor(value) - 0.5).min() > 1e-5
