// `topk`: histograms that find the k-th largest magnitude of a row, and the bitmap of what is not below it. The oracle
// is numpy/topk.py. A magnitude is ordered by its bits without the sign, NaN beyond infinity.
#pragma once
#include "tl.h"

TL_INLINE tl_u32 tl_magnitude(float x) { return (tl_u32)tl_bits(x) & 0x7fffffffu; }

// For the magnitudes of row b whose bits from `shift + 11` up are above[b]: how many have which 11 bits from `shift` up,
// added to counts[2048 * b ...], which the caller has cleared.
TL_ENTRY(tl_topk_histogram)(const float *x, const tl_i32 *above, tl_i32 *counts, tl_i64 num_rows, tl_i64 num_values,
                            tl_i32 shift) {
    TL_ROWS(b, num_rows) {
        const float *row = x + b * num_values;
#if TL_GPU
        __shared__ tl_i32 bins[2048];
        tl_shared_clear(bins, 2048);
#else
        tl_i32 *bins = counts + 2048 * b;
#endif
        TL_COLS(i, num_values) {
            tl_u32 key = tl_magnitude(row[i]) >> shift;
            if ((tl_i32)(key >> 11) == above[b]) TL_ADD_INTO(&bins[key & 2047u], 1);
        }
#if TL_GPU
        tl_shared_add(bins, 2048, counts + 2048 * b);
#endif
    }
}

// Each column is one byte of 8 values: 1 where a magnitude is above[b], or equals least[b] and lies before value last[b].
TL_ENTRY(tl_topk_mark)(const float *x, const tl_i32 *least, const tl_i64 *last, tl_u8 *bitmap, tl_i64 num_rows,
                       tl_i64 num_values) {
    tl_i64 num_bytes = (num_values + 7) / 8;
    TL_ROWS(b, num_rows) {
        const float *row = x + b * num_values;
        tl_i32 limit = least[b];
        TL_COLS(j, num_bytes) {
            tl_i64 first = 8 * j, num = num_values - first < 8 ? num_values - first : 8;
            tl_i64 before = last[b] - first;
            tl_u32 byte = 0;
            for (tl_i64 k = 0; k < num; ++k) {
                tl_i32 key = (tl_i32)tl_magnitude(row[first + k]);
                byte |= (tl_u32)((key > limit) | ((key == limit) & (k < before))) << (7 - k);
            }
            bitmap[b * num_bytes + j] = (tl_u8)byte;
        }
    }
}
