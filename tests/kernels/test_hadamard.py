"""The fast Walsh-Hadamard transform against the matrix built by Kronecker products."""

from __future__ import annotations

import numpy as np
import pytest

from tierline.kernels.numpy import hadamard


@pytest.mark.parametrize("n", [1, 2, 4, 8, 64, 256])
def test_it_is_the_product_with_the_matrix(n: int) -> None:
    matrix = np.ones((1, 1), np.float32)
    while len(matrix) < n:
        matrix = np.kron(np.array([[1, 1], [1, -1]], np.float32), matrix)
    x = np.random.default_rng(n).integers(-9, 10, (3, n)).astype(np.float32)
    before = x.copy()
    y = hadamard.transform(x)
    assert y.dtype == np.float32 and np.array_equal(y, x @ matrix)  # integers, so nothing is rounded
    assert np.array_equal(hadamard.transform(y), n * x) and np.array_equal(x, before)


def test_other_lengths_are_refused_and_filled_up() -> None:
    for n in (0, 3, 12):
        with pytest.raises(ValueError, match="power of two"):
            hadamard.transform(np.zeros((2, n), np.float32))
    assert [hadamard.padded(n) for n in (0, 1, 2, 3, 4, 5, 255, 256, 257)] == [1, 1, 2, 4, 4, 8, 256, 256, 512]
