"""Launches that put a scale in front of each row."""

from __future__ import annotations

from tierline.kernels.cuda.work import Work


def write(work: Work, x: int, out: int, bad: int, num_rows: int, num_values: int, stride: int, divisor: float) -> None:
    """Scales to addresses `stride` bytes apart; flag 1 where a value has no place on one."""
    most = work.take(4 * num_rows)
    start = work.clearing(most, 4 * num_rows)
    work("tl_scaled_range", "ppnn", num_rows, num_values, x, most, num_rows, num_values, before=start)
    work("tl_scaled_header", "pppnnf", 1, num_rows, most, out, bad, num_rows, stride, divisor)
