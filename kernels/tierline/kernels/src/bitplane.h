// `bitplane`: one bit per value, 1 where x >= 0, first value in the most significant bit. The oracle is
// numpy/bitplane.py.
#pragma once
#include "tl.h"

// Each column is one byte of 8 values; padding bits are 0. bad[0] becomes 1 if a value is NaN.
TL_ENTRY(tl_bitplane_encode)(const float *x, tl_u8 *out, tl_i32 *bad, tl_i64 num_rows, tl_i64 num_values) {
    tl_i64 num_bytes = (num_values + 7) / 8;
    TL_ROWS(b, num_rows) {
        const float *row = x + b * num_values;
        tl_u32 nan = 0;
        TL_COLS(j, num_bytes) {
            tl_i64 first = 8 * j, num = num_values - first < 8 ? num_values - first : 8;
            tl_u32 byte = 0;
            for (tl_i64 k = 0; k < num; ++k) {
                float value = row[first + k];
                nan |= value != value;
                byte |= (tl_u32)(value >= 0.0f) << (7 - k);
            }
            out[b * num_bytes + j] = (tl_u8)byte;
        }
        if (nan) TL_OR_INTO(bad, 1);
    }
}

// +1 for a set bit, -1 for a clear one. bad[0] becomes 1 if a padding bit is set.
TL_ENTRY(tl_bitplane_decode)(const tl_u8 *data, float *x, tl_i32 *bad, tl_i64 num_rows, tl_i64 num_values) {
    tl_i64 num_bytes = (num_values + 7) / 8;
    TL_ROWS(b, num_rows) {
        const tl_u8 *coded = data + b * num_bytes;
        float *row = x + b * num_values;
        TL_COLS(i, num_values) row[i] = (coded[i / 8] >> (7 - i % 8)) & 1 ? 1.0f : -1.0f;
        tl_i32 num_padding = (tl_i32)(8 * num_bytes - num_values);
        if (num_bytes && (coded[num_bytes - 1] & ((1 << num_padding) - 1))) TL_OR_INTO(bad, 1);
    }
}
