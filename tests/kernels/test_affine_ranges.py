"""Ranges and roundings of `affine` beyond minimum to maximum and nearest."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from tierline.kernels import affine
from tierline.kernels.library import address, bind, library
from tierline.kernels.numpy import affine as oracle
from tierline.kernels.numpy import affine_clip

RNG = np.random.default_rng(11)


def decoded(data: bytes, x_BV: np.ndarray, bits: int) -> np.ndarray:
    y_BV = np.empty_like(x_BV)
    oracle.decode(data, y_BV, bits)
    return y_BV


def header(data: bytes) -> tuple[float, float]:
    lo, scale = np.frombuffer(data[:8], "<f4").tolist()
    return lo, scale


@pytest.mark.parametrize("num_streams", [0, 1, 2])
@pytest.mark.parametrize("clip", affine.CLIPS)
@pytest.mark.parametrize("bits", [1, 3, 4, 7, 8])
@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (2, 1537)], ids=str)
def test_compiled_bytes_are_those_of_the_oracle(shape: tuple[int, int], bits: int, clip: str, num_streams: int) -> None:
    if library(wait=True) is None:
        pytest.skip("no C++ compiler")
    x_BV = (RNG.normal(size=shape) * 10.0 ** RNG.integers(-30, 30, (shape[0], 1))).astype(np.float32)
    x_BV[-1, ::3] = x_BV[-1, 0]
    options = (bits, clip, shape[1] // 5, num_streams, 2**63 + 17)
    assert affine.encode(x_BV, *options) == oracle.encode(x_BV, *options)


def test_what_a_gpu_does_in_three_launches_is_what_one_call_does() -> None:
    library(wait=True)
    lib = bind(
        tl_affine_range="ppnn", tl_affine_header="pppnni", tl_affine_codes="ppnni", tl_affine_codes_stochastic="ppnniun"
    )
    if lib is None:
        pytest.skip("no C++ compiler")
    x_BV = RNG.normal(size=(4, 777)).astype(np.float32)
    for bits, num_streams in itertools.product((3, 8), (0, 2)):
        keys_B2 = np.tile(np.array([2**31 - 1, -(2**31)], np.int32), (4, 1))
        out, bad = np.zeros(4 * oracle.row_bytes(777, bits), np.uint8), np.zeros(1, np.int32)
        lib.tl_affine_range(address(x_BV), address(keys_B2), 4, 777)
        lib.tl_affine_header(address(keys_B2), address(out), address(bad), 4, 777, bits)
        if num_streams:
            lib.tl_affine_codes_stochastic(address(x_BV), address(out), 4, 777, bits, 5, num_streams)
        else:
            lib.tl_affine_codes(address(x_BV), address(out), 4, 777, bits)
        assert bad[0] == 0
        assert out.tobytes() == oracle.encode(x_BV, bits, num_streams=num_streams, seed=5)


@pytest.mark.parametrize("at", [0, 4, 12])
def test_a_large_result_written_past_the_caches_is_the_same(at: int) -> None:
    num_values = (1 << 22) + 5
    data = affine.encode(RNG.normal(size=(1, num_values)).astype(np.float32))
    x_BV = np.zeros(num_values + at, np.float32)[at:].reshape(1, -1)
    fresh_BV = np.empty_like(x_BV)
    affine.decode(data, x_BV)
    affine.decode(data, fresh_BV, fresh=True)
    assert x_BV.tobytes() == fresh_BV.tobytes()


@pytest.mark.parametrize("dropped", [0, 1, 40, 49])
def test_percentile_leaves_out_the_smallest_and_largest_values(dropped: int) -> None:
    x_V = RNG.standard_cauchy(100).astype(np.float32)
    data = affine.encode(x_V[None], 8, "percentile", dropped)
    ordered = np.sort(x_V)
    lo, scale = header(data)
    assert lo == ordered[dropped]
    assert scale == (ordered[-1 - dropped] - ordered[dropped]) / np.float32(255)
    y_V = decoded(data, x_V[None], 8)[0]
    assert np.abs(y_V - np.clip(x_V, ordered[dropped], ordered[-1 - dropped])).max() <= 0.51 * scale


@pytest.mark.parametrize(
    ("num_values", "percent", "expected"), [(1000, 99.0, 5), (1000, 100.0, 0), (3, 1.0, 1), (2, 1.0, 0), (1, 1.0, 0)]
)
def test_percent_says_how_many_stay_and_one_always_does(num_values: int, percent: float, expected: int) -> None:
    assert affine_clip.num_dropped(num_values, percent) == expected


def squared_error(x_V: np.ndarray, data: bytes, bits: int) -> float:
    return float(((decoded(data, x_V[None], bits)[0] - x_V).astype(np.float64) ** 2).sum())


def brute_force(x_V: np.ndarray, bits: int) -> float:
    """Least squared error over all ranges between 64 even cuts of the whole one."""
    ends = np.linspace(x_V.min(), x_V.max(), 65)
    least = np.inf
    for lo, hi in itertools.combinations(ends, 2):
        step = (hi - lo) / (2**bits - 1)
        rounded = lo + np.rint(np.clip((x_V - lo) / step, 0, 2**bits - 1)) * step
        least = min(least, float(((rounded - x_V) ** 2).sum()))
    return least


@pytest.mark.parametrize("bits", [1, 2, 4])
@pytest.mark.parametrize("shape", ["normal", "outlier", "relu", "bimodal"])
def test_mse_finds_the_range_of_least_squared_error(shape: str, bits: int) -> None:
    rng = np.random.default_rng(3)
    x_V = rng.normal(size=4000).astype(np.float32)
    if shape == "outlier":
        x_V[7] = 30
    elif shape == "relu":
        x_V = np.maximum(x_V, 0)
    elif shape == "bimodal":
        x_V += np.where(rng.random(4000) < 0.3, 6, 0).astype(np.float32)
    found = squared_error(x_V, affine.encode(x_V[None], bits, "mse"), bits)
    assert found < squared_error(x_V, affine.encode(x_V[None], bits), bits)
    assert found <= 1.02 * brute_force(x_V, bits)


def test_mse_keeps_values_that_lie_on_the_levels_exact() -> None:
    x_V = RNG.integers(0, 256, 3000).astype(np.float32)
    x_V[:2] = 0, 255
    assert affine.encode(x_V[None], 8, "mse") == affine.encode(x_V[None], 8)


@pytest.mark.parametrize("bits", [2, 8])
def test_stochastic_rounding_is_unbiased_over_seeds_and_takes_the_two_neighbours(bits: int) -> None:
    x_BV = RNG.normal(size=(1, 40)).astype(np.float32)
    num_seeds = 2000
    y_SV = np.concatenate(
        [decoded(affine.encode(x_BV, bits, num_streams=1, seed=s), x_BV, bits) for s in range(num_seeds)]
    )
    _, scale = header(affine.encode(x_BV, bits))
    assert (np.abs(y_SV - x_BV) < scale * 1.0001).all()
    # A mean of bounded draws: their spread is at most half a step, so six of its deviations are never met by chance.
    assert np.abs(y_SV.mean(axis=0) - x_BV[0]).max() < 6 * 0.5 * scale / np.sqrt(num_seeds)
    ends = [x_BV.argmin(), x_BV.argmax()]
    assert np.ptp(y_SV[:, ends], axis=0).max() == 0  # ends lie on levels, up to rounding of the scale


def test_stochastic_rows_share_their_words_within_a_stream_only() -> None:
    x_BV = np.tile(RNG.normal(size=50).astype(np.float32), (4, 1))
    rows = np.frombuffer(affine.encode(x_BV, 4, num_streams=2, seed=9), np.uint8).reshape(4, -1)
    assert np.array_equal(rows[0], rows[2])
    assert np.array_equal(rows[1], rows[3])
    assert not np.array_equal(rows[0], rows[1])
