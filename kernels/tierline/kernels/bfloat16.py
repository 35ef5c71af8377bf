"""`numpy.bfloat16`, compiled: same functions, same bytes."""

from __future__ import annotations

from tierline.kernels.half import Half
from tierline.kernels.numpy import bfloat16 as oracle
from tierline.kernels.numpy.bfloat16 import row_bytes

__all__ = ["decode", "encode", "half", "row_bytes"]

half = Half("bfloat16", oracle)
encode, decode = half.encode, half.decode
