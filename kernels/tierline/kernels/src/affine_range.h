// Ranges of `affine` that leave outliers out, for a GPU: what affine_clip.h does in a row's turn is spread over threads.
// Entries take and leave pairs of tl_key as `tl_affine_range` does.
#pragma once
#include "affine_clip.h"
#if TL_GPU

// For both ends of each row (s = 2 * b and 2 * b + 1): how many keys whose bits above `shift + width` are found[s] have
// which `width` bits from `shift` up, added to counts[2048 * s ...]. Keys are turned into unsigned ones.
TL_ENTRY(tl_affine_digits)(const float *x, const tl_u32 *found, tl_i32 *counts, tl_i64 num_rows, tl_i64 num_values,
                           tl_i32 shift, tl_i32 width) {
    TL_ROWS(b, num_rows) {
        tl_u32 mask = (1u << width) - 1, low = found[2 * b], high = found[2 * b + 1];
        __shared__ tl_i32 bins[4096];
        tl_shared_clear(bins, 4096);
        TL_COLS(group, (num_values + 7) / 8) {
            tl_i64 left = num_values - 8 * group;
            float v[8];
            tl_read_group(x + b * num_values, group, num_values, v);
#pragma unroll
            for (int k = 0; k < 8; ++k) {
                if (k >= left) continue;
                tl_u64 key = (tl_u32)tl_key(v[k]) ^ 0x80000000u;
                tl_u32 digit = (tl_u32)(key >> shift) & mask;
                if (key >> (shift + width) == low) TL_ADD_INTO(&bins[digit], 1);
                if (key >> (shift + width) == high) TL_ADD_INTO(&bins[2048 + digit], 1);
            }
        }
        tl_shared_add(bins, 4096, counts + 4096 * b);
    }
}

// The digit of the value that has `rank` before it in sorted order, and how many of those are in its bin; `last` turns
// what is found back into a tl_key.
TL_ENTRY(tl_affine_digit)(const tl_i32 *counts, const tl_u32 *found, const tl_i32 *rank, tl_u32 *next_found,
                          tl_i32 *next_rank, tl_i64 num_ends, tl_i32 width, tl_i32 last) {
    TL_COLS(s, num_ends) {
        const tl_i32 *bins = counts + 2048 * s;
        tl_i32 before = rank[s], digit = 0;
        for (; digit < (1 << width) - 1 && before >= bins[digit]; ++digit) before -= bins[digit];
        next_found[s] = (found[s] << width | (tl_u32)digit) ^ (last ? 0x80000000u : 0u);
        next_rank[s] = before;
    }
}

// Values counted by bin. Rows that hold what no range has are left alone: they are refused.
TL_ENTRY(tl_affine_bins)(const float *x, const tl_i32 *keys, tl_i32 *counts, tl_i64 num_rows, tl_i64 num_values,
                         tl_i32 bits) {
    const tl_i32 num_bins = tl_affine_num_bins((1 << bits) - 1);
    TL_ROWS(b, num_rows) {
        float lo = tl_unkey(keys[2 * b]), hi = tl_unkey(keys[2 * b + 1]);
        if (tl_affine_outside(keys[2 * b], keys[2 * b + 1]) || !tl_affine_is_wide(lo, hi, num_bins)) continue;
        const float inverse = (float)(num_bins - 1) / (hi - lo);
        __shared__ tl_i32 bins[TL_AFFINE_MOST_BINS];
        tl_shared_clear(bins, num_bins);
        TL_COLS(group, (num_values + 7) / 8) {
            tl_i64 left = num_values - 8 * group;
            float v[8];
            tl_read_group(x + b * num_values, group, num_values, v);
#pragma unroll
            for (int k = 0; k < 8; ++k)
                if (k < left) TL_ADD_INTO(&bins[tl_nearest((v[k] - lo) * inverse)], 1);
        }
        tl_shared_add(bins, num_bins, counts + TL_AFFINE_MOST_BINS * b);
    }
}

// Running sums of the counts, a thread for each of a row's three. They are sums of integers below 2^53, so exact.
TL_ENTRY(tl_affine_sums_up)(const tl_i32 *counts, tl_affine_sums *sums, tl_i64 num_rows, tl_i32 bits) {
    const tl_i32 num_bins = tl_affine_num_bins((1 << bits) - 1);
    TL_COLS(i, 3 * num_rows) {
        const tl_i32 *bins = counts + TL_AFFINE_MOST_BINS * (i / 3);
        double *out = &sums[(TL_AFFINE_MOST_BINS + 1) * (i / 3)].count + i % 3, sum = 0.0;
        for (tl_i32 k = 0; k < num_bins; ++k, out += 3) {
            *out = sum;
            sum += (double)bins[k] * (i % 3 == 0 ? 1.0 : i % 3 == 1 ? (double)k : (double)k * k);
        }
        *out = sum;
    }
}

TL_ENTRY(tl_affine_errors)(const tl_affine_sums *sums, double *errors, tl_i64 num_rows, tl_i32 bits) {
    const tl_i32 steps = (1 << bits) - 1, num_bins = tl_affine_num_bins(steps);
    TL_ROWS(b, num_rows)
        TL_COLS(number, TL_AFFINE_CANDIDATES) {
            tl_i32 from, to;
            tl_affine_candidate((tl_i32)number, num_bins, &from, &to);
            const tl_affine_sums *before = sums + (TL_AFFINE_MOST_BINS + 1) * b;
            errors[TL_AFFINE_CANDIDATES * b + number] = tl_affine_error(before, num_bins, from, to, steps);
        }
}

TL_ENTRY(tl_affine_search)(const tl_affine_sums *sums, const double *errors, const tl_i32 *keys, tl_i32 *out,
                           tl_i64 num_rows, tl_i32 bits) {
    const tl_i32 steps = (1 << bits) - 1;
    TL_COLS(b, num_rows) {
        float lo = tl_unkey(keys[2 * b]), hi = tl_unkey(keys[2 * b + 1]);
        if (tl_affine_is_wide(lo, hi, tl_affine_num_bins(steps)))
            tl_affine_narrow(sums + (TL_AFFINE_MOST_BINS + 1) * b, errors + TL_AFFINE_CANDIDATES * b, steps, &lo, &hi);
        out[2 * b] = tl_key(lo);
        out[2 * b + 1] = tl_key(hi);
    }
}
#endif
