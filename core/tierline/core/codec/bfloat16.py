"""float32 values as bfloat16: two bytes per value, the range of float32 with 8 significant bits.

Bytes: B * V little-endian bfloat16 (the upper half of a float32), row after row. Rounds to nearest, ties to even.
NaN stays NaN (quieted) and infinities stay; a finite magnitude of 2^128 - 2^119 or more becomes an infinity, as
IEEE 754 says, and `max_error` is then infinite.
"""

from __future__ import annotations

from typing import ClassVar

from tierline.core.codec._half import Half
from tierline.kernels import bfloat16


class Bfloat16(Half):
    """Codec `bfloat16`."""

    token: ClassVar[str] = "bfloat16"
    kernel: ClassVar = bfloat16
