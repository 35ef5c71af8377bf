// `dithered`: subtractive dither. Symbols of a row, to be packed by radix.h behind the scale of scaled.h. The oracle is
// numpy/dithered.py.
#pragma once
#include "philox.h"
#include "scaled.h"

#if TL_GPU
#define TL_DITHER_BLOCK 4
// A bound that is known, so that the loop unrolls and the dither stays in registers.
#define TL_DITHER_EACH(k, num)                                                                                        \
    for (tl_i32 k = 0; k < TL_DITHER_BLOCK; ++k)                                                                      \
        if (k < (num))
#else
#define TL_DITHER_BLOCK 1024
#define TL_DITHER_EACH(k, num) for (tl_i32 k = 0; k < (num); ++k)
#endif

// Dither of values `first` and up, which is a multiple of 4: uniform in [-1/2, 1/2).
TL_INLINE void tl_dither(float *dither, tl_i64 first, tl_u64 seed) {
    for (tl_i32 k = 0; k < TL_DITHER_BLOCK / 4; ++k) {
        tl_u32x4 c = tl_philox4x32((tl_u64)(first / 4 + k), 0, seed);
        dither[4 * k] = tl_uniform(c.w0) - 0.5f;
        dither[4 * k + 1] = tl_uniform(c.w1) - 0.5f;
        dither[4 * k + 2] = tl_uniform(c.w2) - 0.5f;
        dither[4 * k + 3] = tl_uniform(c.w3) - 0.5f;
    }
}

// Symbols 0 .. 2 * most of each row by the scale that starts it; coded rows are `stride` bytes apart.
TL_ENTRY(tl_dithered_symbols)(const float *x, const tl_u8 *coded, tl_u8 *symbols, tl_i64 num_rows, tl_i64 num_values,
                              tl_i64 stride, tl_i32 most, tl_u64 seed) {
    TL_COLS(block, (num_values + TL_DITHER_BLOCK - 1) / TL_DITHER_BLOCK) {
        tl_i64 first = block * TL_DITHER_BLOCK, left = num_values - first;
        tl_i32 num = (tl_i32)(left < TL_DITHER_BLOCK ? left : TL_DITHER_BLOCK);
        float dither[TL_DITHER_BLOCK];
        tl_dither(dither, first, seed);
        TL_ROWS(b, num_rows) {
            const float *row = x + b * num_values + first;
            tl_u8 *out = symbols + b * num_values + first;
            float scale;
            memcpy(&scale, coded + b * stride, sizeof scale);
            float inverse = tl_scaled_inverse(scale);
            TL_DITHER_EACH(k, num) {
                // The addition leaves the nearest integer, ties to even, in the low bits of the sum.
                tl_i32 level = tl_bits(row[k] * inverse + dither[k] + 12582912.0f) - 0x4b400000;
                out[k] = (tl_u8)(tl_min(tl_max(level, -most), most) + most);
            }
        }
    }
}

// Values of each row from its scale and symbols. bad[0] becomes 1 for a scale that no encoder writes.
TL_ENTRY(tl_dithered_values)(const tl_u8 *symbols, const tl_u8 *coded, float *x, tl_i32 *bad, tl_i64 num_rows,
                             tl_i64 num_values, tl_i64 stride, tl_i32 most, tl_u64 seed) {
    TL_COLS(block, (num_values + TL_DITHER_BLOCK - 1) / TL_DITHER_BLOCK) {
        tl_i64 first = block * TL_DITHER_BLOCK, left = num_values - first;
        tl_i32 num = (tl_i32)(left < TL_DITHER_BLOCK ? left : TL_DITHER_BLOCK);
        float dither[TL_DITHER_BLOCK];
        tl_dither(dither, first, seed);
        TL_ROWS(b, num_rows) {
            const tl_u8 *in = symbols + b * num_values + first;
            float *row = x + b * num_values + first;
            tl_i32 wrong;
            float scale = tl_scaled_scale(coded + b * stride, (float)most, &wrong);
            if (wrong) TL_OR_INTO(bad, 1);
            TL_DITHER_EACH(k, num) row[k] = scale * ((float)((tl_i32)in[k] - most) - dither[k]);
        }
    }
}
