"""The arithmetic of `dithered`, of the NumPy oracle and of the compiled kernel alike, and how its error behaves."""

from __future__ import annotations

import math
import struct
from types import ModuleType

import numpy as np
import pytest

from tierline.kernels import dithered
from tierline.kernels.library import library
from tierline.kernels.numpy import dithered as oracle
from tierline.kernels.numpy import philox, radix

RNG = np.random.default_rng(5)
MANY = 1 << 16


@pytest.fixture(params=[oracle, dithered], ids=["numpy", "compiled"])
def kernel(request: pytest.FixtureRequest) -> ModuleType:
    if request.param is dithered and library(wait=True) is None:
        pytest.skip("no C++ compiler")
    module: ModuleType = request.param
    return module


def there_and_back(
    kernel: ModuleType, x_BV: np.ndarray, levels: int, seed: int, other: int | None = None
) -> np.ndarray:
    decoded_BV = np.empty_like(x_BV)
    kernel.decode(kernel.encode(x_BV, levels, seed), decoded_BV, levels, seed if other is None else other)
    return decoded_BV


def steps_off(kernel: ModuleType, x_V: np.ndarray, levels: int, seed: int) -> np.ndarray:
    """Errors in steps of values within -1 .. 1, with a one in front that fixes the step."""
    x_BV = np.concatenate([[1.0], x_V]).astype(np.float32)[None]
    error_V: np.ndarray = (there_and_back(kernel, x_BV, levels, seed) - x_BV.astype(np.float64))[0, 1:]
    return error_V * (levels // 2)


def distance_from_uniform(error_V: np.ndarray) -> float:
    """From -1/2 to 1/2, by Kolmogorov and Smirnov: the largest difference of the distribution functions."""
    expected = np.sort(error_V) + 0.5
    return float(np.abs(expected - (np.arange(len(error_V)) + 0.5) / len(error_V)).max())


INPUTS = {
    "zero": np.zeros(MANY),
    "a level": np.full(MANY, 1 / 7),
    "between two levels": np.full(MANY, 0.5 / 7),
    "anywhere": np.full(MANY, -0.333),
    "the largest": np.full(MANY, -1.0),
    "normal": np.clip(RNG.normal(size=MANY) / 3, -1, 1),
    "a ramp": np.linspace(-1, 1, MANY),
    "few levels": RNG.integers(-7, 8, MANY) / 7,
}


@pytest.mark.parametrize("x_V", INPUTS.values(), ids=INPUTS)
def test_the_error_is_uniform_whatever_is_coded(kernel: ModuleType, x_V: np.ndarray) -> None:
    error_V = steps_off(kernel, x_V, 15, 3)
    assert np.abs(error_V).max() <= 0.5 + 1e-4
    assert distance_from_uniform(error_V) < 2 / math.sqrt(MANY)  # chance of a uniform sample: 1 in 1500
    assert abs(error_V.mean()) < 4 * math.sqrt(1 / 12 / MANY)
    assert error_V.var() == pytest.approx(1 / 12, rel=0.02)


@pytest.mark.parametrize("levels", [3, 15, 255])
def test_the_error_does_not_depend_on_what_is_coded(kernel: ModuleType, levels: int) -> None:
    x_V = np.clip(RNG.normal(size=MANY) / 3, -1, 1)
    error_V = steps_off(kernel, x_V, levels, 9)
    fraction_V = x_V * (levels // 2) % 1
    for of_input in (x_V, np.abs(x_V), fraction_V, np.abs(fraction_V - 0.5)):
        for of_error in (error_V, np.abs(error_V), error_V**2):
            assert abs(np.corrcoef(of_input, of_error)[0, 1]) < 0.02
    for part in np.split(error_V[np.argsort(fraction_V)], 16):
        assert part.var() == pytest.approx(1 / 12, rel=0.1)
        assert distance_from_uniform(part) < 2.2 / math.sqrt(len(part))


def test_without_the_dither_taken_off_the_error_would_depend(kernel: ModuleType) -> None:
    x_V = INPUTS["between two levels"]
    halved_V = steps_off(kernel, x_V, 15, 3) + oracle.dither(MANY + 1, 3)[1:]
    assert halved_V.var() == pytest.approx(1 / 4, rel=0.02)  # d (1 - d) with d = 1/2, instead of 1/12


def test_over_seeds_the_mean_is_what_was_coded(kernel: ModuleType) -> None:
    x_BV = np.array([[1, 0.5, 0.123, -0.9, 0]], np.float32)
    mean_V = np.mean([there_and_back(kernel, x_BV, 3, seed)[0] for seed in range(800)], axis=0)
    assert np.abs(mean_V - x_BV[0]).max() < 4 * math.sqrt(1 / 12 / 800)


def test_another_seed_does_not_decode(kernel: ModuleType) -> None:
    x_BV = RNG.uniform(-1, 1, (1, MANY)).astype(np.float32)
    right, wrong = (float(np.var(there_and_back(kernel, x_BV, 15, 1, other) - x_BV)) for other in (1, 2))
    assert wrong == pytest.approx(3 * right, rel=0.05)  # two more dithers of variance 1/12 in it


def test_agrees_with_a_loop_over_scalars(kernel: ModuleType) -> None:
    x_BV = (RNG.normal(size=(3, 37)) * 10.0 ** np.array([[-20], [0], [20]])).astype(np.float32)
    seed, levels = 2**53 - 1, 9
    word_V = philox.words(37, seed)
    decoded_BV = there_and_back(kernel, x_BV, levels, seed)
    coded_BP = np.frombuffer(kernel.encode(x_BV, levels, seed), np.uint8).reshape(3, -1)
    symbol_BV = np.empty((3, 37), np.uint8)
    radix.unpack(coded_BP[:, 4:].tobytes(), symbol_BV, levels)
    for x_V, coded_P, symbol_V, decoded_V in zip(x_BV, coded_BP, symbol_BV, decoded_BV, strict=True):
        scale = np.abs(x_V).max() / np.float32(4)
        inverse = np.float32(1) / scale
        assert coded_P[:4].tobytes() == struct.pack("<f", scale)
        for x, word, symbol, decoded in zip(x_V, word_V, symbol_V, decoded_V, strict=True):
            u = np.float32(int(word) >> 8) * np.float32(2.0**-24) - np.float32(0.5)
            level = min(max(int(np.rint(x * inverse + u)), -4), 4)
            assert symbol == level + 4
            assert decoded == scale * (np.float32(level) - u)


@pytest.mark.parametrize("levels", [3, 5, 7, 255])
def test_the_largest_values_stay_within_half_a_step(kernel: ModuleType, levels: int) -> None:
    x_BV = np.where(RNG.random((1, MANY)) < 0.5, 1, -1).astype(np.float32) * np.float32(0.3)
    error_BV = there_and_back(kernel, x_BV, levels, 8) - x_BV
    assert np.abs(error_BV).max() <= 0.3 / (levels // 2) * 0.5001
    assert np.abs(error_BV).max() > 0.3 / (levels // 2) * 0.499


def test_a_sum_that_rounds_beyond_the_last_level_stays_on_it(kernel: ModuleType) -> None:
    num_values, seed = 1 << 20, 4
    assert (np.rint(oracle.dither(num_values, seed) + np.float32(127)) == 128).any()  # or this would show nothing
    x_BV = np.full((1, num_values), 127, np.float32)
    assert np.abs(there_and_back(kernel, x_BV, 255, seed) - x_BV).max() <= 0.5001


def test_rows_of_zeros_and_tiny_rows(kernel: ModuleType) -> None:
    x_BV = np.array([[0, -0.0, 0], [1e-45, -1e-44, 0]], np.float32)
    decoded_BV = there_and_back(kernel, x_BV, 15, 1)
    assert decoded_BV[0].tolist() == [0, 0, 0]
    assert np.abs(decoded_BV - x_BV).max() <= 2.0**-127
    assert kernel.encode(x_BV[:1], 15, 1)[:4] == bytes(4)


def test_the_widest_range_it_promises(kernel: ModuleType) -> None:
    x_BV = np.array([[-(2.0**126), 0.0, 2.0**126]], np.float32)
    assert np.abs(there_and_back(kernel, x_BV, 3, 1) - x_BV).max() <= 2.0**126 * 0.50001


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e38, -1e38])
def test_values_without_a_place_are_refused(kernel: ModuleType, bad: float) -> None:
    x_BV = np.ones((2, 4), np.float32)
    x_BV[1, 2] = bad
    with pytest.raises(ValueError, match="NaN, infinite"):
        kernel.encode(x_BV, 15, 0)


@pytest.mark.parametrize("scale", [np.nan, np.inf, -1.0, 1e-45, 1e38, 1.3e37])
def test_scales_that_no_encoder_writes_are_refused(kernel: ModuleType, scale: float) -> None:
    with pytest.raises(ValueError, match="header"):
        kernel.decode(struct.pack("<f", scale) + b"\1", np.empty((1, 2), np.float32), 15, 0)


def test_words_that_no_encoder_writes_are_refused(kernel: ModuleType) -> None:
    with pytest.raises(ValueError, match="more than its digits"):
        kernel.decode(struct.pack("<f", 1.0) + bytes([225]), np.empty((1, 2), np.float32), 15, 0)


@pytest.mark.parametrize("levels", [3, 9, 15, 17, 255])
@pytest.mark.parametrize("shape", [(0, 5), (3, 0), (1, 1), (3, 37), (2, 4099)], ids=str)
def test_both_write_and_read_the_same_bytes(kernel: ModuleType, shape: tuple[int, int], levels: int) -> None:
    x_BV = (RNG.normal(size=shape) * 10.0 ** RNG.integers(-9, 4, (shape[0], 1))).astype(np.float32)
    seed = int(RNG.integers(2**53))
    data = kernel.encode(x_BV, levels, seed)
    assert data == oracle.encode(x_BV, levels, seed)
    assert len(data) == shape[0] * oracle.row_bytes(shape[1], levels)
    assert data == b"".join(oracle.encode(x_BV[b : b + 1], levels, seed) for b in range(shape[0]))
    expected_BV, decoded_BV = np.empty_like(x_BV), np.empty_like(x_BV)
    oracle.decode(data, expected_BV, levels, seed)
    kernel.decode(data, decoded_BV, levels, seed)
    assert decoded_BV.tobytes() == expected_BV.tobytes()
