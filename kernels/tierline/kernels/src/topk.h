// `topk`: histograms that find the k-th largest magnitude of a row, and the choice itself. The oracle
// is numpy/topk.py. A magnitude is ordered by its bits without the sign, NaN beyond infinity.
#pragma once
#include "bits.h"

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

#if !TL_GPU
// The num_chosen-th largest magnitude of a row, and how many values of exactly this magnitude are among the chosen.
// Every pass narrows it by the bits that a histogram tells apart; counting needs no branch.
TL_INLINE tl_i32 tl_topk_least(const float *row, tl_i64 num_values, tl_i64 num_chosen, tl_i64 *num_equal_chosen) {
    tl_u32 found = 0;
    tl_i64 wanted = num_chosen;
    for (tl_i32 shift = 22; shift >= 0; shift -= 11) {
        tl_u32 counts[4][2048] = {};  // neighbours are often alike: turns spare them the wait for one another's count
        tl_i64 i = 0;
        for (; i + 4 <= num_values; i += 4)
            for (tl_i32 turn = 0; turn < 4; ++turn) {
                tl_u32 key = tl_magnitude(row[i + turn]) >> shift;
                counts[turn][key & 2047u] += key >> 11 == found;
            }
        for (; i < num_values; ++i) {
            tl_u32 key = tl_magnitude(row[i]) >> shift;
            counts[0][key & 2047u] += key >> 11 == found;
        }
        tl_u32 bin = 2048;
        tl_i64 above = 0, here = 0;
        do {
            above += here;
            --bin;
            here = (tl_i64)counts[0][bin] + counts[1][bin] + counts[2][bin] + counts[3][bin];
        } while (bin && above + here < wanted);
        wanted -= above;
        found = found << 11 | bin;
    }
    *num_equal_chosen = wanted;
    return (tl_i32)found;
}

// Bitmap of each row's num_chosen largest magnitudes, of equal ones the first. Returns 1 where a NaN or an infinity
// would be dropped.
TL_CPU_ENTRY(tl_topk_choose_cpu)(const float *x, tl_u8 *bitmap, tl_i64 num_rows, tl_i64 num_values, tl_i64 num_chosen) {
    const tl_i64 num_bytes = (num_values + 7) / 8;
    for (tl_i64 b = 0; b < num_rows; ++b) {
        const float *row = x + b * num_values;
        tl_u8 *bytes = bitmap + b * num_bytes;
        tl_i64 wanted, last = 0, num_infinite = 0;
        const tl_i32 least = tl_topk_least(row, num_values, num_chosen, &wanted);
        if (least >= 0x7f800000) {
            for (tl_i64 i = 0; i < num_values; ++i) num_infinite += tl_magnitude(row[i]) >= 0x7f800000u;
            if (num_infinite > num_chosen) return 1;
        }
        for (tl_i64 num_left = wanted; num_left; ++last) num_left -= (tl_i32)tl_magnitude(row[last]) == least;
        for (tl_i64 first = 0; first < num_values; first += 512) {
            const tl_i64 num = num_values - first < 512 ? num_values - first : 512, before = last - first;
            tl_u8 flag[512];
            // Up to the last equal one that is chosen, `least` itself counts.
            const tl_i64 num_before = before < 0 ? 0 : before < num ? before : num;
            for (tl_i64 k = 0; k < num_before; ++k) flag[k] = (tl_i32)tl_magnitude(row[first + k]) >= least;
            for (tl_i64 k = num_before; k < num; ++k) flag[k] = (tl_i32)tl_magnitude(row[first + k]) > least;
            for (tl_i64 k = num; k < (num + 7) / 8 * 8; ++k) flag[k] = 0;
            tl_bits_pack(flag, bytes + first / 8, (num + 7) / 8);
        }
    }
    return 0;
}
#endif
