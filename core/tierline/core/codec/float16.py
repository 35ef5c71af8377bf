"""float32 values as IEEE half precision: two bytes per value, 11 significant bits.

Bytes: B * V little-endian float16, row after row. Rounds to nearest, ties to even. NaN stays NaN (quieted) and
infinities stay; a finite magnitude of 65520 or more becomes an infinity, as IEEE 754 says, and `max_error` is then
infinite.
"""

from __future__ import annotations

from typing import ClassVar

from tierline.core.codec._half import Half
from tierline.kernels import float16


class Float16(Half):
    """Codec `float16`."""

    token: ClassVar[str] = "float16"
    kernel: ClassVar = float16
