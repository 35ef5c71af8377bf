"""Names of the precisions in which an engine computes a Section: dtypes of the arithmetic."""

from __future__ import annotations

FLOAT32 = "float32"
FLOAT16 = "float16"
INT8 = "int8"
FLOAT8_E4M3 = "float8_e4m3"
LOWER = (FLOAT16, INT8, FLOAT8_E4M3)
"""Below float32: a Bundle holds files of their own for them."""
PRECISIONS = (FLOAT32, *LOWER)
