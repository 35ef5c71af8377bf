// `float8_e4m3`: sign, 4 bits of exponent (bias 7), 3 of fraction; no infinities, S.1111.111 is NaN. The oracle is
// numpy/float8_e4m3.py.
#pragma once
#include "scaled.h"

// Nearest code, ties to even, saturating at 448; NaN stays NaN.
TL_INLINE tl_u8 tl_float8_code(float x) {
    tl_u32 bits = (tl_u32)tl_bits(x), size = bits & 0x7fffffffu;
    // Above 2^-6: 3 bits of the fraction are kept, the rest is rounded, and 120 is the difference of the biases.
    tl_u32 normal = ((size + 0x7ffffu + ((size >> 20) & 1)) >> 20) - (120u << 3);
    normal = normal < 0x7eu ? normal : 0x7eu;
    // Below: even steps of 2^-9, which the addition leaves in the low bits of the sum.
    tl_u32 subnormal = (tl_u32)tl_bits(tl_float((tl_i32)size) + 16384.0f) & 0xfu;
    tl_u32 code = size < 0x3c800000u ? subnormal : normal;
    code = size > 0x7f800000u ? 0x7fu : code;
    return (tl_u8)(code | ((bits >> 24) & 0x80u));
}

// Bits of the float32 that a code means. Below 2^-6 it is made as if it had a leading one, which is then taken off; no
// operation is conditional, so that compilers vectorise.
TL_INLINE tl_u32 tl_float8_value(tl_u8 code) {
    tl_u32 size = code & 0x7fu, small = size < 8 ? 0x3c800000u : 0u;
    tl_u32 value = (tl_u32)tl_bits(tl_float((tl_i32)((size << 20) + (120u << 23) + (small & 0x800000u))) -
                                   tl_float((tl_i32)small));
    value = size == 0x7fu ? 0x7fc00000u : value;
    return value | ((tl_u32)(code & 0x80u) << 24);
}

// bad[0] becomes 1 if a value is infinite, which no code means.
TL_ENTRY(tl_float8_encode)(const float *x, tl_u8 *out, tl_i32 *bad, tl_i64 num_values) {
    tl_u32 infinite = 0;
    TL_COLS(i, num_values) {
        infinite |= (tl_bits(x[i]) & 0x7fffffff) == 0x7f800000;
        out[i] = tl_float8_code(x[i]);
    }
    if (infinite) TL_OR_INTO(bad, 1);
}

TL_ENTRY(tl_float8_decode)(const tl_u8 *data, tl_u32 *x, tl_i64 num_values) {
    TL_COLS(i, num_values) x[i] = tl_float8_value(data[i]);
}

// Codes of each row behind the scale that is already there.
TL_ENTRY(tl_float8_scaled_encode)(const float *x, tl_u8 *out, tl_i64 num_rows, tl_i64 num_values) {
    TL_ROWS(b, num_rows) {
        const float *row = x + b * num_values;
        tl_u8 *coded = out + b * (4 + num_values);
        float scale;
        memcpy(&scale, coded, sizeof scale);
        coded += sizeof scale;
        float inverse = tl_scaled_inverse(scale);
        TL_COLS(i, num_values) coded[i] = tl_float8_code(row[i] * inverse);
    }
}

// bad[0] becomes 1 for a scale that no encoder writes, 2 or more for a NaN, which none writes behind a scale.
TL_ENTRY(tl_float8_scaled_decode)(const tl_u8 *data, float *x, tl_i32 *bad, tl_i64 num_rows, tl_i64 num_values) {
    TL_ROWS(b, num_rows) {
        const tl_u8 *coded = data + b * (4 + num_values);
        float *row = x + b * num_values;
        tl_i32 wrong;
        tl_u32 nan = 0;
        float scale = tl_scaled_scale(coded, 448.0f, &wrong);
        coded += sizeof scale;
        if (wrong) TL_OR_INTO(bad, 1);
        TL_COLS(i, num_values) {
            nan |= (coded[i] & 0x7fu) == 0x7fu;
            row[i] = tl_float((tl_i32)tl_float8_value(coded[i])) * scale;
        }
        if (nan) TL_OR_INTO(bad, 2);
    }
}
