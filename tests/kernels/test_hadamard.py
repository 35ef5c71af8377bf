"""The fast Walsh-Hadamard transform against the matrix built by Kronecker products, in NumPy and compiled."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest

from tierline.kernels import hadamard
from tierline.kernels.library import library
from tierline.kernels.numpy import hadamard as oracle


@pytest.fixture(params=[oracle, hadamard], ids=["numpy", "compiled"])
def kernel(request: pytest.FixtureRequest) -> ModuleType:
    if request.param is hadamard and library(wait=True) is None:
        pytest.skip("no C++ compiler")
    module: ModuleType = request.param
    return module


@pytest.mark.parametrize("n", [1, 2, 4, 8, 64, 256])
def test_it_is_the_product_with_the_matrix(kernel: ModuleType, n: int) -> None:
    matrix = np.ones((1, 1), np.float32)
    while len(matrix) < n:
        matrix = np.kron(np.array([[1, 1], [1, -1]], np.float32), matrix)
    x = np.random.default_rng(n).integers(-9, 10, (3, n)).astype(np.float32)
    before = x.copy()
    y = kernel.transform(x)
    assert y.dtype == np.float32 and np.array_equal(y, x @ matrix)  # integers, so nothing is rounded
    assert np.array_equal(kernel.transform(y), n * x) and np.array_equal(x, before)


@pytest.mark.parametrize("num_rows", [1, 3, 40])
@pytest.mark.parametrize("n", [2**i for i in range(17)])
def test_both_give_the_same_bits(num_rows: int, n: int) -> None:
    if library(wait=True) is None:
        pytest.skip("no C++ compiler")
    draw = np.random.default_rng(n)
    x = (draw.normal(size=(num_rows, 2 * n)) * 10.0 ** draw.integers(-8, 8, (num_rows, 2 * n))).astype(np.float32)
    for rows in (x[:, :n], x[:, ::2]):  # neither is contiguous
        assert hadamard.transform(rows).tobytes() == oracle.transform(rows).tobytes()


def test_other_lengths_are_refused_and_filled_up(kernel: ModuleType) -> None:
    for n in (0, 3, 12):
        with pytest.raises(ValueError, match="power of two"):
            kernel.transform(np.zeros((2, n), np.float32))
    assert [kernel.padded(n) for n in (0, 1, 2, 3, 4, 5, 255, 256, 257)] == [1, 1, 2, 4, 4, 8, 256, 256, 512]
