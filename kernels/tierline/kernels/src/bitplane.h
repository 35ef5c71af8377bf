// `bitplane`: one bit per value, 1 where x >= 0, first value in the most significant bit. The oracle is
// numpy/bitplane.py.
#pragma once
#include "bits.h"

// One byte of up to 8 values; padding bits are 0.
TL_INLINE tl_u32 tl_bitplane_byte(const float *x, tl_i64 num, tl_u32 *nan) {
    tl_u32 byte = 0;
    for (tl_i64 k = 0; k < num; ++k) {
        *nan |= x[k] != x[k];
        byte |= (tl_u32)(x[k] >= 0.0f) << (7 - k);
    }
    return byte;
}

// Each column is one byte of 8 values. bad[0] becomes 1 if a value is NaN.
TL_ENTRY(tl_bitplane_encode)(const float *x, tl_u8 *out, tl_i32 *bad, tl_i64 num_rows, tl_i64 num_values) {
    tl_i64 num_bytes = (num_values + 7) / 8;
    TL_ROWS(b, num_rows) {
        const float *row = x + b * num_values;
        tl_u32 nan = 0;
        tl_i64 num_done = 0;
#if !TL_GPU
        num_done = num_values / 64 * 8;
        nan = tl_bits_blocks<TL_BITS_SIGN>(row, out + b * num_bytes, num_done / 8);
#endif
        TL_COLS(rest, num_bytes - num_done) {
            tl_i64 j = num_done + rest, num = num_values - 8 * j;
#if TL_GPU
            float v[8];
            tl_read_group(row, j, num_values, v);
            tl_u32 byte = tl_bitplane_byte(v, 8, &nan);
            out[b * num_bytes + j] = (tl_u8)(num < 8 ? byte & 0xff00u >> num : byte);
#else
            out[b * num_bytes + j] = (tl_u8)tl_bitplane_byte(row + 8 * j, num < 8 ? num : 8, &nan);
#endif
        }
        if (nan) TL_OR_INTO(bad, 1);
    }
}

// +1 or -1 for bit `k`, counted from the most significant one.
TL_INLINE float tl_bitplane_value(tl_u32 byte, tl_i64 k) {
    return tl_float(0x3f800000 | (tl_i32)(~byte << (24 + k) & 0x80000000u));
}

TL_INLINE void tl_bitplane_open(tl_u32 byte, float *x) {
#if TL_GPU
    for (tl_i64 k = 0; k < 8; ++k) x[k] = tl_bitplane_value(byte, k);
#else
    typedef tl_u32 eight __attribute__((vector_size(32)));
    const eight shift = {24, 25, 26, 27, 28, 29, 30, 31};
    eight value = (~byte << shift & 0x80000000u) | 0x3f800000u;
    memcpy(x, &value, sizeof value);
#endif
}

// +1 for a set bit, -1 for a clear one. bad[0] becomes 1 if a padding bit is set.
TL_ENTRY(tl_bitplane_decode)(const tl_u8 *data, float *x, tl_i32 *bad, tl_i64 num_rows, tl_i64 num_values) {
    tl_i64 num_bytes = (num_values + 7) / 8;
    TL_ROWS(b, num_rows) {
        const tl_u8 *coded = data + b * num_bytes;
        float *row = x + b * num_values;
#if TL_GPU
        TL_COLS(j, num_bytes) {
            float v[8];
            tl_bitplane_open(coded[j], v);
            tl_write_group(row, j, num_values, v);
        }
#else
        tl_i64 num_whole = num_values / 8;
        TL_COLS(j, num_whole) tl_bitplane_open(coded[j], row + 8 * j);
        TL_COLS(k, num_values - 8 * num_whole) row[8 * num_whole + k] = tl_bitplane_value(coded[num_whole], k);
#endif
        tl_i32 num_padding = (tl_i32)(8 * num_bytes - num_values);
        if (num_bytes && (coded[num_bytes - 1] & ((1 << num_padding) - 1))) TL_OR_INTO(bad, 1);
    }
}

#if !TL_GPU
TL_CPU_ENTRY(tl_bitplane_encode_cpu)(const float *x, tl_u8 *out, tl_i64 num_rows, tl_i64 num_values) {
    tl_i32 bad = 0;
    tl_bitplane_encode(x, out, &bad, num_rows, num_values);
    return bad;
}

TL_CPU_ENTRY(tl_bitplane_decode_cpu)(const tl_u8 *data, float *x, tl_i64 num_rows, tl_i64 num_values) {
    tl_i32 bad = 0;
    tl_bitplane_decode(data, x, &bad, num_rows, num_values);
    return bad;
}
#endif
