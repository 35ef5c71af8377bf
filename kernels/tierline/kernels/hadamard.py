"""`numpy.hadamard`, compiled: same functions, same bytes."""

from __future__ import annotations

import numpy as np

from tierline.kernels.library import binder, pointer
from tierline.kernels.numpy import hadamard as oracle
from tierline.kernels.numpy.hadamard import Floats, padded

__all__ = ["padded", "transform"]

_compiled = binder(tl_hadamard="pnn:i")


def transform(x_BN: Floats) -> Floats:
    """See `numpy.hadamard.transform`."""
    lib = _compiled()
    num_rows, num_values = x_BN.shape
    if lib is None or num_values & (num_values - 1) or x_BN.size == 0:
        return oracle.transform(x_BN)
    y_BN = np.array(x_BN, np.float32, order="C")
    lib.tl_hadamard(pointer(y_BN), num_rows, num_values)
    return y_BN
