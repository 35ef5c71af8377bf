"""Launches that find ranges of `affine` which leave outliers out; oracle: numpy/affine_clip.py.

Both replace the pair of keys that `tl_affine_range` found for each row. Rows are taken some at a time, for each needs
some kilobytes of counts.
"""

from __future__ import annotations

from tierline.kernels.cuda.work import Work

_BINS = 2048  # of one digit of a key
_DIGITS = ((21, 11), (10, 11), (0, 10))  # shift and width
_CLIP_BINS, _CANDIDATES, _SUMS_BYTES = 2304, 136, 24  # as in affine_clip.h
_ROWS_AT_ONCE = 256


def percentile(work: Work, x: int, keys: int, num_rows: int, num_values: int, dropped: int) -> None:
    """Keys of the smallest and largest value without the `dropped` smallest and the `dropped` largest."""
    some = min(num_rows, _ROWS_AT_ONCE)
    counts, num_bytes = work.take(8 * _BINS * some), 8 * _BINS * some
    founds, ranks = [work.take(8 * some) for _ in range(3)], [work.take(8 * some) for _ in range(3)]
    for first in range(0, num_rows, some):
        rows = min(some, num_rows - first)
        work.clear(founds[0], 8 * rows)
        work("tl_rows_fill", "pnii", 1, 2 * rows, ranks[0], 2 * rows, dropped, num_values - 1 - dropped)
        for turn, (shift, width) in enumerate(_DIGITS):
            last = turn == len(_DIGITS) - 1
            found, rank = founds[turn], ranks[turn]
            next_found = keys + 8 * first if last else founds[turn + 1]
            next_rank = ranks[0] if last else ranks[turn + 1]
            here = (x + 4 * first * num_values, found, counts)
            digit = (rows, num_values, shift, width)
            clear = work.clearing(counts, num_bytes)
            work("tl_affine_digits", "pppnnii", rows, (num_values + 7) // 8, *here, *digit, before=clear)
            given, made = (counts, found, rank), (next_found, next_rank)
            work("tl_affine_digit", "pppppnii", 1, 2 * rows, *given, *made, 2 * rows, width, last)


def least_error(work: Work, x: int, keys: int, num_rows: int, num_values: int, bits: int) -> None:
    """Keys of the ends of the range of least squared error."""
    some = min(num_rows, _ROWS_AT_ONCE)
    num_bytes = 4 * _CLIP_BINS * some
    counts, sums = work.take(num_bytes), work.take(_SUMS_BYTES * (_CLIP_BINS + 1) * some)
    errors = work.take(8 * _CANDIDATES * some)
    whole = work.take(8 * num_rows)
    work.move(keys, 0, whole, 0, 1, 8 * num_rows)  # what is found replaces what it is found from
    for first in range(0, num_rows, some):
        rows = min(some, num_rows - first)
        here, from_, to = x + 4 * first * num_values, whole + 8 * first, keys + 8 * first
        clear = work.clearing(counts, num_bytes)
        sizes = (rows, num_values, bits)
        work("tl_affine_bins", "pppnni", rows, (num_values + 7) // 8, here, from_, counts, *sizes, before=clear)
        work("tl_affine_sums_up", "ppni", 1, 3 * rows, counts, sums, rows, bits)
        work("tl_affine_errors", "ppni", rows, _CANDIDATES, sums, errors, rows, bits)
        work("tl_affine_search", "ppppni", 1, rows, sums, errors, from_, to, rows, bits)
