// Rows that start with a float32 scale: the largest magnitude over a divisor. The oracle is numpy/scaled.py.
#pragma once
#include "tl.h"

// Largest magnitude of each row, as the bits of a float, into most[b], which the caller has preset to 0.
TL_ENTRY(tl_scaled_range)(const tl_i32 *x, tl_i32 *most, tl_i64 num_rows, tl_i64 num_values) {
    TL_ROWS(b, num_rows) {
        tl_i32 largest = 0;
        const tl_i32 *row = x + b * num_values;
        TL_COLS(i, num_values) largest = tl_max(largest, row[i] & 0x7fffffff);  // NaN lies beyond infinity
        TL_MAX_INTO(&most[b], largest);
    }
}

// Scale of each row, `stride` bytes apart. bad[0] becomes 1 if a value is NaN or above 2^126 in magnitude.
TL_ENTRY(tl_scaled_header)(const tl_i32 *most, tl_u8 *out, tl_i32 *bad, tl_i64 num_rows, tl_i64 stride, float divisor) {
    TL_COLS(b, num_rows) {
        float largest = tl_float(most[b]), scale = largest / divisor;
        if (!(largest <= 8.507059173023462e37f)) TL_OR_INTO(bad, 1);
        if (scale < 1.1754943508222875e-38f) scale = largest > 0.0f ? 1.1754943508222875e-38f : 0.0f;
        memcpy(out + b * stride, &scale, sizeof scale);
    }
}

// The scale that a row starts with; *wrong becomes 1 for one that no encoder writes.
TL_INLINE float tl_scaled_scale(const tl_u8 *row, float divisor, tl_i32 *wrong) {
    float scale;
    memcpy(&scale, row, sizeof scale);
    *wrong = !(scale == 0.0f || (scale >= 1.1754943508222875e-38f && scale <= 8.507059173023462e37f / divisor));
    return scale;
}

// What a row is multiplied with: a row of zeros has no scale.
TL_INLINE float tl_scaled_inverse(float scale) { return scale > 0.0f ? 1.0f / scale : 0.0f; }
