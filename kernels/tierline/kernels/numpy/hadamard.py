"""Fast Walsh-Hadamard transform: y = H x with H of +-1 in Sylvester's order, in n log2(n) additions per row.

Fino, Algazi, "Unified Matrix Treatment of the Fast Walsh-Hadamard Transform", IEEE Trans. Computers 1976.
Status: checked (against H built by Kronecker products; H H = n I).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]


def transform(x_BN: Floats) -> Floats:
    """H x of each row, not normalised: float32[B, N]. Raises ValueError unless N is a power of two."""
    num_rows, num_values = x_BN.shape
    if num_values < 1 or num_values & (num_values - 1):
        raise ValueError(f"{num_values} values per row, not a power of two")
    y_BN, other_BN = x_BN.astype(np.float32), np.empty((num_rows, num_values), np.float32)
    half = num_values // 2
    while half:
        # Each pass adds and subtracts the two halves of every group; two buffers spare a copy per pass.
        pairs, sums = y_BN.reshape(-1, 2, half), other_BN.reshape(-1, 2, half)
        np.add(pairs[:, 0], pairs[:, 1], out=sums[:, 0])
        np.subtract(pairs[:, 0], pairs[:, 1], out=sums[:, 1])
        y_BN, other_BN = other_BN, y_BN
        half //= 2
    return y_BN


def padded(num_values: int) -> int:
    """The smallest power of two that is not below `num_values`, at least 1."""
    return 1 << max(0, num_values - 1).bit_length()
